# Takes the package away; settings and state are not its business.
alone
if dpkg-query -W backhaul > /dev/null 2>&1; then
    DEBIAN_FRONTEND=noninteractive dpkg --purge backhaul < /dev/null >&2
elif rpm -q backhaul > /dev/null 2>&1; then
    rpm --erase backhaul < /dev/null >&2
fi
