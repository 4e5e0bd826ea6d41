//! Licences over a fleet: one serves no more proxies than it covers, whoever holds a copy of it.

use api::{
    Binding, ErrorReport, IdParams, License, LicenseBind, LicenseBindParams, LicenseGet, LicenseImport, LicenseImportParams,
    LicenseList, LicenseUnbind, NoParams, ProxyStatusGet,
};

use super::Client;
use super::errand::call;

fn site<'a>(sites: &'a [(String, Client)], name: &str) -> Result<&'a Client, ErrorReport> {
    let missing = || ErrorReport::new("NO_SUCH_PROXY", format!("there is no proxy {name:?} in the configuration"));
    sites.iter().find(|(known, _)| known == name).map(|(_, client)| client).ok_or_else(missing)
}

/// Binds a licence where it is held, then takes it to the proxy that shall run under it. All proxies are asked first.
pub(super) async fn bind(sites: &[(String, Client)], holder: &str, target: &str, license: &str) -> Result<License, ErrorReport> {
    let (held, shall) = (site(sites, holder)?, site(sites, target)?);
    let status = call::<ProxyStatusGet>(shall, &NoParams {}).await?;
    let binding = Binding { proxy: status.id, name: target.to_owned() };
    let (mut covers, mut serves) = (None, Vec::<Binding>::new());
    for (name, client) in sites {
        let listed = call::<LicenseList>(client, &NoParams {})
            .await
            .map_err(|error| error.with_next(format!("{name} may hold the licence too; it must answer before one is bound")))?;
        for copy in listed.into_iter().filter(|other| other.id == license) {
            covers = Some(copy.proxies);
            for bound in copy.bound {
                if bound.proxy != binding.proxy && !serves.iter().any(|known| known.proxy == bound.proxy) {
                    serves.push(bound);
                }
            }
        }
    }
    let covers = covers.ok_or_else(|| ErrorReport::new("NO_SUCH_OBJECT", format!("{holder} does not hold licence {license}")))?;
    if serves.len() >= covers as usize {
        let names: Vec<&str> = serves.iter().map(|bound| bound.name.as_str()).collect();
        let reason = format!("the licence covers {covers} and already serves {}", names.join(", "));
        return Err(ErrorReport::new("LICENSE_IN_USE", reason).with_next("free it there first"));
    }
    let params = LicenseBindParams { id: license.to_owned(), proxy: Some(binding) };
    if holder != target {
        let text = call::<LicenseGet>(held, &IdParams { id: license.to_owned() }).await?.text;
        call::<LicenseBind>(held, &params).await?;
        call::<LicenseImport>(shall, &LicenseImportParams { text }).await?;
    }
    call::<LicenseBind>(shall, &params).await
}

/// Frees a licence of a proxy: at the proxy first, for its note is the one that counts, then at whoever holds a copy.
pub(super) async fn unbind(
    sites: &[(String, Client)],
    holder: &str,
    of: &Binding,
    license: &str,
) -> Result<License, ErrorReport> {
    let params = LicenseBindParams { id: license.to_owned(), proxy: Some(of.clone()) };
    let mut freed = None;
    for (name, client) in sites.iter().filter(|(name, _)| name != holder) {
        match call::<LicenseList>(client, &NoParams {}).await {
            Ok(listed) => {
                let noted = |copy: &License| copy.id == license && copy.bound.iter().any(|bound| bound.proxy == of.proxy);
                if listed.iter().any(noted) {
                    freed = Some(call::<LicenseUnbind>(client, &params).await?);
                }
            }
            // One that is away can be the very proxy, which is to run no longer under it.
            Err(error) if *name == of.name => {
                return Err(error.with_next(format!("{name} must answer: it would go on under the licence")));
            }
            Err(_) => {}
        }
    }
    match call::<LicenseUnbind>(site(sites, holder)?, &params).await {
        Ok(license) => Ok(license),
        Err(error) => freed.ok_or(error),
    }
}
