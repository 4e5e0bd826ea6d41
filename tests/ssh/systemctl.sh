#!/bin/sh
# Stands in for systemd on the host of a test: one service, kept as a process.
run=/run/test-systemd
mkdir -p $run
say() { echo "$1"; [ "$1" = active ] || [ "$1" = enabled ]; }
find_unit() {
    for dir in /etc/systemd/system /usr/lib/systemd/system /lib/systemd/system; do
        [ -f $dir/backhauld.service ] && { echo $dir/backhauld.service; return; }
    done
    return 1
}
wants=/etc/systemd/system/multi-user.target.wants/backhauld.service
setting() { sed -n "s/^$1=//p" $run/loaded; }
# It may be reaped while it is looked at: what cannot be read is not alive.
alive() { [ -f $run/pid ] && state=$(cut -d ' ' -f 3 "/proc/$(cat $run/pid)/stat" 2> /dev/null) && [ "$state" != Z ]; }
start() {
    [ -f $run/loaded ] || { echo "Failed to start backhauld.service: Unit backhauld.service not found." >&2; return 5; }
    alive && return 0
    user=$(setting User)
    id "$user" > /dev/null || return 217
    condition=$(setting ConditionPathExists)
    [ -z "$condition" ] || [ -e "$condition" ] || return 0
    install -d -o "$user" -g "$user" -m "$(setting StateDirectoryMode)" "/var/lib/$(setting StateDirectory)"
    umask "$(setting UMask)"
    setsid setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs \
        --inh-caps=-all,+net_bind_service --ambient-caps=-all,+net_bind_service --bounding-set=-all,+net_bind_service \
        $(setting ExecStart) < /dev/null > /var/log/backhauld.log 2>&1 9>&- &
    echo $! > $run/pid
}
stop() {
    alive || return 0
    kill "$(cat $run/pid)"
    tries=0
    while alive; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || kill -9 "$(cat $run/pid)"
        sleep 0.1
    done
}
[ "$1" != --quiet ] || shift
# What a test lets happen once, before something is done.
if [ -e "$run/once-$1" ]; then
    mv "$run/once-$1" "$run/happened"
    sh "$run/happened" || exit 1
fi
case $1 in
    --version) echo "systemd 252 (test)" ;;
    daemon-reload) if unit=$(find_unit); then cp "$unit" $run/loaded; else rm -f $run/loaded; fi ;;
    is-active) if alive; then say active; else say inactive; fi ;;
    is-enabled) if [ -L $wants ]; then say enabled; else say disabled; fi ;;
    enable) [ ! -e $run/masked ] || { echo "Failed to enable unit: Unit file $2.service is masked." >&2; exit 1; }
        unit=$(find_unit) || exit 1; mkdir -p ${wants%/*}; ln -sf "$unit" $wants ;;
    disable) rm -f $wants ;;
    start) start ;;
    stop) stop ;;
    restart) echo restart >> $run/starts
        [ ! -e $run/broken ] || { stop; echo "Job for backhauld.service failed." >&2; exit 1; }; stop; start ;;
    try-restart) alive || exit 0; echo try-restart >> $run/starts; stop; start ;;
    reset-failed | is-system-running) ;;
    show) echo "MainPID=$(cat $run/pid 2> /dev/null || echo 0)" ;;
    *) echo "systemctl: the test's one does not know $*" >&2; exit 1 ;;
esac
