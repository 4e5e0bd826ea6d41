//! The lab's disks: sparse images with cheap snapshots, changed-block tracking, VHD streams and an NBD server.
