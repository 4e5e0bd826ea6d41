//! Whole runs against a simulated pool: real XAPI calls, real NBD, real disks, real repositories.

mod backup;
mod crash;
mod fault;
mod restore;
mod site;
