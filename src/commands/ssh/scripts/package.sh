# Installs a package that follows. It waits in a folder that only root can enter: whoever could name its file beforehand could
# have it written somewhere else, or another one installed.
value kind
value expected
alone
# The service is started again once its settings are checked, by us and not by the package too.
BACKHAUL_DEPLOYING=yes
export BACKHAUL_DEPLOYING
folder=$(mktemp -d /var/tmp/backhaul-package.XXXXXXXXXX) || exit 1
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
package=$folder/backhaul.$kind
cat > "$package" || fail "cannot write $package"
[ "$(sum "$package")" = "$expected" ] || fail "what arrived of the package is not what was sent"
case $kind in
    deb) DEBIAN_FRONTEND=noninteractive dpkg --install "$package" < /dev/null >&2 ;;
    rpm) rpm --upgrade --oldpackage --replacepkgs "$package" < /dev/null >&2 ;;
    *) fail "no such kind of package: $kind" ;;
esac
