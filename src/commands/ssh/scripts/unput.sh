# Takes back a file that was put by this run, if it came to that: the former one returns, or none where there was none.
value path
value run
value existed
alone
rm -rf "$path".backhaul-new.*
if [ -e "$path.backhaul-former-$run" ]; then
    mv -f "$path.backhaul-former-$run" "$path"
elif [ "$existed" = no ]; then
    rm -f "$path"
fi
