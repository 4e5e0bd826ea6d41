# A folder with its owner. One that somebody else has made meanwhile is not ours, to be taken back.
value path
value mode
value owner
value run
alone
mkdir "$path" && : > "$path/made.backhaul-former-$run" && chown "$owner" "$path" && chmod "$mode" "$path"
