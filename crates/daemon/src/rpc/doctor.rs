//! `doctor.*` and `support.*`: what is wrong with this proxy, and a text about it.

use std::sync::Arc;

use api::{DoctorCheck, DoctorParams, NoParams, SupportBundle};
use futures::{Stream, StreamExt};

use crate::daemon::Daemon;
use crate::fault::Fault;
use crate::{doctor, support};

pub async fn run(
    daemon: Arc<Daemon>,
    given: DoctorParams,
) -> Result<impl Stream<Item = Result<DoctorCheck, Fault>> + Send + 'static, Fault> {
    Ok(doctor::examine(daemon, given).map(Ok))
}

pub async fn support_bundle(daemon: Arc<Daemon>, _: NoParams) -> Result<SupportBundle, Fault> {
    support::bundle(daemon).await
}
