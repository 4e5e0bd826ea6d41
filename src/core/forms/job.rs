//! The job form.

use api::{Compression, Job, JobMode, JobSpec, JobUpdateParams, Schedule};

use super::{Choice, Form, FormField, FormKind, wanted};
use crate::core::effect::Request;
use crate::core::format::count;
use crate::core::state::State;
use crate::core::store::ListState;
use crate::core::text::shell;

/// Schedules offered: id, cron, words.
const PRESETS: [(&str, &str, &str); 5] = [
    ("none", "", "by hand only"),
    ("nightly", "0 2 * * *", "every night at 02:00"),
    ("hourly", "0 * * * *", "every hour"),
    ("weekly", "0 2 * * 0", "every Sunday at 02:00"),
    ("workdays", "0 2 * * 1-5", "Monday to Friday at 02:00"),
];

/// A form for a new job, or for changing one, on a proxy.
pub fn open(state: &State, proxy: Option<&str>, job: Option<&Job>) -> Form {
    let title = job.map_or_else(|| "New job".to_owned(), |job| format!("Job {}", job.spec.name));
    let mut schedules: Vec<Choice> = PRESETS.iter().map(|(id, cron, words)| Choice::new(*id, *words, *cron)).collect();
    schedules.push(Choice::new("custom", "as a cron expression", ""));
    let fields = vec![
        FormField::choice("proxy", "Proxy", "The daemon that does the work", Vec::new(), proxy),
        FormField::many("vms", "VMs", "Type to find, Enter ticks; with nothing typed Space ticks"),
        FormField::many("remotes", "Remotes", "Where the restore points go; only remotes of this proxy are offered"),
        FormField::text("name", "Name", "Empty: named after its VMs", ""),
        FormField::choice(
            "mode",
            "Kind",
            "Incremental moves only what changed; full writes one XVA file a VM",
            vec![
                Choice::new("delta", "incremental", "a key disk, then deltas"),
                Choice::new("full", "full", "one XVA file a run"),
            ],
            Some("delta"),
        ),
        FormField::choice("schedule", "Schedule", "When it starts by itself", schedules, Some("none")),
        FormField::text("cron", "Cron", "minute hour day month weekday, for example 30 1 * * 1-5", ""),
        FormField::text("timezone", "Time zone", "IANA name, for example Europe/Berlin", &state.settings.zone_name),
        FormField::text("retention", "Keep", "Restore points kept per VM", "7"),
        FormField::choice(
            "compression",
            "Compression",
            "Done by the pool",
            vec![Choice::new("zstd", "zstd", ""), Choice::new("gzip", "gzip", ""), Choice::new("none", "none", "")],
            Some("zstd"),
        ),
        FormField::text("concurrency", "At a time", "VMs moved at the same time", "2"),
    ];
    let mut form = Form::new(FormKind::Job(job.cloned().map(Box::new)), title, fields);
    form.focus_on(if proxy.is_some() { "vms" } else { "proxy" });
    if let Some(job) = job {
        fill(&mut form, &job.spec);
    }
    form
}

fn fill(form: &mut Form, spec: &JobSpec) {
    use super::{Text, Value};
    let mut text = |id: &str, value: String| {
        if let Some(FormField { value: Value::Text { text, .. }, touched, .. }) = form.field_mut(id) {
            *text = Text::with(value);
            *touched = true;
        }
    };
    text("name", spec.name.clone());
    text("retention", spec.retention.to_string());
    text("concurrency", spec.concurrency.to_string());
    let preset = match &spec.schedule {
        None => "none",
        Some(schedule) => {
            text("timezone", schedule.timezone.clone());
            match PRESETS.iter().find(|(_, cron, _)| *cron == schedule.cron) {
                Some((id, ..)) => id,
                None => {
                    text("cron", schedule.cron.clone());
                    "custom"
                }
            }
        }
    };
    for (id, ids) in [("vms", &spec.vms), ("remotes", &spec.remotes)] {
        if let Some(FormField { value: Value::Many { chosen, .. }, touched, .. }) = form.field_mut(id) {
            chosen.clone_from(ids);
            *touched = true;
        }
    }
    let mode = if spec.mode == JobMode::Delta { "delta" } else { "full" };
    let compression = match spec.compression {
        Compression::Zstd => "zstd",
        Compression::Gzip => "gzip",
        Compression::None => "none",
    };
    for (id, value) in [("schedule", preset), ("mode", mode), ("compression", compression)] {
        form.suggest(id, Some(value.to_owned()));
    }
}

pub(super) fn sync(form: &mut Form, state: &State) {
    let editing = matches!(form.kind, FormKind::Job(Some(_)));
    let now = state.proxy(form.proxy()).map_or(&[][..], |proxy| &proxy.jobs.items);
    if let FormKind::Job(Some(before)) = &mut form.kind
        && let Some(now) = now.iter().find(|job| job.id == before.id)
        && **before != *now
    {
        // What the form does not ask for is kept as it is now, not as it was when the form was opened.
        **before = now.clone();
    }
    if editing {
        let only = form.proxy().to_owned();
        form.set_options("proxy", super::proxies(state).into_iter().filter(|option| option.id == only).collect(), false);
    } else {
        form.set_options("proxy", super::proxies(state), true);
    }
    if let Some(proxy) = state.proxy(form.proxy()) {
        let known = matches!(proxy.vms.state, ListState::Fresh(_)) && !editing;
        let vms = proxy.vms.items.iter().map(|vm| {
            let bytes = vm.disks.iter().map(|disk| disk.bytes).sum();
            let note = format!("{}, {}, {}", vm.power_state, count(vm.disks.len(), "disk"), api::format_bytes(bytes));
            Choice::new(&vm.uuid, &vm.name, note)
        });
        let vms = vms.collect();
        let remotes_known = matches!(proxy.remotes.state, ListState::Fresh(_)) && !editing;
        let remotes: Vec<Choice> = proxy
            .remotes
            .items
            .iter()
            .map(|remote| {
                let free = remote.space.map(|space| format!(", {} free", api::format_bytes(space.available))).unwrap_or_default();
                Choice::new(&remote.id, &remote.name, format!("{}{free}", remote.kind))
            })
            .collect();
        let only = (remotes.len() == 1).then(|| remotes[0].id.clone());
        form.set_options("vms", vms, known);
        form.set_options("remotes", remotes, remotes_known);
        if only.is_some() {
            form.suggest("remotes", only);
        }
        if !editing {
            let name = derived_name(form, proxy.jobs.items.iter().map(|job| job.spec.name.as_str()));
            form.set_default("name", name);
        }
    }
    let custom = form.value("schedule") == "custom";
    let scheduled = form.value("schedule") != "none";
    let full = form.value("mode") == "full";
    form.show("cron", custom);
    form.show("timezone", scheduled);
    form.show("compression", full);
}

fn derived_name<'a>(form: &Form, taken: impl Iterator<Item = &'a str>) -> String {
    let labels = form.chosen_labels("vms");
    let Some(first) = labels.first() else { return String::new() };
    let base = if labels.len() == 1 { first.clone() } else { format!("{first} and {} more", labels.len() - 1) };
    let taken: Vec<&str> = taken.collect();
    if !taken.contains(&base.as_str()) {
        return base;
    }
    (2..).map(|n| format!("{base} {n}")).find(|name| !taken.contains(&name.as_str())).unwrap_or(base)
}

/// The schedule as it stands; none when there is none, or not a plausible one yet.
pub fn schedule(form: &Form) -> Option<Schedule> {
    let cron = match form.value("schedule") {
        "none" => return None,
        "custom" => form.value("cron").to_owned(),
        preset => PRESETS.iter().find(|(id, ..)| *id == preset)?.1.to_owned(),
    };
    let fields = cron.split_whitespace().count();
    ((5..=6).contains(&fields)).then(|| Schedule { cron, timezone: form.value("timezone").to_owned() })
}

fn number(form: &Form, id: &str) -> Option<u32> {
    form.value(id).parse().ok()
}

pub(super) fn fault(form: &Form, state: &State, id: &str) -> Option<String> {
    match id {
        "proxy" => wanted(form, id, "A proxy"),
        "vms" if form.chosen(id).is_empty() => Some(match state.proxy(form.proxy()) {
            Some(proxy) if proxy.vms.items.is_empty() && matches!(proxy.vms.state, ListState::Fresh(_)) => {
                "This proxy knows no VM: add a pool to it first (Proxies, a)".into()
            }
            _ => "At least one VM is needed".into(),
        }),
        "remotes" if form.chosen(id).is_empty() => Some(match state.proxy(form.proxy()) {
            Some(proxy) if proxy.remotes.items.is_empty() && matches!(proxy.remotes.state, ListState::Fresh(_)) => {
                "This proxy has no remote: add one first (Remotes, n)".into()
            }
            _ => "At least one remote is needed".into(),
        }),
        "name" => {
            let own = if let FormKind::Job(Some(job)) = &form.kind { job.id.as_str() } else { "" };
            let name = form.value("name");
            let taken = state
                .proxy(form.proxy())
                .is_some_and(|proxy| proxy.jobs.items.iter().any(|job| job.spec.name == name && job.id != own));
            // Without VMs there is no derived name; the missing VMs are the fault to tell.
            let unnamed = name.is_empty() && !form.chosen("vms").is_empty();
            if unnamed {
                Some("A name is needed".into())
            } else {
                taken.then(|| format!("{} already has a job of this name", form.proxy()))
            }
        }
        "cron" if schedule(form).is_none() => Some("Five fields are needed: minute hour day month weekday".into()),
        "cron" | "schedule" => match form.preview.as_ref().map(|preview| (&preview.asked, &preview.answer)) {
            Some(((_, asked), Some(Err(error)))) if Some(asked) == schedule(form).as_ref() && error.code != "UNREACHABLE" => {
                Some(error.message.clone())
            }
            _ => None,
        },
        "retention" => match number(form, id) {
            Some(1..) => None,
            _ => Some("A whole number of at least 1".into()),
        },
        "concurrency" => match number(form, id) {
            Some(1..=64) => None,
            _ => Some("A whole number from 1 to 64".into()),
        },
        _ => None,
    }
}

pub(super) fn request(form: &Form, before: Option<&Job>) -> Request {
    let base = before.map(|job| &job.spec);
    let spec = JobSpec {
        name: form.value("name").to_owned(),
        mode: if form.value("mode") == "full" { JobMode::Full } else { JobMode::Delta },
        vms: form.chosen("vms").to_vec(),
        remotes: form.chosen("remotes").to_vec(),
        schedule: schedule(form),
        enabled: base.is_none_or(|spec| spec.enabled),
        retention: number(form, "retention").unwrap_or(7),
        compression: match form.value("compression") {
            "gzip" => Compression::Gzip,
            "none" => Compression::None,
            _ => Compression::Zstd,
        },
        prefer_nbd: base.is_none_or(|spec| spec.prefer_nbd),
        concurrency: number(form, "concurrency").unwrap_or(2),
        full_interval: base.map_or(0, |spec| spec.full_interval),
        max_bytes_per_second: base.map_or(0, |spec| spec.max_bytes_per_second),
    };
    match before {
        Some(job) => Request::JobUpdate(JobUpdateParams { id: job.id.clone(), spec }),
        None => Request::JobCreate(spec),
    }
}

pub(super) fn command(form: &Form, before: Option<&Job>) -> String {
    if let Some(job) = before {
        return format!("backhaul job show {} --proxy {}", shell(&job.spec.name), shell(form.proxy()));
    }
    let mut line = format!(
        "backhaul job add --proxy {} --name {} --mode {}",
        shell(form.proxy()),
        shell(form.value("name")),
        form.value("mode")
    );
    for (flag, id) in [("--vm", "vms"), ("--remote", "remotes")] {
        for label in form.chosen_labels(id) {
            line.push_str(&format!(" {flag} {}", shell(&label)));
        }
    }
    if let Some(schedule) = schedule(form) {
        line.push_str(&format!(" --schedule {} --timezone {}", shell(&schedule.cron), shell(&schedule.timezone)));
    }
    line.push_str(&format!(" --retention {}", shell(form.value("retention"))));
    line
}
