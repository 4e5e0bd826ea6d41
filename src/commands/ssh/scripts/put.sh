# Puts a file in its place, whole or not at all; the former one is kept beside it, under the name of this run, until all is well.
value path
value mode
value owner
value run
value expected
new=$path.backhaul-new
umask 077
trap 'rm -f "$new"' EXIT
cat > "$new" || fail "cannot write $new"
[ "$(sum "$new")" = "$expected" ] || fail "what arrived for $path is not what was sent"
chown "$owner" "$new" && chmod "$mode" "$new" || exit 1
sync "$new" 2> /dev/null
if [ -e "$path" ]; then
    ln "$path" "$path.backhaul-former-$run" || exit 1
fi
mv -f "$new" "$path"
