# Notes that a deployment is being changed: whoever finds this knows that what runs may be another program, with other settings,
# than what is there.
alone
: > /etc/backhaul/deploying
