//! Licences over a fleet: one serves no more proxies than it covers, whoever holds a copy of it.

use std::future::Future;

use api::{
    Binding, ErrorReport, IdParams, License, LicenseBind, LicenseBindParams, LicenseGet, LicenseImport, LicenseImportParams,
    LicenseList, LicenseUnbind, Method, NoParams, ProxyStatusGet,
};

use super::{Client, errand};

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
    /// The configuration does not have it.
    #[error("there is no proxy {0:?} in the configuration")]
    NoSuchProxy(String),
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
            Self::NoSuchProxy(_) => ErrorReport::new("NO_SUCH_PROXY", self.to_string()),
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
    fleet.iter().find(|member| member.name() == name).ok_or_else(|| LicenseFault::NoSuchProxy(name.to_owned()))
}

/// Binds a licence where it is held, then takes it to the proxy that shall run under it. All of the fleet is asked first.
///
/// # Errors
/// [`LicenseFault`], or one of the fleet does not answer: it may hold the licence too.
pub(crate) async fn bind<T: Member>(fleet: &[T], holder: &str, target: &str, license: &str) -> Result<License, T::Error> {
    let (held, shall) = (member(fleet, holder)?, member(fleet, target)?);
    let status = shall.call::<ProxyStatusGet>(&NoParams {}).await?;
    let binding = Binding { proxy: status.id, name: target.to_owned() };
    let (mut covers, mut serves) = (None, Vec::<Binding>::new());
    for asked in fleet {
        let listed = asked.call::<LicenseList>(&NoParams {}).await.map_err(|error| {
            T::advise(error, format!("{} may hold the licence too; it must answer before one is bound", asked.name()))
        })?;
        for copy in listed.into_iter().filter(|other| other.id == license) {
            covers = Some(copy.proxies);
            for bound in copy.bound {
                if bound.proxy != binding.proxy && !serves.iter().any(|known| known.proxy == bound.proxy) {
                    serves.push(bound);
                }
            }
        }
    }
    let covers = covers.ok_or_else(|| LicenseFault::NotHeld { holder: holder.to_owned(), license: license.to_owned() })?;
    if serves.len() >= covers as usize {
        return Err(LicenseFault::InUse { covers, serves: serves.into_iter().map(|bound| bound.name).collect() }.into());
    }
    let params = LicenseBindParams { id: license.to_owned(), proxy: Some(binding) };
    if holder != target {
        let text = held.call::<LicenseGet>(&IdParams { id: license.to_owned() }).await?.text;
        held.call::<LicenseBind>(&params).await?;
        shall.call::<LicenseImport>(&LicenseImportParams { text }).await?;
    }
    shall.call::<LicenseBind>(&params).await
}

/// Frees a licence of a proxy: at the proxy first, for its note is the one that counts, then at whoever holds a copy.
///
/// # Errors
/// [`LicenseFault`], the proxy itself does not answer, or nobody could free it.
pub(crate) async fn unbind<T: Member>(fleet: &[T], holder: &str, of: &Binding, license: &str) -> Result<License, T::Error> {
    let params = LicenseBindParams { id: license.to_owned(), proxy: Some(of.clone()) };
    let mut freed = None;
    for asked in fleet.iter().filter(|asked| asked.name() != holder) {
        match asked.call::<LicenseList>(&NoParams {}).await {
            Ok(listed) => {
                let noted = |copy: &License| copy.id == license && copy.bound.iter().any(|bound| bound.proxy == of.proxy);
                if listed.iter().any(noted) {
                    freed = Some(asked.call::<LicenseUnbind>(&params).await?);
                }
            }
            // One that is away can be the very proxy, which is to run no longer under it.
            Err(error) if asked.name() == of.name => {
                return Err(T::advise(error, format!("{} must answer: it would go on under the licence", of.name)));
            }
            Err(_) => {}
        }
    }
    match member(fleet, holder)?.call::<LicenseUnbind>(&params).await {
        Ok(license) => Ok(license),
        Err(error) => freed.ok_or(error),
    }
}
