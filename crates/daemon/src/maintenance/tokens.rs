//! The tokens that clients prove themselves with: the present one, and former ones for as long as they still count.
//!
//! Only hashes are kept, and those sealed. The first token comes from the configuration, or is made and stands in the file
//! `token` of the state folder; after a rotation the kept one counts, and that file goes. The way back is another token in
//! the configuration or in that file: it counts from the next start on, and ends all that was kept. So a deployer, too, can
//! give a proxy a token anew, through the hypervisor.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use api::NewToken;
use engine::plan::Secret;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::config::{Config, Token};
use crate::daemon::StartError;
use crate::fault::Fault;
use crate::files::write_private;
use crate::secrets::exposed;
use crate::store::{Fact, Store, StoreError};

/// Under which the hashes are kept.
pub(super) const KEY: &str = "tokens";
/// How long a former token counts unless said otherwise, seconds.
const OVERLAP: u64 = 24 * 3600;
/// How long at most, seconds.
const LONGEST: u64 = 30 * 24 * 3600;
/// How many former tokens can count at the same time; the oldest goes first.
const MOST: usize = 8;

/// SHA-256 of a token. Tokens made here are random numbers of 256 bits, which need no salt.
type Hash = [u8; 32];

fn hash(token: &str) -> Hash {
    Sha256::digest(token).into()
}

/// What is kept of the tokens.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    present: Hash,
    former: Vec<Former>,
    /// The token of the configuration or of the file, that all this came after.
    given: Option<Hash>,
    /// One that the launcher was lent for the time of a swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lent: Option<Former>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    hash: Hash,
    /// Milliseconds since the Unix epoch.
    until: i64,
}

impl Kept {
    fn of(given: &Token) -> Self {
        let hash = hash(given.secret());
        Self { present: hash, former: Vec::new(), given: Some(hash), lent: None }
    }

    /// Those of another proxy, whose place this one takes. Whoever has given them over keeps being let in for a day.
    pub(super) fn taken_over(&self, of: Self, now: i64) -> Self {
        let mut kept = Self { given: self.given, lent: None, ..of };
        if kept.present != self.present {
            kept.keep_former(self.present, OVERLAP, now);
        }
        kept
    }

    fn keep_former(&mut self, hash: Hash, seconds: u64, now: i64) {
        let until = now.saturating_add(i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX));
        self.former.retain(|former| former.until > now && former.hash != hash);
        self.former.push(Former { hash, until });
        let excess = self.former.len().saturating_sub(MOST);
        self.former.drain(..excess);
    }
}

/// The tokens of this proxy.
pub struct Tokens {
    store: Arc<Store>,
    /// Where the first token stands if none is configured.
    file: PathBuf,
    kept: RwLock<Kept>,
    changing: tokio::sync::Mutex<()>,
}

impl Tokens {
    /// Takes up the kept tokens, or the configured one, or makes one.
    ///
    /// # Errors
    /// The state or the token's file cannot be used.
    pub async fn open(store: Arc<Store>, config: &Config) -> Result<Arc<Self>, StartError> {
        let file = config.token_path();
        let kept = read(&store).await?;
        let given = match &config.token {
            Some(token) => Some(token.clone()),
            None => from_file(&file, kept.is_none())?,
        };
        let stale = kept.as_ref().zip(given.as_ref()).is_some_and(|(kept, given)| {
            let hash = hash(given.secret());
            kept.given == Some(hash) && kept.present != hash
        });
        let kept = match (kept, given) {
            (Some(kept), Some(given)) if kept.given != Some(hash(given.secret())) => {
                tracing::warn!("another token was configured after the last rotation: it alone counts from now on");
                store.forget_facts(&[KEY]).await?;
                Kept::of(&given)
            }
            (Some(kept), _) => kept,
            (None, Some(given)) => Kept::of(&given),
            (None, None) => return Err(StartError::Token { path: file, reason: "it cannot be made".into() }),
        };
        let tokens = Self { store, file, kept: RwLock::new(kept), changing: tokio::sync::Mutex::default() };
        if stale && config.token.is_none() {
            tokens.remove_file();
        }
        Ok(Arc::new(tokens))
    }

    /// Takes up what the state says now.
    pub(super) async fn reload(&self) -> Result<(), StoreError> {
        if let Some(kept) = read(&self.store).await? {
            self.put(kept);
        }
        Ok(())
    }

    /// Whether a client that shows this is let in.
    pub fn accept(&self, shown: &str, now: i64) -> bool {
        let shown = hash(shown);
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let former = kept.former.iter().chain(&kept.lent).filter(|former| former.until > now).map(|former| &former.hash);
        // All are compared, each in constant time: how long it takes tells nothing of any.
        let found = std::iter::once(&kept.present).chain(former).fold(Choice::from(0), |found, known| found | shown.ct_eq(known));
        found.into()
    }

    /// Until when a former token is accepted; none: there is none.
    pub fn former_until(&self, now: i64) -> Option<i64> {
        self.get().former.iter().map(|former| former.until).filter(|until| *until > now).max()
    }

    pub(super) fn get(&self) -> Kept {
        self.kept.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, kept: Kept) {
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = kept;
    }

    /// Makes a new token. The present one counts for so many seconds more; with none, only the new one counts at once.
    ///
    /// # Errors
    /// The time is too long, or the state cannot be written; then nothing is changed.
    pub async fn rotate(&self, overlap: Option<u64>, now: i64) -> Result<NewToken, Fault> {
        let overlap = overlap.unwrap_or(OVERLAP);
        if overlap > LONGEST {
            let message = format!("overlapSeconds: a former token is accepted for {LONGEST} seconds (30 days) at most");
            return Err(Fault::invalid("overlapSeconds", message));
        }
        let _changing = self.changing.lock().await;
        let token = random("the new token")?;
        let mut kept = self.get();
        match overlap {
            0 => kept.former.clear(),
            seconds => kept.keep_former(kept.present, seconds, now),
        }
        kept.present = hash(&token);
        self.keep(kept).await?;
        self.remove_file();
        tracing::info!(overlap_seconds = overlap, "the token of the clients was changed");
        Ok(NewToken { token, former_until: self.former_until(now).unwrap_or(now) })
    }

    /// Ends the time of all former tokens; whether there was one.
    ///
    /// # Errors
    /// The state cannot be written.
    pub async fn revoke(&self, now: i64) -> Result<bool, Fault> {
        let _changing = self.changing.lock().await;
        let had = self.former_until(now).is_some();
        let mut kept = self.get();
        if !kept.former.is_empty() {
            kept.former.clear();
            self.keep(kept).await?;
            tracing::info!("former tokens are no longer accepted");
        }
        Ok(had)
    }

    /// Makes a token beside the others that counts for so many seconds, or until it is taken back.
    ///
    /// # Errors
    /// The state cannot be written.
    pub async fn lend(&self, seconds: i64, now: i64) -> Result<Secret, Fault> {
        let _changing = self.changing.lock().await;
        let token = random("a token")?;
        let lent = Former { hash: hash(&token), until: now.saturating_add(seconds.saturating_mul(1000)) };
        self.keep(Kept { lent: Some(lent), ..self.get() }).await?;
        Ok(Secret::new(token))
    }

    /// Ends the time of a lent token.
    ///
    /// # Errors
    /// The state cannot be written.
    pub async fn take_back(&self) -> Result<(), StoreError> {
        let _changing = self.changing.lock().await;
        let kept = self.get();
        if kept.lent.is_none() {
            return Ok(());
        }
        let kept = Kept { lent: None, ..kept };
        // Where nothing was ever rotated, nothing is kept: the file, or the configuration, alone says which token counts.
        if kept.former.is_empty() && kept.given == Some(kept.present) {
            self.store.forget_facts(&[KEY]).await?;
            self.put(kept);
            return Ok(());
        }
        self.keep(kept).await
    }

    async fn keep(&self, kept: Kept) -> Result<(), StoreError> {
        self.store.set_facts(&[fact(&kept)]).await?;
        self.put(kept);
        Ok(())
    }

    /// The file holds a token that is none any more. One that stays does no harm: it does not count.
    fn remove_file(&self) {
        match std::fs::remove_file(&self.file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.file.display(), %error, "the file of the former token stays behind");
            }
            _ => {}
        }
    }
}

/// As it is kept.
pub(super) fn fact(kept: &Kept) -> Fact {
    // Plain data: no map, no failing serializer.
    Fact::sealed(KEY, serde_json::to_string(kept).unwrap_or_default())
}

async fn read(store: &Store) -> Result<Option<Kept>, StoreError> {
    let Some(text) = store.sealed_fact(KEY).await? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(crate::store::damaged("tokens"))
}

/// 256 bits of chance, in hexadecimal.
pub(crate) fn random(what: &str) -> Result<String, Fault> {
    chance().map_err(|error| api::ErrorReport::new("RANDOM", format!("no random numbers for {what}: {error}")).into())
}

fn chance() -> std::io::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The token in the state folder; `make`: made when there is none, and kept, because clients have a copy.
fn from_file(path: &Path, make: bool) -> Result<Option<Token>, StartError> {
    let wrong = |reason: String| StartError::Token { path: path.to_owned(), reason };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !make => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let making = |source| StartError::TokenFile { what: "make", path: path.to_owned(), source };
            let text = chance().map_err(making)?;
            write_private(path, format!("{text}\n").as_bytes()).map_err(making)?;
            tracing::info!(path = %path.display(), "made the token of the clients; give them a copy of this file");
            text
        }
        Err(source) => return Err(StartError::TokenFile { what: "read", path: path.to_owned(), source }),
    };
    if let Some(mode) = exposed(path) {
        return Err(wrong(format!("others can read it (mode {mode:03o}); expected mode 600 (chmod 600 {})", path.display())));
    }
    let token = Token::new(text.trim_end_matches(['\r', '\n']).to_owned()).map_err(|expected| wrong(expected.to_owned()))?;
    Ok(Some(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600 * 1000;

    /// Opens the tokens of a state folder, with a configured token or none.
    async fn open(dir: &Path, configured: Option<&str>) -> Arc<Tokens> {
        let token = configured.map(|token| format!("token = {token:?}\n")).unwrap_or_default();
        let text = format!("name = \"p\"\nstate_dir = {:?}\n{token}", dir.join("state"));
        let config = Config::parse(&dir.join("backhauld.toml"), &text).unwrap();
        let store = Arc::new(Store::open(&config.state_dir).await.unwrap());
        Tokens::open(store, &config).await.unwrap()
    }

    async fn close(tokens: Arc<Tokens>) {
        tokens.store.close().await;
    }

    #[tokio::test]
    async fn a_former_token_counts_until_its_time_and_a_rotation_twice_locks_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        const FIRST: &str = "first-0123456789abcdef";
        let tokens = open(dir.path(), Some(FIRST)).await;
        assert!(tokens.accept(FIRST, 0) && !tokens.accept("other", 0));
        let lost = tokens.rotate(None, 0).await.unwrap();
        let second = tokens.rotate(None, 10).await.unwrap();
        assert_eq!((lost.former_until, second.former_until), (DAY, DAY + 10));
        for (token, until) in [(FIRST, Some(DAY)), (&lost.token, Some(DAY + 10)), (&second.token, None)] {
            assert!(tokens.accept(token, until.unwrap_or(i64::MAX) - 1));
            assert!(until.is_none_or(|until| !tokens.accept(token, until)));
        }
        assert_eq!((tokens.former_until(20), tokens.former_until(2 * DAY)), (Some(DAY + 10), None));
        close(tokens).await;
        // The configured one is the same as before: the kept ones count.
        let tokens = open(dir.path(), Some(FIRST)).await;
        assert!(tokens.accept(&second.token, 2 * DAY) && tokens.accept(FIRST, 20) && !tokens.accept(FIRST, 2 * DAY));
        assert!(tokens.revoke(20).await.unwrap() && !tokens.revoke(20).await.unwrap());
        assert!(tokens.accept(&second.token, 20) && !tokens.accept(FIRST, 20) && !tokens.accept(&lost.token, 20));
        let at_once = tokens.rotate(Some(0), 30).await.unwrap();
        assert!(tokens.accept(&at_once.token, 30) && !tokens.accept(&second.token, 30));
        tokens.rotate(Some(LONGEST + 1), 30).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_lent_token_counts_over_a_restart_is_no_former_one_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state/token");
        let tokens = open(dir.path(), None).await;
        let first = std::fs::read_to_string(&file).unwrap().trim().to_owned();
        let lent = tokens.lend(60, 0).await.unwrap();
        close(tokens).await;
        let tokens = open(dir.path(), None).await;
        assert!(tokens.accept(lent.expose(), 59_999) && !tokens.accept(lent.expose(), 60_000) && tokens.accept(&first, 0));
        assert_eq!(tokens.former_until(0), None);
        tokens.take_back().await.unwrap();
        assert!(!tokens.accept(lent.expose(), 0) && tokens.accept(&first, 0));
        close(tokens).await;
        // As before: without its file, a new token is made.
        std::fs::remove_file(&file).unwrap();
        let tokens = open(dir.path(), None).await;
        assert!(file.exists() && !tokens.accept(&first, 0));
        // After a rotation, what was rotated stays.
        let rotated = tokens.rotate(None, 0).await.unwrap().token;
        tokens.lend(60, 0).await.unwrap();
        tokens.take_back().await.unwrap();
        close(tokens).await;
        assert!(open(dir.path(), None).await.accept(&rotated, 0));
    }

    #[tokio::test]
    async fn another_configured_token_is_the_way_back() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = open(dir.path(), Some("first-0123456789abcdef")).await;
        let rotated = tokens.rotate(None, 0).await.unwrap().token;
        close(tokens).await;
        let tokens = open(dir.path(), Some("forgotten-0123456789")).await;
        assert!(tokens.accept("forgotten-0123456789", 0) && !tokens.accept(&rotated, 0));
        assert!(!tokens.accept("first-0123456789abcdef", 0));
    }

    #[tokio::test]
    async fn the_file_of_the_first_token_goes_with_the_rotation_and_a_new_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state/token");
        let tokens = open(dir.path(), None).await;
        let first = std::fs::read_to_string(&file).unwrap().trim().to_owned();
        assert!(tokens.accept(&first, 0));
        let rotated = tokens.rotate(Some(0), 0).await.unwrap().token;
        assert!(!file.exists());
        // As if it had not been removed: it does not count, and goes.
        write_private(&file, first.as_bytes()).unwrap();
        close(tokens).await;
        let tokens = open(dir.path(), None).await;
        assert!(tokens.accept(&rotated, 0) && !tokens.accept(&first, 0) && !file.exists());
        close(tokens).await;
        write_private(&file, b"by-hand-0123456789\n").unwrap();
        let tokens = open(dir.path(), None).await;
        assert!(tokens.accept("by-hand-0123456789", 0) && !tokens.accept(&rotated, 0) && file.exists());
        close(tokens).await;
        for entry in std::fs::read_dir(dir.path().join("state")).unwrap().flatten() {
            let bytes = std::fs::read(entry.path()).unwrap();
            assert!(!bytes.windows(rotated.len()).any(|window| window == rotated.as_bytes()), "{:?}", entry.path());
        }
    }
}
