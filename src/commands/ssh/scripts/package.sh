# Installs a package that was put at a path.
value kind
value path
case $kind in
    deb) DEBIAN_FRONTEND=noninteractive dpkg --install "$path" < /dev/null >&2 ;;
    rpm) rpm --upgrade --oldpackage --replacepkgs "$path" < /dev/null >&2 ;;
    *) fail "no such kind of package: $kind" ;;
esac
code=$?
rm -f "$path"
exit $code
