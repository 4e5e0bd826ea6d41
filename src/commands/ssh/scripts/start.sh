# Starts the service, or starts it again, and waits until it listens.
value port
systemctl daemon-reload && systemctl --quiet enable backhauld && systemctl restart backhauld || exit 1
tries=0
while [ $tries -lt 60 ]; do
    if [ "$(systemctl is-active backhauld)" = active ]; then
        listening "$port" && exit 0
    elif [ $tries -gt 1 ]; then
        break
    fi
    tries=$((tries + 1))
    sleep 1
done
journalctl --unit backhauld --lines 5 --no-pager --output cat 2> /dev/null >&2
[ $tries -lt 60 ] || fail "it does not listen on port $port after 60 s"
fail "the service ended"
