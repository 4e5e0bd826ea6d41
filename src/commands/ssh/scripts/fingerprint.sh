# The certificate's fingerprint, told by the program that holds it.
value program
"$program" fingerprint --config /etc/backhaul/backhauld.toml < /dev/null
