//! The XVA container: the tar of a full backup, written and checked as a stream.
