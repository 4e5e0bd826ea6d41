//! `system.*`: what XO asks every proxy.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{MethodDoc, NoParams};

use crate::daemon::Daemon;
use crate::fault::Fault;

pub async fn version(_: Arc<Daemon>, _: NoParams) -> Result<String, Fault> {
    Ok(env!("CARGO_PKG_VERSION").to_owned())
}

pub async fn methods(_: Arc<Daemon>, _: NoParams) -> Result<BTreeMap<String, MethodDoc>, Fault> {
    let doc = |info: &api::MethodInfo| (info.name.to_owned(), MethodDoc { description: info.doc.trim().to_owned() });
    Ok(api::METHODS.iter().map(doc).collect())
}
