//! The deployment form, made of [`api::deploy::FIELDS`] as the command line is, and its review page.

use api::deploy::{Answers, FIELDS, FieldInfo, FieldKind, bytes, minimum, redact_url};
use api::{DeployOptions, DeploySpec, FieldFault, License, PoolOffer, SrOffer, format_bytes};

use super::{Choice, Form, FormField, FormKind, Review};
use crate::core::effect::Request;
use crate::core::format::span;
use crate::core::rich::{Glyph, Line, Role, pair};
use crate::core::state::State;
use crate::core::store::{ListState, Proxy};
use crate::core::text::shell;

/// A form for a new proxy.
pub fn open(proxy: Option<&str>) -> Form {
    let deployer = "The one that deploys: it is connected to the pool, and to the network of the new one";
    let mut fields = vec![FormField::choice("proxy", "Proxy", deployer, Vec::new(), proxy)];
    fields.extend(FIELDS.iter().map(made));
    let mut form = Form::new(FormKind::Deploy, "New proxy", fields);
    form.focus_on(if proxy.is_some() { "name" } else { "proxy" });
    form
}

/// A field of the table as a field of a form.
pub(super) fn made(info: &'static FieldInfo) -> FormField {
    match info.kind {
        FieldKind::Text => FormField::text(info.id, info.label, info.help, info.default),
        FieldKind::Secret => FormField::secret(info.id, info.label, info.help),
        FieldKind::Offered => FormField::choice(info.id, info.label, info.help, Vec::new(), None),
        FieldKind::OneOf(words) => {
            let options = words.iter().map(|(word, meaning)| Choice::new(*word, *word, *meaning)).collect();
            FormField::choice(info.id, info.label, info.help, options, Some(info.default))
        }
    }
}

/// Shows the fields that are asked only when another has a value, or hides them.
pub(super) fn show_asked(form: &mut Form) {
    for field in FIELDS {
        if let Some((other, value)) = field.when {
            let asked = form.value(other) == value;
            form.show(field.id, asked);
        }
    }
}

/// What the form answers; what is hidden is not answered.
pub(super) fn answers(form: &Form) -> Answers {
    let mut answers = Answers::default();
    for field in form.fields.iter().filter(|field| !field.hidden) {
        answers.set(field.id, form.value(field.id));
    }
    answers
}

/// What is wrong with an answer, as far as can be told without asking a pool.
pub(super) fn answer_fault(answers: &Answers, id: &str) -> Option<String> {
    let faults = DeploySpec::from_answers(answers).err()?;
    faults.into_iter().find(|fault| fault.field == id).map(|fault| fault.message)
}

/// A licence's id as a person reads it.
pub(super) fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

fn deployers(state: &State) -> Vec<Choice> {
    let why_not = |proxy: &Proxy| {
        if !proxy.live() {
            return Some("not connected".to_owned());
        }
        let none = proxy.pools.items.is_empty() && matches!(proxy.pools.state, ListState::Fresh(_));
        none.then(|| "it knows no pool".to_owned())
    };
    let site = |proxy: &Proxy| proxy.status.as_ref().and_then(|status| status.site.clone()).unwrap_or_default();
    let options = state.proxies.iter().map(|proxy| Choice::new(proxy.name(), proxy.name(), site(proxy)).unless(why_not(proxy)));
    options.collect()
}

/// What the deploying proxy offers, once it is known.
fn offers<'a>(form: &Form, state: &'a State) -> Option<&'a DeployOptions> {
    state.proxy(form.proxy())?.options.items.first()
}

fn pool<'a>(form: &Form, state: &'a State) -> Option<&'a PoolOffer> {
    offers(form, state)?.pools.iter().find(|pool| pool.id == form.value("pool"))
}

/// A storage repository as an option, for a disk of so many bytes.
pub(super) fn storage(sr: &SrOffer, disk: u64) -> Choice {
    let kind = if sr.thin { "thin" } else { "thick" };
    let default = if sr.default { ", default" } else { "" };
    let note = format!("{} {kind}, {} free of {}{default}", sr.kind, format_bytes(sr.free), format_bytes(sr.bytes));
    let full =
        (!sr.thin && sr.free < disk).then(|| format!("{} free, the disk takes {}", format_bytes(sr.free), format_bytes(disk)));
    Choice::new(&sr.uuid, &sr.name, note).unless(sr.why_not.clone().or(full))
}

fn licenses(offer: &api::LicenseOffer) -> Vec<Choice> {
    if !offer.required {
        return vec![Choice::new("", "not needed", "no issuer's key is configured")];
    }
    let serves = |license: &License| license.bound.iter().map(|bound| bound.name.as_str()).collect::<Vec<_>>().join(", ");
    let first = first_free(offer);
    let note = first.map(|license| format!("{} of {}", short(&license.id), license.holder)).unwrap_or_default();
    let none = first.is_none().then(|| offer.why_not.clone().unwrap_or_else(|| "none is free".into()));
    let mut options = vec![Choice::new("", "the first free one", note).unless(none)];
    options.extend(offer.licenses.iter().map(|license| {
        let taken = (license.free() == 0).then(|| format!("serves {}", serves(license)));
        let note = format!("{}, {} of {} free", license.holder, license.free(), license.proxies);
        Choice::new(&license.id, short(&license.id), note).unless(license.fault.clone().or(taken))
    }));
    options
}

fn first_free(offer: &api::LicenseOffer) -> Option<&License> {
    offer.licenses.iter().find(|license| license.free() > 0)
}

/// What to know about the licence that the form would bind.
fn license_note(form: &Form, offer: &api::LicenseOffer) -> Option<(Role, String)> {
    if !offer.required {
        return None;
    }
    let chosen = match form.value("license") {
        "" => first_free(offer),
        id => offer.licenses.iter().find(|license| license.id == id),
    };
    match chosen {
        Some(license) => license.warning.clone().map(|warning| (Role::Warn, warning)),
        None => {
            let why = offer.why_not.clone().unwrap_or_else(|| "no licence is free".into());
            Some((Role::Error, format!("{why}; 8 shows the licences and imports one")))
        }
    }
}

pub(super) fn sync(form: &mut Form, state: &State) {
    let deployers = deployers(state);
    form.offer("proxy", deployers);
    let proxy = state.proxy(form.proxy());
    let known = proxy.is_some_and(|proxy| matches!(proxy.options.state, ListState::Fresh(_)));
    let nothing = DeployOptions::default();
    let offered = offers(form, state).unwrap_or(&nothing);
    let pools = offered.pools.iter().map(|pool| {
        let note = format!("{} of memory free on a host, {} processors", format_bytes(pool.memory_free), pool.cpus);
        Choice::new(&pool.id, &pool.name, note).unless(pool.why_not.clone())
    });
    form.offer("pool", pools.collect());
    let disk = bytes(form.value("disk")).unwrap_or(minimum::DISK);
    let (mut srs, mut networks) = (Vec::new(), Vec::new());
    if let Some(pool) = pool(form, state) {
        srs.extend(pool.srs.iter().map(|sr| storage(sr, disk)));
        networks.extend(pool.networks.iter().map(|network| {
            let management = if network.management { "management, " } else { "" };
            let nbd = if network.nbd { "disks over NBD" } else { "no NBD: backups will be slower" };
            Choice::new(&network.uuid, &network.name, format!("{management}{nbd}")).unless(network.why_not.clone())
        }));
        let site = pool.name.clone();
        form.set_default("site", site);
    }
    form.offer("sr", srs);
    form.offer("network", networks);
    if !offered.pools.is_empty() || known {
        form.offer("license", licenses(&offered.licensing));
        let note = license_note(form, &offered.licensing);
        form.note("license", note);
        form.set_default("image", offered.image.clone().unwrap_or_default());
    }
    show_asked(form);
    form.check_touched(state);
}

pub(super) fn fault(form: &Form, state: &State, id: &str) -> Option<String> {
    if let Some(why) = form.option(id).and_then(|option| option.why_not.as_ref()) {
        return Some(why.clone());
    }
    if id == "proxy" {
        return super::wanted(form, id, "A proxy that deploys");
    }
    if id == "pool" && form.value(id).is_empty() {
        return Some(match state.proxy(form.proxy()).map(|proxy| &proxy.options.state) {
            Some(ListState::Failed(error)) => error.message.clone(),
            Some(ListState::Fresh(_)) => "none of its pools can take a proxy".into(),
            _ => "what the pools offer is not known yet".into(),
        });
    }
    if let Some(message) = answer_fault(&answers(form), id) {
        return Some(message);
    }
    let pool = pool(form, state)?;
    match id {
        "name" => taken(state, form.value("name")),
        "sr" if form.value(id).is_empty() => Some(format!("no storage of {} can take the disk", pool.name)),
        "network" if form.value(id).is_empty() => Some(format!("no network of {} can take a proxy", pool.name)),
        "disk" => {
            let sr = pool.srs.iter().find(|sr| sr.uuid == form.value("sr"))?;
            let disk = bytes(form.value(id))?;
            (!sr.thin && disk < minimum::DISK)
                .then(|| format!("at least 20 GiB: {} reserves all of it (thick); 2 GiB would do on thin storage", sr.name))
        }
        "memory" => {
            let most = pool.memory_free;
            bytes(form.value(id)).filter(|memory| *memory > most).map(|memory| {
                format!("no host of {} has {} free; the most is {}", pool.name, format_bytes(memory), format_bytes(most))
            })
        }
        "vcpus" => {
            let wanted: u32 = form.value(id).parse().ok()?;
            (pool.cpus > 0 && wanted > pool.cpus)
                .then(|| format!("the hosts of {} have {} processors at most", pool.name, pool.cpus))
        }
        "license" => {
            let offer = &offers(form, state)?.licensing;
            (offer.required && form.value(id).is_empty() && first_free(offer).is_none())
                .then(|| offer.why_not.clone().unwrap_or_else(|| "no licence is free".into()))
        }
        _ => None,
    }
}

/// Why a name cannot be given.
fn taken(state: &State, name: &str) -> Option<String> {
    if state.proxy(name).is_some() {
        return Some("this console knows a proxy of this name already".into());
    }
    let deployed = state.proxies.iter().find(|proxy| proxy.deployed.items.iter().any(|deployed| deployed.name == name));
    deployed.map(|proxy| format!("{} has deployed a proxy of this name already", proxy.name()))
}

fn spec(form: &Form) -> Option<Box<DeploySpec>> {
    DeploySpec::from_answers(&answers(form)).ok().map(Box::new)
}

pub(super) fn request(form: &Form) -> Option<Request> {
    spec(form).map(Request::DeployReview)
}

/// What accepting the review asks for.
pub(in crate::core) fn accepted(form: &Form) -> Option<Request> {
    spec(form).map(Request::DeployStart)
}

/// Takes what the proxy says it would do.
pub(in crate::core) fn reviewed(form: &mut Form, review: api::DeployReview) {
    form.refusals.clone_from(&review.faults);
    let first = form.fields.iter().position(|field| review.faults.iter().any(|fault| fault.field == field.id));
    if let Some(first) = first {
        form.focus = first;
    }
    form.review = Some(Box::new(Review { review, scroll: 0 }));
}

/// The review as a page.
pub fn review_lines(form: &Form, review: &Review) -> Vec<Line> {
    let review = &review.review;
    let named = |fault: &FieldFault| match api::deploy::field(&fault.field) {
        Some(field) => format!("{}: {}", field.label, fault.message),
        None => fault.message.clone(),
    };
    let mut lines = Vec::new();
    if let Some(error) = &form.error {
        lines.extend(crate::core::screens::error_lines(error));
    }
    if form.submitting.is_some() {
        lines.push(Line::state(Glyph::Running, Role::Running, "Sent, waiting for the proxy"));
    } else if review.faults.is_empty() {
        lines.push(Line::of(Role::Hint, format!("{} would do this; nothing has been touched yet.", form.proxy())));
    } else {
        lines.push(Line::of(Role::Hint, "It cannot be done like this; nothing has been touched."));
    }
    lines.extend(review.faults.iter().map(|fault| Line::state(Glyph::Error, Role::Error, named(fault))));
    lines.extend(review.warnings.iter().map(|fault| Line::state(Glyph::Warn, Role::Warn, named(fault))));
    lines.push(Line::new());
    lines.extend(review.lines.iter().map(|(label, value)| pair(label, value)));
    if !review.steps.is_empty() {
        lines.push(Line::new());
        lines.push(Line::of(Role::Muted, "Steps, each with its time limit"));
        lines.extend(review.steps.iter().enumerate().map(|(at, step)| {
            let limit = span(i64::try_from(step.limit_seconds).unwrap_or(i64::MAX / 1000).saturating_mul(1000));
            Line::of(Role::Muted, format!("{:>4}  ", at + 1))
                .and(Role::Text, format!("{:<14}", step.name))
                .and(Role::Muted, format!("at most {limit}"))
        }));
    }
    lines
}

pub(super) fn command(form: &Form) -> String {
    let mut line = format!("backhaul proxy deploy --proxy {}", shell(form.proxy()));
    for info in FIELDS {
        let Some(field) = form.field(info.id).filter(|field| !field.hidden) else { continue };
        let always = matches!(info.id, "name" | "pool");
        if (!field.touched && !always) || form.value(info.id).is_empty() {
            continue;
        }
        match info.kind {
            FieldKind::Secret => line.push_str(&format!(" --{}-file FILE", info.id)),
            FieldKind::Offered if info.id != "license" => {
                let label = form.option(info.id).map_or("", |option| option.label.as_str());
                line.push_str(&format!(" --{} {}", info.id, shell(label)));
            }
            _ if info.id == "image" => line.push_str(&format!(" --image {}", shell(&redact_url(form.value("image"))))),
            _ => line.push_str(&format!(" --{} {}", info.id, shell(form.value(info.id)))),
        }
    }
    line
}
