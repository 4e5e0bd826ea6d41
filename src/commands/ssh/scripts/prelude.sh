# Before each script. Values come as lines on standard input, what is to become a file follows them: nothing that a person
# typed is ever part of a command line or of a script.
set -u
LC_ALL=C
PATH=${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
value() { IFS= read -r "$1"; }
fail() { printf '%s\n' "$1" >&2; exit 1; }
say() { printf '%s=%s\n' "$1" "$2"; }
sum() { s=$(sha256sum < "$1") && printf '%s' "${s%% *}"; }
# For locks: whoever may read such a file may hold it.
private() { mask=$(umask); umask 077; [ -e "$1" ] || : > "$1"; umask "$mask"; }
# For each script that changes something. One whose caller was interrupted goes on here: what undoes it waits for its end.
alone() {
    private /run/backhaul-step.lock
    exec 9>> /run/backhaul-step.lock || exit 1
    flock -w 120 9 || fail "what was begun here before has not ended within 120 s"
}
# As whoever owns the state: what that account lays in the way leads no further than it could go by itself.
as_owner() {
    owner=$(stat -c %u /var/lib/backhaul) && group=$(stat -c %g /var/lib/backhaul) || return 1
    setpriv --reuid "$owner" --regid "$group" --clear-groups --no-new-privs "$@"
}
# Whether something listens on TCP port $1: the kernel's own table, since `ss` is not everywhere.
listening() {
    hex=$(printf '%04X' "$1")
    for table in /proc/net/tcp /proc/net/tcp6; do
        [ -r "$table" ] || continue
        while read -r _ near _ state _; do
            [ "$state" = 0A ] && [ "${near##*:}" = "$hex" ] && return 0
        done < "$table"
    done
    return 1
}
# Starts the service, or starts it again, and waits until it listens on port $1.
up() {
    systemctl restart backhauld || return 1
    tries=0
    while [ $tries -lt 60 ]; do
        if [ "$(systemctl is-active backhauld)" = active ]; then
            listening "$1" && return 0
        elif [ $tries -gt 1 ]; then
            break
        fi
        tries=$((tries + 1))
        sleep 1
    done
    journalctl --unit backhauld --lines 5 --no-pager --output cat 2> /dev/null >&2
    if [ $tries -lt 60 ]; then echo "the service ended" >&2; else echo "it does not listen on port $1 after 60 s" >&2; fi
    return 1
}
# What a login's start-up files print comes before this line.
echo backhaul-begin
