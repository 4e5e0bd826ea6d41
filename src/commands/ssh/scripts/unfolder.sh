# Takes back a folder that this very run made; of the state's, all that the daemon put into it meanwhile.
value path
value run
alone
[ -e "$path/made.backhaul-former-$run" ] || exit 0
case $path in
    /var/lib/backhaul) rm -rf --one-file-system "$path" ;;
    *) rm -f "$path/made.backhaul-former-$run" && rmdir "$path" ;;
esac
