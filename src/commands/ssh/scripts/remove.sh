# Removes what a deployment made. Which paths is written here and not read from the host; `purge` also takes the state.
value kind
value account
value purge
alone
# Whether the state is a file system of its own.
mounted() {
    while read -r _ point _; do
        [ "$point" = /var/lib/backhaul ] && return 0
    done < /proc/mounts
    return 1
}
systemctl stop backhauld 2> /dev/null
systemctl disable backhauld 2> /dev/null
if [ "$kind" = found ]; then
    :
elif [ "$kind" = package ]; then
    if dpkg-query -W backhaul > /dev/null 2>&1; then
        DEBIAN_FRONTEND=noninteractive dpkg --purge backhaul < /dev/null >&2 || exit 1
    elif rpm -q backhaul > /dev/null 2>&1; then
        rpm --erase backhaul < /dev/null >&2 || exit 1
    fi
else
    for path in /usr/local/bin/backhauld /etc/systemd/system/backhauld.service; do
        rm -rf "$path" "$path".backhaul-new.* "$path".backhaul-former-* || exit 1
    done
fi
# What an installation that was killed has left.
rm -rf /var/tmp/backhaul-package.*
systemctl daemon-reload
systemctl reset-failed backhauld 2> /dev/null
if [ "$purge" = yes ]; then
    # A share that was mounted there meanwhile is not the proxy's. A file system that the state has to itself stays, emptied.
    if mounted; then
        find /var/lib/backhaul -mindepth 1 -maxdepth 1 ! -name lost+found -exec rm -rf --one-file-system {} + || exit 1
        chown root:root /var/lib/backhaul && chmod 0755 /var/lib/backhaul || exit 1
    else
        rm -rf --one-file-system /var/lib/backhaul || exit 1
    fi
    # An account whose files stay stays too: its number must not become somebody else's.
    if [ "$account" = made ] && id backhaul > /dev/null 2>&1; then
        userdel backhaul || exit 1
        if getent group backhaul > /dev/null 2>&1; then groupdel backhaul; fi
    fi
else
    rm -rf /var/lib/backhaul/token.backhaul-* /var/lib/backhaul/state.backhaul-* /var/lib/backhaul/made.backhaul-*
    # Its account stays with the files. A later deployment that takes them up is to know that it may go with them.
    # A folder, since a file could be a link to somewhere else: the account itself owns what is around it.
    if [ "$account" = made ] && [ -d /var/lib/backhaul ] && [ ! -e /var/lib/backhaul/account-made ]; then
        mkdir /var/lib/backhaul/account-made || exit 1
    fi
fi
# The mark goes last: until then, a removal that was cut can be done again.
for path in /etc/backhaul/backhauld.toml /etc/backhaul/deployed-by-ssh; do
    rm -rf "$path" "$path".backhaul-new.* "$path".backhaul-former-* || exit 1
done
rm -f /etc/backhaul/deploying /etc/backhaul/made.backhaul-former-* || exit 1
rmdir /etc/backhaul 2> /dev/null
:
