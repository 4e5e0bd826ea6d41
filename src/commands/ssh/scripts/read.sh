# A file, as it is.
value path
exec cat "$path"
