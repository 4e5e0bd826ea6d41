# The daemon's own account: no password, no shell, no home but its state.
if command -v useradd > /dev/null; then
    shell=/usr/sbin/nologin
    [ -x "$shell" ] || shell=/sbin/nologin
    useradd --system --user-group --home-dir /var/lib/backhaul --no-create-home --shell "$shell" backhaul
else
    printf 'u backhaul - "Backhaul backup proxy" /var/lib/backhaul\n' | systemd-sysusers -
fi
