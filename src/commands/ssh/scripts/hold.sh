# Keeps other deployments and removals away from this host, for as long as the one at the other end gives signs of life: the
# end of a connection is not always told.
for tool in flock timeout setpriv; do
    command -v "$tool" > /dev/null || fail "there is no $tool here, without which nothing can be changed safely"
done
private /run/backhaul-deploy.lock
exec 8>> /run/backhaul-deploy.lock || exit 1
flock -w 10 8 || exit 75
# What a run that was cut has begun is to be over before anybody looks at the host.
alone
exec 9>&-
echo held
while [ -n "$(timeout 60 head -c 1)" ]; do :; done
