# Starts the service, or starts it again, and waits until it listens. Of a state that is there, a copy is made first while nobody
# works on it: a program that comes to nothing may have made of it what the former one cannot read.
value port
value run
value state
export run
alone
systemctl daemon-reload && systemctl --quiet enable backhauld || exit 1
if [ "$state" = yes ]; then
    systemctl stop backhauld || exit 1
    # The token is no part of it: its file is put and taken back by itself.
    as_owner sh -c '
        set -e
        umask 077
        cd /var/lib/backhaul
        copy=state.backhaul-new.$run
        mkdir "$copy"
        for file in *; do
            case $file in lock | token | state.db-shm | *.new | *.backhaul-*) continue ;; esac
            if [ -f "$file" ] && [ ! -h "$file" ]; then cp -p "$file" "$copy/"; fi
        done
        mv "$copy" "state.backhaul-former-$run"
    ' || fail "cannot copy the state"
fi
up "$port" || exit 1
rm -f /etc/backhaul/deploying
