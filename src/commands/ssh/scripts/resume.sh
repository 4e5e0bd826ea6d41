# After the files went back: the service as it was. The state goes back when it must (`back`), or when the former program
# cannot do with what the new one made of it: else it would forget what was done meanwhile.
value active
value port
value run
value back
export run
alone
put_back() {
    systemctl stop backhauld 2> /dev/null
    as_owner sh -c '
        set -e
        umask 077
        cd "/var/lib/backhaul/state.backhaul-former-$run"
        rm -f ../state.db-wal ../state.db-shm
        # The log after its database: one that is cut off in between has a database that is older, and whole.
        logs=
        for file in *; do
            if [ "$file" = state.db-wal ]; then logs=$file; continue; fi
            cp -p "$file" "../$file.new"
            mv -f "../$file.new" "../$file"
        done
        for file in $logs; do
            cp -p "$file" "../$file.new"
            mv -f "../$file.new" "../$file"
        done
    ' || fail "cannot put the state back"
}
systemctl daemon-reload || exit 1
copy=/var/lib/backhaul/state.backhaul-former-$run
if [ "$back" = yes ] && [ -d "$copy" ]; then put_back; fi
[ "$active" = yes ] || exit 0
up "$port" && exit 0
[ "$back" = no ] && [ -d "$copy" ] || exit 1
put_back
up "$port"
