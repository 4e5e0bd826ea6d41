# Puts a file in its place, whole or not at all; the former one is kept beside it, under the name of this run, until all is well.
value path
value mode
value owner
value run
value expected
alone
umask 077
# The daemon owns the folder of its state: what root writes there grows in a folder that only root can enter, entered once
# and named no more, so that nothing that is put in its way leads elsewhere.
folder=$(mktemp -d "$path.backhaul-new.XXXXXXXXXX") || exit 1
trap 'cd / && rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
cd -P "$folder" && [ "$(stat -c '%u %a' .)" = '0 700' ] || fail "$folder is not root's alone"
cat > new || fail "cannot write $folder/new"
[ "$(sum new)" = "$expected" ] || fail "what arrived for $path is not what was sent"
chown "$owner" new && chmod "$mode" new || exit 1
sync new 2> /dev/null
if [ -e "$path" ]; then
    ln "$path" "$path.backhaul-former-$run" || exit 1
fi
mv -fT new "$path"
