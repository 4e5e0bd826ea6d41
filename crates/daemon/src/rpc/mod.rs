//! From a method's name to its handler. The table here and `api::METHODS` name the same methods; a test holds them
//! against each other.

mod deploy;
mod doctor;
mod job;
mod license;
mod maintenance;
pub(crate) mod params;
mod pool;
mod proxy;
mod remote;
mod restore_point;
mod run;
mod schedule;
mod system;
mod upgrade;
mod vm;

use std::sync::Arc;

use api::{ErrorReport, Method};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, Stream, StreamExt};
use serde::Serialize;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::fault::Fault;

/// The lines of a stream, each a JSON text without newline; an error ends it.
pub type Items = BoxStream<'static, Result<Vec<u8>, Fault>>;

/// What a call is answered with.
pub enum Answer {
    /// One document.
    Scalar(Value),
    /// A line at a time.
    Stream(Items),
}

type Handler = fn(Arc<Daemon>, Value) -> BoxFuture<'static, Result<Answer, Fault>>;

macro_rules! handlers {
    ($( $kind:ident $method:ident => $handler:path; )+) => {
        const HANDLERS: &[(&str, Handler)] = &[
            $( (<api::$method as Method>::NAME, |daemon, given| Box::pin(async move {
                let params = params::read::<api::$method>(given)?;
                $kind::<api::$method>($handler(daemon, params).await?)
            })) ),+
        ];
    };
}

handlers! {
    scalar SystemGetServerVersion => system::version;
    scalar SystemGetMethodsInfo => system::methods;
    scalar ProxyStatusGet => proxy::status;
    stream ProxyWatch => proxy::watch;
    scalar PoolList => pool::list;
    scalar PoolAdd => pool::add;
    scalar PoolRemove => pool::remove;
    scalar VmList => vm::list;
    scalar SrList => vm::srs;
    scalar RemoteList => remote::list;
    scalar RemoteAdd => remote::add;
    scalar RemoteTestRun => remote::probe;
    scalar RemoteRemove => remote::remove;
    scalar JobList => job::list;
    scalar JobGet => job::get;
    scalar JobCreate => job::create;
    scalar JobUpdate => job::update;
    scalar JobSetEnabled => job::set_enabled;
    scalar JobRemove => job::remove;
    scalar JobRun => job::run;
    scalar SchedulePreviewGet => schedule::preview;
    scalar RunList => run::list;
    scalar RunGet => run::get;
    stream RunWatch => run::watch;
    scalar RunCancel => run::cancel;
    scalar RestorePointList => restore_point::list;
    scalar RestorePointRestore => restore_point::restore;
    scalar RestorePointVerify => restore_point::verify;
    scalar RestorePointRemove => restore_point::remove;
    scalar DeployOptionsGet => deploy::options;
    scalar DeployReviewGet => deploy::review;
    scalar DeployStart => deploy::start;
    scalar DeployedList => deploy::list;
    scalar DeployClaim => deploy::claim;
    scalar DeployAdopt => deploy::adopt;
    scalar Redeploy => deploy::redeploy;
    scalar DeployReconfigure => deploy::reconfigure;
    scalar DeployDestroy => deploy::destroy;
    scalar DeployForget => deploy::forget;
    scalar LicenseList => license::list;
    scalar LicenseGet => license::get;
    scalar LicenseImport => license::import;
    scalar LicenseRemove => license::remove;
    scalar LicenseBind => license::bind;
    scalar LicenseUnbind => license::unbind;
    scalar ProxyDrain => proxy::drain;
    scalar ProxyConfigure => maintenance::configure;
    scalar TokenRotate => maintenance::rotate_token;
    scalar TokenRevoke => maintenance::revoke_token;
    scalar CertificateRenew => maintenance::renew_certificate;
    scalar StateExport => maintenance::export_state;
    scalar StateImport => maintenance::import_state;
    scalar UpgradeStart => upgrade::start;
    stream DoctorRun => doctor::run;
    scalar SupportBundleGet => doctor::support_bundle;
}

fn scalar<M: Method>(item: M::Item) -> Result<Answer, Fault> {
    line(&item).map(Answer::Scalar)
}

fn stream<M: Method>(items: impl Stream<Item = Result<M::Item, Fault>> + Send + 'static) -> Result<Answer, Fault> {
    let lines = items.map(|item| {
        let item = item?;
        serde_json::to_vec(&item).map_err(|error| unwritable(&error))
    });
    Ok(Answer::Stream(lines.boxed()))
}

fn line(item: &impl Serialize) -> Result<Value, Fault> {
    serde_json::to_value(item).map_err(|error| unwritable(&error))
}

fn unwritable(error: &serde_json::Error) -> Fault {
    ErrorReport::new("INTERNAL", "the answer cannot be written as JSON").with_source(error).into()
}

/// Answers a call.
pub async fn dispatch(daemon: Arc<Daemon>, method: String, params: Value) -> Result<Answer, Fault> {
    let writes = || api::METHODS.iter().any(|known| known.name == method && known.writes);
    if daemon.upgrades.holds_still() && writes() {
        let reason = "this proxy is swapping programs, and what is changed meanwhile could be lost; try again in a minute";
        let details = serde_json::json!({ "method": method });
        return Err(Fault::Forbidden { operation: "upgrade", reason: reason.into(), details });
    }
    match HANDLERS.iter().find(|(name, _)| *name == method) {
        Some((_, handler)) => handler(daemon, params).await,
        None => Err(Fault::MethodNotFound(method)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_api_has_its_handler() {
        let named: Vec<&str> = api::METHODS.iter().map(|method| method.name).collect();
        let handled: Vec<&str> = HANDLERS.iter().map(|(name, _)| *name).collect();
        assert_eq!(handled, named);
    }
}
