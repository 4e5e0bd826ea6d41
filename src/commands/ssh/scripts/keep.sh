# All is well: the former files go, those of a run that was cut too. One path a line.
while value path; do
    rm -f "$path".backhaul-former-* || exit 1
done
