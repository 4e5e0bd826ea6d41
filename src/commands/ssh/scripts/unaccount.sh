# Takes back the account.
id backhaul > /dev/null 2>&1 || exit 0
userdel backhaul
if getent group backhaul > /dev/null 2>&1; then groupdel backhaul; fi
:
