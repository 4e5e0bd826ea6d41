//! What of a proxy is changed while it runs, without deploying it anew: its settings, the token of its clients, its
//! certificate; and its state as a whole, taken from one proxy and given to the next.
//!
//! | what | the configuration file says | a change is kept in |
//! | --- | --- | --- |
//! | [`Settings`]: name, site, HTTP proxy | the default | the database; the HTTP proxy sealed |
//! | [`Tokens`] | the first token | the database, sealed, as hashes |
//! | [`Certificates`] | the first certificate, if not made by ourselves | `certificate.pem` in the state folder |
//!
//! A change wins over the file and outlives restarts. The way back to the file: of a setting, to say the value once more; of
//! token and certificate, to put another one into the file, because whoever can write it is the master of the house.

mod certificate;
mod fingerprint;
mod settings;
mod state;
mod tokens;

pub use certificate::Certificates;
pub use fingerprint::fingerprint;
pub use settings::{Settings, Values};
pub(crate) use state::jobs_in;
pub use state::{Content, export, import};
pub(crate) use tokens::random;
pub use tokens::{Kept, Tokens};
