//! Whole runs against a simulated pool: real XAPI calls, real NBD, real disks, real repositories.

mod backup;
mod crash;
mod deploy;
mod deploy_calls;
mod deploy_ends;
mod deploy_former;
mod deploy_kills;
mod deploy_marks;
mod fault;
mod fleet;
mod guests;
mod restore;
mod site;
