# The certificate's fingerprint, told by the program that holds it.
value program
"$program" --config /etc/backhaul/backhauld.toml fingerprint < /dev/null
