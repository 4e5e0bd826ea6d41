//! Licences over a fleet: one serves no more proxies than it covers, whoever holds a copy of it.

use std::future::Future;

use api::{
    Binding, DeployOptionsGet, ErrorReport, IdParams, License, LicenseBind, LicenseBindParams, LicenseGet, LicenseImport,
    LicenseImportParams, LicenseList, LicenseUnbind, Method, NoParams, ProxyStatusGet,
};
use futures::future::join_all;

use super::{Client, errand};
use crate::config::ConfigError;

/// A proxy of the fleet: all of them are needed, for each may hold a copy.
pub(crate) trait Member: Sync {
    /// How a call fails.
    type Error: From<LicenseFault>;

    /// Its name in the configuration.
    fn name(&self) -> &str;

    /// Calls a method.
    fn call<M>(&self, params: &M::Params) -> impl Future<Output = Result<M::Item, Self::Error>> + Send
    where
        M: Method,
        M::Params: Sync;

    /// The error, with what to do next.
    fn advise(error: Self::Error, next: String) -> Self::Error;
}

/// Why a licence is not bound or freed, where no call is to blame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LicenseFault {
    /// The configuration does not have the proxy.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The holder has let go of it in the meantime.
    #[error("{holder} does not hold licence {license}")]
    NotHeld { holder: String, license: String },
    /// It serves as many as it covers.
    #[error("the licence covers {covers} and already serves {}", serves.join(", "))]
    InUse { covers: u32, serves: Vec<String> },
}

impl LicenseFault {
    /// The same for readers.
    pub(crate) fn report(&self) -> ErrorReport {
        match self {
            Self::Config(error) => error.report(),
            Self::NotHeld { .. } => ErrorReport::new("NO_SUCH_OBJECT", self.to_string()),
            Self::InUse { .. } => ErrorReport::new("LICENSE_IN_USE", self.to_string()).with_next("free it there first"),
        }
    }
}

impl From<LicenseFault> for ErrorReport {
    fn from(fault: LicenseFault) -> Self {
        fault.report()
    }
}

/// A proxy as the console knows it.
impl Member for (String, Client) {
    type Error = ErrorReport;

    fn name(&self) -> &str {
        &self.0
    }

    fn call<M>(&self, params: &M::Params) -> impl Future<Output = Result<M::Item, ErrorReport>> + Send
    where
        M: Method,
        M::Params: Sync,
    {
        errand::call::<M>(&self.1, params)
    }

    fn advise(error: ErrorReport, next: String) -> ErrorReport {
        error.with_next(next)
    }
}

fn member<'a, T: Member>(fleet: &'a [T], name: &str) -> Result<&'a T, LicenseFault> {
    let found = fleet.iter().find(|member| member.name() == name);
    Ok(found.ok_or_else(|| ConfigError::NoSuchProxy { name: name.to_owned() })?)
}

/// What each proxy of the fleet holds; all are asked at the same time.
///
/// # Errors
/// One of them does not answer: it may hold the licence too.
async fn held_by_all<T: Member>(fleet: &[T]) -> Result<Vec<License>, T::Error> {
    let lists = join_all(fleet.iter().map(|asked| asked.call::<LicenseList>(&NoParams {}))).await;
    let mut held = Vec::new();
    for (asked, listed) in fleet.iter().zip(lists) {
        held.extend(listed.map_err(|error| {
            T::advise(error, format!("{} may hold the licence too; it must answer before one is bound", asked.name()))
        })?);
    }
    Ok(held)
}

/// Whom a licence serves, whichever copy of it says so; `but` that one.
fn serves(held: &[License], license: &str, but: Option<&str>) -> Vec<Binding> {
    let mut serves = Vec::<Binding>::new();
    for bound in held.iter().filter(|copy| copy.id == license).flat_map(|copy| &copy.bound) {
        if Some(bound.proxy.as_str()) != but && !serves.iter().any(|known| known.proxy == bound.proxy) {
            serves.push(bound.clone());
        }
    }
    serves
}

fn in_use(covers: u32, serves: Vec<Binding>) -> LicenseFault {
    LicenseFault::InUse { covers, serves: serves.into_iter().map(|bound| bound.name).collect() }
}

/// Binds a licence where it is held, then at the proxy that shall run under it, which gets a copy first. All of the fleet is
/// asked before.
///
/// # Errors
/// [`LicenseFault`], or one of the fleet does not answer: it may hold the licence too.
pub(crate) async fn bind<T: Member>(fleet: &[T], holder: &str, target: &str, license: &str) -> Result<License, T::Error> {
    let (held, shall) = (member(fleet, holder)?, member(fleet, target)?);
    let (status, copies) = futures::join!(shall.call::<ProxyStatusGet>(&NoParams {}), held_by_all(fleet));
    let (binding, copies) = (Binding { proxy: status?.id, name: target.to_owned() }, copies?);
    let covers = copies.iter().find(|copy| copy.id == license).map(|copy| copy.proxies);
    let covers = covers.ok_or_else(|| LicenseFault::NotHeld { holder: holder.to_owned(), license: license.to_owned() })?;
    let serves = serves(&copies, license, Some(&binding.proxy));
    if serves.len() >= covers as usize {
        return Err(in_use(covers, serves).into());
    }
    let params = LicenseBindParams { id: license.to_owned(), proxy: Some(binding) };
    if holder == target {
        return shall.call::<LicenseBind>(&params).await;
    }
    // A copy that serves nobody does no harm; a note of a proxy that does not have it would.
    let text = held.call::<LicenseGet>(&IdParams { id: license.to_owned() }).await?.text;
    shall.call::<LicenseImport>(&LicenseImportParams { text }).await?;
    held.call::<LicenseBind>(&params).await?;
    match shall.call::<LicenseBind>(&params).await {
        Ok(bound) => Ok(bound),
        Err(error) => match held.call::<LicenseUnbind>(&params).await {
            Ok(_) => Err(error),
            Err(_) => Err(T::advise(error, format!("{holder} notes it as serving {target} all the same; free it there"))),
        },
    }
}

/// Frees a licence of a proxy: at the proxy first, for its note is the one that counts, then at whoever holds a copy. It is
/// known by its id: its name may be another one by now.
///
/// # Errors
/// [`LicenseFault`], the proxy itself may be one that does not answer, or nobody could free it.
pub(crate) async fn unbind<T: Member>(fleet: &[T], holder: &str, of: &Binding, license: &str) -> Result<License, T::Error> {
    let held = member(fleet, holder)?;
    let asked =
        join_all(fleet.iter().map(async |asked| {
            futures::join!(asked.call::<ProxyStatusGet>(&NoParams {}), asked.call::<LicenseList>(&NoParams {}))
        }));
    let (mut met, mut silent, mut noted) = (false, None, Vec::new());
    for (member, answers) in fleet.iter().zip(asked.await) {
        match answers {
            (Ok(status), Ok(listed)) => {
                let own = status.id == of.proxy;
                met |= own;
                if listed.iter().any(|copy| copy.id == license && copy.bound.iter().any(|bound| bound.proxy == of.proxy)) {
                    noted.push((own, member));
                }
            }
            (Ok(status), Err(error)) if status.id == of.proxy => return Err(error),
            // Another one's copy goes on noting it, which lets nobody run under it.
            (Ok(_), Err(_)) => {}
            (Err(error), _) => silent = silent.or(Some((member, error))),
        }
    }
    if !met && let Some((member, error)) = silent {
        let name = member.name();
        let next = format!(
            "{name} may be {}, which would go on under the licence; it must answer, or leave the configuration if it is no more",
            of.name
        );
        return Err(T::advise(error, next));
    }
    noted.sort_by_key(|(own, _)| !own);
    let params = LicenseBindParams { id: license.to_owned(), proxy: Some(of.clone()) };
    let mut freed = None;
    for (_, member) in noted {
        let license = member.call::<LicenseUnbind>(&params).await?;
        if freed.is_none() || member.name() == holder {
            freed = Some(license);
        }
    }
    match freed {
        Some(license) => Ok(license),
        // Noted nowhere: the holder says so in its own words.
        None => held.call::<LicenseUnbind>(&params).await,
    }
}

/// The licence for a deployment: the one wanted, or the first one free at the deployer, as long as no other proxy of the
/// fleet serves under it. None: the deployer says itself that there is none, or that none is needed.
///
/// # Errors
/// [`LicenseFault::InUse`], or one of the fleet does not answer: it may serve under it.
pub(crate) async fn for_deployment<T: Member>(
    fleet: &[T],
    deployer: &str,
    wanted: Option<&str>,
) -> Result<Option<String>, T::Error> {
    let offer = member(fleet, deployer)?.call::<DeployOptionsGet>(&NoParams {}).await?.licensing;
    let meant = |license: &&License| {
        wanted.is_none_or(|id| license.id == id || (id.len() >= 4 && license.id.starts_with(id))) && license.free() > 0
    };
    let candidates: Vec<&License> = offer.licenses.iter().filter(meant).collect();
    let Some(first) = candidates.first().filter(|_| offer.required) else { return Ok(wanted.map(str::to_owned)) };
    let held = held_by_all(fleet).await?;
    let free = |license: &&&License| serves(&held, &license.id, None).len() < license.proxies as usize;
    match candidates.iter().find(free) {
        Some(license) => Ok(Some(license.id.clone())),
        None => Err(in_use(first.proxies, serves(&held, &first.id, None)).into()),
    }
}
