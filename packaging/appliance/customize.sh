#!/bin/sh
# Makes the appliance of a fresh Debian: mmdebstrap runs it with the new root as $1. Told through the environment: BACKHAULD
# (the program), SHARED (packaging/), VERSION, SOURCE_DATE_EPOCH.
set -eu
root=$1
here=$SHARED/appliance

# Files and programs. Owner and rights do not depend on who has checked the sources out.
(cd "$here/root" && find . -type d) | while read -r path; do install -d -m 755 "$root/$path"; done
(cd "$here/root" && find . -type f) | while read -r path; do
  case $path in
    ./usr/lib/backhaul/*.sh) mode=644 ;;
    ./usr/lib/backhaul/*) mode=755 ;;
    ./etc/sudoers.d/*) mode=440 ;;
    *) mode=644 ;;
  esac
  install -m "$mode" "$here/root/$path" "$root/$path"
done
install -m 755 "$BACKHAULD" "$root/usr/bin/backhauld"
install -D -m 644 "$SHARED/backhauld.service" "$root/usr/lib/systemd/system/backhauld.service"
install -d -m 755 "$root/etc/backhaul"
# The daemon's own account, if its unit wants one.
if [ -e "$SHARED/backhaul.sysusers" ]; then
  install -D -m 644 "$SHARED/backhaul.sysusers" "$root/usr/lib/sysusers.d/backhaul.conf"
  chroot "$root" systemd-sysusers backhaul.conf
fi
# Another Debian than it was built for may lack what it is linked with.
chroot "$root" /usr/bin/backhauld --version

# The technician's account cannot be used until it is enabled.
chroot "$root" useradd --create-home --shell /bin/bash --comment Technician technician
chroot "$root" usermod --lock technician
chroot "$root" usermod --lock root

enable="backhauld backhaul-first-boot backhaul-grow backhaul-report backhaul-guest-agent systemd-networkd systemd-resolved
systemd-timesyncd ssh"
for unit in $enable; do chroot "$root" systemctl --quiet enable "$unit.service"; done
# NFS 3 starts the port mapper when it is needed; nothing else listens but backhauld.
chroot "$root" systemctl --quiet disable rpcbind.service rpcbind.socket
chroot "$root" systemctl --quiet mask nfs-blkmap.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service
chroot "$root" systemctl --quiet set-default multi-user.target
ln -sf /run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
# The kernel before does not exist yet.
rm -f "$root/vmlinuz.old" "$root/initrd.img.old"

# What each appliance makes for itself.
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/systemd/random-seed" "$root/var/lib/dbus/machine-id"
: >"$root/etc/machine-id"
install -d -m 2755 "$root/var/log/journal"

# What differs from build to build and says nothing.
find "$root/var/log" -type f -delete
rm -rf "$root"/var/cache/ldconfig "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/etc/*- "$root"/tmp/* "$root"/var/tmp/*
# Those who install packages later make them again.
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
printf 'Backhaul appliance %s\n' "$VERSION" >"$root/etc/backhaul-release"
install -d "$root/usr/share/backhaul"
chroot "$root" dpkg-query --show --showformat '${Package} ${Version}\n' >"$root/usr/share/backhaul/packages"
