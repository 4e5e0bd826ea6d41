//! A simulated XCP-ng pool that real clients accept, on real disk images, with faults to switch on.
