//! How a command fails: with a stable exit code and a report.

use std::io;
use std::process::ExitCode;

use api::{ErrorCode, ErrorReport};

use crate::config::ConfigError;
use crate::fleet::CallError;
use crate::fleet::bundle::FetchError;
use crate::fleet::keep::KeepError;

/// Exit codes; stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Asked for wrongly.
    Usage = 2,
    /// The proxy does not answer.
    Unreachable = 3,
    /// Refused: token, certificate, role, state, read-only.
    Refused = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command that did not end well.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// What to say; nothing when all has been said.
    pub report: Option<ErrorReport>,
}

impl Failure {
    /// Failed, with a code and a sentence.
    pub fn failed(code: &str, message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, report: Some(ErrorReport::new(code, message)) }
    }

    /// Asked for wrongly.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, report: Some(ErrorReport::new("USAGE", message)) }
    }

    /// Refused.
    pub fn refused(code: &str, message: impl Into<String>) -> Self {
        Self { exit: Exit::Refused, report: Some(ErrorReport::new(code, message)) }
    }

    /// All has been said.
    pub fn silent(exit: Exit) -> Self {
        Self { exit, report: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.report = self.report.map(|report| report.with_next(next));
        self
    }

    /// Says first what it is a part of.
    #[must_use]
    pub fn within(mut self, what: &str) -> Self {
        if let Some(report) = &mut self.report {
            report.message = format!("{what}: {}", report.message);
        }
        self
    }

    /// A file that could not be read.
    pub fn file(what: &str, path: &std::path::Path, error: &io::Error) -> Self {
        Self::failed("FILE", format!("cannot {what} {}: {error}", path.display()))
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let exit = match &error {
            CallError::Unreachable { .. } | CallError::Cut { .. } | CallError::Foreign { .. } => Exit::Unreachable,
            CallError::Certificate { .. } | CallError::Authentication { .. } => Exit::Refused,
            // Refused before it starts, by whoever looked at it.
            CallError::Answered { report, .. } if report.code == api::deploy::REFUSED => Exit::Refused,
            CallError::Answered { code, .. } => match code {
                ErrorCode::Unauthorized | ErrorCode::ForbiddenOperation => Exit::Refused,
                ErrorCode::InvalidParameters => Exit::Usage,
                _ => Exit::Failed,
            },
        };
        Self { exit, report: Some(error.report()) }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let exit = match error {
            ConfigError::Wrong { .. } | ConfigError::NoHome | ConfigError::NoSuchProxy { .. } => Exit::Usage,
            ConfigError::Exposed { .. } => Exit::Refused,
            _ => Exit::Failed,
        };
        Self { exit, report: Some(error.report()) }
    }
}

impl From<KeepError> for Failure {
    fn from(error: KeepError) -> Self {
        let report = Some(error.report());
        let exit = match error {
            KeepError::Config(error) => Self::from(error).exit,
            KeepError::Call(error) => Self::from(error).exit,
            KeepError::Untold { error, .. } | KeepError::Undecided { error, .. } => Self::from(*error).exit,
            KeepError::Estranged { .. } => Exit::Refused,
            KeepError::Answer { .. } | KeepError::Unkept { .. } => Exit::Failed,
        };
        Self { exit, report }
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        let exit = match error {
            FetchError::File { .. } | FetchError::Download { .. } => Exit::Failed,
            FetchError::TooLong { .. } | FetchError::Broken { .. } => Exit::Refused,
        };
        Self { exit, report: Some(error.report()) }
    }
}

impl From<io::Error> for Failure {
    /// Writing the answer failed. A reader that went away had enough: that is no failure.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(Exit::Done),
            _ => Self::failed("OUTPUT", format!("cannot write the answer: {error}")),
        }
    }
}
