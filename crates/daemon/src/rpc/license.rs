//! `license.*`.

use std::sync::Arc;

use api::{IdParams, License, LicenseBindParams, LicenseImportParams, LicenseText, NoParams, Topic};

use crate::daemon::Daemon;
use crate::fault::Fault;

pub async fn list(daemon: Arc<Daemon>, _: NoParams) -> Result<Vec<License>, Fault> {
    daemon.licenses.list().await
}

pub async fn get(daemon: Arc<Daemon>, given: IdParams) -> Result<LicenseText, Fault> {
    daemon.licenses.get(&given.id).await
}

pub async fn import(daemon: Arc<Daemon>, given: LicenseImportParams) -> Result<License, Fault> {
    let license = daemon.licenses.import(&given.text).await?;
    daemon.news.changed(Topic::Licenses);
    Ok(license)
}

pub async fn remove(daemon: Arc<Daemon>, given: IdParams) -> Result<bool, Fault> {
    let done = daemon.licenses.remove(&given.id).await?;
    daemon.news.changed(Topic::Licenses);
    Ok(done)
}

pub async fn bind(daemon: Arc<Daemon>, given: LicenseBindParams) -> Result<License, Fault> {
    let license = daemon.licenses.bind(&given.id, given.proxy.as_ref(), &daemon.settings.name()).await?;
    daemon.news.changed(Topic::Licenses);
    Ok(license)
}

pub async fn unbind(daemon: Arc<Daemon>, given: LicenseBindParams) -> Result<License, Fault> {
    let license = daemon.licenses.unbind(&given.id, given.proxy.as_ref()).await?;
    daemon.news.changed(Topic::Licenses);
    Ok(license)
}
