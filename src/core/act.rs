//! What each action does, and why it cannot be done now.

use api::{IdParams, JobSetEnabledParams, LogLevel};

use super::action::{Action, Context};
use super::boundary::{confirmed, refusal, send};
use super::effect::{Effect, FleetCommand, Request};
use super::errand::Ask;
use super::forms::{self, Form, FormKind};
use super::input::Field;
use super::manage;
use super::room;
use super::screens::{self, Screen, TABS, backups, jobs, licenses, proxies, remotes, runs, transfers};
use super::state::{Chooser, Confirm, Follow, Purpose, State, Then};
use super::store::{ListKind, ListState, Proxy, Tested};
use super::table::{Rows, Table};

/// Rows a page key moves by when the screen's height is not known.
const PAGE: isize = 10;

/// The row of the innermost table that is selected.
pub(super) fn row(state: &State) -> Option<usize> {
    state.table(state.screen().context()).current()
}

/// The screen that holds the table the keys act on.
pub(super) fn acting(screen: &Screen) -> &Screen {
    if let Screen::Detail(below) = screen { below } else { screen }
}

/// Restore point an action is for: the selected one. Reading the newest of the selected VM needs no look at its points;
/// removing it does.
fn point(state: &State, action: Action) -> Option<(&Proxy, &api::RestorePoint)> {
    match acting(state.screen()) {
        Screen::Backups if action != Action::PointRemove => backups::newest(state, row(state)?),
        Screen::Points { proxy, vm, .. } => backups::point(state, proxy, vm, row(state)?),
        _ => None,
    }
}

/// Run the keys act on: proxy, id, name, whether it has ended.
fn run(state: &State) -> Option<(String, String, String, bool)> {
    let ended = |proxy: &str, run: &str| {
        state.proxy(proxy).is_some_and(|proxy| {
            let listed = proxy.running().iter().any(|other| other.id == run);
            let live = proxy.live.get(run).filter(|live| live.cursor > 0);
            live.map_or(!listed, |live| live.ended_at.is_some())
        })
    };
    match acting(state.screen()) {
        Screen::Transfers => {
            let (proxy, run, label) = transfers::at(state, row(state)?)?;
            let ended = ended(&proxy, &run);
            Some((proxy, run, label, ended))
        }
        Screen::Runs => {
            let (proxy, run) = runs::at(state, row(state)?)?;
            Some((proxy.name().to_owned(), run.id.clone(), runs::name(Some(run.kind), &run.label), run.outcome.is_some()))
        }
        here @ Screen::Run { proxy, run } => {
            let label = here.crumb(state);
            Some((proxy.clone(), run.clone(), label, ended(proxy, run)))
        }
        _ => None,
    }
}

/// The proxy a new thing belongs to unless the person says otherwise.
pub(super) fn home(state: &State) -> Option<String> {
    let here = row(state).and_then(|row| match acting(state.screen()) {
        Screen::Proxies => proxies::at(state, row).map(|found| match found {
            // Whoever has deployed one deploys the next.
            proxies::Found::Known(proxy) | proxies::Found::Stranger(proxy, _) => proxy,
        }),
        Screen::Licenses => licenses::at(state, row).map(|found| found.0),
        Screen::Doctor { proxy } => state.proxy(proxy),
        Screen::Remotes => remotes::at(state, row).map(|found| found.0),
        Screen::Jobs => jobs::at(state, row).map(|found| found.0),
        _ => None,
    });
    // Also when it is away: a form for another one than the selected would be filled in for the wrong one.
    let live = || state.proxies.iter().find(|proxy| proxy.live());
    here.or_else(live).or(state.proxies.first()).map(|proxy| proxy.name().to_owned())
}

/// Why an action cannot be done now; `Ok` when it can.
///
/// # Errors
/// The reason, as the person is told.
pub fn availability(state: &State, action: Action) -> Result<(), String> {
    let info = action.info();
    if info.writes && state.settings.read_only {
        return Err("this console is read-only (--read-only)".into());
    }
    let on = |proxy: &str| refusal(state, proxy, info.writes).map_or(Ok(()), Err);
    let row = row(state);
    let here = acting(state.screen());
    if let Some(answer) = manage::availability(state, action, row) {
        return answer;
    }
    match action {
        Action::JobNew | Action::RemoteNew if state.proxies.is_empty() => {
            Err("no proxy is configured: backhaul proxy add".into())
        }
        Action::JobEdit | Action::JobRun | Action::JobToggle | Action::JobRemove => {
            let (proxy, job) =
                row.filter(|_| *here == Screen::Jobs).and_then(|row| jobs::at(state, row)).ok_or("no job is selected")?;
            on(proxy.name())?;
            if action == Action::JobToggle && job.spec.schedule.is_none() {
                return Err(format!("{} has no schedule; e changes that", job.spec.name));
            }
            if action == Action::JobRun && proxy.running().iter().any(|run| run.job.as_deref() == Some(&job.id)) {
                return Err(format!("{} is already running; 4 shows it", job.spec.name));
            }
            Ok(())
        }
        Action::RemoteTest | Action::RemoteRemove => {
            let (proxy, remote) = row
                .filter(|_| *here == Screen::Remotes)
                .and_then(|row| remotes::at(state, row))
                .ok_or("no remote is selected")?;
            on(proxy.name())?;
            if let Some(job) = proxy.jobs.items.iter().find(|job| job.spec.remotes.contains(&remote.id))
                && action == Action::RemoteRemove
            {
                return Err(format!("{} is used by the job {}", remote.name, job.spec.name));
            }
            Ok(())
        }
        Action::Restore | Action::Verify | Action::PointRemove => {
            let (proxy, _) = point(state, action).ok_or("no restore point is selected")?;
            on(proxy.name())
        }
        Action::RunCancel => {
            let (proxy, _, label, ended) = run(state).ok_or("no run is selected")?;
            if ended {
                return Err(format!("{label} has ended"));
            }
            on(&proxy)
        }
        Action::Reconnect => row
            .filter(|row| *here == Screen::Proxies && *row < state.proxies.len())
            .map(|_| ())
            .ok_or_else(|| "no proxy is selected".into()),
        Action::Open if matches!(state.screen(), Screen::Detail(_)) => Err("nothing is selected".into()),
        // What a run or an examination has to say as a whole needs no row.
        Action::Open if row.is_none() && screens::details(state, state.screen()).is_empty() => Err("nothing is selected".into()),
        Action::Filter | Action::Sort | Action::SortReverse if matches!(state.screen(), Screen::Detail(_)) => {
            Err("there is no list here".into())
        }
        Action::FormReset | Action::FormSave | Action::FormSaveRun
            if state.form.as_ref().is_some_and(|form| form.submitting.is_some()) =>
        {
            Err("it is on its way to the proxy".into())
        }
        Action::FormSaveRun => match &state.form {
            Some(Form { kind: FormKind::Job(_), .. }) => Ok(()),
            _ => Err("only a job can be run".into()),
        },
        _ => Ok(()),
    }
}

/// Works on the table of a screen with its rows.
pub(super) fn with_table(state: &mut State, work: impl FnOnce(&mut Table, &dyn Rows)) {
    let screen = acting(state.screen()).clone();
    let context = screen.context();
    let mut table = state.tables.remove(&context).unwrap_or_default();
    if let Some(rows) = screens::rows(state, &screen) {
        work(&mut table, &*rows);
    }
    state.tables.insert(context, table);
}

/// Does an action, or tells why not.
pub fn perform(state: &mut State, action: Action) {
    if let Err(reason) = availability(state, action) {
        // Moving about on an empty screen needs no lecture.
        if action != Action::Open {
            let reason = format!("{}: {reason}", action.info().title);
            state.tell(LogLevel::Warning, reason);
        }
        return;
    }
    if manage::perform(state, action) {
        return state.touch();
    }
    match action {
        Action::Up => step(state, -1),
        Action::Down => step(state, 1),
        Action::PageUp => step(state, -page(state)),
        Action::PageDown => step(state, page(state)),
        Action::Top => step(state, isize::MIN / 2),
        Action::Bottom => step(state, isize::MAX / 2),
        Action::Filter => {
            let context = state.screen().context();
            state.table_mut(context).filtering = true;
        }
        Action::Sort => with_table(state, |table, rows| table.next_sort(rows.columns().len())),
        Action::SortReverse => with_table(state, |table, _| table.reverse_sort()),
        Action::Open => open(state),
        Action::Back => back(state),
        Action::GoProxies => go(state, Screen::Proxies),
        Action::GoRemotes => go(state, Screen::Remotes),
        Action::GoJobs => go(state, Screen::Jobs),
        Action::GoTransfers => go(state, Screen::Transfers),
        Action::GoBackups => go(state, Screen::Backups),
        Action::GoRuns => go(state, Screen::Runs),
        Action::GoMessages => messages(state),
        Action::GoLicenses => over(state, Screen::Licenses),
        Action::NextTab => tab(state, 1),
        Action::PreviousTab => tab(state, TABS.len() - 1),
        Action::Help => state.chooser = Some(Chooser { palette: false, input: Field::default(), cursor: 0 }),
        Action::Palette => state.chooser = Some(Chooser { palette: true, input: Field::default(), cursor: 0 }),
        Action::Copy => copy(state),
        Action::Refresh => refresh(state),
        Action::Repaint => state.outbox.push(Effect::Repaint),
        Action::Suspend => state.outbox.push(Effect::Suspend),
        Action::Quit | Action::FormQuit => quit(state),
        Action::Reconnect => {
            if let Some(proxy) = row(state).and_then(|row| state.proxies.get(row)) {
                let proxy = proxy.name().to_owned();
                state.tell(LogLevel::Info, format!("Trying {proxy} now"));
                state.outbox.push(Effect::Fleet(FleetCommand::Reconnect { proxy }));
            }
        }
        Action::JobNew => {
            let proxy = home(state);
            let form = forms::job::open(state, proxy.as_deref(), None);
            open_form(state, form);
        }
        Action::RemoteNew => open_form(state, forms::remote::open(home(state).as_deref())),
        Action::PoolAdd => open_form(state, forms::pool::open(home(state).as_deref())),
        Action::JobEdit | Action::JobRun | Action::JobToggle | Action::JobRemove => on_job(state, action),
        Action::RemoteTest | Action::RemoteRemove => on_remote(state, action),
        Action::Restore | Action::Verify | Action::PointRemove => on_point(state, action),
        Action::RunCancel => {
            if let Some((proxy, id, label, _)) = run(state) {
                let told = format!("Cancel of {label} asked; it stops within seconds");
                send(state, &proxy, Request::RunCancel(IdParams { id }), Purpose::Tell(told, None), &label);
            }
        }
        Action::FormSave => save(state, false),
        Action::FormSaveRun => save(state, true),
        Action::FormNext => move_field(state, true),
        Action::FormPrevious => move_field(state, false),
        Action::FormReset => start_over(state),
        Action::FormClose => close_form(state),
        // Done above.
        _ => {}
    }
    state.touch();
}

fn page(state: &State) -> isize {
    let (columns, rows) = state.size;
    if rows == 0 {
        return PAGE;
    }
    let text = state.form.is_some() || matches!(state.screen(), Screen::Detail(_));
    // One row stays in sight.
    let seen =
        if text { rows.saturating_sub(5) } else { room::list(columns, rows, screens::summary(state, state.screen()).is_some()) };
    (seen as isize - 1).clamp(1, 200)
}

fn step(state: &mut State, by: isize) {
    if let Some(form) = &mut state.form {
        let lines = form.review.as_ref().map(|review| forms::deploy::review_lines(form, review)).unwrap_or_default();
        let (columns, rows) = state.size;
        if let Some(review) = &mut form.review {
            review.scroll = review.scroll.saturating_add_signed(by).min(room::last_start(&lines, columns, rows, false));
        }
    } else if let Screen::Detail(_) = state.screen() {
        let lines = screens::details(state, state.screen());
        let (columns, rows) = state.size;
        let last = room::last_start(&lines, columns, rows, screens::summary(state, state.screen()).is_some());
        state.scroll = state.scroll.saturating_add_signed(by).min(last);
    } else {
        with_table(state, |table, rows| table.step(rows, by));
    }
}

/// Goes to a screen from wherever one is.
pub(super) fn go(state: &mut State, screen: Screen) {
    state.stack.clear();
    state.root = screen;
    state.scroll = 0;
}

/// Lays a screen over what is shown, once.
fn over(state: &mut State, screen: Screen) {
    if *state.screen() != screen {
        push(state, screen);
    }
}

/// Shows the messages, with the one selected that was just on the screen, or the newest.
fn messages(state: &mut State) {
    if *state.screen() == Screen::Messages {
        return;
    }
    let newest = state.notices.all.back().map(|notice| notice.id);
    if let Some(id) = state.notices.dismissed().or(newest) {
        let table = state.table_mut(Context::Messages);
        table.clear_filter();
        table.select_id(id.to_string());
    }
    over(state, Screen::Messages);
}

fn tab(state: &mut State, by: usize) {
    let now = TABS.iter().position(|(screen, _)| *screen == state.root).unwrap_or(0);
    go(state, TABS[(now + by) % TABS.len()].0.clone());
}

pub(super) fn push(state: &mut State, screen: Screen) {
    if matches!(screen, Screen::Points { .. } | Screen::Run { .. } | Screen::Doctor { .. }) {
        state.tables.remove(&screen.context());
    }
    state.scroll = 0;
    state.stack.push(screen);
}

fn open(state: &mut State) {
    let row = row(state);
    let next = match state.screen() {
        Screen::Transfers => row.and_then(|row| transfers::at(state, row)).map(|(proxy, run, _)| Screen::Run { proxy, run }),
        Screen::Runs => row
            .and_then(|row| runs::at(state, row))
            .map(|(proxy, run)| Screen::Run { proxy: proxy.name().to_owned(), run: run.id.clone() }),
        Screen::Backups => row.and_then(|row| state.groups.get(row)).and_then(|group| {
            let proxy = state.proxies.get(group.proxy)?.name().to_owned();
            Some(Screen::Points { proxy, vm: group.vm.clone(), name: group.name.clone() })
        }),
        other => Some(Screen::Detail(Box::new(other.clone()))),
    };
    if let Some(next) = next {
        push(state, next);
    }
}

fn back(state: &mut State) {
    let context = state.screen().context();
    let on_table = !matches!(state.screen(), Screen::Detail(_));
    if on_table && state.table_mut(context).clear_filter() {
        return;
    }
    state.stack.pop();
    state.scroll = 0;
}

fn copy(state: &mut State) {
    let lines = screens::details(state, state.screen());
    let text: Vec<String> = lines.iter().map(|line| line.plain().trim_end().to_owned()).collect();
    if text.is_empty() {
        state.tell(LogLevel::Warning, "copy: nothing is selected");
    } else {
        state.outbox.push(Effect::Copy(text.join("\n")));
    }
}

fn refresh(state: &mut State) {
    let needs = state.screen().needs();
    for proxy in &mut state.proxies {
        for kind in needs {
            if *proxy.list_state(*kind) != ListState::Loading {
                proxy.set_list_state(*kind, ListState::Stale);
            }
        }
    }
    // What a proxy did not tell of a run is asked for again.
    let runs = matches!(acting(state.screen()), Screen::Transfers | Screen::Run { .. });
    let before = state.follows.len();
    state.follows.retain(|_, follow| !(runs && matches!(follow, Follow::Failed(_))));
    let asked = !needs.is_empty() || state.follows.len() < before;
    if asked && !state.proxies.iter().any(Proxy::live) {
        return state.tell(LogLevel::Warning, "No proxy answers; nothing was asked");
    }
    let again = state.key_of(Action::DoctorAgain).filter(|_| matches!(acting(state.screen()), Screen::Doctor { .. }));
    let told = match again {
        _ if asked => "Asking again".to_owned(),
        Some(key) => format!("Nothing is asked for here; {key} examines again"),
        None => "Nothing is to be asked for: what is shown here comes by itself".to_owned(),
    };
    state.tell(LogLevel::Info, told);
}

fn quit(state: &mut State) {
    let unsaved = state.form.iter().chain(&state.drafts).any(|form| form.changed);
    let errand = state.pending.values().find_map(|pending| match (&pending.purpose, pending.errand) {
        // Nothing is half done by it.
        (Purpose::Examination, _) | (_, None) => None,
        (Purpose::Errand(what), _) => Some(format!("{what} is under way; what comes of it would be lost.")),
        (_, Some(errand)) => {
            Some(format!("{} is asked to {errand} and has not answered; it may not begin, or be left half done.", pending.proxy))
        }
    });
    if unsaved || errand.is_some() {
        let (question, detail) = match errand {
            Some(errand) => ("Leave before it is done?".to_owned(), errand),
            None => ("Leave and lose what was typed?".to_owned(), "A form is not saved. Runs go on in any case.".to_owned()),
        };
        state.confirm = Some(Confirm {
            question,
            detail: vec![detail],
            verb: "Leave".into(),
            expected: None,
            typed: Field::default(),
            yes: false,
            then: Then::Quit,
        });
    } else {
        confirmed(state, Then::Quit);
    }
}

fn on_job(state: &mut State, action: Action) {
    let Some((proxy, job)) = row(state).and_then(|row| jobs::at(state, row)) else { return };
    let (proxy, job) = (proxy.name().to_owned(), job.clone());
    let id = IdParams { id: job.id.clone() };
    let name = job.spec.name.clone();
    let jobs = Some(ListKind::Jobs);
    match action {
        Action::JobEdit => {
            let form = forms::job::open(state, Some(&proxy), Some(&job));
            open_form(state, form);
        }
        Action::JobRun => {
            send(state, &proxy, Request::JobRun(id), Purpose::Start, &name);
        }
        Action::JobToggle => {
            let enabled = !job.spec.enabled;
            let told = format!("The schedule of {name} is {}", if enabled { "on" } else { "off" });
            let request = Request::JobSetEnabled(JobSetEnabledParams { id: job.id, enabled });
            send(state, &proxy, request, Purpose::Tell(told, jobs), &name);
        }
        _ => {
            send(state, &proxy, Request::JobRemove(id), Purpose::Tell(format!("Job {name} removed"), jobs), &name);
        }
    }
}

fn on_remote(state: &mut State, action: Action) {
    let Some((proxy, remote)) = row(state).and_then(|row| remotes::at(state, row)) else { return };
    let (proxy, id, name) = (proxy.name().to_owned(), remote.id.clone(), remote.name.clone());
    let params = IdParams { id: id.clone() };
    if action == Action::RemoteTest {
        if send(state, &proxy, Request::RemoteTest(params), Purpose::Test(id.clone()), &name).is_some()
            && let Some(proxy) = state.proxy_mut(&proxy)
        {
            proxy.note_test(id, Tested::Running);
        }
    } else {
        let told = Purpose::Tell(format!("Remote {name} forgotten"), Some(ListKind::Remotes));
        send(state, &proxy, Request::RemoteRemove(params), told, &name);
    }
}

fn on_point(state: &mut State, action: Action) {
    let Some((proxy, point)) = point(state, action) else { return };
    let (proxy, point) = (proxy.name().to_owned(), point.clone());
    let params = IdParams { id: point.id.clone() };
    match action {
        Action::Restore => {
            let form = forms::restore::open(state, &proxy, &point);
            open_form(state, form);
        }
        Action::Verify => {
            send(state, &proxy, Request::Verify(params), Purpose::Start, &point.vm_name);
        }
        _ => {
            send(state, &proxy, Request::RestorePointRemove(params), Purpose::Start, &point.vm_name);
        }
    }
}

pub(super) fn open_form(state: &mut State, mut form: Form) {
    refresh_for(state, &form.kind);
    form.opened_for = form.proxy().to_owned();
    // One of a proxy that is no longer there would come back nowhere.
    let here = |draft: &Form| draft.opened_for == form.opened_for || state.proxy(&draft.opened_for).is_none();
    let fits = |draft: &Form| draft.kind.same(&form.kind) && here(draft);
    match state.drafts.iter().position(fits) {
        Some(at) => {
            let mut draft = state.drafts.remove(at);
            // What a review says may be old by now; only one that is on its way still says something.
            draft.review = draft.review.filter(|_| draft.submitting.is_some());
            let of = if draft.proxy() == form.proxy() { String::new() } else { format!(" for {}", draft.proxy()) };
            let over = state.keymap.key(&[Context::Form], Action::FormReset);
            state.form = Some(draft);
            let over = over.map_or_else(String::new, |key| format!("; {key} starts over"));
            state.tell(LogLevel::Info, format!("Your draft{of} is back{over}"));
        }
        None => state.form = Some(form),
    }
}

/// What changes without a word of the proxy's while nobody looks is asked for again.
fn refresh_for(state: &mut State, kind: &FormKind) {
    let list = match kind {
        FormKind::Job(_) => ListKind::Vms,
        FormKind::Deploy | FormKind::Redeploy(_) => ListKind::Options,
        _ => return,
    };
    for proxy in &mut state.proxies {
        if !matches!(proxy.list_state(list), ListState::Loading) {
            proxy.set_list_state(list, ListState::Stale);
        }
    }
}

pub(super) fn close_form(state: &mut State) {
    let Some(form) = state.form.take() else { return };
    if form.submitting.is_some() {
        // Its reply decides: saved, the draft goes; refused, it is there with the reason.
        state.drafts.push(form);
        state.tell(LogLevel::Info, "It is on its way; what was typed is kept until the proxy answers");
    } else if form.changed {
        state.drafts.push(form);
        state.tell(LogLevel::Info, "Kept as a draft");
    }
}

/// Empties the form; asks where that loses something.
fn start_over(state: &mut State) {
    if !state.form.as_ref().is_some_and(|form| form.changed) {
        return reset_form(state);
    }
    state.confirm = Some(Confirm {
        question: "Start over?".into(),
        detail: vec!["What was typed into this form is lost.".into()],
        verb: "Start over".into(),
        expected: None,
        typed: Field::default(),
        yes: false,
        then: Then::StartOver,
    });
}

pub(super) fn reset_form(state: &mut State) {
    let Some(form) = state.form.take() else { return };
    // What it was opened for, wherever it was turned to since.
    let proxy = Some(form.opened_for.clone()).filter(|proxy| !proxy.is_empty());
    let mut fresh = match &form.kind {
        FormKind::Job(before) => forms::job::open(state, proxy.as_deref(), before.as_deref()),
        FormKind::Remote => forms::remote::open(proxy.as_deref()),
        FormKind::Pool => forms::pool::open(proxy.as_deref()),
        FormKind::Restore(point) => forms::restore::open(state, form.proxy(), point),
        FormKind::Deploy => forms::deploy::open(proxy.as_deref()),
        FormKind::Redeploy(deployed) => forms::redeploy::open(form.proxy(), deployed),
        FormKind::Reconfigure(deployed) => forms::reconfigure::open(form.proxy(), deployed),
        FormKind::Settings(name) => match state.proxy(name) {
            Some(proxy) => forms::settings::open(proxy),
            None => return,
        },
        FormKind::Upgrade(name) => forms::upgrade::open(name),
        FormKind::LicenseImport => forms::license::open_import(proxy.as_deref()),
        FormKind::LicenseBind(license) => forms::license::open_bind(form.proxy(), license),
        FormKind::LicenseUnbind(license) => forms::license::open_unbind(form.proxy(), license),
    };
    fresh.opened_for = form.opened_for;
    state.form = Some(fresh);
}

fn move_field(state: &mut State, forward: bool) {
    let Some(mut form) = state.form.take() else { return };
    let before = form.focus;
    form.step(forward);
    form.check_field(state, before);
    state.form = Some(form);
}

/// Checks the form and sends what it makes.
pub(super) fn save(state: &mut State, then_run: bool) {
    let Some(mut form) = state.form.take() else { return };
    if form.submitting.is_none() {
        form.sync(state);
        if form.check(state)
            && let Some((proxy, ask)) = form.request()
        {
            let name = match &form.kind {
                FormKind::Redeploy(deployed) | FormKind::Reconfigure(deployed) => deployed.name.clone(),
                FormKind::LicenseUnbind(license) => license.id.clone(),
                _ => form.title.clone(),
            };
            let purpose = match &ask {
                Ask::Call(Request::DeployReview(spec)) => Purpose::Review(spec.clone()),
                _ => Purpose::Save { then_run },
            };
            form.error = None;
            form.submitting = send(state, &proxy, ask, purpose, &name);
        } else {
            let fault = form.fields.iter().find_map(|field| field.error.clone()).unwrap_or_default();
            state.tell(LogLevel::Warning, fault);
        }
    }
    state.form = Some(form);
}
