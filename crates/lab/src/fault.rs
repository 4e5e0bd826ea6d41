//! Faults that can be switched on while a pool runs (xapi-streams.md §5.7).

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// What the task of a broken transfer says afterwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskAfter {
    /// It fails, as it should.
    #[default]
    Failure,
    /// It stays pending for ever: the client's connection is all that tells.
    Pending,
    /// It disappears before anybody could read it.
    Vanished,
}

/// One way in which a pool misbehaves. On the wire: an object with `kind` in snake case and the fields below.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// An export's connection is reset after so many bytes of its body.
    CutExport {
        /// Bytes of the body.
        after_bytes: u64,
        /// What the task says.
        #[serde(default)]
        task: TaskAfter,
    },
    /// An export ends early but cleanly, as if it were complete.
    EndExportEarly {
        /// Bytes of the body.
        after_bytes: u64,
        /// What the task says.
        #[serde(default)]
        task: TaskAfter,
    },
    /// An import's connection is reset after so many bytes were read.
    CutImport {
        /// Bytes of the body.
        after_bytes: u64,
    },
    /// The storage cannot be read: an export stops there and its task fails with `VDI_IO_ERROR`.
    ReadError {
        /// Bytes of the body.
        after_bytes: u64,
    },
    /// An NBD connection is cut after so many bytes of data.
    CutNbd {
        /// Bytes of data on that connection.
        after_bytes: u64,
    },
    /// NBD reads that touch the disk from this byte on are answered with `EIO`.
    NbdReadError {
        /// Position in the disk, bytes.
        from_byte: u64,
    },
    /// NBD connections are refused.
    RefuseNbd,
    /// NBD's STARTTLS is refused.
    RefuseNbdTls,
    /// NBD replies announce their data, send half of it, and the connection ends.
    ShortNbdReplies,
    /// NBD replies come in another order than the requests.
    ReorderNbdReplies,
    /// NBD replies wait so long first, as over a long line.
    SlowLine {
        /// Milliseconds for each reply.
        delay: u64,
    },
    /// Exports are sent no faster.
    SlowExport {
        /// Bytes a second.
        bytes_per_second: u64,
    },
    /// NBD replies are sent no faster, per connection.
    SlowNbd {
        /// Bytes a second.
        bytes_per_second: u64,
    },
    /// The session is lost: after so many further calls the next one is answered `SESSION_INVALID`.
    SessionInvalid {
        /// Calls that still succeed.
        #[serde(default)]
        after_calls: u32,
    },
    /// Data handlers answer 503.
    Unavailable,
    /// Nobody listens: HTTPS and NBD connections are cut and new ones refused.
    HostOffline,
    /// Logging in is answered `HOST_IS_SLAVE`.
    HostIsSlave {
        /// Address of the alleged master, without port.
        master: String,
    },
    /// Data handlers redirect (302) to another host of the pool, or to the same where there is one only.
    Redirect,
    /// The body of an export begins with a second HTTP response.
    HttpInBody,
    /// A requested delta is answered by a full disk.
    FullInsteadOfDelta,
    /// `VDI.get_nbd_info` gives nothing.
    NoNbd,
    /// Changed blocks cannot be had: `VDI.list_changed_blocks` fails with `SR_BACKEND_FAILURE_460`.
    NoChangedBlocks,
    /// Calls are answered `TOO_MANY_PENDING_TASKS`.
    TooManyPendingTasks,
    /// Destroying a disk or its data is answered `VDI_IN_USE`.
    VdiInUse,
    /// `event.from` is answered `EVENTS_LOST`.
    EventsLost,
    /// `VM.snapshot` knows only two parameters, as on old hosts.
    OldSnapshot,
    /// `VM.snapshot` fails.
    SnapshotFails,
    /// The clocks of the hosts are wrong.
    ClockSkew {
        /// Seconds they are ahead; negative: behind.
        seconds: i64,
    },
    /// A call fails, whichever it is.
    FailCall {
        /// Its name as in [`crate::PoolHandle::log_calls`]: `VM.start`, `Async.VM.start`, `PUT /import`.
        call: String,
        /// Which one of that name, from 1; the following ones too, unless it strikes once.
        #[serde(default = "first")]
        nth: u32,
        /// What it fails with.
        #[serde(default = "internal_error")]
        code: String,
        /// Whether it takes effect all the same, and only its answer is lost.
        #[serde(default)]
        done: bool,
    },
    /// The guest of an appliance comes up, and the pool never hears of it.
    GuestNeverReports,
    /// The guest of an appliance reports another address than it has.
    GuestReportsOtherAddress {
        /// The address.
        address: IpAddr,
    },
    /// The guest of an appliance reports its address, and its daemon says nothing.
    DaemonNeverAnswers,
}

fn first() -> u32 {
    1
}

fn internal_error() -> String {
    "INTERNAL_ERROR".into()
}

/// How a call is to fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CallFault {
    pub code: String,
    /// After it took effect.
    pub done: bool,
}

impl CallFault {
    /// What a call of that name is answered.
    pub fn failure(&self, name: &str) -> Failure {
        Failure::new(&self.code, [format!("{name} was made to fail")])
    }
}

/// A fault and for how long it holds. Without count and duration it holds until cleared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultSpec {
    /// The fault.
    #[serde(flatten)]
    pub fault: Fault,
    /// How many times it strikes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// For how long it can strike, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_milliseconds: Option<u64>,
}

impl From<Fault> for FaultSpec {
    fn from(fault: Fault) -> Self {
        Self { fault, count: None, for_milliseconds: None }
    }
}

impl Fault {
    /// Striking once only.
    pub fn once(self) -> FaultSpec {
        self.times(1)
    }

    /// Striking so many times.
    pub fn times(self, count: u32) -> FaultSpec {
        FaultSpec { count: Some(count), ..self.into() }
    }

    /// Holding for so long.
    pub fn during(self, time: Duration) -> FaultSpec {
        FaultSpec { for_milliseconds: Some(time.as_millis() as u64), ..self.into() }
    }
}

struct Armed {
    spec: FaultSpec,
    until: Option<Instant>,
}

/// The faults of a pool.
#[derive(Default)]
pub(crate) struct Faults(Mutex<Vec<Armed>>);

impl Faults {
    /// Switches one on.
    pub fn set(&self, spec: FaultSpec) {
        let until = spec.for_milliseconds.map(|ms| Instant::now() + Duration::from_millis(ms));
        self.lock().push(Armed { spec, until });
    }

    /// Switches all off.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Those that are on.
    pub fn list(&self) -> Vec<FaultSpec> {
        self.lock().iter().map(|armed| armed.spec.clone()).collect()
    }

    /// Time until the next fault ends by itself.
    pub fn next_end(&self) -> Option<Duration> {
        let now = Instant::now();
        self.lock().iter().filter_map(|armed| armed.until).min().map(|until| until.saturating_duration_since(now))
    }

    /// Whether one like that is on; does not use it up.
    pub fn is_on(&self, like: impl Fn(&Fault) -> bool) -> bool {
        self.lock().iter().any(|armed| like(&armed.spec.fault))
    }

    /// Strikes: gives the first fault for which `pick` has an answer, and counts it down.
    pub fn strike<T>(&self, pick: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        let mut armed = self.lock();
        let (index, picked) = armed.iter().enumerate().find_map(|(index, armed)| Some((index, pick(&armed.spec.fault)?)))?;
        if let Some(count) = &mut armed[index].spec.count {
            *count = count.saturating_sub(1);
            if *count == 0 {
                armed.remove(index);
            }
        }
        Some(picked)
    }

    /// Whether a fault equal to this strikes now.
    pub fn hits(&self, fault: &Fault) -> bool {
        self.strike(|armed| (armed == fault).then_some(())).is_some()
    }

    /// One more call of that name was made: says how it is to fail, if it is.
    pub fn of_call(&self, name: &str) -> Option<CallFault> {
        let mut due = false;
        for armed in self.lock().iter_mut() {
            if let Fault::FailCall { call, nth, .. } = &mut armed.spec.fault
                && call == name
            {
                due |= *nth <= 1;
                *nth = nth.saturating_sub(1).max(1);
            }
        }
        self.strike(|fault| match fault {
            Fault::FailCall { call, code, done, .. } if due && call == name => {
                Some(CallFault { code: code.clone(), done: *done })
            }
            _ => None,
        })
    }

    /// One more call was made with a session: says whether the session is lost now.
    pub fn session_is_lost(&self) -> bool {
        for armed in self.lock().iter_mut() {
            if let Fault::SessionInvalid { after_calls } = &mut armed.spec.fault
                && *after_calls > 0
            {
                *after_calls -= 1;
                return false;
            }
        }
        self.hits(&Fault::SessionInvalid { after_calls: 0 })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Armed>> {
        let mut armed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        armed.retain(|armed| armed.spec.count != Some(0) && armed.until.is_none_or(|until| now < until));
        armed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counted_fault_strikes_so_often_and_no_more() {
        let faults = Faults::default();
        faults.set(Fault::Unavailable.times(2));
        assert_eq!([(); 3].map(|()| faults.hits(&Fault::Unavailable)), [true, true, false]);
    }

    #[test]
    fn a_session_is_lost_after_the_calls_allowed() {
        let faults = Faults::default();
        faults.set(Fault::SessionInvalid { after_calls: 2 }.once());
        assert_eq!([(); 4].map(|()| faults.session_is_lost()), [false, false, true, false]);
    }

    #[test]
    fn the_call_counted_to_fails_and_no_other() {
        let faults = Faults::default();
        let fault = Fault::FailCall { call: "VM.start".into(), nth: 2, code: "X".into(), done: false };
        faults.set(fault.once());
        let calls = ["VM.start", "VM.get_record", "VM.start", "VM.start"].map(|call| faults.of_call(call).is_some());
        assert_eq!(calls, [false, false, true, false]);
    }

    #[test]
    fn faults_read_from_the_wire() {
        let spec: FaultSpec = serde_json::from_str(r#"{"kind":"cut_export","after_bytes":5,"count":1}"#).unwrap();
        assert_eq!(spec, Fault::CutExport { after_bytes: 5, task: TaskAfter::Failure }.once());
        let spec: FaultSpec = serde_json::from_str(r#"{"kind":"fail_call","call":"VM.start","count":1}"#).unwrap();
        let fault = Fault::FailCall { call: "VM.start".into(), nth: 1, code: "INTERNAL_ERROR".into(), done: false };
        assert_eq!(spec, fault.once());
        assert!(serde_json::from_str::<FaultSpec>(r#"{"kind":"nonsense"}"#).is_err());
    }
}
