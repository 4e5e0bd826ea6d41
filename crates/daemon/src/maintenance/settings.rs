//! Name, site, HTTP proxy and id: those of the configuration file until somebody changes them.

use std::sync::{Arc, PoisonError, RwLock};

use api::ConfigureParams;
use engine::plan::Secret;

use crate::config::{Config, check_http_proxy, check_plain};
use crate::fault::{Fault, Invalid};
use crate::store::{Fact, Store, StoreError};

/// The keys under which a change is kept; an empty text: none, whatever the file says.
pub(super) const NAME: &str = "setting_name";
pub(super) const SITE: &str = "setting_site";
pub(super) const HTTP_PROXY: &str = "setting_http_proxy";

/// What holds now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Values {
    /// The proxy's id, its own for ever.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// Where it stands.
    pub site: Option<String>,
    /// URL of the proxy for downloads; may hold credentials.
    pub http_proxy: Option<Secret>,
}

/// The settings of this proxy.
pub struct Settings {
    store: Arc<Store>,
    /// As the configuration file has them.
    file: Values,
    now: RwLock<Values>,
    changing: tokio::sync::Mutex<()>,
}

impl Settings {
    /// The settings of the file, changed as the state says.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn open(store: Arc<Store>, config: &Config) -> Result<Arc<Self>, StoreError> {
        let file = Values {
            id: store.proxy_id(config.id.as_deref()).await?,
            name: config.name.clone(),
            site: config.site.clone(),
            http_proxy: config.http_proxy.clone(),
        };
        let settings = Self { store, now: RwLock::new(file.clone()), file, changing: tokio::sync::Mutex::default() };
        settings.reload().await?;
        Ok(Arc::new(settings))
    }

    /// Takes up what the state says now.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn reload(&self) -> Result<(), StoreError> {
        let mut values = self.file.clone();
        values.id = self.store.proxy_id(None).await?;
        if let Some(name) = self.store.fact(NAME).await? {
            values.name = name;
        }
        if let Some(site) = self.store.fact(SITE).await? {
            values.site = Some(site).filter(|site| !site.is_empty());
        }
        if let Some(url) = self.store.sealed_fact(HTTP_PROXY).await? {
            values.http_proxy = Some(url).filter(|url| !url.is_empty()).map(Secret::new);
        }
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = values;
        Ok(())
    }

    /// All of them, as they are now.
    pub fn get(&self) -> Values {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The proxy's id.
    pub fn id(&self) -> String {
        self.get().id
    }

    /// What the proxy is called.
    pub fn name(&self) -> String {
        self.get().name
    }

    /// Changes what is given, and keeps it. What stands on the proxy's own licence as its name follows.
    ///
    /// # Errors
    /// All that does not fit, at once, and then nothing is changed; or the state cannot be written.
    pub async fn change(&self, given: &ConfigureParams) -> Result<(), Fault> {
        let facts = facts(given)?;
        let _changing = self.changing.lock().await;
        self.store.set_facts(&facts).await?;
        if let Some(name) = &given.name {
            self.store.rename_binding(&self.id(), name.trim()).await?;
        }
        Ok(self.reload().await?)
    }
}

/// What is to be kept, once all of it fits. An HTTP proxy that does not is never quoted.
fn facts(given: &ConfigureParams) -> Result<Vec<Fact>, Fault> {
    let mut wrong = Vec::new();
    let mut check = |name: &str, key: &str, checked: Result<(), &'static str>| {
        if let Err(expected) = checked {
            wrong.push(Invalid { name: name.into(), keyword: "format", message: format!("{key}: {expected}") });
        }
    };
    let none_or = |text: &str, check: fn(&str) -> Result<(), &'static str>| if text.is_empty() { Ok(()) } else { check(text) };
    let mut facts = Vec::new();
    if let Some(name) = given.name.as_deref().map(str::trim) {
        check("name", "name", check_plain(name));
        facts.push(Fact::open(NAME, name));
    }
    if let Some(site) = given.site.as_deref().map(str::trim) {
        check("site", "site", none_or(site, check_plain));
        facts.push(Fact::open(SITE, site));
    }
    if let Some(url) = given.http_proxy.as_deref().map(str::trim) {
        check("httpProxy", "http_proxy", none_or(url, check_http_proxy));
        facts.push(Fact::sealed(HTTP_PROXY, url));
    }
    match wrong.is_empty() {
        true => Ok(facts),
        false => Err(Fault::InvalidParameters(wrong)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(dir: &Path) -> Config {
        let text = format!("name = \"file\"\nsite = \"there\"\nstate_dir = {:?}\n", dir.join("state"));
        Config::parse(&dir.join("backhauld.toml"), &text).unwrap()
    }

    async fn settings(dir: &Path) -> Arc<Settings> {
        let store = Arc::new(Store::open(&dir.join("state")).await.unwrap());
        Settings::open(store, &config(dir)).await.unwrap()
    }

    fn given(name: Option<&str>, site: Option<&str>, http_proxy: Option<&str>) -> ConfigureParams {
        let own = |text: Option<&str>| text.map(str::to_owned);
        ConfigureParams { name: own(name), site: own(site), http_proxy: own(http_proxy) }
    }

    #[tokio::test]
    async fn a_change_wins_over_the_file_and_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = settings(dir.path()).await;
        assert_eq!((first.name().as_str(), first.get().site.as_deref()), ("file", Some("there")));
        first.change(&given(Some(" né \"x\" 🦀 "), None, Some("http://u:hunter2@proxy:3128"))).await.unwrap();
        first.change(&given(None, Some(""), None)).await.unwrap();
        let now = first.get();
        assert_eq!((now.name.as_str(), now.site.as_deref()), ("né \"x\" 🦀", None));
        first.store.close().await;
        drop(first);
        let again = settings(dir.path()).await;
        assert_eq!(again.get(), now);
        assert_eq!(again.get().http_proxy.unwrap().expose(), "http://u:hunter2@proxy:3128");
        again.change(&given(None, None, Some(""))).await.unwrap();
        assert_eq!(again.get().http_proxy, None);
    }

    #[tokio::test]
    async fn all_that_does_not_fit_is_told_at_once_and_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path()).await;
        let before = settings.get();
        let refused = settings.change(&given(Some(" "), Some("a\nb"), Some("user:hunter2@proxy"))).await.unwrap_err();
        let Fault::InvalidParameters(wrong) = &refused else { panic!("{refused:?}") };
        assert_eq!(wrong.iter().map(|wrong| wrong.name.as_str()).collect::<Vec<_>>(), ["name", "site", "httpProxy"]);
        assert!(!format!("{refused:?}").contains("hunter2"));
        assert_eq!(settings.get(), before);
    }
}
