//! What the core asks the world to do. Effects are data: printable, comparable, replayable.

use api::{ErrorReport, Method};
use serde_json::Value;

use super::errand::{Done, Errand};

/// Numbers a request; its reply carries the same number. Unique in one console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Something to be done outside the core.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// For the fleet: a request, a watch.
    Fleet(FleetCommand),
    /// Put this text into the clipboard of the person's own terminal.
    Copy(String),
    /// Give the terminal back to the shell until continued.
    Suspend,
    /// Paint every cell again: somebody else wrote on the screen.
    Repaint,
    /// Leave.
    Quit,
}

/// What `fleet` performs. Proxies are named as in the console's configuration.
#[derive(Debug, Clone, PartialEq)]
pub enum FleetCommand {
    /// One request; answered by exactly one [`crate::core::FleetEventKind::Reply`] with the same id, also when the
    /// proxy is away (the error says so).
    Call {
        /// Which proxy.
        proxy: String,
        /// Comes back in the reply.
        id: RequestId,
        /// What.
        request: Request,
    },
    /// Follow a run: every event after `cursor`, exactly once, across reconnects, until the run has ended or
    /// [`FleetCommand::UnwatchRun`]. Watching twice replaces the former watch.
    WatchRun {
        /// Which proxy.
        proxy: String,
        /// Run id.
        run: String,
        /// Last cursor known; 0: from the beginning.
        cursor: u64,
    },
    /// Stop following a run.
    UnwatchRun {
        /// Which proxy.
        proxy: String,
        /// Run id.
        run: String,
    },
    /// What takes more than one call; answered by exactly one [`crate::core::FleetEventKind::Reply`] with the same id.
    Errand {
        /// Which proxy.
        proxy: String,
        /// Comes back in the reply.
        id: RequestId,
        /// What.
        errand: Errand,
    },
    /// Forget the waiting time and try again now; also out of a refusal.
    Reconnect {
        /// Which proxy.
        proxy: String,
    },
}

/// How much a request asks of the person before it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Danger {
    /// Goes at once.
    None,
    /// A question with Cancel preselected.
    Ask,
    /// The name of the object must be typed.
    TypeName,
}

macro_rules! requests {
    ($( $(#[$doc:meta])* $name:ident = $method:ident, $danger:ident $(, $boxed:ident)?; )+) => {
        /// A request of the console, with its parameters; large ones in a box.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Request { $( $(#[$doc])* $name(requests!(@sized <api::$method as Method>::Params $(, $boxed)?)), )+ }

        /// The answer to the [`Request`] of the same name, or to an errand.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Answer {
            $( $(#[$doc])* $name(<api::$method as Method>::Item), )+
            /// What came of an [`Errand`].
            Errand(Done),
        }

        impl Request {
            /// Name of the method on the wire.
            pub const fn method(&self) -> &'static str {
                match self { $( Self::$name(_) => <api::$method as Method>::NAME, )+ }
            }

            /// Whether it changes anything: refused in read-only mode.
            pub const fn writes(&self) -> bool {
                match self { $( Self::$name(_) => <api::$method as Method>::WRITES, )+ }
            }

            /// What must be asked before it leaves.
            pub const fn danger(&self) -> Danger {
                match self {
                    // What was held back starts again: there is nothing to think over.
                    Self::Drain(params) if !params.on => Danger::None,
                    $( Self::$name(_) => Danger::$danger, )+
                }
            }

            /// Its parameters as they go over the wire.
            pub fn params(&self) -> Value {
                // The parameter types are plain data: no map with keys that are not strings, no failing serializer.
                match self { $( Self::$name(params) => serde_json::to_value(params).unwrap_or(Value::Null), )+ }
            }

            /// Reads the result of this request; meant to be called off the thread that draws.
            ///
            /// # Errors
            /// `INVALID_ANSWER` when the result has not the shape the method promises.
            pub fn decode(&self, result: Value) -> Result<Answer, ErrorReport> {
                let method = self.method();
                let bad = |error: serde_json::Error| {
                    ErrorReport::new("INVALID_ANSWER", format!("the proxy's answer to {method} cannot be read: {error}"))
                        .with_next("compare the versions of console and proxy")
                };
                match self { $( Self::$name(_) => serde_json::from_value(result).map(Answer::$name).map_err(bad), )+ }
            }
        }
    };
    (@sized $params:ty) => { $params };
    (@sized $params:ty, boxed) => { Box<$params> };
}

requests! {
    /// Pools of a proxy.
    Pools = PoolList, None;
    /// Connect a pool.
    PoolAdd = PoolAdd, None;
    /// VMs.
    Vms = VmList, None;
    /// Storage repositories.
    Srs = SrList, None;
    /// Remotes.
    Remotes = RemoteList, None;
    /// New remote.
    RemoteAdd = RemoteAdd, None;
    /// Write, read back, compare.
    RemoteTest = RemoteTestRun, None;
    /// Forget a remote.
    RemoteRemove = RemoteRemove, Ask;
    /// Jobs.
    Jobs = JobList, None;
    /// New job.
    JobCreate = JobCreate, None;
    /// Changed job.
    JobUpdate = JobUpdate, None;
    /// Schedule on or off.
    JobSetEnabled = JobSetEnabled, None;
    /// Remove a job.
    JobRemove = JobRemove, Ask;
    /// Start a job.
    JobRun = JobRun, None;
    /// Explain a schedule.
    SchedulePreview = SchedulePreviewGet, None;
    /// Runs.
    Runs = RunList, None;
    /// One run, whole.
    Run = RunGet, None;
    /// Stop a run.
    RunCancel = RunCancel, Ask;
    /// Restore points.
    RestorePoints = RestorePointList, None;
    /// Restore.
    Restore = RestorePointRestore, None;
    /// Verify.
    Verify = RestorePointVerify, None;
    /// Remove a restore point.
    RestorePointRemove = RestorePointRemove, TypeName;
    /// Deployed proxies.
    Deployed = DeployedList, None;
    /// What the pools offer to a new proxy.
    DeployOptions = DeployOptionsGet, None;
    /// What a deployment would do.
    DeployReview = DeployReviewGet, None, boxed;
    /// Deploy.
    DeployStart = DeployStart, None, boxed;
    /// Make a deployed proxy anew.
    Redeploy = Redeploy, Ask, boxed;
    /// Change address or resources of a deployed proxy.
    Reconfigure = DeployReconfigure, Ask, boxed;
    /// Destroy a deployed proxy.
    Destroy = DeployDestroy, TypeName;
    /// Forget a deployed proxy.
    Forget = DeployForget, Ask;
    /// Hold new runs back, or not.
    Drain = ProxyDrain, Ask;
    /// Name, site, HTTP proxy.
    Configure = ProxyConfigure, None;
    /// Licences.
    Licenses = LicenseList, None;
    /// Forget a licence.
    LicenseRemove = LicenseRemove, Ask;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_destroys_asks_first() {
        let id = || api::IdParams { id: "x".into() };
        for request in [
            Request::RemoteRemove(id()),
            Request::JobRemove(id()),
            Request::RunCancel(id()),
            Request::Forget(id()),
            Request::LicenseRemove(id()),
        ] {
            assert_eq!(request.danger(), Danger::Ask, "{}", request.method());
            assert!(request.writes());
        }
        assert_eq!(Request::RestorePointRemove(id()).danger(), Danger::TypeName);
        let drain = |on| Request::Drain(api::DrainParams { on }).danger();
        assert_eq!((drain(true), drain(false)), (Danger::Ask, Danger::None), "no backups until somebody notices");
    }

    #[test]
    fn an_answer_of_another_shape_is_an_error_in_words() {
        let request = Request::Jobs(api::NoParams {});
        assert_eq!(request.decode(serde_json::json!([])), Ok(Answer::Jobs(Vec::new())));
        let error = request.decode(serde_json::json!({ "a": 1 })).unwrap_err();
        assert!(error.message.contains("job.list"), "{}", error.message);
    }
}
