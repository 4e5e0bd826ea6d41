//! `schedule.*`.

use std::sync::Arc;

use api::{SchedulePreview, SchedulePreviewParams};

use crate::daemon::Daemon;
use crate::fault::Fault;
use crate::schedule::{self, ScheduleError};

pub async fn preview(daemon: Arc<Daemon>, given: SchedulePreviewParams) -> Result<SchedulePreview, Fault> {
    let count = given.count.unwrap_or(3);
    if count > 50 {
        return Err(Fault::invalid("count", format!("count: {count} is more than 50")));
    }
    schedule::preview(&given.schedule, daemon.clock.now(), count as usize).map_err(|error| fault(&error))
}

/// The parameter that a wrong schedule is about.
pub(super) fn fault(error: &ScheduleError) -> Fault {
    let name = match error {
        ScheduleError::TimeZone(_) => "timezone",
        ScheduleError::Cron { .. } | ScheduleError::Never(_) => "cron",
    };
    Fault::invalid(name, error.to_string())
}
