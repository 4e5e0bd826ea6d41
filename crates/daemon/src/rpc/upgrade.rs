//! `upgrade.*`: upgrades of this proxy.

use std::sync::Arc;

use api::{UpgradeParams, UpgradeState};

use crate::daemon::Daemon;
use crate::fault::Fault;

pub async fn start(daemon: Arc<Daemon>, given: UpgradeParams) -> Result<UpgradeState, Fault> {
    let upgrades = Arc::clone(&daemon.upgrades);
    upgrades.start(&daemon, given).await
}
