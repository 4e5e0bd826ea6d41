# All is well: the former files go. One path a line.
while value path; do
    rm -f "$path.backhaul-former" || exit 1
done
