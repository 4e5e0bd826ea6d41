//! The terminal console.
fn main() {}
