# A folder with its owner.
value path
value mode
value owner
mkdir -p "$path" && chown "$owner" "$path" && chmod "$mode" "$path"
