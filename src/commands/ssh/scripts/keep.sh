# All is well: the former files go, those of a run that was cut too, and what it had not put yet. One path a line.
alone
while value path; do
    rm -rf "$path".backhaul-former-* "$path".backhaul-new.* || exit 1
done
rm -f /etc/backhaul/deploying
