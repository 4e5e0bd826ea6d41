# Lets the program that is there look at the settings: proves that it runs here at all.
value program
"$program" --config /etc/backhaul/backhauld.toml --check-config < /dev/null
