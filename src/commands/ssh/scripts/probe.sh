# What the host is and has, as root; changes nothing.
say node "$(uname -n)"
say arch "$(uname -m)"
[ -d /run/systemd/system ] && say systemd "$(systemctl --version | sed -n 's/^systemd \([0-9]*\).*/\1/p')"
libc=$(getconf GNU_LIBC_VERSION 2> /dev/null) && say glibc "${libc#glibc }"
for tool in sha256sum useradd userdel dpkg rpm; do
    command -v "$tool" > /dev/null && say tool "$tool"
done
[ -e /proc/net/if_inet6 ] && say ipv6 yes
# Free KiB where program and state go, and whether it can be written to: of the nearest folder that is there.
for dir in /usr/local/bin /usr/bin /etc /var/lib /var/tmp; do
    there=$dir
    while [ ! -d "$there" ]; do there=${there%/*}; there=${there:-/}; done
    free=$(df -Pk "$there" | sed -n '2p' | { read -r _ _ _ kib _; printf '%s' "$kib"; })
    [ -w "$there" ] || free=readonly
    say "free:$dir" "$free"
done
for program in /usr/local/bin/backhauld /usr/bin/backhauld; do
    [ -f "$program" ] || continue
    say "sum:$program" "$(sum "$program")"
    say "version:$program" "$("$program" --version 2> /dev/null | sed -n '1s/^backhauld //p')"
    if owner=$(dpkg-query -S "$program" 2> /dev/null); then
        say "owner:$program" "${owner%%:*}"
        # One whose installation was cut is there, but not installed.
        case $(dpkg-query -W -f '${Status}' "${owner%%:*}" 2> /dev/null) in *' ok installed') say package-whole yes ;; esac
        say package "$(dpkg-query -W -f '${Version}' "${owner%%:*}" 2> /dev/null)"
    elif owner=$(rpm -qf --qf '%{NAME}' "$program" 2> /dev/null); then
        say "owner:$program" "$owner"
        say package-whole yes
        say package "$(rpm -q --qf '%{VERSION}-%{RELEASE}' "$owner" 2> /dev/null)"
    fi
done
for unit in /etc/systemd/system/backhauld.service /usr/lib/systemd/system/backhauld.service /lib/systemd/system/backhauld.service; do
    [ -f "$unit" ] && say "sum:$unit" "$(sum "$unit")"
done
for path in /etc/backhaul /etc/backhaul/backhauld.toml /etc/backhaul/deployed-by-ssh /var/lib/backhaul /var/lib/backhaul/token \
    /var/lib/backhaul/state.db; do
    [ -e "$path" ] && say exists "$path"
done
# A run that was cut: whether the service is still to be started from what is there, and what has a former file beside it.
[ -e /etc/backhaul/deploying ] && say unfinished yes
for former in /usr/local/bin/backhauld.backhaul-former-* /etc/systemd/system/backhauld.service.backhaul-former-* \
    /etc/backhaul/*.backhaul-former-* /var/lib/backhaul/*.backhaul-former-*; do
    [ -e "$former" ] && say former "${former%.backhaul-former-*}"
done
# What a copy of the state takes, KiB.
kib=0
for file in /var/lib/backhaul/*; do
    [ -f "$file" ] && kib=$((kib + $(stat -c %s "$file") / 1024 + 1))
done
say state-kib "$kib"
id backhaul > /dev/null 2>&1 && say account yes
[ -e /var/lib/backhaul/account-made ] && say account-made yes
[ "$(systemctl is-active backhauld 2> /dev/null)" = active ] && say active yes
[ "$(systemctl is-enabled backhauld 2> /dev/null)" = enabled ] && say enabled yes
# The ports that somebody listens on: from the kernel's own table, since `ss` is not everywhere.
for table in /proc/net/tcp /proc/net/tcp6; do
    [ -r "$table" ] || continue
    while read -r _ near _ state _; do
        [ "$state" = 0A ] && say port "$(printf '%d' "0x${near##*:}")"
    done < "$table"
done
if [ "$(firewall-cmd --state 2> /dev/null)" = running ]; then
    say firewall firewalld
elif ufw status 2> /dev/null | grep -q '^Status: active'; then
    say firewall ufw
elif nft list ruleset 2> /dev/null | grep -q 'hook input'; then
    say firewall nft
elif iptables -S INPUT 2> /dev/null | grep -q -e '-j' -e '-P INPUT DROP'; then
    say firewall iptables
fi
:
