//! Why a part of a run failed, and what its outcome and its report are.

use api::{ErrorReport, Outcome};

use crate::journal::JournalError;

/// A cause from another room, kept whole.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a part of a run failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody asked for it.
    #[error("cancelled")]
    Cancelled,
    /// The journal does not take what must be written before going on.
    #[error("stopped before anything was created: the journal cannot record what was about to be done")]
    Journal(#[from] JournalError),
    /// Refused with a reason before anything was touched.
    #[error("{message}")]
    Refused {
        /// Stable code.
        code: &'static str,
        /// What and why.
        message: String,
        /// What to do next.
        next: Option<&'static str>,
    },
    /// The pool did not do what it was asked.
    #[error("pool {pool}: cannot {doing}")]
    Pool {
        /// Name of the pool.
        pool: String,
        /// What was tried, on what: `snapshot web-01`.
        doing: String,
        /// The pool's own code, or one for the kind of failure.
        code: String,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// A remote did not do what it was asked.
    #[error("remote {remote}: cannot {doing}")]
    Remote {
        /// Name of the remote.
        remote: String,
        /// What was tried, on what: `write disk xvda`.
        doing: String,
        /// Stable code.
        code: &'static str,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// A remote that is known to be away, in the words of whoever knows it.
    #[error("{}", .0.message)]
    Away(Box<ErrorReport>),
    /// A disk or archive could not be read to its end.
    #[error("cannot read {what}")]
    Source {
        /// The disk or VM.
        what: String,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// A proxy did not do what it was asked.
    #[error("proxy {proxy}: cannot {doing}")]
    Proxy {
        /// Name of the proxy.
        proxy: String,
        /// What was tried: `export its state`.
        doing: String,
        /// The proxy's own code, or one for the kind of failure.
        code: String,
        /// What to do next.
        next: Option<String>,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// Something did not happen in its time.
    #[error("{what} within {seconds} s")]
    Late {
        /// What did not happen: `the guest of edge-1 reported no address`.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// An appliance's image is not what it must be, or cannot be had.
    #[error("image {image}: {what}")]
    Image {
        /// Path or URL, without credentials.
        image: String,
        /// Stable code.
        code: &'static str,
        /// What is wrong.
        what: String,
        /// What to do next.
        next: &'static str,
        /// Why.
        #[source]
        source: Option<Cause>,
    },
    /// A step of a deployment failed.
    #[error("step {step} failed{undone}")]
    Step {
        /// The step.
        step: &'static str,
        /// What has become of what was made: empty, or ` and …`.
        undone: &'static str,
        /// What to do next, unless the failure knows better.
        next: &'static str,
        /// The failure.
        #[source]
        source: Box<Error>,
    },
    /// Every remote of a VM has failed.
    #[error("no remote is left for {vm}: {reasons}")]
    NoRemoteLeft {
        /// The VM.
        vm: String,
        /// What each said.
        reasons: String,
    },
    /// Parts of a run failed, each reported where it happened.
    #[error("{failed} of {all} failed: {names}")]
    Parts {
        /// How many failed.
        failed: usize,
        /// Of how many.
        all: usize,
        /// Their names.
        names: String,
    },
}

impl Error {
    pub(crate) fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self::Refused { code, message: message.into(), next: None }
    }

    /// How what failed this way ended.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Cancelled => Outcome::Cancelled,
            Self::Step { source, .. } => source.outcome(),
            _ => Outcome::Failure,
        }
    }

    /// The failure for a person.
    pub fn report(&self) -> ErrorReport {
        let (code, next) = self.code_and_next();
        let mut report = ErrorReport::new(code, self.sentence());
        report.next = next;
        if let Some(source) = std::error::Error::source(self) {
            report = report.with_source(source);
        }
        report
    }

    /// A stable code, and what to do next where there is something to do.
    fn code_and_next(&self) -> (&str, Option<String>) {
        let (code, next) = match self {
            Self::Cancelled => ("CANCELLED", None),
            Self::Journal(_) => ("JOURNAL", Some("make room where the daemon keeps its state, then run again")),
            Self::Refused { code, next, .. } => (*code, *next),
            Self::Pool { code, .. } => (code.as_str(), None),
            Self::Remote { code, .. } => (*code, None),
            Self::Away(report) => return (report.code.as_str(), report.next.clone()),
            Self::Source { .. } => {
                ("SOURCE_FAILED", Some("run again; if it fails at the same place, check the disk on the pool"))
            }
            Self::NoRemoteLeft { .. } => ("NO_REMOTE_LEFT", Some("test the remotes of the job")),
            Self::Parts { .. } => ("PARTLY_FAILED", None),
            Self::Proxy { code, next, .. } => return (code.as_str(), next.clone()),
            Self::Late { .. } => ("TIMED_OUT", None),
            Self::Image { code, next, .. } => (*code, Some(*next)),
            Self::Step { next, source, .. } => {
                let (code, better) = source.code_and_next();
                return (code, better.or_else(|| Some((*next).to_owned())));
            }
        };
        (code, next.map(Into::into))
    }

    /// The error with its causes in one line: what a person reads first.
    pub(crate) fn sentence(&self) -> String {
        sentence(self)
    }
}

/// An error with its causes in one line. A cause that the text before it already ends with is left out.
pub(crate) fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_sentence_with_its_causes_beside_it() {
        let cause = std::io::Error::other("connection reset");
        let error = Error::Source { what: "disk xvda of web-01".into(), source: Box::new(cause) };
        let report = error.report();
        assert_eq!(report.message, "cannot read disk xvda of web-01: connection reset");
        assert_eq!(report.causes, ["connection reset"]);
        assert!(report.next.is_some());
        assert_eq!(error.outcome(), Outcome::Failure);
    }

    #[test]
    fn a_failed_step_names_itself_and_keeps_what_is_known_of_the_failure() {
        let late = Error::Late { what: "the guest of edge reported no address".into(), seconds: 5 };
        let undone = " and what was made is removed again";
        let report = Error::Step { step: "address", undone, next: "look at its console", source: Box::new(late) }.report();
        assert_eq!(
            report.message,
            "step address failed and what was made is removed again: the guest of edge reported no address within 5 s"
        );
        assert_eq!((report.code.as_str(), report.next.as_deref()), ("TIMED_OUT", Some("look at its console")));
    }

    #[test]
    fn a_cancel_is_no_failure() {
        assert_eq!(Error::Cancelled.outcome(), Outcome::Cancelled);
    }
}
