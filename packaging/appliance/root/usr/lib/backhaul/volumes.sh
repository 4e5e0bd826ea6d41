# Volumes labelled BACKHAUL: the second way to tell an appliance its configuration. Sourced by the scripts beside it.

# Where the technician finds what is told: /run/backhaul is only root's.
run=/run/backhaul

volumes() {
  udevadm settle --timeout=30 || true
  blkid --cache-file /dev/null --match-token LABEL=BACKHAUL --output device || true
}

# Mounts volume $1 at $run/volume, writable where it is.
mount_volume() {
  mkdir -p "$run/volume"
  type=$(blkid --cache-file /dev/null --probe --output value --match-tag TYPE "$1")
  case $type in
    vfat) options=sync,umask=077 ;;
    iso9660) options=ro ;;
    ext4) options=sync ;;
    *)
      echo "$1 is labelled BACKHAUL, but holds ${type:-no file system that is known}; it is left aside" >&2
      return 1
      ;;
  esac
  mount --types "$type" --options "nosuid,nodev,noexec,$options" "$1" "$run/volume" && return 0
  mount --types "$type" --options "nosuid,nodev,noexec,ro,$options" "$1" "$run/volume"
}

unmount_volume() {
  umount "$run/volume"
}

is_xen() {
  [ "$(cat /sys/hypervisor/type 2>/dev/null)" = xen ] && [ -e /dev/xen/xenbus ]
}
