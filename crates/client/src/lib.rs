//! Calls to one proxy, as its consoles and its deployer make them: JSON-RPC over HTTPS, the certificate pinned, failures
//! in words a person can act on.

mod client;
mod error;
mod token;

pub use client::{Client, Lines, pinned_http};
pub use error::CallError;
pub use token::Token;
