# Takes back the account that this very run made.
value run
alone
[ -e "/run/backhaul-account.backhaul-former-$run" ] || exit 0
if id backhaul > /dev/null 2>&1; then
    userdel backhaul || exit 1
    if getent group backhaul > /dev/null 2>&1; then groupdel backhaul; fi
fi
rm -f "/run/backhaul-account.backhaul-former-$run"
