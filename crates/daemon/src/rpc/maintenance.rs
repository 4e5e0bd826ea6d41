//! Settings, token, certificate and state of this proxy.

use std::sync::Arc;

use api::{
    CertificateRenewParams, ConfigureParams, Imported, NewCertificate, NewToken, NoParams, ProxyState, ProxyStatus,
    TokenRotateParams, Topic,
};

use crate::daemon::Daemon;
use crate::fault::Fault;
use crate::maintenance;

pub async fn configure(daemon: Arc<Daemon>, given: ConfigureParams) -> Result<ProxyStatus, Fault> {
    daemon.settings.change(&given).await?;
    daemon.news.changed(Topic::Licenses);
    daemon.status().await
}

pub async fn rotate_token(daemon: Arc<Daemon>, given: TokenRotateParams) -> Result<NewToken, Fault> {
    let token = daemon.tokens.rotate(given.overlap_seconds, daemon.now()).await?;
    daemon.news.moved();
    Ok(token)
}

pub async fn revoke_token(daemon: Arc<Daemon>, _: NoParams) -> Result<bool, Fault> {
    let done = daemon.tokens.revoke(daemon.now()).await?;
    daemon.news.moved();
    Ok(done)
}

pub async fn renew_certificate(daemon: Arc<Daemon>, given: CertificateRenewParams) -> Result<NewCertificate, Fault> {
    let fingerprint = daemon.certificates.renew(&given).await?;
    daemon.news.moved();
    Ok(NewCertificate { fingerprint: fingerprint.to_string() })
}

pub async fn export_state(daemon: Arc<Daemon>, _: NoParams) -> Result<ProxyState, Fault> {
    maintenance::export(&daemon).await
}

pub async fn import_state(daemon: Arc<Daemon>, given: ProxyState) -> Result<Imported, Fault> {
    maintenance::import(&daemon, given).await
}
