//! What is done to proxies as such: deployed, changed, upgraded, examined, licensed. Part of [`super::act`].

use api::{DeployedState, DestroyParams, DrainParams, ErrorReport, IdParams, LogLevel};

use super::act::{acting, close_form, home, open_form, push, row};
use super::action::{Action, Context};
use super::answers::select_made;
use super::boundary::{refusal, send};
use super::deployed;
use super::effect::{Request, RequestId};
use super::errand::{Done, Errand};
use super::format::moment;
use super::forms::{self, Form};
use super::screens::{Screen, fleet_id, licenses, proxies};
use super::state::{Expected, Purpose, State};
use super::store::{Examination, ListKind, ListState, Proxy};

/// The proxy the keys act on.
fn proxy(state: &State, row: Option<usize>) -> Result<&Proxy, String> {
    match acting(state.screen()) {
        Screen::Doctor { proxy } => state.proxy(proxy).ok_or_else(|| format!("there is no proxy {proxy} any more")),
        Screen::Proxies => match row.and_then(|row| proxies::at(state, row)) {
            Some(proxies::Found::Known(proxy)) => Ok(proxy),
            Some(proxies::Found::Stranger(..)) => Err("this console does not know how to reach it; p adds it".into()),
            None => Err("no proxy is selected".into()),
        },
        _ => Err("no proxy is selected".into()),
    }
}

/// The deployed proxy the keys act on, with its deployer.
fn selected_deployed(state: &State, row: Option<usize>) -> Result<(&Proxy, &api::Deployed), String> {
    match row.filter(|_| *acting(state.screen()) == Screen::Proxies).and_then(|row| proxies::at(state, row)) {
        Some(proxies::Found::Known(proxy)) => deployed::of(state, proxy)
            .ok_or_else(|| format!("{} was not deployed by a proxy of this console that answers", proxy.name())),
        Some(proxies::Found::Stranger(deployer, deployed)) => Ok((deployer, deployed)),
        None => Err("no proxy is selected".into()),
    }
}

/// The licence the keys act on, with its holder.
fn license(state: &State, row: Option<usize>) -> Result<(&Proxy, api::License), String> {
    let here = row.filter(|_| *acting(state.screen()) == Screen::Licenses);
    here.and_then(|row| licenses::at(state, row)).ok_or_else(|| "no licence is selected".into())
}

/// Whether an action of this module can be done now; none for an action of another.
pub(super) fn availability(state: &State, action: Action, row: Option<usize>) -> Option<Result<(), String>> {
    match judged(state, action, row) {
        Ok(true) => Some(Ok(())),
        Ok(false) => None,
        Err(why) => Some(Err(why)),
    }
}

/// Whether an action is one of this module, or why it cannot be done now.
fn judged(state: &State, action: Action, row: Option<usize>) -> Result<bool, String> {
    let on = |name: &str| refusal(state, name, action.info().writes).map_or(Ok(()), Err);
    match action {
        Action::ProxyDeploy | Action::LicenseImport => {
            if state.proxies.is_empty() {
                return Err("no proxy is configured: backhaul proxy add".into());
            }
        }
        Action::ProxyUpgrade => {
            let proxy = proxy(state, row)?;
            match proxy.status.as_ref().and_then(|status| status.upgrade.as_ref()) {
                Some(upgrade) if proxies::under_way(upgrade.phase) => {
                    return Err(format!("its upgrade to {} is going on", upgrade.to));
                }
                _ => on(proxy.name())?,
            }
        }
        // One that is going on is looked at, whatever became of the line.
        Action::ProxyDoctor => {
            let proxy = proxy(state, row)?;
            if !examining(proxy) {
                on(proxy.name())?;
            }
        }
        Action::DoctorAgain => {
            let proxy = proxy(state, row)?;
            if examining(proxy) {
                return Err("the examination is going on".into());
            }
            on(proxy.name())?;
        }
        Action::ProxySettings | Action::ProxyDrain | Action::TokenRotate | Action::CertificateRenew | Action::SupportSave => {
            on(proxy(state, row)?.name())?
        }
        Action::PoolAdd => {
            if state.proxies.is_empty() {
                return Err("no proxy is configured: backhaul proxy add".into());
            }
            // Not to the next best: the form would be for another proxy than the selected one.
            if *acting(state.screen()) == Screen::Proxies && row.is_some() {
                proxy(state, row)?;
            }
        }
        Action::ProxyAdopt => {
            let (deployer, deployed) = selected_deployed(state, row)?;
            if let Some(known) = deployed::known(state, deployed).filter(|known| !deployed::moved(known, deployed)) {
                return Err(format!("this console knows {} already", known.name()));
            }
            on(deployer.name())?;
            ready(deployed)?;
        }
        Action::ProxyReconfigure | Action::ProxyRedeploy | Action::ProxyForget | Action::ProxyDestroy => {
            // What the deployer said last counts only while it answers.
            let (deployer, deployed) = selected_deployed(state, row)?;
            on(deployer.name())?;
            ready(deployed)?;
        }
        Action::LicenseBind => {
            let (holder, license) = license(state, row)?;
            if let Some(fault) = &license.fault {
                return Err(fault.clone());
            }
            if license.free() == 0 {
                return Err(format!("it covers {} and serves {}; free it there first", license.proxies, license.serves()));
            }
            on(holder.name())?;
        }
        Action::LicenseUnbind => {
            let (holder, license) = license(state, row)?;
            if license.bound.is_empty() {
                return Err("it serves no proxy".into());
            }
            on(holder.name())?;
        }
        Action::LicenseRemove => {
            let (holder, license) = license(state, row)?;
            if !license.bound.is_empty() {
                return Err(format!("it serves {}; free it there first", license.serves()));
            }
            on(holder.name())?;
        }
        Action::ReviewAccept => match state.form.as_ref().map(|form| (&form.review, form.submitting)) {
            Some((_, Some(_))) => return Err("it is on its way to the proxy".into()),
            Some((Some(review), None)) if !review.review.faults.is_empty() => {
                return Err("it cannot be done like this; Esc goes back to the form".into());
            }
            _ => {}
        },
        Action::ReviewBack => {}
        _ => return Ok(false),
    }
    Ok(true)
}

/// Whether an examination of a proxy is going on.
pub(super) fn examining(proxy: &Proxy) -> bool {
    matches!(proxy.examination, Some(Examination { ended: None, .. }))
}

fn ready(deployed: &api::Deployed) -> Result<(), String> {
    match deployed.state {
        DeployedState::Ready => Ok(()),
        DeployedState::Deploying => Err(format!("{} is being deployed; 4 shows how far it is", deployed.name)),
        DeployedState::Changing => Err(format!("a run is working on {}; 4 shows how far it is", deployed.name)),
    }
}

/// Does an action of this module; answers false for an action of another. Only what is available comes here.
pub(super) fn perform(state: &mut State, action: Action) -> bool {
    let row = row(state);
    match action {
        Action::ProxyDeploy => {
            let form = forms::deploy::open(home(state).as_deref());
            open_form(state, form);
        }
        Action::LicenseImport => {
            let form = forms::license::open_import(home(state).as_deref());
            open_form(state, form);
        }
        Action::ReviewAccept => accept(state),
        Action::ReviewBack => match &mut state.form {
            // On its way: there is no form to go back to, the page is left.
            Some(form) if form.submitting.is_some() => close_form(state),
            Some(form) => form.review = None,
            None => {}
        },
        Action::LicenseBind | Action::LicenseUnbind | Action::LicenseRemove => on_license(state, action, row),
        Action::ProxyAdopt | Action::ProxyReconfigure | Action::ProxyRedeploy | Action::ProxyForget | Action::ProxyDestroy => {
            on_deployed(state, action, row)
        }
        Action::ProxyUpgrade
        | Action::ProxyDoctor
        | Action::ProxySettings
        | Action::ProxyDrain
        | Action::TokenRotate
        | Action::CertificateRenew
        | Action::SupportSave
        | Action::DoctorAgain => on_proxy(state, action, row),
        _ => return false,
    }
    true
}

fn on_proxy(state: &mut State, action: Action, row: Option<usize>) {
    let Ok(proxy) = proxy(state, row) else { return };
    let name = proxy.name().to_owned();
    match action {
        Action::ProxyUpgrade => open_form(state, forms::upgrade::open(&name)),
        Action::ProxySettings => {
            let form = forms::settings::open(proxy);
            open_form(state, form);
        }
        Action::ProxyDrain => {
            let on = !proxy.status.as_ref().is_some_and(|status| status.draining);
            let told =
                if on { format!("{name} holds new runs back; what runs goes on") } else { format!("{name} starts runs again") };
            send(state, &name, Request::Drain(DrainParams { on }), Purpose::Tell(told, None), &name);
        }
        Action::TokenRotate => {
            send(state, &name, Errand::RotateToken, Purpose::Errand(format!("New token for {name}")), &name);
        }
        Action::CertificateRenew => {
            let purpose = Purpose::Errand(format!("New certificate for {name}"));
            send(state, &name, Errand::RenewCertificate, purpose, &name);
        }
        Action::SupportSave => {
            state.tell(LogLevel::Info, format!("Asking {name} for what support needs"));
            let purpose = Purpose::Errand(format!("Text for support of {name}"));
            send(state, &name, Errand::SaveSupportBundle, purpose, &name);
        }
        _ => {
            let going_on = examining(proxy);
            if !going_on && let Some(id) = send(state, &name, Errand::Examine, Purpose::Examination, &name) {
                let now = state.now;
                if let Some(proxy) = state.proxy_mut(&name) {
                    proxy.examination = Some(Examination { id, started_at: now, checks: Vec::new(), ended: None });
                    proxy.version += 1;
                }
            }
            let screen = Screen::Doctor { proxy: name };
            if *acting(state.screen()) != screen {
                push(state, screen);
            } else if *state.screen() != screen {
                // The details of what was found before.
                state.stack.pop();
                state.scroll = 0;
            }
        }
    }
}

fn on_deployed(state: &mut State, action: Action, row: Option<usize>) {
    let Ok((deployer, deployed)) = selected_deployed(state, row) else { return };
    let (deployer, deployed) = (deployer.name().to_owned(), deployed.clone());
    let known = deployed::known(state, &deployed).map(|proxy| proxy.name().to_owned());
    let (id, name) = (deployed.id.clone(), deployed.name.clone());
    match action {
        Action::ProxyAdopt => adopt(state, &deployer, &id, &name, known),
        Action::ProxyReconfigure => open_form(state, forms::reconfigure::open(&deployer, &deployed)),
        Action::ProxyRedeploy => open_form(state, forms::redeploy::open(&deployer, &deployed)),
        Action::ProxyForget => {
            send(state, &deployer, Request::Forget(IdParams { id }), Purpose::Forget(known), &name);
        }
        _ => {
            let (by, gone) = (deployer.clone(), name.clone());
            let expected = Expected { deployer: by, name: gone, known, gone: true, ..Expected::default() };
            let request = Request::Destroy(DestroyParams { id, name: name.clone(), discard_local: false });
            send(state, &deployer, request, Purpose::Destroy(expected), &name);
        }
    }
}

fn adopt(state: &mut State, deployer: &str, id: &str, name: &str, known: Option<String>) {
    let errand = Errand::Adopt { deployed: id.to_owned(), known };
    send(state, deployer, errand, Purpose::Errand(format!("Adding {name} to this console")), name);
}

fn on_license(state: &mut State, action: Action, row: Option<usize>) {
    let Ok((holder, license)) = license(state, row) else { return };
    let holder = holder.name().to_owned();
    match (action, &license.bound[..]) {
        (Action::LicenseBind, _) => open_form(state, forms::license::open_bind(&holder, &license)),
        (Action::LicenseUnbind, [of]) => {
            let errand = Errand::UnbindLicense { license: license.id.clone(), of: of.clone() };
            send(state, &holder, errand, Purpose::Errand(format!("Freeing licence {}", license.id)), &license.id);
        }
        (Action::LicenseUnbind, _) => open_form(state, forms::license::open_unbind(&holder, &license)),
        _ => {
            let told = Purpose::Tell(format!("Licence {} removed from {holder}", license.id), Some(ListKind::Licenses));
            let request = Request::LicenseRemove(IdParams { id: license.id.clone() });
            send(state, &holder, request, told, &license.id);
        }
    }
}

/// Does what the review says.
fn accept(state: &mut State) {
    let Some(mut form) = state.form.take() else { return };
    if form.submitting.is_none()
        && let Some(review) = &form.review
    {
        let request = Request::DeployStart(review.spec.clone());
        form.submitting = send(state, &review.proxy, request, Purpose::Save { then_run: false }, &review.spec.name);
        form.error = None;
    }
    state.form = Some(form);
}

/// Notes that the end of a run on a deployed proxy is to be waited for.
pub(super) fn expect(state: &mut State, expected: Expected) {
    if let Some(deployer) = state.proxy_mut(&expected.deployer) {
        // Asked for anew: what is on its way may be of before the run.
        deployer.set_list_state(ListKind::Deployed, ListState::Stale);
    }
    state.expected.push(expected);
}

/// A deployer's list has come: what was waited for may have happened.
pub(super) fn deployed_came(state: &mut State, deployer: &str) {
    let Some(proxy) = state.proxy(deployer).filter(|proxy| matches!(proxy.deployed.state, ListState::Fresh(_))) else { return };
    let listed: Vec<(String, String, String, DeployedState)> = proxy
        .deployed
        .items
        .iter()
        .map(|deployed| (deployed.name.clone(), deployed.id.clone(), deployed.run.clone(), deployed.state))
        .collect();
    let (mut adopted, mut gone, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    state.expected.retain_mut(|expected| {
        if expected.deployer != deployer {
            return true;
        }
        match listed.iter().find(|(name, ..)| *name == expected.name) {
            Some((name, id, run, DeployedState::Ready)) if *run == expected.run => {
                // A destruction that left it ready has failed; what is known of it stays.
                if !expected.gone {
                    adopted.push((id.clone(), name.clone(), expected.known.clone()));
                }
                false
            }
            Some(_) => true,
            None => {
                gone.extend(expected.known.clone().filter(|_| expected.gone));
                failed.extend(expected.form.take().map(|form| (expected.name.clone(), *form)));
                false
            }
        }
    });
    for (id, name, known) in adopted {
        adopt(state, deployer, &id, &name, known);
    }
    for name in gone {
        drop_entry(state, &name);
    }
    for (name, form) in failed {
        let key = state.keymap.key(&[Context::Proxies], Action::ProxyDeploy);
        let back = key.map_or_else(String::new, |key| format!("; on Proxies, {key} at {} brings it back", form.opened_for));
        state.drafts.push(Form { submitting: None, review: None, error: None, changed: true, ..form });
        state.tell(LogLevel::Info, format!("{name} was not deployed; what was typed is kept as a draft{back}"));
    }
}

/// Takes a proxy that is gone out of the configuration.
pub(super) fn drop_entry(state: &mut State, name: &str) {
    send(state, name, Errand::Drop, Purpose::Errand(format!("Taking {name} out of the configuration")), name);
}

/// A thing was checked.
pub(super) fn checked(state: &mut State, name: &str, id: RequestId, check: api::DoctorCheck) {
    if let Some(proxy) = state.proxy_mut(name)
        && let Some(examination) = proxy.examination.as_mut().filter(|examination| examination.id == id)
    {
        examination.checks.push(check);
        proxy.version += 1;
        state.touch();
    }
}

/// An examination is through, or broke off.
pub(super) fn examined(state: &mut State, name: &str, id: RequestId, error: Option<api::ErrorReport>) {
    let now = state.now;
    if let Some(proxy) = state.proxy_mut(name)
        && let Some(examination) = proxy.examination.as_mut().filter(|examination| examination.id == id)
    {
        examination.ended = Some((now, error.clone()));
        proxy.version += 1;
        if let Some(error) = error {
            state.notices.tell_error(now, &format!("Doctor of {name}"), &error);
        }
    }
}

/// Tells of a change that its deployer is to know, and of what is left to do for that.
fn made(state: &mut State, told: String, untold: Option<String>) {
    match untold {
        None => state.tell(LogLevel::Info, told),
        Some(untold) => state.tell(LogLevel::Warning, format!("{told}. {untold}")),
    }
}

/// What came of an errand.
pub(super) fn done(state: &mut State, name: &str, done: Done) {
    let stale = |state: &mut State, kind: ListKind| {
        for proxy in &mut state.proxies {
            proxy.set_list_state(kind, ListState::Stale);
        }
    };
    match done {
        Done::Adopted { entry, fingerprint } => {
            let told = format!("{} answers at {}; its certificate is {fingerprint}", entry.name, entry.url);
            match state.proxy_mut(&entry.name) {
                Some(proxy) => {
                    proxy.entry = entry;
                    proxy.version += 1;
                }
                None => {
                    let proxy = Proxy::new(entry);
                    let row = deployed::of(state, &proxy).map(|(deployer, deployed)| fleet_id(deployer.name(), &deployed.id));
                    let table = state.table_mut(Context::Proxies);
                    // It stays selected where it was; what else is selected is what the next key is meant for.
                    if row.is_some() && table.selected == row {
                        table.select_id(proxy.name());
                    }
                    table.outdate();
                    state.proxies.push(proxy);
                }
            }
            state.tell(LogLevel::Info, told);
        }
        Done::Dropped => {
            forget(state, name);
            state.tell(LogLevel::Info, format!("{name} is no longer in the configuration"));
        }
        Done::TokenKept { former_until, untold } => {
            let until = moment(former_until, state.now, &state.settings.zone);
            let told = format!("The new token of {name} is in the configuration; the former one is accepted until {until}");
            made(state, told, untold);
        }
        Done::CertificatePinned { fingerprint, untold } => {
            made(state, format!("The certificate of {name} is now {fingerprint}; it is pinned here"), untold);
        }
        Done::Upgrading(upgrade) => {
            // Known before its news come: it may be gone for its restart by then.
            if let Some(proxy) = state.proxy_mut(name)
                && let Some(status) = &mut proxy.status
                && status.upgrade.as_ref().is_none_or(|known| known.since < upgrade.since)
            {
                status.upgrade = Some(upgrade.clone());
                proxy.version += 1;
            }
            state.tell(LogLevel::Info, format!("The upgrade of {name} to {} goes on; Proxies shows how far it is", upgrade.to));
        }
        Done::LicenseKept(license) => {
            stale(state, ListKind::Licenses);
            select_made(state, Context::Licenses, license.id.clone());
            state.tell(LogLevel::Info, format!("{name} keeps licence {} of {}", license.id, license.holder));
        }
        Done::LicenseBound(license) => {
            stale(state, ListKind::Licenses);
            state.tell(LogLevel::Info, format!("Licence {} serves {}", license.id, license.serves()));
        }
        Done::LicenseFreed(license) => {
            stale(state, ListKind::Licenses);
            state.tell(LogLevel::Info, format!("Licence {} is free for {} more", license.id, license.free()));
        }
        Done::Examined => {}
        Done::Saved { path } => state.tell(LogLevel::Info, format!("What support needs to know of {name} is in {path}")),
    }
}

/// Takes a proxy out of everything that is known and shown.
fn forget(state: &mut State, name: &str) {
    state.proxies.retain(|proxy| proxy.name() != name);
    state.pending.retain(|_, pending| pending.proxy != name);
    // What was sent there is answered no more: a form must not wait for it for ever.
    for form in state.form.iter_mut().chain(&mut state.drafts) {
        if form.submitting.is_some_and(|id| !state.pending.contains_key(&id)) {
            form.submitting = None;
            form.error = Some(ErrorReport::new("NO_SUCH_PROXY", format!("{name} is no longer in the configuration")));
        }
    }
    state.follows.retain(|(proxy, _), _| proxy != name);
    state.expected.retain(|expected| expected.deployer != name);
    state.groups_version = None;
    let of = |screen: &Screen| {
        let inner = acting(screen);
        matches!(inner, Screen::Points { proxy, .. } | Screen::Run { proxy, .. } | Screen::Doctor { proxy } if proxy == name)
    };
    if let Some(at) = state.stack.iter().position(of) {
        state.stack.truncate(at);
    }
    for table in state.tables.values_mut() {
        table.outdate();
    }
}
