//! The state of a merge under way, in XO's form, so that either side resumes what the other began
//! (backup-repository.md §4.8).

use serde_json::{Map, Value, json};
use storage::{Durability, RepoPath, Storage};
use uuid::Uuid;

use crate::{Error, Result};

const MAX_STATE: u64 = 1 << 20;

/// How far a merge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Blocks are moved into the parent.
    Blocks,
    /// All content is in the parent, which has its new identity; names and leftovers remain.
    Cleanup,
}

/// `.<parent file name>.merge.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MergeState {
    /// Unique id of the target at the start.
    pub child: Uuid,
    /// Unique id of the parent at the start.
    pub parent: Uuid,
    /// Names of the members in the lineage, parent first, target last; old states have none.
    pub chain: Vec<String>,
    /// Next block to do.
    pub current_block: u32,
    /// Bytes merged so far.
    pub merged_bytes: u64,
    /// How far.
    pub step: Step,
    /// Virtual file size of the outcome.
    pub disk_size: u64,
}

/// Where the state of a merge into `parent` stands.
pub(crate) fn state_path(parent: &RepoPath) -> Result<RepoPath> {
    Ok(parent.parent().unwrap_or_default().join(&format!(".{}.merge.json", parent.name()))?)
}

/// The name of the parent whose state a file name says it is.
pub(crate) fn parent_of(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(".merge.json").filter(|parent| parent.ends_with(".vhd"))
}

impl MergeState {
    /// Reads a state; none when there is no such file.
    pub async fn read(storage: &dyn Storage, path: &RepoPath) -> Result<Option<Self>> {
        match storage.read(path, MAX_STATE).await {
            Ok(bytes) => Self::parse(&bytes).map(Some).map_err(|reason| Error::Unreadable { path: path.absolute(), reason }),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let state: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        // Old states have no ids but checksums of headers; then the ids are unknown, not wrong.
        let id = |side: &str| {
            let text = state.get(side)?.get("uuid")?.as_str()?;
            Uuid::parse_str(text).ok()
        };
        let number = |field: &str| state.get(field).and_then(Value::as_f64).filter(|number| *number >= 0.0).unwrap_or(0.0);
        let chain = match state.get("chain") {
            Some(Value::Array(names)) => {
                // Relative to the lineage directory: plain names, possibly with `./` before them.
                let name = |value: &Value| value.as_str().map(|name| name.trim_start_matches("./").to_owned());
                names.iter().map(name).collect::<Option<Vec<_>>>().ok_or("its chain is not a list of names")?
            }
            _ => Vec::new(),
        };
        let step = match state.get("step").and_then(Value::as_str) {
            Some("cleanup" | "cleanupVhds") => Step::Cleanup,
            _ => Step::Blocks,
        };
        Ok(Self {
            child: id("child").unwrap_or_default(),
            parent: id("parent").unwrap_or_default(),
            chain,
            current_block: number("currentBlock").min(f64::from(u32::MAX)) as u32,
            merged_bytes: number("mergedDataSize") as u64,
            step,
            disk_size: number("diskSize").max(number("vhdSize")) as u64,
        })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let step = match self.step {
            Step::Blocks => "mergeBlocks",
            Step::Cleanup => "cleanup",
        };
        let state = json!({
            "child": { "uuid": self.child },
            "parent": { "uuid": self.parent },
            "chain": self.chain,
            "currentBlock": self.current_block,
            "mergedDataSize": self.merged_bytes,
            "step": step,
            "diskSize": self.disk_size,
        });
        state.to_string().into_bytes()
    }

    /// Writes the state, durably: it must never be ahead of the data.
    pub async fn write(&self, storage: &dyn Storage, path: &RepoPath) -> Result<()> {
        Ok(storage.replace(path, self.to_bytes().into(), Durability::Now).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_what_xo_wrote() {
        let state = MergeState {
            child: Uuid::from_u128(0x1111_4111_8111_0000_0000_0000_0000_0001),
            parent: Uuid::from_u128(0x2222_4222_8222_0000_0000_0000_0000_0002),
            chain: vec!["a.vhd".into(), "b.vhd".into()],
            current_block: 7,
            merged_bytes: 14,
            step: Step::Blocks,
            disk_size: 99,
        };
        assert_eq!(MergeState::parse(&state.to_bytes()).unwrap(), state);
        let old = br#"{"child":{"header":1},"parent":{"header":2},"step":"cleanupVhds","currentBlock":null,"vhdSize":5}"#;
        let old = MergeState::parse(old).unwrap();
        assert!(old.step == Step::Cleanup && old.chain.is_empty() && old.current_block == 0 && old.disk_size == 5);
        assert_eq!(MergeState::parse(br#"{"currentBlock":-1}"#).unwrap().current_block, 0);
        for cut in 0..state.to_bytes().len() {
            assert!(MergeState::parse(&state.to_bytes()[..cut]).is_err());
        }
        assert_eq!(parent_of(".a.alias.vhd.merge.json"), Some("a.alias.vhd"));
        assert_eq!(parent_of("a.json"), None);
    }
}
