//! What becomes of the replies to requests.

use api::{IdParams, LogLevel};

use super::act::go;
use super::action::{Action, Context};
use super::boundary::send;
use super::effect::{Answer, Effect, FleetCommand, Request, RequestId};
use super::forms::{Form, FormKind};
use super::live::LiveRun;
use super::manage;
use super::screens::{Screen, fleet_id, proxies, remotes, runs};
use super::state::{Expected, Follow, Purpose, State};
use super::store::{ListKind, ListState, Tested};

/// Runs kept per proxy after their end, with all their tasks.
const KEPT: usize = 20;

/// Takes the reply to a request.
pub(super) fn on_reply(state: &mut State, name: &str, id: RequestId, result: Result<Answer, api::ErrorReport>) {
    // A reply to nothing, or from a proxy it was not sent to, is late or wrong: dropped.
    let Some(pending) = state.pending.remove(&id).filter(|pending| pending.proxy == name) else { return };
    let now = state.now;
    let from = pending.from;
    state.touch();
    match (pending.purpose, result) {
        (Purpose::List(kind), Ok(answer)) => set_list(state, name, kind, answer),
        (Purpose::List(kind), Err(error)) => {
            if let Some(proxy) = state.proxy_mut(name) {
                let state = if proxy.live() { ListState::Failed(error) } else { ListState::Stale };
                proxy.set_list_state(kind, state);
            }
        }
        (Purpose::Preview, result) => {
            if let Some(preview) = state.form.as_mut().and_then(|form| form.preview.as_mut()).filter(|preview| preview.id == id) {
                preview.answer = Some(result.map(|answer| match answer {
                    Answer::SchedulePreview(preview) => preview,
                    _ => api::SchedulePreview { words: String::new(), next: Vec::new() },
                }));
            }
        }
        (Purpose::Save { then_run }, Ok(answer)) => on_saved(state, name, id, answer, then_run, &from),
        (Purpose::Review(spec), Ok(Answer::DeployReview(review))) => {
            if let Some(form) = submitted(state, id) {
                form.submitting = None;
                super::forms::deploy::reviewed(form, name, spec, review);
            }
        }
        (Purpose::Destroy(expected), Ok(Answer::Destroy(run))) => {
            let told = format!("Destruction of {} started", expected.name);
            manage::expect(state, Expected { run: run.id.clone(), ..expected });
            started(state, name, run, &from, told);
        }
        (Purpose::Forget(known), Ok(_)) => {
            state.tell(LogLevel::Info, format!("{name} has forgotten it; its VM stays"));
            if let Some(proxy) = state.proxy_mut(name) {
                proxy.set_list_state(ListKind::Deployed, ListState::Stale);
            }
            if let Some(known) = known {
                manage::drop_entry(state, &known);
            }
        }
        (Purpose::Examination, result) => manage::examined(state, name, id, result.err()),
        (Purpose::Errand(_), Ok(Answer::Errand(done))) => manage::done(state, name, done),
        (Purpose::Errand(what), Err(error)) => state.notices.tell_error(now, &what, &error),
        (Purpose::Save { .. } | Purpose::Review(_), Err(error)) => {
            state.notices.tell_error(now, "", &error);
            if let Some(form) = submitted(state, id) {
                form.submitting = None;
                form.error = Some(error);
                // It is said at the top of the page.
                if let Some(review) = &mut form.review {
                    review.scroll = 0;
                }
            }
        }
        (
            Purpose::Start,
            Ok(Answer::JobRun(run) | Answer::Restore(run) | Answer::Verify(run) | Answer::RestorePointRemove(run)),
        ) => {
            let told = format!("{} on {name}: started", runs::name(Some(run.kind), &run.label));
            started(state, name, run, &from, told);
        }
        (Purpose::RunDetail(run), Ok(Answer::Run(detail))) => {
            let mut live = LiveRun::from_detail(detail, now);
            let (cursor, ended) = (live.cursor, live.ended_at.is_some());
            // The tree of a run without events is shown as one that is known.
            live.cursor = live.cursor.max(u64::from(ended));
            if let Some(proxy) = state.proxy_mut(name) {
                proxy.live.insert(run.clone(), live);
            }
            let key = (name.to_owned(), run.clone());
            if ended {
                state.follows.insert(key, Follow::Known);
                prune(state, name);
            } else {
                state.follows.insert(key, Follow::Watching);
                let proxy = name.to_owned();
                state.outbox.push(Effect::Fleet(FleetCommand::WatchRun { proxy, run, cursor }));
            }
        }
        (Purpose::RunDetail(run), Err(error)) => {
            state.notices.tell_error(now, name, &error);
            state.follows.insert((name.to_owned(), run), Follow::Failed(Box::new(error)));
        }
        (Purpose::Test(remote), result) => {
            let tested = match result {
                Ok(Answer::RemoteTest(test)) => Tested::Done { at: now, test },
                Ok(_) => return,
                Err(error) => Tested::Failed { at: now, error },
            };
            let failed = match &tested {
                Tested::Done { test, .. } if !test.success => test.error.clone(),
                Tested::Failed { error, .. } => Some(error.clone()),
                _ => None,
            };
            let Some(proxy) = state.proxy_mut(name) else { return };
            let label = proxy.remote_name(&remote).to_owned();
            proxy.note_test(remote, tested);
            match failed {
                Some(error) => state.notices.tell_error(now, &format!("Test of {label}"), &error),
                None => state.tell(LogLevel::Info, format!("{label} is good: what was written came back the same")),
            }
        }
        (Purpose::Tell(text, list), Ok(_)) => {
            state.tell(LogLevel::Info, text);
            if let (Some(kind), Some(proxy)) = (list, state.proxy_mut(name)) {
                proxy.set_list_state(kind, ListState::Stale);
            }
        }
        (_, Err(error)) => state.notices.tell_error(now, name, &error),
        (_, Ok(_)) => {}
    }
}

fn set_list(state: &mut State, name: &str, kind: ListKind, answer: Answer) {
    let now = state.now;
    let Some(proxy) = state.proxy_mut(name) else { return };
    match answer {
        Answer::Pools(items) => proxy.pools.set(items, now),
        Answer::Vms(items) => proxy.vms.set(items, now),
        Answer::Srs(items) => proxy.srs.set(items, now),
        Answer::Remotes(items) => proxy.take_remotes(items, now),
        Answer::Jobs(items) => proxy.jobs.set(items, now),
        Answer::Runs(items) => proxy.runs.set(items, now),
        Answer::RestorePoints(items) => proxy.points.set(items, now),
        Answer::Deployed(items) => proxy.deployed.set(items, now),
        Answer::Licenses(items) => proxy.licenses.set(items, now),
        Answer::DeployOptions(options) => proxy.options.set(vec![options], now),
        _ => proxy.set_list_state(kind, ListState::Fresh(now)),
    }
    if kind == ListKind::Deployed {
        manage::deployed_came(state, name);
    }
}

fn on_saved(state: &mut State, name: &str, id: RequestId, answer: Answer, then_run: bool, from: &Screen) {
    let mut form = state.form.take_if(|form| form.submitting == Some(id));
    if let Some(at) = state.drafts.iter().position(|draft| draft.submitting == Some(id)) {
        form = Some(state.drafts.remove(at));
    }
    let stale = |state: &mut State, kind: ListKind| {
        if let Some(proxy) = state.proxy_mut(name) {
            proxy.set_list_state(kind, ListState::Stale);
        }
    };
    match answer {
        Answer::JobCreate(job) | Answer::JobUpdate(job) => {
            stale(state, ListKind::Jobs);
            let in_sight = select_made(state, Context::Jobs, fleet_id(name, &job.id));
            // The list comes a moment later; until then the job is shown as answered.
            if let Some(proxy) = state.proxy_mut(name) {
                proxy.jobs.put(job.clone(), |other| other.id == job.id);
            }
            if then_run {
                state.tell(LogLevel::Info, format!("Job {} saved, starting", job.spec.name));
                let id = send(state, name, Request::JobRun(IdParams { id: job.id }), Purpose::Start, &job.spec.name);
                // It is the form that asked for it, wherever the person is by now.
                if let Some(pending) = id.and_then(|id| state.pending.get_mut(&id)) {
                    pending.from = from.clone();
                }
            } else {
                let next = next_key(state, in_sight, Action::JobRun, "runs it now");
                state.tell(LogLevel::Info, format!("Job {} saved{next}", job.spec.name));
            }
        }
        Answer::RemoteAdd(remote) => {
            stale(state, ListKind::Remotes);
            let in_sight = select_made(state, Context::Remotes, fleet_id(name, &remote.id));
            let next = next_key(state, in_sight, Action::RemoteTest, "tests it");
            let (level, but) = match remote.own_disk {
                true => (LogLevel::Warning, format!(" {}", remotes::OWN_DISK)),
                false => (LogLevel::Info, String::new()),
            };
            state.tell(level, format!("Remote {} added{but}{next}", remote.name));
            if let Some(proxy) = state.proxy_mut(name) {
                let id = remote.id.clone();
                proxy.remotes.put(remote, |other| other.id == id);
            }
        }
        Answer::PoolAdd(pool) => {
            stale(state, ListKind::Pools);
            stale(state, ListKind::Vms);
            state.tell(LogLevel::Info, format!("Pool {} connected; its certificate is {}", pool.name, pool.fingerprint));
            if let Some(proxy) = state.proxy_mut(name) {
                let id = pool.id.clone();
                proxy.pools.put(pool, |other| other.id == id);
            }
        }
        Answer::DeployStart(run) | Answer::Redeploy(run) | Answer::Reconfigure(run) => {
            let known = |deployed: &api::Deployed| super::deployed::known(state, deployed).map(|proxy| proxy.name().to_owned());
            let (target, known) = match form.as_ref().map(|form| (&form.kind, form)) {
                Some((FormKind::Redeploy(deployed) | FormKind::Reconfigure(deployed), _)) => {
                    (deployed.name.clone(), known(deployed))
                }
                Some((_, Form { review: Some(review), .. })) => (review.spec.name.clone(), None),
                _ => (run.label.clone(), None),
            };
            let label = runs::name(Some(run.kind), &target);
            let told = format!("{label}: started; it is in the list when it answers");
            let (deployer, id) = (name.to_owned(), run.id.clone());
            // What was typed is needed again if it fails.
            let form = form.filter(|form| form.kind == FormKind::Deploy).map(Box::new);
            manage::expect(state, Expected { deployer, name: target, run: id, known, gone: false, form });
            started(state, name, run, from, told);
        }
        Answer::Configure(status) => {
            let Some(proxy) = state.proxy_mut(name) else { return };
            proxy.status = Some(status);
            proxy.version += 1;
            let other = proxies::other_name(proxy).map(|own| format!("; it calls itself {own}, this console calls it {name}"));
            state.tell(LogLevel::Info, format!("The settings of {name} are changed{}", other.unwrap_or_default()));
        }
        Answer::Errand(done) => manage::done(state, name, done),
        Answer::Restore(run) => {
            let told = format!("{} on {name}: started", runs::name(Some(run.kind), &run.label));
            started(state, name, run, from, told);
        }
        _ => {}
    }
}

/// Tells of a run that has started, and shows it to a person who still waits on the screen where it was asked for. Any
/// other has the keys on something else by now, which must not change under them.
fn started(state: &mut State, proxy: &str, run: api::Run, from: &Screen, told: String) {
    let waits = !state.occupied() && state.screen() == from;
    let id = fleet_id(proxy, &run.id);
    if let Some(proxy) = state.proxy_mut(proxy)
        && let Some(status) = &mut proxy.status
        && run.outcome.is_none()
        && !status.running.iter().any(|other| other.id == run.id)
    {
        status.running.push(run);
        proxy.version += 1;
    }
    if waits {
        go(state, Screen::Transfers);
    }
    if waits || state.root != Screen::Transfers {
        let table = state.table_mut(Context::Transfers);
        table.clear_filter();
        table.select_id(id);
    }
    let key = state.keymap.key(&[Context::Global], Action::GoTransfers).filter(|_| !waits);
    state.tell(LogLevel::Info, key.map_or_else(|| told.clone(), |key| format!("{told}; {key} shows it")));
}

/// Selects what was just made in its list, whatever the filter there; not where the person is at work on that very list.
/// Answers whether it is in sight, so that the next key can be meant for it.
pub(super) fn select_made(state: &mut State, list: Context, id: String) -> bool {
    let there = state.screen().context() == list;
    if there && (state.occupied() || matches!(state.screen(), Screen::Detail(_))) {
        return false;
    }
    let table = state.table_mut(list);
    table.clear_filter();
    table.select_id(id);
    there
}

/// What can be done next with what was made: only where the key is meant for it.
fn next_key(state: &State, in_sight: bool, action: Action, does: &str) -> String {
    let key = state.key_of(action).filter(|_| in_sight);
    key.map_or_else(String::new, |key| format!("; {key} {does}"))
}

/// The form whose request this is, open or put away.
fn submitted(state: &mut State, id: RequestId) -> Option<&mut Form> {
    state.form.iter_mut().chain(&mut state.drafts).find(|form| form.submitting == Some(id))
}

/// Forgets the tasks of runs that ended long ago, but not of one that is shown.
pub(super) fn prune(state: &mut State, name: &str) {
    let shown: Vec<String> = state
        .stack
        .iter()
        .filter_map(|screen| match screen {
            Screen::Run { proxy, run } if proxy == name => Some(run.clone()),
            _ => None,
        })
        .collect();
    let Some(proxy) = state.proxy_mut(name) else { return };
    for run in proxy.prune(KEPT, &shown) {
        // Opened again, it is asked for again.
        state.follows.remove(&(name.to_owned(), run));
    }
}
