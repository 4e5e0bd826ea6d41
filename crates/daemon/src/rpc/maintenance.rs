//! Settings, token, certificate and state of this proxy.

use std::sync::Arc;

use api::{
    CertificateRenewParams, ConfigureParams, Imported, NewCertificate, NewToken, NoParams, ProxyState, ProxyStatus,
    TokenRotateParams,
};

use crate::daemon::Daemon;
use crate::fault::Fault;

pub async fn configure(_: Arc<Daemon>, _: ConfigureParams) -> Result<ProxyStatus, Fault> {
    Err(Fault::MethodNotFound("proxy.configure".into()))
}

pub async fn rotate_token(_: Arc<Daemon>, _: TokenRotateParams) -> Result<NewToken, Fault> {
    Err(Fault::MethodNotFound("token.rotate".into()))
}

pub async fn revoke_token(_: Arc<Daemon>, _: NoParams) -> Result<bool, Fault> {
    Err(Fault::MethodNotFound("token.revoke".into()))
}

pub async fn renew_certificate(_: Arc<Daemon>, _: CertificateRenewParams) -> Result<NewCertificate, Fault> {
    Err(Fault::MethodNotFound("certificate.renew".into()))
}

pub async fn export_state(_: Arc<Daemon>, _: NoParams) -> Result<ProxyState, Fault> {
    Err(Fault::MethodNotFound("state.export".into()))
}

pub async fn import_state(_: Arc<Daemon>, _: ProxyState) -> Result<Imported, Fault> {
    Err(Fault::MethodNotFound("state.import".into()))
}
