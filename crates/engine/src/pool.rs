//! A pool as a run sees it: the client, and the name that stands in its errors.

use std::str::FromStr;

use tls::{Fingerprint, Trust};
use xapi::{Client, Connect, Kind, Record, Ref};

use crate::error::Error;
use crate::plan::PoolAccess;

/// A connected pool.
pub(crate) struct Pool {
    /// Id in the plan; what intents name.
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) client: Client,
}

impl Pool {
    pub(crate) async fn connect(access: &PoolAccess) -> Result<Self, Error> {
        let fingerprint = Fingerprint::from_str(&access.fingerprint).map_err(|source| Error::Pool {
            pool: access.name.clone(),
            doing: "check its certificate: the pinned fingerprint is not readable".into(),
            code: "POOL_FINGERPRINT".into(),
            source: Box::new(source),
        })?;
        let connect = Connect::new(&access.url, &access.username, access.password.expose(), Trust::Pinned(fingerprint));
        let client = Client::connect(connect).await.map_err(failed(&access.name, "log in"))?;
        Ok(Self { id: access.id.clone(), name: access.name.clone(), client })
    }

    /// What an error of the pool means while `doing` something.
    pub(crate) fn failed(&self, doing: impl Into<String>) -> impl FnOnce(xapi::Error) -> Error {
        failed(&self.name, doing)
    }

    /// A record by reference.
    pub(crate) async fn get<T: Kind>(&self, object: &Ref) -> Result<Record<T>, Error> {
        self.client.get(object).await.map_err(self.failed(format!("read the record of a {}", T::CLASS)))
    }
}

fn failed(pool: &str, doing: impl Into<String>) -> impl FnOnce(xapi::Error) -> Error {
    let (pool, doing) = (pool.to_owned(), doing.into());
    move |error| Error::Pool { pool, doing, code: error.code().to_owned(), source: Box::new(error) }
}
