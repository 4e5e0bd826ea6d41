# Before the files go back: stops what did not run before.
value enabled
systemctl stop backhauld 2> /dev/null
[ "$enabled" = yes ] || systemctl disable backhauld 2> /dev/null
:
