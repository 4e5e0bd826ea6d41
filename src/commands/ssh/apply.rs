//! Does what was planned, step by step; a step that fails is named, and what had been done before it is undone.

use api::ErrorReport;

use super::interrupt::Interrupt;
use super::plan::{Content, Plan, Step};
use super::probe::paths;
use super::session::{Payload, Script, Session, SshError};
use crate::commands::failure::Failure;
use crate::commands::output;

/// What has been done so far on a host.
pub struct Work<'a> {
    session: &'a Session,
    interrupt: &'a Interrupt,
    plan: &'a Plan,
    /// Where the service listened that ran before, TCP port.
    former_port: Option<u16>,
    /// Name of this run, by which its former files are known.
    run: String,
    done: Vec<&'a Step>,
    quiet: bool,
}

impl<'a> Work<'a> {
    /// Nothing done yet. `quiet`: no word about each step.
    pub fn new(session: &'a Session, interrupt: &'a Interrupt, plan: &'a Plan, former_port: Option<u16>, quiet: bool) -> Self {
        let run = uuid::Uuid::new_v4().simple().to_string();
        Self { session, interrupt, plan, former_port, run, done: Vec::new(), quiet }
    }

    /// Does the steps. ctrl-C counts as a failure of the step it meets.
    ///
    /// # Errors
    /// [`Failure`], after all has been undone.
    pub async fn perform(&mut self) -> Result<(), Failure> {
        let steps: &'a [Step] = &self.plan.steps;
        if self.plan.again && !steps.is_empty() {
            let begun = self.interrupt.ends(self.session.run(Script::BEGIN, &[], Payload::Nothing)).await.flatten();
            if let Err(error) = begun {
                return Err(self.give_up("begin", error.into()).await);
            }
        }
        for (index, step) in steps.iter().enumerate() {
            if !self.quiet {
                output::aside(&format!("[{}/{}] {}", index + 1, steps.len(), step.words()));
            }
            // Before it is done: it may be half done when it fails.
            self.done.push(step);
            let done = self.interrupt.ends(self.act(step)).await.flatten();
            if let Err(error) = done {
                if !self.quiet {
                    output::aside("undoing what was done: what is still at work there ends first");
                }
                return Err(self.give_up(&step.words(), error.into()).await);
            }
        }
        Ok(())
    }

    /// Undoes all and says which step failed, how, and what to do about it.
    pub async fn give_up(&mut self, step: &str, failure: Failure) -> Failure {
        let host = self.session.destination();
        let (exit, mut report) = (failure.exit, broken(&format!("{step} on {host}"), failure.report));
        let mut left = false;
        let mut failed = |step: &Step, error: SshError| {
            report.causes.push(format!("cannot undo \"{}\": {error}", step.words()));
            left = true;
        };
        let done = std::mem::take(&mut self.done);
        for step in done.iter().rev() {
            if let Err(error) = self.undo(step).await {
                failed(step, error);
            }
        }
        // What ran before runs again once all its files are back.
        let new_token = done.iter().any(|step| matches!(step, Step::Put { path: paths::TOKEN, .. }));
        for step in &done {
            if let Step::Start { active, .. } = step {
                let port = self.former_port.unwrap_or(self.plan.port).to_string();
                // A state that took up the new token has forgotten the former ones. One that nobody worked on before cannot
                // tell by a start whether it can still be read.
                let back = word(new_token || !active);
                let values = [word(*active), port.as_str(), self.run.as_str(), back];
                if let Err(error) = self.session.run(Script::RESUME, &values, Payload::Nothing).await {
                    failed(step, error);
                }
            }
        }
        // What an earlier run has put, and not started, is still to be taken up: its note stays.
        if !left
            && !self.plan.unfinished
            && let Err(error) = self.session.run(Script::KEEP, &paths::KEPT, Payload::Nothing).await
        {
            report.causes.push(format!("cannot remove what was kept for undoing: {error}"));
            left = true;
        }
        let remedy = report.next.take();
        let next = match (remedy, left) {
            (Some(remedy), false) => format!("{remedy}; {host} is as it was before"),
            (None, false) => format!("{host} is as it was before; mend the cause and try again"),
            (remedy, true) => format!(
                "{}what could not be undone stays on {host}; the same command takes it up, `backhaul proxy undeploy` removes it",
                remedy.map(|remedy| format!("{remedy}; ")).unwrap_or_default()
            ),
        };
        Failure { exit, report: Some(report.with_next(next)) }
    }

    /// All is well: what was kept for undoing goes. What cannot be removed does no harm, and is said.
    pub async fn keep(self) {
        if self.done.is_empty() && !self.plan.leftovers {
            return;
        }
        if let Err(error) = self.session.run(Script::KEEP, &paths::KEPT, Payload::Nothing).await {
            let host = self.session.destination();
            output::aside(&format!(
                "note: files called *.backhaul-former-* stay on {host}, to be removed by the next run: {error}"
            ));
        }
    }

    async fn act(&self, step: &Step) -> Result<(), SshError> {
        let port = self.plan.port.to_string();
        let run = |script, values| self.session.run(script, values, Payload::Nothing);
        match step {
            Step::Folder { path, mode, owner } => run(Script::FOLDER, &[path, mode, owner, &self.run]).await?,
            Step::Account => run(Script::ACCOUNT, &[&self.run]).await?,
            Step::Put { path, mode, owner, content, .. } => self.put(path, mode, owner, content).await?,
            Step::Package { kind, path, .. } => {
                let sum = sum(&Content::File(path.clone()))?;
                self.session.run(Script::PACKAGE, &[kind, &sum], Payload::File(path)).await?
            }
            Step::Check => run(Script::CHECK, &[self.plan.program]).await?,
            Step::Start { state, .. } => run(Script::START, &[&port, &self.run, word(*state)]).await?,
        };
        Ok(())
    }

    async fn put(&self, path: &str, mode: &str, owner: &str, content: &Content) -> Result<String, SshError> {
        let sum = sum(content)?;
        let payload = match content {
            Content::Bytes(bytes) => Payload::Bytes(bytes),
            Content::File(path) => Payload::File(path),
        };
        self.session.run(Script::PUT, &[path, mode, owner, &self.run, &sum], payload).await
    }

    async fn take_back(&self, path: &str, existed: bool) -> Result<String, SshError> {
        self.session.run(Script::UNPUT, &[path, &self.run, word(existed)], Payload::Nothing).await
    }

    async fn undo(&self, step: &Step) -> Result<(), SshError> {
        let run = |script, values| self.session.run(script, values, Payload::Nothing);
        match step {
            Step::Folder { path, .. } => run(Script::UNFOLDER, &[path, &self.run]).await?,
            Step::Account => run(Script::UNACCOUNT, &[&self.run]).await?,
            Step::Put { path, existed, .. } => self.take_back(path, *existed).await?,
            Step::Package { former: None, .. } => run(Script::UNPACKAGE, &[]).await?,
            Step::Package { former: Some(former), .. } => {
                return Err(SshError::Script { code: 1, said: format!("the package of version {former} is not at hand") });
            }
            Step::Check => String::new(),
            Step::Start { enabled, .. } => run(Script::UNSTART, &[word(*enabled), word(self.plan.again)]).await?,
        };
        Ok(())
    }
}

fn sum(content: &Content) -> Result<String, SshError> {
    let said = |failure: Failure| failure.report.map(|report| report.message).unwrap_or_default();
    content.sum().map_err(|failure| SshError::Script { code: 1, said: said(failure) })
}

/// What broke a step: of what a program said the last line is the point, and what comes before it leads to it.
fn broken(step: &str, report: Option<ErrorReport>) -> ErrorReport {
    let report = report.unwrap_or_else(|| ErrorReport::new("STEP", ""));
    let mut lines = report.message.lines().map(str::trim).filter(|line| !line.is_empty());
    let point = lines.next_back().unwrap_or("no reason was given");
    let mut broken = ErrorReport::new("STEP", format!("cannot {step}: {point}"));
    broken.causes = lines.map(str::to_owned).collect();
    // `ssh` repeats its last line among the causes.
    broken.causes.extend(report.causes.into_iter().filter(|cause| !point.contains(cause.as_str())));
    broken.next = report.next;
    broken
}

fn word(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_broke_a_step_keeps_its_causes_and_its_remedy() {
        let mut report = ErrorReport::new("SSH", "dpkg: unpacking\n\ndpkg: no space left\n").with_next("make room");
        report.causes = vec!["the disk is full".into()];
        let broken = broken("install it on nas", Some(report));
        assert_eq!(broken.message, "cannot install it on nas: dpkg: no space left");
        assert_eq!(broken.causes, ["dpkg: unpacking", "the disk is full"]);
        assert_eq!(broken.next.as_deref(), Some("make room"));
        assert!(super::broken("x", None).message.ends_with("no reason was given"));
    }
}
