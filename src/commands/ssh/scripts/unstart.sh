# Before the files go back: stops what was started from them.
value enabled
value again
alone
[ "$again" = no ] || : > /etc/backhaul/deploying
systemctl stop backhauld 2> /dev/null
[ "$enabled" = yes ] || systemctl disable backhauld 2> /dev/null
:
