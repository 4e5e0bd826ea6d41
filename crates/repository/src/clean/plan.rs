//! What to do about what is there. Pure: a survey in, a plan out.

use std::collections::{BTreeMap, BTreeSet};

use storage::{EntryKind, RepoPath};
use uuid::Uuid;

use super::survey::{Lineage, Survey};
use crate::layout::DATA;
use crate::merge::state::{MergeState, Step, state_path};
use crate::xva_file::CHECKSUM;

/// What clean is going to do.
#[derive(Debug, Default)]
pub struct CleanPlan {
    /// Interrupted merges to complete.
    pub resume: Vec<Merge>,
    /// What nothing refers to.
    pub remove: Vec<Removal>,
    /// Merges to do.
    pub merge: Vec<Merge>,
    /// What a person should look at.
    pub problems: Vec<String>,
}

/// A chain to merge.
#[derive(Debug)]
pub struct Merge {
    /// Disks, parent first, target last.
    pub members: Vec<RepoPath>,
    pub(crate) state: Option<MergeState>,
}

/// Something to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// What.
    pub path: RepoPath,
    /// Whether it is a directory with content.
    pub tree: bool,
    /// Why.
    pub reason: &'static str,
}

impl CleanPlan {
    pub(super) fn of(survey: &Survey) -> Self {
        let referenced = survey.referenced();
        let mut plan = Self::default();
        for lineage in &survey.lineages {
            plan.lineage(lineage, &referenced);
        }
        plan.vm_directory(survey);
        plan.report(survey);
        if !survey.doubts.is_empty() {
            // Never on doubt. Merges under way may go on: what they remove was nobody's when they began.
            plan.remove.clear();
            plan.merge.clear();
            plan.problems.extend(survey.doubts.iter().map(|doubt| format!("{doubt}; nothing of this VM is removed or merged")));
        }
        plan
    }

    fn lineage(&mut self, lineage: &Lineage, referenced: &BTreeSet<RepoPath>) {
        let (removals, merges) = (self.remove.len(), self.merge.len());
        for name in &lineage.strangers {
            self.problems.push(format!("{}/{name} has the name of a disk but is no file: it is left alone", lineage.dir));
        }
        let path = |name: &str| lineage.dir.join(name).ok();
        let active = |name: &str| path(name).is_some_and(|path| referenced.contains(&path));
        let mut children: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, found) in &lineage.disks {
            if let Some(parent) = &found.parent {
                children.entry(parent).or_default().push(name);
            }
        }
        // A disk is needed when it, or a disk that descends from it, is referred to.
        let mut needed: BTreeSet<&str> = BTreeSet::new();
        for name in lineage.disks.keys().filter(|name| active(name)) {
            let mut next = Some(name.as_str());
            while let Some(name) = next.filter(|name| needed.insert(name)) {
                next = lineage.disks.get(name).and_then(|found| found.parent.as_deref());
            }
        }
        let held = self.merges_under_way(lineage, &active, &children);

        // Who the ancestors of a disk are, only the disk can tell: as long as one that is needed cannot be read, any
        // other may be one of its ancestors.
        let mut unclear = false;
        let wanted = referenced.iter().filter(|path| path.parent().as_ref() == Some(&lineage.dir)).map(RepoPath::name);
        let wanted: BTreeSet<&str> = wanted.chain(needed.iter().copied()).collect();
        for name in wanted.into_iter().filter(|name| !lineage.disks.contains_key(*name)) {
            unclear = true;
            let path = path(name);
            let coming = self.resume.iter().any(|merge| merge.members.last() == path.as_ref());
            if !coming && !active(name) {
                self.problems.push(format!("the disk {}/{name} is needed and missing", lineage.dir));
            }
        }
        for (name, found) in &lineage.disks {
            let Some(path) = path(name) else { continue };
            if needed.contains(name.as_str()) || held.contains(name.as_str()) {
                if let Err(reason) = &found.disk {
                    self.problems.push(format!("the disk {path} is needed and damaged: {reason}"));
                    unclear = true;
                }
                continue;
            }
            let reason = if found.disk.is_ok() { "no restore point needs this disk" } else { "incomplete disk" };
            self.remove.push(Removal { path, tree: false, reason });
        }
        let removed: BTreeSet<&RepoPath> = self.remove.iter().map(|removal| &removal.path).collect();
        let claimed: BTreeSet<&RepoPath> = lineage
            .disks
            .iter()
            .filter(|(name, _)| path(name).is_some_and(|path| !removed.contains(&path)))
            .filter_map(|(_, found)| found.target.as_ref())
            .collect();
        let data: Vec<Removal> = lineage
            .data
            .iter()
            .filter_map(|entry| lineage.dir.join(DATA).ok()?.join(&entry.name).ok().map(|path| (path, entry.kind)))
            .filter(|(path, _)| !claimed.contains(path))
            .map(|(path, kind)| Removal {
                path,
                tree: kind == EntryKind::Directory,
                reason: "no alias points at this disk directory",
            })
            .collect();
        self.remove.extend(data);
        for entry in lineage.entries.iter().filter(|entry| is_temporary(&entry.name)) {
            self.remove.extend(path(&entry.name).map(|path| Removal { path, tree: false, reason: "temporary file" }));
        }
        for (name, found) in lineage.disks.iter().filter(|(name, _)| !active(name) && needed.contains(name.as_str())) {
            let above_is_idle =
                found.parent.as_deref().is_some_and(|parent| lineage.disks.contains_key(parent) && !active(parent));
            if held.contains(name.as_str()) || above_is_idle {
                continue;
            }
            match chain_down(name, &children, &needed, &active) {
                Ok(names) if names.iter().any(|name| held.contains(*name)) => {}
                Ok(names) => self.plan_merge(lineage, &names),
                Err(branch) => self.problems.push(format!(
                    "{}/{name} is not needed itself but has two branches of descendants after {branch}: it is not merged",
                    lineage.dir
                )),
            }
        }
        if unclear {
            // What misses a disk is reported by name; merges under way may go on, and may be what brings it back.
            self.remove.truncate(removals);
            self.merge.truncate(merges);
        }
    }

    /// A chain is merged only when every link of it can be trusted.
    fn plan_merge(&mut self, lineage: &Lineage, names: &[&str]) {
        let disks: Option<Vec<_>> = names.iter().map(|name| lineage.disks.get(*name)?.disk.as_ref().ok()).collect();
        let sound = disks
            .is_some_and(|disks| disks.windows(2).all(|pair| pair[1].header().parent_unique_id == pair[0].footer().unique_id));
        // The parent's own parent does not matter for the blocks, but without it nothing here can be restored.
        let rooted = names.first().and_then(|name| lineage.disks.get(*name)).is_some_and(|found| {
            found.parent.as_ref().is_none_or(|parent| lineage.disks.get(parent).is_some_and(|found| found.disk.is_ok()))
        });
        if !sound || !rooted {
            self.problems.push(format!("the chain from {}/{} on is broken: it is not merged", lineage.dir, names[0]));
            return;
        }
        let members = names.iter().filter_map(|name| lineage.dir.join(name).ok()).collect();
        self.merge.push(Merge { members, state: None });
    }

    /// Plans what to do about merge states; returns the disks they hold.
    fn merges_under_way<'a>(
        &mut self,
        lineage: &'a Lineage,
        active: &impl Fn(&str) -> bool,
        children: &BTreeMap<&'a str, Vec<&'a str>>,
    ) -> BTreeSet<&'a str> {
        let mut held = BTreeSet::new();
        for (parent, state) in &lineage.merges {
            let Ok(parent_path) = lineage.dir.join(parent) else { continue };
            let Some((parent, found)) = lineage.disks.get_key_value(parent.as_str()) else {
                let reason = "state of a merge whose parent is gone";
                self.remove.extend(state_path(&parent_path).ok().map(|path| Removal { path, tree: false, reason }));
                continue;
            };
            held.insert(parent.as_str());
            let chain = match state {
                Some(state) if !state.chain.is_empty() => state.chain.clone(),
                // Unreadable or old: from the parent down to what is referred to.
                _ => self::chain_of_old(lineage, parent, state.as_ref(), children, active),
            };
            held.extend(chain.iter().filter_map(|name| lineage.disks.get_key_value(name)).map(|(name, _)| name.as_str()));
            let resumed = match (&found.disk, chain.last()) {
                (Err(reason), _) => Err(format!("its parent cannot be opened: {reason}")),
                (_, None) => Err("its members cannot be found".to_owned()),
                (Ok(_), Some(first)) if first == parent => Err("its members cannot be found".to_owned()),
                (Ok(disk), Some(target)) => resume(lineage, parent, disk.footer().unique_id, target, &chain, state.as_ref()),
            };
            match resumed {
                Ok(merge) => self.resume.push(merge),
                Err(why) => self.problems.push(format!("the interrupted merge of {parent_path} cannot go on: {why}")),
            }
        }
        held
    }

    fn vm_directory(&mut self, survey: &Survey) {
        let dir = &survey.dir;
        let archives: BTreeSet<RepoPath> =
            survey.listing.points.iter().filter_map(|point| dir.resolve(point.metadata.xva.as_deref()?).ok()).collect();
        for entry in survey.entries.iter().filter(|entry| entry.kind != EntryKind::Directory) {
            let Ok(path) = dir.join(&entry.name) else { continue };
            let archive = entry.name.strip_suffix(CHECKSUM).and_then(|name| dir.join(name).ok()).unwrap_or_else(|| path.clone());
            let reason = if is_temporary(&entry.name) {
                "temporary file"
            } else if archive.name().ends_with(".xva") && !archives.contains(&archive) {
                "no restore point needs this full backup"
            } else {
                continue;
            };
            self.remove.push(Removal { path, tree: false, reason });
        }
    }

    /// What restore points miss. They stay: what is missing may come back.
    fn report(&mut self, survey: &Survey) {
        for point in &survey.listing.points {
            for (_, relative) in point.metadata.disks() {
                let path = survey.dir.resolve(relative).ok();
                let there = path.as_ref().is_some_and(|path| {
                    survey
                        .lineages
                        .iter()
                        .any(|lineage| path.parent().as_ref() == Some(&lineage.dir) && lineage.disks.contains_key(path.name()))
                });
                let coming = path.as_ref().is_some_and(|path| self.resume.iter().any(|merge| merge.members.last() == Some(path)));
                if !there && !coming {
                    self.problems.push(format!("the restore point {} misses its disk {relative}", point.id));
                }
            }
            if let Some(xva) = &point.metadata.xva {
                let path = survey.dir.resolve(xva).ok();
                if !path.is_some_and(|path| {
                    survey.entries.iter().any(|e| e.name == path.name() && path.parent().as_ref() == Some(&survey.dir))
                }) {
                    self.problems.push(format!("the restore point {} misses its data {xva}", point.id));
                }
            }
        }
    }
}

/// How an interrupted merge goes on.
fn resume(
    lineage: &Lineage,
    parent: &str,
    parent_id: Uuid,
    target: &str,
    chain: &[String],
    state: Option<&MergeState>,
) -> Result<Merge, String> {
    let step = state.map_or(Step::Blocks, |state| state.step);
    let adopted = state.is_some_and(|state| !state.child.is_nil() && state.child == parent_id);
    let disk = |name: &str| lineage.disks.get(name).and_then(|found| found.disk.as_ref().ok());
    let there = |name: &str| disk(name).is_some();
    // XO removes children before the parent gets its name (H5): all content is in the parent by then.
    let complete = adopted && (step == Step::Cleanup || !there(target));
    if !complete && !there(target) {
        return Err(format!("{target} is missing and the parent does not have all of it"));
    }
    let members = chain
        .iter()
        .enumerate()
        .filter(|(at, name)| *at == 0 || name.as_str() == target || lineage.disks.contains_key(name.as_str()));
    let members: Vec<RepoPath> = members.filter_map(|(_, name)| lineage.dir.join(name).ok()).collect();
    if members.len() < 2 || members[0].name() != parent {
        return Err("its chain does not begin with its parent".into());
    }
    if !complete {
        // Blocks are taken from all of them: one that is missing, or another disk under its name, would be lost content.
        let disks: Option<Vec<_>> = chain.iter().map(|name| disk(name)).collect();
        let disks = disks.ok_or("one of its members is missing or damaged")?;
        let adopted = adopted || disks.last().is_some_and(|target| target.footer().unique_id == parent_id);
        let mut links = disks.windows(2).map(|pair| pair[1].header().parent_unique_id == pair[0].footer().unique_id);
        let first = links.next().unwrap_or(false);
        if !(first || adopted) || !links.all(|linked| linked) {
            return Err("its members are not each other's parents".into());
        }
    }
    let step = if complete { Step::Cleanup } else { Step::Blocks };
    Ok(Merge { members, state: state.map(|state| MergeState { step, ..state.clone() }) })
}

/// The chain of a merge whose state does not name it: parent, and its descendants down to the target.
fn chain_of_old(
    lineage: &Lineage,
    parent: &str,
    state: Option<&MergeState>,
    children: &BTreeMap<&str, Vec<&str>>,
    active: &impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut names = vec![parent.to_owned()];
    let is_target = |name: &str| match state {
        Some(state) if !state.child.is_nil() => lineage
            .disks
            .get(name)
            .and_then(|found| found.disk.as_ref().ok())
            .is_some_and(|disk| disk.footer().unique_id == state.child),
        _ => active(name),
    };
    let mut name = parent;
    while names.len() <= lineage.disks.len() {
        match children.get(name).map(Vec::as_slice) {
            Some([only]) => {
                names.push((*only).to_owned());
                if is_target(only) {
                    return names;
                }
                name = only;
            }
            _ => return Vec::new(),
        }
    }
    Vec::new()
}

/// From an idle disk down to its first descendant that is referred to; `Err`: where the way forks.
fn chain_down<'a>(
    from: &'a str,
    children: &BTreeMap<&'a str, Vec<&'a str>>,
    needed: &BTreeSet<&str>,
    active: &impl Fn(&str) -> bool,
) -> Result<Vec<&'a str>, &'a str> {
    let mut names = vec![from];
    let mut name = from;
    loop {
        let next: Vec<&str> = children.get(name).into_iter().flatten().copied().filter(|child| needed.contains(child)).collect();
        let [only] = next.as_slice() else { return Err(name) };
        names.push(only);
        if active(only) {
            return Ok(names);
        }
        name = only;
    }
}

/// Names that writers use before a file has its own: `.<random>.tmp` of ours, `.<epoch ms>.<name>` of XO's and ours
/// (backup-repository.md §5.6). Under the lock nobody is writing them. Disks among them are handled as disks.
fn is_temporary(name: &str) -> bool {
    let Some(rest) = name.strip_prefix('.') else { return false };
    let numbered =
        rest.split_once('.').is_some_and(|(digits, _)| digits.len() >= 10 && digits.bytes().all(|b| b.is_ascii_digit()));
    rest.ends_with(".tmp") || (numbered && !name.ends_with(".vhd") && !name.ends_with(".json"))
}
