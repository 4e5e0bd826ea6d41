//! Which licences there are, and which proxy each serves.
//!
//! With a public key of an issuer configured, a proxy runs jobs only under a signed licence that is bound to it; without
//! one, nothing is asked for anywhere. A licence is never asked for to list, restore, verify, remove, cancel or upgrade.
//! Everything is checked here, offline; the signed text itself is [`signed::license`]'s.
//!
//! A clock that was set back is known by the highest time ever seen. So that one boot with a wrong clock does no lasting harm,
//! a time far beyond it counts as seen only when the process has run for a while, in which a clock is usually put right; and the
//! way out of a mark that stands too high is a licence that was issued just now.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use api::{Binding, ErrorReport, License, LicenseOffer, LicenseText, Licensing};
use jiff::Timestamp;
use signed::PublicKey;

use crate::clock::Clock;
use crate::fault::Fault;
use crate::maintenance::Settings;
use crate::store::{BindingRecord, Fact, LicenseRecord, Store};

/// The highest time ever seen: a clock that is behind it was set back.
pub(crate) const HIGH_WATER: &str = "license_high_water";
/// So often at most the highest time is written, milliseconds.
const HIGH_WATER_STEP: i64 = 3_600_000;
/// How far a time may lie beyond the highest one and be held against later ones at once, milliseconds: longer than a proxy is
/// off, and shorter than clocks are wrong by.
const STRIDE: i64 = 90 * 24 * 3_600_000;
/// How long a process runs before a time further away is held against later ones.
const BELIEVED_AFTER: Duration = Duration::from_secs(15 * 60);
/// When the newest licence ever taken here was issued.
const NEWEST_ISSUE: &str = "license_newest_issue";
/// How far from now a licence may have been issued to prove what time it is, milliseconds.
const PROOF: u64 = 24 * 3_600_000;

/// The licences of this proxy.
pub struct Licenses {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    issuers: Vec<PublicKey>,
    /// This proxy's id is among them.
    settings: Arc<Settings>,
    since: Instant,
    believed_after: Duration,
    /// Whether it was said already that the highest time cannot be written.
    warned: AtomicBool,
}

impl Licenses {
    /// Over the state, for the keys of the issuers; none: nothing is asked for.
    pub fn new(store: Arc<Store>, clock: Arc<dyn Clock>, issuers: Vec<PublicKey>, settings: Arc<Settings>) -> Arc<Self> {
        let (since, believed_after) = (Instant::now(), BELIEVED_AFTER);
        Arc::new(Self { store, clock, issuers, settings, since, believed_after, warned: AtomicBool::new(false) })
    }

    fn proxy(&self) -> String {
        self.settings.id()
    }

    /// Whether a licence is asked for.
    pub fn required(&self) -> bool {
        !self.issuers.is_empty()
    }

    /// The issuers' keys, as text, which a deployed proxy is given.
    pub fn issuer_keys(&self) -> Vec<String> {
        self.issuers.iter().map(ToString::to_string).collect()
    }

    async fn milliseconds(&self, fact: &str) -> Result<Option<i64>, Fault> {
        Ok(self.store.fact(fact).await?.and_then(|text| text.parse().ok()))
    }

    /// Now, and the highest time seen; noted from time to time.
    async fn times(&self) -> Result<(Timestamp, Timestamp), Fault> {
        let now = self.clock.now();
        let noted = self.milliseconds(HIGH_WATER).await?;
        let higher = noted.is_none_or(|noted| now.as_millisecond() > noted.saturating_add(HIGH_WATER_STEP));
        let near = noted.is_none_or(|noted| now.as_millisecond() <= noted.saturating_add(STRIDE));
        if higher && (near || self.since.elapsed() >= self.believed_after) {
            let kept = self.store.set_fact(HIGH_WATER, &now.as_millisecond().to_string()).await;
            // No reason to answer nothing, neither how the proxy stands nor which licences it has.
            if let Err(error) = kept
                && !self.warned.swap(true, Ordering::Relaxed)
            {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot note the highest time seen");
            }
        }
        let seen = noted.and_then(|noted| Timestamp::from_millisecond(noted).ok()).unwrap_or(now);
        Ok((now, seen.max(now)))
    }

    /// Whether a licence proves that it is about now: its issuer has just signed a time near to it. Each does so once, and
    /// only if it is newer than all before it: else a clock could be set back to the day of any licence that somebody has.
    async fn proves(&self, license: &signed::License, now: Timestamp) -> Result<bool, Fault> {
        let issued = license.issued_at.as_millisecond();
        let records = self.store.licenses().await?;
        let held = records.iter().filter_map(|record| signed::License::read(&record.text, &self.issuers).ok());
        let newest = held.map(|held| held.issued_at.as_millisecond()).max().max(self.milliseconds(NEWEST_ISSUE).await?);
        Ok(newest.is_none_or(|newest| issued > newest) && issued.abs_diff(now.as_millisecond()) <= PROOF)
    }

    /// How this proxy stands.
    pub async fn standing(&self) -> Result<Licensing, Fault> {
        if !self.required() {
            return Ok(Licensing::default());
        }
        let bindings = self.store.license_bindings().await?;
        let own = self.proxy();
        let Some(bound) = bindings.iter().find(|bound| bound.proxy == own) else {
            let fault = Some("no licence is bound to this proxy: its jobs do not run".to_owned());
            return Ok(Licensing { required: true, fault, ..Licensing::default() });
        };
        let held = self.list().await?;
        let license = held.into_iter().find(|license| license.id == bound.license);
        let (fault, warning) = match license {
            Some(license) => (license.fault, license.warning),
            None => (Some("the licence bound to this proxy is gone".to_owned()), None),
        };
        Ok(Licensing { required: true, license: Some(bound.license.clone()), fault, warning })
    }

    /// Refuses to run a job without a good licence.
    ///
    /// # Errors
    /// Why, and what to do.
    pub async fn permit(&self) -> Result<(), Fault> {
        match self.standing().await?.fault {
            None => Ok(()),
            Some(fault) => Err(ErrorReport::new("LICENSE", fault)
                .with_next("backhaul license import and backhaul license bind; restores, listings and upgrades need none")
                .into()),
        }
    }

    /// All that this proxy holds, in the order they came.
    pub async fn list(&self) -> Result<Vec<License>, Fault> {
        let (now, high) = self.times().await?;
        let bindings = self.store.license_bindings().await?;
        let records = self.store.licenses().await?;
        Ok(records.iter().map(|record| self.show(record, &bindings, now, high)).collect())
    }

    fn show(&self, record: &LicenseRecord, bindings: &[BindingRecord], now: Timestamp, high: Timestamp) -> License {
        let bound: Vec<Binding> = bindings
            .iter()
            .filter(|bound| bound.license == record.id)
            .map(|bound| Binding { proxy: bound.proxy.clone(), name: bound.name.clone() })
            .collect();
        match signed::License::read(&record.text, &self.issuers) {
            Err(error) => License {
                id: record.id.clone(),
                holder: String::new(),
                proxies: 0,
                not_before: 0,
                expires_at: None,
                bound,
                fault: Some(error.to_string()),
                warning: None,
            },
            Ok(license) => {
                // Pre-bound by its issuer: to this proxy, or to one that it serves from here.
                let whose = license.bound_to.as_deref().filter(|to| bound.iter().any(|bound| bound.proxy == *to));
                let (fault, warning) = match license.standing(now, high, whose.unwrap_or(&self.proxy())) {
                    Ok(standing) => (None, standing.warning()),
                    Err(fault) => (Some(fault.to_string()), None),
                };
                License {
                    id: license.id,
                    holder: license.holder,
                    proxies: license.proxies,
                    not_before: license.not_before.as_millisecond(),
                    expires_at: license.expires_at.map(Timestamp::as_millisecond),
                    bound,
                    fault,
                    warning,
                }
            }
        }
    }

    /// What a deployment can be given: free licences first, those that last longest first among them.
    pub async fn offer(&self) -> Result<LicenseOffer, Fault> {
        if !self.required() {
            return Ok(LicenseOffer::default());
        }
        let mut licenses = self.list().await?;
        licenses.sort_by_key(|license| (license.free() == 0, std::cmp::Reverse(license.expires_at.unwrap_or(i64::MAX))));
        let free = licenses.iter().any(|license| license.free() > 0);
        let why_not = match (free, licenses.is_empty()) {
            (true, _) => None,
            (false, true) => Some("this proxy holds no licence; import one: backhaul license import FILE".to_owned()),
            (false, false) => {
                let good = licenses.iter().filter(|license| license.fault.is_none()).count();
                Some(format!("none of its {} licences is free ({good} good and in use)", licenses.len()))
            }
        };
        Ok(LicenseOffer { required: true, licenses, why_not })
    }

    async fn find(&self, id: &str) -> Result<LicenseRecord, Fault> {
        let mut records = self.store.licenses().await?;
        if let Some(at) = records.iter().position(|record| record.id == id) {
            return Ok(records.swap_remove(at));
        }
        let beginning = |record: &&LicenseRecord| id.len() >= 4 && record.id.starts_with(id);
        let mut found = records.iter().filter(beginning);
        match (found.next(), found.next()) {
            (Some(found), None) => Ok(found.clone()),
            (None, _) => Err(Fault::missing("license", id)),
            (Some(_), Some(_)) => Err(Fault::invalid("id", format!("id: several licences begin with {id:?}"))),
        }
    }

    async fn shown(&self, id: &str) -> Result<License, Fault> {
        self.list().await?.into_iter().find(|license| license.id == id).ok_or_else(|| Fault::missing("license", id))
    }

    /// One licence with its text.
    pub async fn get(&self, id: &str) -> Result<LicenseText, Fault> {
        let record = self.find(id).await?;
        Ok(LicenseText { license: self.shown(&record.id).await?, text: record.text })
    }

    /// The text of a licence.
    pub async fn text(&self, id: &str) -> Result<String, Fault> {
        Ok(self.find(id).await?.text)
    }

    /// Checks a licence and keeps it. One that is not valid yet, or no longer, is refused too: it would help nobody.
    pub async fn import(&self, text: &str) -> Result<License, Fault> {
        if !self.required() {
            let reason = "no issuer's key is configured here, so no licence is asked for and none can be checked";
            return Err(Fault::forbidden("license.import", reason));
        }
        let license = signed::License::read(text, &self.issuers).map_err(|error| Fault::invalid("text", error.to_string()))?;
        let (now, high) = self.times().await?;
        let proves = self.proves(&license, now).await?;
        let own = self.proxy();
        let whose = license.bound_to.as_deref().unwrap_or(&own);
        let standing = license.standing(now, if proves { now } else { high }, whose);
        standing.map_err(|fault| Fault::invalid("text", fault.to_string()))?;
        let record = LicenseRecord { id: license.id.clone(), text: text.to_owned() };
        self.store.put_license(&record, now.as_millisecond()).await?;
        let issued = license.issued_at.as_millisecond();
        let newest = self.milliseconds(NEWEST_ISSUE).await?.max(Some(issued)).unwrap_or(issued);
        let mut facts = vec![Fact::open(NEWEST_ISSUE, newest.to_string())];
        if proves && high > now {
            tracing::warn!(%high, %now, "a licence issued just now shows that a time seen before was wrong");
            facts.push(Fact::open(HIGH_WATER, now.as_millisecond().to_string()));
        }
        self.store.set_facts(&facts).await?;
        self.shown(&record.id).await
    }

    /// Forgets a licence that serves nobody.
    pub async fn remove(&self, id: &str) -> Result<bool, Fault> {
        let record = self.find(id).await?;
        let bindings = self.store.license_bindings().await?;
        if let Some(bound) = bindings.iter().find(|bound| bound.license == record.id) {
            let reason = format!("it serves the proxy {}; free it first: backhaul license unbind", bound.name);
            return Err(Fault::forbidden("license.remove", reason));
        }
        Ok(self.store.remove_license(&record.id).await?)
    }

    /// Binds a licence to a proxy; none: to this one, called `name`.
    pub async fn bind(&self, id: &str, proxy: Option<&Binding>, name: &str) -> Result<License, Fault> {
        let own = Binding { proxy: self.proxy(), name: name.to_owned() };
        let record = self.find(id).await?;
        self.reserve(&record.id, &proxy.unwrap_or(&own).proxy, &proxy.unwrap_or(&own).name, self.clock.now().as_millisecond())
            .await?;
        self.shown(&record.id).await
    }

    /// Gives a licence to a proxy, if it has a place for one more.
    pub async fn reserve(&self, id: &str, proxy: &str, name: &str, at: i64) -> Result<(), Fault> {
        let record = self.find(id).await?;
        let license =
            signed::License::read(&record.text, &self.issuers).map_err(|error| Fault::invalid("id", error.to_string()))?;
        let (now, high) = self.times().await?;
        license.standing(now, high, proxy).map_err(|fault| Fault::forbidden("license.bind", fault.to_string()))?;
        let binding = BindingRecord { proxy: proxy.to_owned(), license: record.id.clone(), name: name.to_owned() };
        if self.store.bind_license(&binding, license.proxies, at).await? {
            return Ok(());
        }
        let bindings = self.store.license_bindings().await?;
        let whose: Vec<&str> =
            bindings.iter().filter(|bound| bound.license == record.id).map(|bound| bound.name.as_str()).collect();
        let reason = format!("the licence covers {} and already serves {}", proxies(license.proxies), whose.join(", "));
        Err(Fault::forbidden("license.bind", reason))
    }

    /// Frees the licence of a proxy; none: of this one.
    pub async fn unbind(&self, id: &str, proxy: Option<&Binding>) -> Result<License, Fault> {
        let record = self.find(id).await?;
        let own = self.proxy();
        let proxy = proxy.map_or(own.as_str(), |proxy| &proxy.proxy);
        let bindings = self.store.license_bindings().await?;
        let bound = bindings.iter().find(|bound| bound.license == record.id && (bound.proxy == proxy || bound.name == proxy));
        let bound = bound.ok_or_else(|| Fault::forbidden("license.unbind", "the licence does not serve that proxy"))?;
        self.store.unbind_license(&bound.proxy).await?;
        self.shown(&record.id).await
    }
}

fn proxies(count: u32) -> String {
    if count == 1 { "one proxy".into() } else { format!("{count} proxies") }
}

#[cfg(test)]
mod tests {
    use signed::SecretKey;

    use super::*;
    use crate::clock::SystemClock;

    async fn licenses(dir: &std::path::Path, issuers: Vec<PublicKey>) -> Arc<Licenses> {
        licenses_at(dir, issuers, Arc::new(SystemClock)).await
    }

    async fn licenses_at(dir: &std::path::Path, issuers: Vec<PublicKey>, clock: Arc<dyn Clock>) -> Arc<Licenses> {
        let store = Arc::new(Store::open(dir).await.unwrap());
        let config = crate::config::Config::parse(&dir.join("backhauld.toml"), "state_dir = \".\"\n").unwrap();
        let settings = Settings::open(Arc::clone(&store), &config).await.unwrap();
        Licenses::new(store, clock, issuers, settings)
    }

    /// A clock that stands where it was put.
    struct Stands(std::sync::Mutex<Timestamp>);

    impl Stands {
        fn at(text: &str) -> Arc<Self> {
            Arc::new(Self(std::sync::Mutex::new(text.parse().unwrap())))
        }

        fn set(&self, text: &str) {
            *self.0.lock().unwrap() = text.parse().unwrap();
        }
    }

    impl Clock for Stands {
        fn now(&self) -> Timestamp {
            *self.0.lock().unwrap()
        }

        fn sleep_until(&self, _: Timestamp) -> futures::future::BoxFuture<'static, ()> {
            Box::pin(std::future::pending())
        }
    }

    /// As if the process had run long enough already, or not.
    fn believing(licenses: Arc<Licenses>, at_once: bool) -> Licenses {
        let mut licenses = Arc::into_inner(licenses).unwrap();
        licenses.believed_after = if at_once { Duration::ZERO } else { BELIEVED_AFTER };
        licenses
    }

    const BEFORE: &str = "2026-11-01T00:00:00Z";
    const TODAY: &str = "2026-12-01T12:00:00Z";
    const LATER: &str = "2026-12-05T12:00:00Z";
    const FAR: &str = "2040-01-01T00:00:00Z";

    #[tokio::test]
    async fn a_clock_that_is_set_back_is_noticed_once_its_time_was_believed() {
        let dir = tempfile::tempdir().unwrap();
        let key = SecretKey::generate().unwrap();
        let clock = Stands::at(BEFORE);
        let fresh = believing(licenses_at(dir.path(), vec![key.public()], clock.clone()).await, false);
        let times = async |licenses: &Licenses| licenses.times().await.unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        times(&fresh).await;
        // A boot with a wrong clock, which is put right soon.
        clock.set(FAR);
        assert_eq!(times(&fresh).await, (at(FAR), at(FAR)));
        clock.set(TODAY);
        assert_eq!(times(&fresh).await, (at(TODAY), at(TODAY)));
        let running = Licenses { believed_after: Duration::ZERO, ..fresh };
        clock.set(BEFORE);
        assert_eq!(times(&running).await, (at(BEFORE), at(TODAY)));
        // One that goes on with a wrong clock for long is held to it…
        clock.set(FAR);
        times(&running).await;
        clock.set(TODAY);
        assert_eq!(times(&running).await, (at(TODAY), at(FAR)));
        // …until a licence comes that was issued today, but not by one of long ago, whatever the clock says.
        let old = issued(&key, 1, 90, at(BEFORE));
        let refused = running.import(&old).await.unwrap_err().report().message;
        assert!(refused.contains("clock"), "{refused}");
        let kept = running.import(&issued(&key, 1, 90, at(TODAY))).await.unwrap();
        assert_eq!(kept.fault, None);
        assert_eq!(times(&running).await, (at(TODAY), at(TODAY)));
        clock.set(LATER);
        times(&running).await;
        for known in [&old, &running.text(&kept.id).await.unwrap()] {
            clock.set(if *known == old { BEFORE } else { TODAY });
            let refused = running.import(known).await.unwrap_err().report().message;
            assert!(refused.contains("clock"), "{refused}");
        }
        running.remove(&kept.id).await.unwrap();
        clock.set(BEFORE);
        running.import(&old).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_full_disk_keeps_nobody_from_asking_how_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let key = SecretKey::generate().unwrap();
        let licenses = believing(licenses(dir.path(), vec![key.public()]).await, true);
        let refuse = "CREATE TRIGGER full BEFORE INSERT ON meta BEGIN SELECT RAISE(FAIL, 'full'); END";
        sqlx::query(refuse).execute(licenses.store.connections()).await.unwrap();
        assert!(licenses.standing().await.unwrap().required);
        assert_eq!(licenses.list().await.unwrap(), []);
        assert_eq!(licenses.milliseconds(HIGH_WATER).await.unwrap(), None);
    }

    fn text(key: &SecretKey, proxies: u32, days: i64) -> String {
        issued(key, proxies, days, Timestamp::now())
    }

    fn issued(key: &SecretKey, proxies: u32, days: i64, now: Timestamp) -> String {
        let license = signed::License {
            id: uuid::Uuid::new_v4().to_string(),
            product: signed::PRODUCT.into(),
            holder: "Né \"x\" 🦀".into(),
            proxies,
            issued_at: now,
            not_before: now,
            expires_at: Some(now.checked_add(jiff::SignedDuration::from_hours(24 * days)).unwrap()),
            bound_to: None,
        };
        license.issue(key).unwrap()
    }

    #[tokio::test]
    async fn without_an_issuer_nothing_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let licenses = licenses(dir.path(), Vec::new()).await;
        licenses.permit().await.unwrap();
        assert_eq!(licenses.standing().await.unwrap().word(), "not needed");
        assert!(!licenses.offer().await.unwrap().required);
        licenses.import(&text(&SecretKey::generate().unwrap(), 1, 90)).await.unwrap_err();
    }

    #[tokio::test]
    async fn jobs_run_under_a_bound_licence_only_and_it_serves_no_more_than_it_covers() {
        let dir = tempfile::tempdir().unwrap();
        let key = SecretKey::generate().unwrap();
        let licenses = licenses(dir.path(), vec![key.public()]).await;
        assert!(licenses.permit().await.unwrap_err().report().message.contains("no licence is bound"));
        assert!(licenses.offer().await.unwrap().why_not.unwrap().contains("holds no licence"));

        let stranger = SecretKey::generate().unwrap();
        assert!(licenses.import(&text(&stranger, 1, 90)).await.unwrap_err().report().message.contains("another key"));
        let changed = text(&key, 1, 90).replace("Proxies: 1", "Proxies: 9");
        assert!(licenses.import(&changed).await.unwrap_err().report().message.contains("changed after it was signed"));

        let kept = licenses.import(&text(&key, 1, 10)).await.unwrap();
        assert!(kept.warning.as_ref().unwrap().contains("within 30 days"), "{kept:?}");
        licenses.bind(&kept.id[..8], None, "this one").await.unwrap();
        licenses.permit().await.unwrap();
        assert_eq!(licenses.standing().await.unwrap().word(), "expires soon");
        let other = Binding { proxy: "you".into(), name: "another".into() };
        let refused = licenses.bind(&kept.id, Some(&other), "").await.unwrap_err().report().message;
        assert!(refused.contains("already serves this one"), "{refused}");
        licenses.remove(&kept.id).await.unwrap_err();
        licenses.unbind(&kept.id, None).await.unwrap();
        licenses.bind(&kept.id, Some(&other), "").await.unwrap();
        licenses.permit().await.unwrap_err();
        assert!(licenses.offer().await.unwrap().why_not.unwrap().contains("free"));
    }
}
