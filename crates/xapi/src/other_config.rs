//! Free-form settings of objects: the keys by which backups find their snapshots again
//! (backup-repository.md §4.1).

use serde_json::json;

use crate::{Client, Ref, Result};

/// How often a key that somebody else adds at the same moment is removed and added again.
const ATTEMPTS: u32 = 5;

impl Client {
    /// Sets one key of the `other_config` of an object of `class`, whatever it was.
    pub async fn set_other_config(&self, class: &str, object: &Ref, key: &str, value: &str) -> Result<()> {
        self.set_map_entry(class, object, "other_config", key, value).await
    }

    /// Removes keys from the `other_config` of an object of `class`; absent ones do not matter.
    pub async fn clear_other_config(&self, class: &str, object: &Ref, keys: &[&str]) -> Result<()> {
        for key in keys {
            self.run(&format!("{class}.remove_from_other_config"), json!([object, key])).await?;
        }
        Ok(())
    }

    /// Sets one key of a map: XAPI can only add a key that is not there, so it is removed first, again when somebody
    /// was faster.
    pub(crate) async fn set_map_entry(&self, class: &str, object: &Ref, map: &str, key: &str, value: &str) -> Result<()> {
        let mut attempt = 1;
        loop {
            self.run(&format!("{class}.remove_from_{map}"), json!([object, key])).await?;
            match self.run(&format!("{class}.add_to_{map}"), json!([object, key, value])).await {
                Err(error) if error.is("MAP_DUPLICATE_KEY") && attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }
}
