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
# What a login's start-up files print comes before this line.
echo backhaul-begin
