//! `license.*`.

use std::sync::Arc;

use api::{IdParams, License, LicenseBindParams, LicenseImportParams, LicenseText, NoParams};

use crate::daemon::Daemon;
use crate::fault::Fault;

pub async fn list(_: Arc<Daemon>, _: NoParams) -> Result<Vec<License>, Fault> {
    Err(Fault::MethodNotFound("license.list".into()))
}

pub async fn get(_: Arc<Daemon>, _: IdParams) -> Result<LicenseText, Fault> {
    Err(Fault::MethodNotFound("license.get".into()))
}

pub async fn import(_: Arc<Daemon>, _: LicenseImportParams) -> Result<License, Fault> {
    Err(Fault::MethodNotFound("license.import".into()))
}

pub async fn remove(_: Arc<Daemon>, _: IdParams) -> Result<bool, Fault> {
    Err(Fault::MethodNotFound("license.remove".into()))
}

pub async fn bind(_: Arc<Daemon>, _: LicenseBindParams) -> Result<License, Fault> {
    Err(Fault::MethodNotFound("license.bind".into()))
}

pub async fn unbind(_: Arc<Daemon>, _: LicenseBindParams) -> Result<License, Fault> {
    Err(Fault::MethodNotFound("license.unbind".into()))
}
