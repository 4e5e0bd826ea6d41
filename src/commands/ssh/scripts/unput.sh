# Takes back a file that was put: the former one, or none.
value path
rm -f "$path.backhaul-new"
if [ -e "$path.backhaul-former" ]; then
    mv -f "$path.backhaul-former" "$path"
else
    rm -f "$path"
fi
