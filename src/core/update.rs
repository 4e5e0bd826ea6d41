//! The heart: a message comes in, the state changes, effects go out.

use api::{EventKind, IdParams, LogLevel, Outcome, RunListParams, SchedulePreviewParams};

use super::act::{perform, save, with_table};
use super::action::{Action, Context};
use super::answers::{on_reply, prune};
use super::boundary::confirmed;
use super::deployed;
use super::effect::{Effect, FleetCommand, Request};
use super::forms::{Form, FormKind, Keyed, Preview, job};
use super::key::{Code, Key};
use super::manage;
use super::message::{Connection, FleetEvent, FleetEventKind, Message};
use super::screens::{self, Screen, backups, doctor, runs};
use super::state::{Dirty, Follow, Pending, Purpose, State, Then};
use super::store::{LISTS, ListKind, ListState};

/// Runs asked for per proxy.
const RUNS: u32 = 500;

/// Takes a message that came at `now` (milliseconds since the Unix epoch) and answers what is to be done.
pub fn update(state: &mut State, now: i64, message: Message) -> Vec<Effect> {
    state.now = now;
    match message {
        Message::Key(key) => {
            state.touch();
            on_key(state, key);
        }
        Message::Paste(text) => {
            state.touch();
            on_paste(state, &text);
        }
        Message::Resize(columns, rows) => {
            state.size = (columns, rows);
            state.touch();
        }
        Message::Tick => {
            if state.notices.expires().is_some_and(|at| at <= now) {
                state.notices.dismiss();
                state.touch();
            }
            state.dirty = state.dirty.max(Dirty::Progress);
        }
        Message::Notice(level, text) => state.tell(level, text),
        Message::Fleet(event) => on_fleet(state, event),
    }
    settle(state);
    std::mem::take(&mut state.outbox)
}

/// What must go out before anything has happened.
pub fn start(state: &mut State) {
    settle(state);
}

fn on_key(state: &mut State, key: Key) {
    state.notices.dismiss();
    if state.confirm.is_some() {
        on_confirm_key(state, key);
    } else if state.chooser.is_some() {
        on_chooser_key(state, key);
    } else if state.form.is_some() {
        on_form_key(state, key);
    } else if state.typing_filter() {
        on_filter_key(state, key);
    } else if let Some(action) = state.keymap.action(&state.contexts(), key) {
        perform(state, action);
    }
}

fn on_confirm_key(state: &mut State, key: Key) {
    let Some(mut confirm) = state.confirm.take() else { return };
    let interrupt = key == Key::ctrl('c');
    if interrupt && confirm.then == Then::Quit {
        return confirmed(state, Then::Quit);
    }
    if key.code == Code::Esc || interrupt {
        return;
    }
    if let Some(expected) = &confirm.expected {
        if key.code == Code::Enter {
            if confirm.typed.text().trim() == expected {
                return confirmed(state, confirm.then);
            }
            let told = format!("Type {expected} to go on, or Esc");
            state.tell(LogLevel::Warning, told);
        } else {
            confirm.typed.key(key);
        }
    } else {
        match key.code {
            Code::Char('y' | 'Y') if !key.ctrl => return confirmed(state, confirm.then),
            Code::Char('n' | 'N' | 'q') if !key.ctrl => return,
            Code::Enter if confirm.yes => return confirmed(state, confirm.then),
            Code::Enter => return,
            Code::Left | Code::Right | Code::Tab | Code::BackTab | Code::Char('h' | 'l') => confirm.yes = !confirm.yes,
            _ => {}
        }
    }
    state.confirm = Some(confirm);
}

fn on_chooser_key(state: &mut State, key: Key) {
    let choices = state.choices();
    let Some(chooser) = &mut state.chooser else { return };
    let last = choices.len().saturating_sub(1);
    match (key.code, key.ctrl) {
        (Code::Esc, _) | (Code::Char('c'), true) => state.chooser = None,
        (Code::Up, _) | (Code::Char('p'), true) => chooser.cursor = chooser.cursor.saturating_sub(1),
        (Code::Down, _) | (Code::Char('n'), true) => chooser.cursor = (chooser.cursor + 1).min(last),
        (Code::PageUp, _) => chooser.cursor = chooser.cursor.saturating_sub(10),
        (Code::PageDown, _) => chooser.cursor = (chooser.cursor + 10).min(last),
        (Code::Enter, _) => {
            let chosen = choices.get(chooser.cursor).copied();
            state.chooser = None;
            if let Some(action) = chosen
                && arrived(state, action)
            {
                perform(state, action);
            }
        }
        _ => {
            if chooser.input.key(key) {
                chooser.cursor = 0;
            }
        }
    }
}

/// An action of another screen, picked from the palette, happens on that screen: it is gone to. Answers whether the action
/// is to be done now; it is not where it would act on a row that nobody has looked at.
fn arrived(state: &mut State, action: Action) -> bool {
    let contexts = action.info().contexts;
    let here = state.screen().context();
    if contexts.iter().any(|context| *context == here || matches!(context, Context::Global | Context::List)) {
        return true;
    }
    let go = match contexts.first() {
        Some(Context::Proxies) => Action::GoProxies,
        Some(Context::Remotes) => Action::GoRemotes,
        Some(Context::Jobs) => Action::GoJobs,
        Some(Context::Transfers | Context::Run) => Action::GoTransfers,
        Some(Context::Backups | Context::Points) => Action::GoBackups,
        Some(Context::Runs) => Action::GoRuns,
        Some(Context::Licenses) => Action::GoLicenses,
        _ => return true,
    };
    perform(state, go);
    settle(state);
    // A form says what it is for before anything is sent.
    if matches!(action, Action::JobNew | Action::RemoteNew | Action::ProxyDeploy | Action::LicenseImport) {
        return true;
    }
    let title = action.info().title;
    let now = state.screen().context();
    let (select, context) = if contexts.contains(&now) {
        ("select what it is for", now)
    } else {
        ("open what it is for, select it there", contexts[0])
    };
    let key = state.keymap.key(&[context, Context::List, Context::Global], action);
    let then = key.map_or_else(|| "choose it again".to_owned(), |key| format!("press {key}"));
    state.tell(LogLevel::Info, format!("{title}: {select}, then {then}"));
    false
}

fn on_form_key(state: &mut State, key: Key) {
    if state.form.as_ref().is_some_and(|form| form.review.is_some()) {
        if let Some(action) = state.keymap.action(&[Context::Review], key) {
            perform(state, action);
        }
        return;
    }
    let arrow = matches!(key.code, Code::Up | Code::Down) && !key.ctrl && !key.alt;
    if arrow && state.form.as_mut().is_some_and(|form| form.move_option(key.code == Code::Down)) {
        return;
    }
    if let Some(action) = state.keymap.action(&[Context::Form], key) {
        return perform(state, action);
    }
    // What is on its way to the proxy does not change any more.
    let Some(mut form) = state.form.take_if(|form| form.submitting.is_none()) else { return };
    let before = form.focus;
    let keyed = form.key(key);
    if form.focus != before {
        form.check_field(state, before);
    }
    state.form = Some(form);
    if keyed == Keyed::Submit {
        save(state, false);
    }
}

fn on_filter_key(state: &mut State, key: Key) {
    let context = state.screen().context();
    match key.code {
        Code::Enter => state.table_mut(context).filtering = false,
        Code::Esc => {
            state.table_mut(context).clear_filter();
        }
        Code::Up => with_table(state, |table, rows| table.step(rows, -1)),
        Code::Down => with_table(state, |table, rows| table.step(rows, 1)),
        Code::Char('c') if key.ctrl => {
            state.table_mut(context).clear_filter();
        }
        _ => {
            state.table_mut(context).filter.key(key);
        }
    }
}

fn on_paste(state: &mut State, text: &str) {
    if let Some(confirm) = &mut state.confirm {
        // A name to be typed is to be typed: pasting it would be no thought at all.
        let _ = confirm;
    } else if let Some(chooser) = &mut state.chooser {
        chooser.input.paste(text);
        chooser.cursor = 0;
    } else if let Some(form) = &mut state.form {
        if form.submitting.is_none() && form.review.is_none() {
            form.paste(text);
        }
    } else if state.typing_filter() {
        let context = state.screen().context();
        state.table_mut(context).filter.paste(text);
    }
}

fn on_fleet(state: &mut State, event: FleetEvent) {
    let FleetEvent { proxy: name, kind } = event;
    if state.proxy(&name).is_none() {
        return;
    }
    match kind {
        FleetEventKind::Connection(connection) => on_connection(state, &name, connection),
        FleetEventKind::News(news) => {
            let (now, started_at) = (state.now, state.started_at);
            let Some(proxy) = state.proxy_mut(&name) else { return };
            proxy.seen = Some(now);
            let fresh_error = news.status.last_error.as_ref().filter(|last| {
                last.at >= started_at && proxy.status.as_ref().and_then(|status| status.last_error.as_ref()) != Some(last)
            });
            let fresh_error = fresh_error.filter(|last| {
                let followed = last.run.as_ref().and_then(|run| proxy.live.get(run));
                followed.is_none_or(|live| live.cursor == 0)
            });
            let fresh_error = fresh_error.map(|last| last.error.clone());
            let dirty = match &proxy.status {
                Some(old) if *old == news.status => Dirty::No,
                Some(old) if old.running.len() == news.status.running.len() && old.last_error == news.status.last_error => {
                    Dirty::Progress
                }
                _ => Dirty::Yes,
            };
            let told = screens::proxies::upgraded(proxy, &news.status, started_at);
            if dirty != Dirty::No {
                proxy.status = Some(news.status);
                proxy.version += 1;
            }
            for kind in news.changed.iter().flat_map(|topic| ListKind::of(*topic)) {
                proxy.set_list_state(*kind, ListState::Stale);
            }
            state.dirty = state.dirty.max(dirty);
            if let Some(error) = fresh_error {
                state.notices.tell_error(now, &name, &error);
                state.touch();
            }
            match told {
                Some((_, words, Some(error))) => {
                    state.notices.tell_error(now, &words, &error);
                    state.touch();
                }
                Some((level, words, None)) => state.tell(level, words),
                None => {}
            }
        }
        FleetEventKind::Reply { id, result } => on_reply(state, &name, id, result),
        FleetEventKind::Bundle { id, bringing } => {
            if let Some(pending) = state.pending.get_mut(&id).filter(|pending| pending.proxy == name) {
                pending.bringing = Some(bringing);
                state.dirty = state.dirty.max(Dirty::Progress);
            }
        }
        FleetEventKind::Check { id, check } => manage::checked(state, &name, id, *check),
        FleetEventKind::Run { run, event } => on_run_event(state, &name, run, event),
        FleetEventKind::RunWatchEnded { run, error } => {
            let follow = error.clone().map_or(Follow::Known, |error| Follow::Failed(Box::new(error)));
            state.follows.insert((name.clone(), run), follow);
            if let Some(proxy) = state.proxy_mut(&name) {
                proxy.version += 1;
            }
            if let Some(error) = error {
                let now = state.now;
                state.notices.tell_error(now, &name, &error);
                state.touch();
            }
        }
    }
}

fn on_connection(state: &mut State, name: &str, connection: Connection) {
    let now = state.now;
    let planned = state.proxy(name).and_then(|proxy| deployed::change(state, proxy)).map(|change| change.words(name));
    let Some(proxy) = state.proxy_mut(name) else { return };
    if proxy.connection == connection {
        return;
    }
    let before = std::mem::replace(&mut proxy.connection, connection.clone());
    proxy.version += 1;
    let upgrade = proxy.status.as_ref().and_then(|status| status.upgrade.as_ref());
    let upgrading = upgrade.is_some_and(|upgrade| screens::proxies::under_way(upgrade.phase));
    // Whatever was known may have changed while nobody listened.
    for kind in LISTS {
        proxy.set_list_state(kind, ListState::Stale);
    }
    match &connection {
        Connection::Live => {
            proxy.seen = Some(now);
            // What is followed is asked for again, from where it stands: the former way may have been given up.
            state.follows.retain(|(proxy, _), follow| proxy != name || *follow == Follow::Known);
            if matches!(before, Connection::Retrying { .. }) {
                state.tell(LogLevel::Info, format!("{name} is back"));
            }
        }
        // As announced: the old program ends its connections before the new one takes its place.
        Connection::Retrying { .. } if before == Connection::Live && upgrading => {
            state.tell(LogLevel::Info, format!("{name} restarts for its upgrade"));
        }
        Connection::Retrying { .. }
            if before == Connection::Live
                && let Some(planned) = planned =>
        {
            state.tell(LogLevel::Info, planned);
        }
        Connection::Retrying { error, .. } if before == Connection::Live => {
            state.notices.tell_error(now, &format!("{name} is away"), error);
        }
        Connection::Refused { error, .. } => state.notices.tell_error(now, name, error),
        _ => {}
    }
    state.touch();
}

fn on_run_event(state: &mut State, name: &str, run: String, event: api::Event) {
    let now = state.now;
    let dirty = match event.kind {
        EventKind::TaskProgress { .. } | EventKind::Intent { .. } | EventKind::Settled { .. } => Dirty::Progress,
        _ => Dirty::Yes,
    };
    let ended = matches!(event.kind, EventKind::RunEnded { .. });
    let Some(proxy) = state.proxy_mut(name) else { return };
    let live = proxy.live.entry(run).or_default();
    if !live.apply(event, now) {
        return;
    }
    let end = ended.then(|| live.head());
    state.dirty = state.dirty.max(dirty);
    if let Some(live) = end {
        prune(state, name);
        let label = format!("{} on {name}", runs::name(live.kind, &live.label));
        match (live.outcome, live.error) {
            (Some(Outcome::Success), _) => {
                let moved = match live.summary.bytes {
                    0 => String::new(),
                    bytes => format!(", {} moved", api::format_bytes(bytes)),
                };
                state.tell(LogLevel::Info, format!("{label}: done{moved}"));
            }
            (_, Some(error)) => {
                state.notices.tell_error(now, &label, &error);
                state.touch();
            }
            (Some(Outcome::Cancelled), _) => state.tell(LogLevel::Info, format!("{label}: cancelled")),
            _ => state.tell(LogLevel::Warning, format!("{label}: ended without success; open it to see why")),
        }
    }
}

/// After every message: ask for what the screen needs, follow the runs it shows, bring tables and form up to date.
fn settle(state: &mut State) {
    fetch(state);
    follow(state);
    if matches!(state.screen().main_list(), Some(ListKind::Points)) {
        let version = state.proxies.iter().map(|proxy| proxy.points.version).sum();
        if state.groups_version != Some(version) {
            state.groups = backups::group(&state.proxies);
            state.groups_version = Some(version);
        }
    }
    if let Some(mut form) = state.form.take() {
        form.sync(state);
        preview(state, &mut form);
        state.form = Some(form);
    }
    let screen = match state.screen() {
        Screen::Detail(below) => (**below).clone(),
        other => other.clone(),
    };
    let context = screen.context();
    let pinned = *state.screen() != screen;
    let mut table = state.tables.remove(&context).unwrap_or_else(|| {
        let mut table = super::table::Table::default();
        table.sort = match screen {
            Screen::Runs => Some((runs::STARTED, true)),
            Screen::Doctor { .. } => Some(doctor::WORST),
            _ => None,
        };
        table
    });
    // Who has not moved yet looks at the worst that has come so far.
    if let Screen::Doctor { proxy } = state.screen()
        && state.proxy(proxy).is_some_and(manage::examining)
    {
        table.stay_on_top();
    }
    // Where nothing is selected yet: what a person opens a failed run for.
    if let Screen::Run { proxy, run } = &screen
        && table.selected.is_none()
        && let Some(failed) = state.proxy(proxy).and_then(|proxy| proxy.live.get(run)?.failed_task())
    {
        table.select_id(failed.to_string());
    }
    if let Some(rows) = screens::rows(state, &screen) {
        table.pin(pinned);
        table.refresh(&*rows, screens::version(state, &screen));
    }
    state.tables.insert(context, table);
}

fn fetch(state: &mut State) {
    let mut needs = state.screen().needs().to_vec();
    match state.form.as_ref().map(|form| &form.kind) {
        Some(FormKind::Job(_)) => needs.extend([ListKind::Vms, ListKind::Remotes, ListKind::Jobs]),
        Some(FormKind::Restore(_)) => needs.extend([ListKind::Srs, ListKind::Pools]),
        Some(FormKind::Deploy | FormKind::Redeploy(_)) => needs.extend([ListKind::Options, ListKind::Pools, ListKind::Deployed]),
        _ => {}
    }
    let deployer = state.form.as_ref().map(|form| form.proxy().to_owned());
    let expected: Vec<String> = state.expected.iter().map(|expected| expected.deployer.clone()).collect();
    let mut ask = Vec::new();
    for proxy in &mut state.proxies {
        if !proxy.live() {
            continue;
        }
        let also = expected.iter().any(|name| name == proxy.name()).then_some(&ListKind::Deployed);
        for kind in needs.iter().chain(also) {
            if *kind == ListKind::Options && deployer.as_deref() != Some(proxy.name()) {
                continue;
            }
            // One at a time: of two answers under way the older could come last.
            let name = proxy.name();
            let under_way = |pending: &Pending| pending.proxy == name && pending.purpose == Purpose::List(*kind);
            if *proxy.list_state(*kind) == ListState::Stale && !state.pending.values().any(under_way) {
                proxy.set_list_state(*kind, ListState::Loading);
                ask.push((proxy.name().to_owned(), *kind));
            }
        }
    }
    for (proxy, kind) in ask {
        let request = match kind {
            ListKind::Pools => Request::Pools(api::NoParams {}),
            ListKind::Vms => Request::Vms(api::PoolFilter::default()),
            ListKind::Srs => Request::Srs(api::PoolFilter::default()),
            ListKind::Remotes => Request::Remotes(api::NoParams {}),
            ListKind::Jobs => Request::Jobs(api::NoParams {}),
            ListKind::Runs => Request::Runs(RunListParams { limit: Some(RUNS), ..RunListParams::default() }),
            ListKind::Points => Request::RestorePoints(api::RestorePointListParams::default()),
            ListKind::Deployed => Request::Deployed(api::NoParams {}),
            ListKind::Options => Request::DeployOptions(api::NoParams {}),
            ListKind::Licenses => Request::Licenses(api::NoParams {}),
        };
        state.post(&proxy, request, Purpose::List(kind));
    }
}

/// Follows the runs on the screen to their end, and no others.
fn follow(state: &mut State) {
    let mut wanted: Vec<(String, String)> = Vec::new();
    match state.screen() {
        Screen::Transfers => {
            for proxy in state.proxies.iter().filter(|proxy| proxy.live()) {
                wanted.extend(proxy.running().iter().map(|run| (proxy.name().to_owned(), run.id.clone())));
                // One that ended while another screen was shown is no longer in the status, but its end is still to come.
                let open =
                    proxy.live.iter().filter(|(id, live)| live.open() && !proxy.running().iter().any(|run| run.id == **id));
                wanted.extend(open.map(|(id, _)| (proxy.name().to_owned(), id.clone())));
            }
        }
        Screen::Run { proxy, run } => wanted.push((proxy.clone(), run.clone())),
        Screen::Detail(below) => {
            if let Screen::Run { proxy, run } = &**below {
                wanted.push((proxy.clone(), run.clone()));
            }
        }
        _ => {}
    }
    let on_transfers = *state.screen() == Screen::Transfers;
    let leave: Vec<(String, String)> = state
        .follows
        .iter()
        // On the transfers screen a run is followed to its last event, also when the status no longer lists it.
        .filter(|(key, follow)| **follow == Follow::Watching && !on_transfers && !wanted.contains(key))
        .map(|(key, _)| key.clone())
        .collect();
    for (proxy, run) in leave {
        state.follows.remove(&(proxy.clone(), run.clone()));
        state.outbox.push(Effect::Fleet(FleetCommand::UnwatchRun { proxy, run }));
    }
    for (proxy, run) in wanted {
        let key = (proxy.clone(), run.clone());
        let Some(found) = state.proxy(&proxy).filter(|proxy| proxy.live()) else { continue };
        if state.follows.contains_key(&key) {
            continue;
        }
        let known = found.live.get(&run).filter(|live| live.cursor > 0).map(|live| (live.cursor, live.ended_at.is_some()));
        match known {
            Some((_, true)) => {
                state.follows.insert(key, Follow::Known);
            }
            Some((cursor, false)) => {
                state.follows.insert(key, Follow::Watching);
                state.outbox.push(Effect::Fleet(FleetCommand::WatchRun { proxy, run, cursor }));
            }
            None => {
                state.follows.insert(key, Follow::Asked);
                state.post(&proxy, Request::Run(IdParams { id: run.clone() }), Purpose::RunDetail(run));
            }
        }
    }
}

/// Asks the proxy to explain the schedule of a job form.
fn preview(state: &mut State, form: &mut Form) {
    if !matches!(form.kind, FormKind::Job(_)) {
        return;
    }
    let Some(schedule) = job::schedule(form) else {
        form.preview = None;
        return;
    };
    let proxy = form.proxy().to_owned();
    let asked = (proxy.clone(), schedule.clone());
    if form.preview.as_ref().is_some_and(|preview| preview.asked == asked)
        || !state.proxy(&proxy).is_some_and(|proxy| proxy.live())
    {
        return;
    }
    let id = state.post(&proxy, Request::SchedulePreview(SchedulePreviewParams { schedule, count: Some(3) }), Purpose::Preview);
    form.preview = Some(Preview { asked, id, answer: None });
}
