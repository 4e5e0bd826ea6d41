# The daemon's own account: no password, no shell, no home but its state.
value run
alone
shell=/usr/sbin/nologin
[ -x "$shell" ] || shell=/sbin/nologin
useradd --system --user-group --home-dir /var/lib/backhaul --no-create-home --shell "$shell" backhaul || exit 1
: > "/run/backhaul-account.backhaul-former-$run"
