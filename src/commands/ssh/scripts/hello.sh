# Who we are there, and whether we can become root without being asked.
say uid "$(id -u)"
say user "$(id -un)"
if [ "$(id -u)" = 0 ]; then
    say sudo needless
elif ! command -v sudo > /dev/null; then
    say sudo absent
elif sudo -n true 2> /dev/null; then
    say sudo yes
else
    say sudo no
fi
