//! What a run that worked on a deployed proxy came to, read from its journal: the same at its end, after its clean-up, and at the
//! next start of the daemon.

use api::{Intent, RunKind, TaskResult};

use crate::plan::OpenIntent;

/// What a run came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The proxy is there, as the result says.
    Ready(TaskResult),
    /// Nothing came of it; what was before is what is.
    Undone,
    /// The proxy is gone.
    Gone,
    /// Not known before what the run left is cleaned up.
    Open,
}

/// What a journal says of a run.
#[derive(Debug, Clone)]
pub struct Told<'a> {
    /// Sort of run.
    pub kind: RunKind,
    /// The last result that names a certificate: what was registered.
    pub result: Option<&'a TaskResult>,
    /// The intents that are not settled, each number once, as it was told last.
    pub open: &'a [OpenIntent],
    /// Whether it was announced that a VM is to go, settled or not.
    pub condemned: bool,
}

impl Told<'_> {
    /// What it came to. `cleaned`: a clean-up has dealt with what it left.
    pub fn verdict(&self, cleaned: bool) -> Verdict {
        let committed = self.open.iter().all(|open| matches!(open.what, Intent::ObsoleteVm { .. }));
        match (self.kind, self.result) {
            // Once it was announced, it is finished, by the run or by its clean-up.
            (RunKind::Destroy, _) if !self.condemned => Verdict::Undone,
            (RunKind::Destroy, _) if self.open.is_empty() || cleaned => Verdict::Gone,
            (RunKind::Destroy, _) => Verdict::Open,
            // The result is in the journal before the commit. A clean-up undoes all but what is obsolete.
            (_, Some(result)) if committed => Verdict::Ready(result.clone()),
            _ if self.open.is_empty() || cleaned => Verdict::Undone,
            _ => Verdict::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new() -> Intent {
        Intent::DeployedVm { pool: "p".into(), uuid: Some("new".into()), replaces: None, answered: false }
    }

    fn old() -> Intent {
        Intent::ObsoleteVm { pool: "p".into(), uuid: "old".into(), jobs: Vec::new() }
    }

    fn judge(kind: RunKind, open: Option<Intent>, registered: bool, condemned: bool, cleaned: bool) -> Verdict {
        let open: Vec<_> = open.into_iter().map(|what| OpenIntent { intent: 1, what }).collect();
        let result = TaskResult::default();
        Told { kind, result: registered.then_some(&result), open: &open, condemned }.verdict(cleaned)
    }

    #[test]
    fn a_deployment_counts_from_its_commit_on() {
        let deployed = |open, registered, cleaned| judge(RunKind::Deploy, open, registered, false, cleaned);
        assert_eq!(deployed(None, false, false), Verdict::Undone);
        assert_eq!(deployed(Some(new()), false, false), Verdict::Open);
        assert_eq!(deployed(Some(new()), false, true), Verdict::Undone);
        assert_eq!(deployed(Some(new()), true, false), Verdict::Open);
        assert_eq!(deployed(Some(new()), true, true), Verdict::Undone);
        assert_eq!(deployed(None, true, false), Verdict::Ready(TaskResult::default()));
    }

    #[test]
    fn a_replacement_counts_once_the_old_one_is_obsolete() {
        assert_eq!(judge(RunKind::Redeploy, Some(new()), true, false, true), Verdict::Undone);
        for cleaned in [false, true] {
            assert_eq!(judge(RunKind::Redeploy, Some(old()), true, true, cleaned), Verdict::Ready(TaskResult::default()));
        }
    }

    #[test]
    fn a_destruction_that_was_announced_is_finished_and_one_that_was_not_is_none() {
        let destroyed = |open, condemned, cleaned| judge(RunKind::Destroy, open, false, condemned, cleaned);
        let held = || Some(Intent::DrainedProxy { pool: "p".into(), uuid: "old".into() });
        assert_eq!(destroyed(None, false, false), Verdict::Undone);
        assert_eq!(destroyed(held(), false, false), Verdict::Undone);
        assert_eq!(destroyed(held(), false, true), Verdict::Undone);
        assert_eq!(destroyed(Some(old()), true, false), Verdict::Open);
        assert_eq!(destroyed(Some(old()), true, true), Verdict::Gone);
        assert_eq!(destroyed(None, true, false), Verdict::Gone);
    }
}
