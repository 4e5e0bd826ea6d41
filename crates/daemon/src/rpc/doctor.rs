//! `doctor.*` and `support.*`: what is wrong with this proxy, and a text about it.

use std::sync::Arc;

use api::{DoctorCheck, DoctorParams, NoParams, SupportBundle};
use futures::Stream;

use crate::daemon::Daemon;
use crate::fault::Fault;

pub async fn run(
    _: Arc<Daemon>,
    _: DoctorParams,
) -> Result<impl Stream<Item = Result<DoctorCheck, Fault>> + Send + 'static, Fault> {
    Err::<futures::stream::Empty<_>, _>(Fault::MethodNotFound("doctor.run".into()))
}

pub async fn support_bundle(_: Arc<Daemon>, _: NoParams) -> Result<SupportBundle, Fault> {
    Err(Fault::MethodNotFound("support.bundle".into()))
}
