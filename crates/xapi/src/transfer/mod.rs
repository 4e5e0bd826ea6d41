//! The data handlers: VMs and disks as streams (xapi-streams.md §2).
//!
//! A transfer is an HTTP request and a task. The HTTP status says nothing (T1) and the end of a connection is no
//! success (T2): a transfer has succeeded when its task has. Connections are made one per transfer, since the pool
//! closes them at the end anyway.

pub(crate) mod connection;
mod export;
mod import;

use std::fmt;

use hyper::StatusCode;
use hyper::header::LOCATION;
use url::Url;

pub use export::Export;

use crate::session::{Session, address};
use crate::{Client, Error, Result};

/// How many redirects are followed: one is usual, more are a mistake somewhere.
const MAX_REDIRECTS: u32 = 3;

/// Compression of an XVA, done by the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// None.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl fmt::Display for Compression {
    /// As `use_compression` wants it (xapi-streams.md §2.3).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "false",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// Format of a disk on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// Every byte.
    Raw,
    /// VHD; not above 2040 GiB (T13).
    Vhd,
    /// qcow2, on recent hosts.
    Qcow2,
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Qcow2 => "qcow2",
        })
    }
}

impl Client {
    /// The URL of a data handler on the master. Holds the session: it must not be shown.
    fn handler(&self, session: &Session, path: &str, query: &[(&str, String)]) -> Url {
        let mut url = session.base.clone();
        url.set_path(path);
        url.query_pairs_mut()
            .extend_pairs(query.iter().map(|(name, value)| (*name, value.as_str())))
            .append_pair("session_id", &session.secret);
        url
    }
}

/// Where a response sends us, when it does.
///
/// # Errors
/// A redirect to nowhere, or to clear text, over which the session would travel for all to read.
fn redirect(what: &str, from: &Url, status: StatusCode, headers: &hyper::HeaderMap) -> Result<Option<Url>> {
    if !status.is_redirection() {
        return Ok(None);
    }
    let malformed = |reason: &str| Error::Malformed { what: what.to_owned(), reason: reason.to_owned() };
    let location =
        headers.get(LOCATION).and_then(|value| value.to_str().ok()).ok_or_else(|| malformed("a redirect to nowhere"))?;
    let url = from.join(location).map_err(|_| malformed("a redirect to something that is no URL"))?;
    if url.scheme() != "https" {
        return Err(malformed(&format!("a redirect to {}, which is not encrypted", address(&url))));
    }
    Ok(Some(url))
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;

    use super::*;

    fn follow(location: Option<&'static str>) -> Result<Option<Url>> {
        let mut headers = HeaderMap::new();
        if let Some(location) = location {
            headers.insert(LOCATION, location.parse().unwrap());
        }
        let from = "https://10.0.0.1/export/?session_id=secret".parse().unwrap();
        redirect("export", &from, StatusCode::FOUND, &headers)
    }

    #[test]
    fn redirects_are_followed_to_other_hosts_but_not_into_the_clear() {
        assert_eq!(follow(Some("https://10.0.0.2/export/?a=b")).unwrap().unwrap().as_str(), "https://10.0.0.2/export/?a=b");
        assert_eq!(follow(Some("/other")).unwrap().unwrap().as_str(), "https://10.0.0.1/other");
        for location in [None, Some("http://10.0.0.2/export/?session_id=secret"), Some("https://[")] {
            let error = follow(location).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
