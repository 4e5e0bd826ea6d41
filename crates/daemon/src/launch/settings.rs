//! The few things of the configuration that the launcher needs. It reads them leniently: a daemon of a later version may
//! know keys that its launcher does not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{LONGEST_PROBATION, PROBATION_LIMIT};

/// What the launcher needs.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) state_dir: PathBuf,
    pub(super) probation: Duration,
    /// Texts that must not be repeated.
    pub(super) secrets: Vec<String>,
}

impl Settings {
    /// Reads a file; none when it does not name a state folder.
    pub(super) fn read(config: &Path) -> Option<Self> {
        let table: toml::Table = std::fs::read_to_string(config).ok()?.parse().ok()?;
        let base = config.parent().unwrap_or_else(|| Path::new("."));
        let text = |key: &str| table.get(key).and_then(toml::Value::as_str).filter(|text| !text.is_empty());
        let seconds = table.get("upgrade").and_then(|upgrade| upgrade.get("probation_seconds")).and_then(toml::Value::as_integer);
        let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
        let limit = Duration::from_secs(1)..=LONGEST_PROBATION;
        let state_dir = base.join(text("state_dir")?);
        let files = text("token_file").map(|file| base.join(file)).into_iter().chain([state_dir.join("token")]);
        let tokens = files.filter_map(|file| Some(std::fs::read_to_string(file).ok()?.trim().to_owned()));
        let secrets = ["token", "http_proxy"].iter().filter_map(|key| text(key)).map(str::to_owned);
        Some(Self {
            secrets: secrets.chain(tokens).filter(|secret| !secret.is_empty()).collect(),
            state_dir,
            probation: seconds.filter(|seconds| limit.contains(seconds)).unwrap_or(PROBATION_LIMIT),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_later_version_do_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backhauld.toml");
        std::fs::write(&file, "state_dir = \"s\"\nlater = { a = 1 }\n[upgrade]\nprobation_seconds = 7\nlater = true\n").unwrap();
        std::fs::create_dir(dir.path().join("s")).unwrap();
        std::fs::write(dir.path().join("s/token"), "0123456789\n").unwrap();
        let settings = Settings::read(&file).unwrap();
        assert_eq!(settings.secrets, ["0123456789"]);
        assert_eq!((settings.state_dir, settings.probation), (dir.path().join("s"), Duration::from_secs(7)));
        for text in ["", "state_dir = 5\n", "state_dir = \"\"\n", "= =", "[upgrade]\nprobation_seconds = 7\n"] {
            std::fs::write(&file, text).unwrap();
            assert!(Settings::read(&file).is_none(), "{text}");
        }
        for seconds in ["0", "-1", "601", "\"x\""] {
            std::fs::write(&file, format!("state_dir = \"s\"\n[upgrade]\nprobation_seconds = {seconds}\n")).unwrap();
            assert_eq!(Settings::read(&file).unwrap().probation, PROBATION_LIMIT);
        }
    }
}
