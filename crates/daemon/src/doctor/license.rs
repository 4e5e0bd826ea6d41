//! Whether jobs run under a licence, where one is asked for.

use std::sync::Arc;

use super::{About, Finding, Kind, Lines};
use crate::daemon::Daemon;

/// Asks the licences how this proxy stands. Without an issuer's key there is nothing to check.
pub async fn check(lines: Lines, daemon: Arc<Daemon>) {
    if !daemon.licenses.required() {
        return;
    }
    let about = About::new(Kind::License, "this proxy", "reading its licences", "check the disk of the state folder");
    let work = async {
        let finding = match daemon.licenses.standing().await {
            Ok(standing) => match (standing.license, standing.fault, standing.warning) {
                (_, Some(fault), _) => Finding::fail(
                    fault,
                    "import a licence and bind it to this proxy: backhaul license import FILE; backhaul license bind ID PROXY",
                ),
                (Some(id), None, Some(warning)) => Finding::warning(
                    format!("licence {id}: {warning}"),
                    "ask its issuer for the next one; backhaul license import",
                ),
                (Some(id), None, None) => Finding::pass(format!("licence {id} is good")),
                (None, None, _) => Finding::pass("no licence is needed"),
            },
            Err(fault) => Finding::fail(fault.report().message, "check the disk of the state folder"),
        };
        (finding, Some(()))
    };
    lines.check(about, work).await;
}
