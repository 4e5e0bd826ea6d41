//! The whole core: messages in, state and effects out.

use api::{ErrorReport, IdParams, Topic};
use proptest::prelude::*;

use super::action::{ACTIONS, Action, Context};
use super::effect::{Danger, Effect, FleetCommand, Request};
use super::errand::Errand;
use super::fixture::{self, NOW};
use super::forms::Value;
use super::key::{Code, Key};
use super::message::{Connection, FleetEventKind, Message, Refusal};
use super::screens::Screen;
use super::state::{Dirty, State};
use super::{Answer, update};

fn press(state: &mut State, keys: &str) -> Vec<Effect> {
    keys.split(' ').flat_map(|key| update(state, NOW, Message::Key(key.parse().unwrap()))).collect()
}

/// The calls among effects.
pub(super) fn calls(effects: &[Effect]) -> Vec<&Request> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Fleet(FleetCommand::Call { request, .. }) => Some(request),
            _ => None,
        })
        .collect()
}

#[test]
fn a_running_incremental_job_is_at_most_twenty_keys_away() {
    let mut state = fixture::live();
    let keys = ["3", "n", "w", "e", "b", "enter", "ctrl-r"];
    let mut sent = Vec::new();
    for key in keys {
        sent = press(&mut state, key);
        fixture::answer_lists(&mut state, &sent);
    }
    // A typed name counts three, whatever its length.
    assert!(keys.len() <= 20, "{} keys", keys.len());
    let requests = calls(&sent);
    let [Request::JobCreate(spec)] = requests[..] else { panic!("{requests:?}") };
    assert_eq!(spec.vms, ["vm-web"]);
    assert_eq!(spec.remotes, ["remote-a"], "the only remote is chosen by itself");
    assert_eq!((spec.name.as_str(), spec.retention, spec.mode), ("web-1", 7, api::JobMode::Delta));
    let job = fixture::job("job-new", "web-1");
    let effects = fixture::reply(&mut state, &sent, Ok(Answer::JobCreate(job)));
    let [Request::JobRun(IdParams { id }), ..] = calls(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(id, "job-new");
    let effects = fixture::reply(&mut state, &effects, Ok(Answer::JobRun(fixture::run("run-9", "web-1"))));
    assert_eq!(*state.screen(), Screen::Transfers);
    assert_eq!(state.table(Context::Transfers).selected.as_deref(), Some("site-a\u{1f}run-9"));
    assert!(
        calls(&effects).iter().any(|request| matches!(request, Request::Run(IdParams { id }) if id == "run-9")),
        "it is followed"
    );
}

#[test]
fn a_read_only_console_sends_nothing_that_writes() {
    for info in ACTIONS {
        let mut state = fixture::kept::kept();
        state.settings.read_only = true;
        let doctor = Screen::Doctor { proxy: "site-a".into() };
        for screen in [
            Screen::Proxies,
            Screen::Remotes,
            Screen::Jobs,
            Screen::Transfers,
            Screen::Backups,
            Screen::Runs,
            Screen::Licenses,
            doctor,
        ] {
            state.stack.clear();
            state.root = screen;
            update(&mut state, NOW, Message::Tick);
            super::act::perform(&mut state, info.action);
            let mut effects = std::mem::take(&mut state.outbox);
            // Whatever it asks is answered with yes, whatever form it opens is sent.
            effects.extend(press(&mut state, "y enter ctrl-s ctrl-r enter y esc esc"));
            for request in calls(&effects) {
                assert!(!request.writes(), "{} sends {}", info.id, request.method());
            }
            for effect in &effects {
                if let Effect::Fleet(FleetCommand::Errand { errand, .. }) = effect {
                    assert!(!errand.writes(), "{} sends {}", info.id, errand.name());
                }
            }
        }
    }
}

#[test]
fn the_danger_of_an_action_is_that_of_its_request() {
    for (action, request) in [
        (Action::JobRemove, Request::JobRemove(IdParams { id: String::new() })),
        (Action::RemoteRemove, Request::RemoteRemove(IdParams { id: String::new() })),
        (Action::RunCancel, Request::RunCancel(IdParams { id: String::new() })),
        (Action::PointRemove, Request::RestorePointRemove(IdParams { id: String::new() })),
        (Action::ProxyForget, Request::Forget(IdParams { id: String::new() })),
        (
            Action::ProxyDestroy,
            Request::Destroy(api::DestroyParams { id: String::new(), name: String::new(), discard_local: false }),
        ),
        (
            Action::ProxyRedeploy,
            Request::Redeploy(Box::new(api::RedeployParams { id: String::new(), image: None, sr: None, discard_local: false })),
        ),
        (Action::ProxyDrain, Request::Drain(api::DrainParams { on: true })),
        (Action::LicenseRemove, Request::LicenseRemove(IdParams { id: String::new() })),
        (
            Action::ProxyReconfigure,
            Request::Reconfigure(Box::new(api::ReconfigureParams {
                id: String::new(),
                address: None,
                vcpus: None,
                memory: None,
            })),
        ),
    ] {
        assert_eq!(action.info().danger, request.danger(), "{}", action.info().id);
    }
    let of = api::Binding { proxy: String::new(), name: String::new() };
    for (action, errand) in [
        (Action::TokenRotate, Errand::RotateToken),
        (Action::CertificateRenew, Errand::RenewCertificate),
        (Action::LicenseUnbind, Errand::UnbindLicense { license: String::new(), of }),
    ] {
        assert_eq!(action.info().danger, errand.danger(), "{}", action.info().id);
    }
    assert_eq!(ACTIONS.iter().filter(|info| info.danger > Danger::None).count(), 13, "a new one belongs into the lists above");
}

#[test]
fn a_question_has_cancel_preselected_and_the_worst_asks_for_the_name() {
    let mut state = fixture::many();
    press(&mut state, "3");
    let effects = press(&mut state, "D enter");
    assert!(calls(&effects).is_empty(), "Enter is no yes");
    let effects = press(&mut state, "D y");
    assert!(matches!(calls(&effects)[..], [Request::JobRemove(_)]));

    press(&mut state, "5 enter D");
    let expected = state.confirm.as_ref().and_then(|confirm| confirm.expected.clone()).unwrap();
    assert!(calls(&press(&mut state, "y enter")).is_empty());
    press(&mut state, "ctrl-u");
    update(&mut state, NOW, Message::Paste(expected.clone()));
    assert!(calls(&press(&mut state, "enter")).is_empty(), "a pasted name does not count");
    for c in expected.chars() {
        update(&mut state, NOW, Message::Key(Key::char(c)));
    }
    assert!(matches!(calls(&press(&mut state, "enter"))[..], [Request::RestorePointRemove(_)]));
}

#[test]
fn nothing_is_asked_of_a_proxy_that_is_away_and_its_data_stays() {
    let mut state = fixture::many();
    press(&mut state, "3");
    let before = state.proxies[0].jobs.items.len();
    assert!(before > 0);
    fixture::connection(&mut state, "site-a", fixture::away());
    assert_eq!(state.proxies[0].jobs.items.len(), before);
    let effects = press(&mut state, "r R");
    assert!(calls(&effects).iter().all(|request| !request.writes()));
    assert!(state.notices.all.iter().any(|notice| notice.text.contains("is away")), "{:?}", state.notices.all);
    // It comes back: the list on the screen is asked for again, at once.
    let effects = fixture::connection(&mut state, "site-a", Connection::Live);
    assert!(calls(&effects).iter().any(|request| matches!(request, Request::Jobs(_))));
}

#[test]
fn late_and_foreign_replies_change_nothing() {
    let mut state = fixture::live();
    let sent = press(&mut state, "3");
    let id = fixture::call_id(&sent, |request| matches!(request, Request::Jobs(_)));
    let answer = || Ok(Answer::Jobs(vec![fixture::job("j", "j")]));
    fixture::fleet(&mut state, "site-b", FleetEventKind::Reply { id, result: answer() });
    assert!(state.proxies[0].jobs.items.is_empty(), "from a proxy that was not asked");
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: answer() });
    fixture::fleet(&mut state, "nobody", FleetEventKind::Connection(Connection::Live));
}

#[test]
fn a_list_that_changed_while_it_was_fetched_is_fetched_again() {
    let mut state = fixture::live();
    let sent = press(&mut state, "3");
    let id = fixture::call_id(&sent, |request| matches!(request, Request::Jobs(_)));
    let meanwhile = fixture::news(&mut state, "site-a", &[Topic::Jobs]);
    assert!(calls(&meanwhile).is_empty(), "one at a time: answers could overtake each other");
    let effects = fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Jobs(Vec::new())) });
    assert!(matches!(calls(&effects)[..], [Request::Jobs(_)]), "{effects:?}");
}

#[test]
fn nothing_happening_wakes_nothing_and_draws_nothing() {
    let mut state = fixture::many();
    press(&mut state, "3");
    state.notices.dismiss();
    state.dirty = Dirty::No;
    assert_eq!(state.next_wake(), None);
    let status = state.proxies[0].status.clone().unwrap();
    fixture::status(&mut state, "site-a", status);
    assert_eq!(state.dirty, Dirty::No, "the same status again is no news");
}

#[test]
fn a_toast_goes_by_itself_but_an_error_waits_for_a_key() {
    let mut state = fixture::live();
    state.tell(api::LogLevel::Info, "hello");
    assert_eq!(state.next_wake(), Some(NOW + 3_000));
    update(&mut state, NOW + 3_000, Message::Tick);
    assert!(state.notices.toast(state.now).is_none());
    state.notices.tell_error(NOW, "", &ErrorReport::new("X", "broken"));
    update(&mut state, NOW + 600_000, Message::Tick);
    assert!(state.notices.toast(state.now).is_some());
    press(&mut state, "j");
    assert!(state.notices.toast(state.now).is_none());
    assert_eq!(state.notices.all.len(), 2, "the history keeps both");
}

#[test]
fn esc_keeps_a_changed_form_as_a_draft_and_quitting_asks() {
    let mut state = fixture::live();
    press(&mut state, "3 n");
    let text: Vec<Effect> = "nightly".chars().flat_map(|c| update(&mut state, NOW, Message::Key(Key::char(c)))).collect();
    fixture::answer_lists(&mut state, &text);
    press(&mut state, "tab tab x");
    assert!(state.form.as_ref().is_some_and(|form| form.changed));
    press(&mut state, "esc");
    assert!(state.form.is_none());
    assert!(press(&mut state, "q").is_empty(), "it asks first");
    press(&mut state, "esc n");
    assert_eq!(state.form.as_ref().and_then(|form| form.typed("name")).as_deref(), Some("x"));
    press(&mut state, "ctrl-n y esc");
    assert_eq!(press(&mut state, "q"), [Effect::Quit]);
}

#[test]
fn a_pasted_newline_never_submits() {
    let mut state = fixture::live();
    let sent = press(&mut state, "2 n");
    fixture::answer_lists(&mut state, &sent);
    let effects = update(&mut state, NOW, Message::Paste("a\nb\n\n".into()));
    assert!(calls(&effects).iter().all(|request| !request.writes()));
    assert_eq!(state.form.as_ref().and_then(|form| form.typed("name")).as_deref(), Some("a b"));
}

#[test]
fn a_form_with_a_fault_goes_to_it_and_says_what() {
    let mut state = fixture::live();
    let sent = press(&mut state, "3 n");
    fixture::answer_lists(&mut state, &sent);
    let effects = press(&mut state, "ctrl-s");
    assert!(calls(&effects).iter().all(|request| !request.writes()));
    let form = state.form.as_ref().unwrap();
    assert_eq!(form.fields[form.focus].id, "vms");
    assert!(form.fields[form.focus].error.is_some());
}

#[test]
fn a_changed_schedule_is_explained_by_the_proxy() {
    let mut state = fixture::live();
    let sent = press(&mut state, "3 n");
    fixture::answer_lists(&mut state, &sent);
    press(&mut state, "tab tab tab tab");
    assert_eq!(state.form.as_ref().map(|form| form.fields[form.focus].id), Some("schedule"));
    let effects = press(&mut state, "right");
    assert!(
        matches!(calls(&effects)[..], [Request::SchedulePreview(params)] if params.schedule.cron == "0 2 * * *"),
        "{effects:?}"
    );
    let words = api::SchedulePreview { words: "At 02:00".into(), next: vec![NOW] };
    fixture::reply(&mut state, &effects, Ok(Answer::SchedulePreview(words)));
    let preview = state.form.as_ref().and_then(|form| form.preview.as_ref()).unwrap();
    assert!(preview.answer.as_ref().is_some_and(Result::is_ok));
}

#[test]
fn a_refused_form_keeps_its_input_and_shows_why() {
    let mut state = fixture::live();
    let sent = press(&mut state, "3 n space ctrl-s");
    fixture::answer_lists(&mut state, &sent);
    let sent = press(&mut state, "space ctrl-s");
    let error = ErrorReport::new("NAME_TAKEN", "there is a job of this name");
    fixture::reply(&mut state, &sent, Err(error.clone()));
    let form = state.form.as_ref().unwrap();
    assert_eq!(form.error.as_ref(), Some(&error));
    assert_eq!(form.chosen("vms").len(), 1);
    assert!(form.submitting.is_none(), "it can be sent again");
}

#[test]
fn the_form_names_the_same_command() {
    let mut state = fixture::live();
    let sent = press(&mut state, "3 n");
    fixture::answer_lists(&mut state, &sent);
    press(&mut state, "space");
    let form = state.form.as_ref().unwrap();
    assert_eq!(
        form.command(),
        "backhaul job add --proxy site-a --name 'db 1' --mode delta --vm 'db 1' --remote backups --retention 7"
    );
}

#[test]
fn a_refused_connection_says_what_to_do() {
    let mut state = fixture::live();
    let error =
        ErrorReport::new("FINGERPRINT", "the certificate of site-b is not the pinned one").with_next("compare it on the machine");
    let refused = Connection::Refused { reason: Refusal::Certificate, error };
    fixture::connection(&mut state, "site-b", refused);
    let told = state.notices.toast(NOW).unwrap();
    assert!(told.more.iter().any(|line| line.contains("compare it")));
}

#[test]
fn a_test_of_a_remote_shows_its_result() {
    let mut state = fixture::many();
    press(&mut state, "2");
    let sent = press(&mut state, "t");
    assert!(matches!(calls(&sent)[..], [Request::RemoteTest(_)]));
    let test = api::RemoteTest { success: true, write_rate: Some(1e8), read_rate: Some(2e8), step: None, error: None };
    fixture::reply(&mut state, &sent, Ok(Answer::RemoteTest(test)));
    let lines = super::screens::details(&state, state.screen());
    assert!(lines.iter().any(|line| line.plain().contains("95.4 MiB/s")), "{lines:?}");
}

#[test]
fn restoring_needs_the_sr_only() {
    let mut state = fixture::many();
    press(&mut state, "5");
    let sent = press(&mut state, "r");
    fixture::answer_lists(&mut state, &sent);
    let Some(Value::Choice { chosen, .. }) = state.form.as_ref().and_then(|form| form.field("sr")).map(|field| &field.value)
    else {
        panic!()
    };
    assert_eq!(chosen.as_deref(), Some("sr-1"), "the default SR is preselected");
    let sent = press(&mut state, "ctrl-s");
    let requests = calls(&sent);
    let [Request::Restore(params)] = requests[..] else { panic!("{requests:?}") };
    assert_eq!((params.sr.as_str(), params.name.as_deref()), ("sr-1", None));
    fixture::reply(&mut state, &sent, Ok(Answer::Restore(fixture::run("run-8", "web-1"))));
    assert_eq!(*state.screen(), Screen::Transfers);
}

#[test]
fn a_run_is_followed_on_its_screens_only_and_to_its_end() {
    let mut state = fixture::many();
    let sent = press(&mut state, "4");
    let id = fixture::call_id(&sent, |request| matches!(request, Request::Run(_)));
    let effects = fixture::fleet(
        &mut state,
        "site-a",
        FleetEventKind::Reply { id, result: Ok(Answer::Run(fixture::detail("run-1", None))) },
    );
    assert!(
        matches!(&effects[..], [Effect::Fleet(FleetCommand::WatchRun { run, cursor: 4, .. })] if run == "run-1"),
        "{effects:?}"
    );
    let effects = press(&mut state, "1");
    assert!(effects.contains(&Effect::Fleet(FleetCommand::UnwatchRun { proxy: "site-a".into(), run: "run-1".into() })));
    let effects = press(&mut state, "4");
    assert!(effects.contains(&Effect::Fleet(FleetCommand::WatchRun { proxy: "site-a".into(), run: "run-1".into(), cursor: 4 })));
    // By another way, with another token or certificate, it is asked for again, from where it stands.
    fixture::connection(&mut state, "site-a", Connection::Connecting);
    let effects = fixture::connection(&mut state, "site-a", Connection::Live);
    assert!(effects.contains(&Effect::Fleet(FleetCommand::WatchRun { proxy: "site-a".into(), run: "run-1".into(), cursor: 4 })));
    let ended = api::EventKind::RunEnded { outcome: api::Outcome::Success, error: None, summary: Default::default() };
    let event = api::Event { cursor: 5, at: NOW, kind: ended };
    fixture::fleet(&mut state, "site-a", FleetEventKind::Run { run: "run-1".into(), event });
    assert!(state.notices.toast(NOW).is_some_and(|notice| notice.text.contains("done")));
}

#[test]
fn a_run_that_ends_behind_the_persons_back_is_told_as_ended() {
    let mut state = fixture::transferring();
    press(&mut state, "1");
    fixture::status(&mut state, "site-a", fixture::proxy_status("site-a", Vec::new()));
    let effects = press(&mut state, "4");
    let watch = FleetCommand::WatchRun { proxy: "site-a".into(), run: "run-1".into(), cursor: 28 };
    assert!(effects.contains(&Effect::Fleet(watch)), "{effects:?}");
    let ended = api::EventKind::RunEnded { outcome: api::Outcome::Success, error: None, summary: Default::default() };
    let event = api::Event { cursor: 29, at: NOW, kind: ended };
    fixture::fleet(&mut state, "site-a", FleetEventKind::Run { run: "run-1".into(), event });
    let rows = super::screens::rows(&state, state.screen()).unwrap();
    assert_eq!(rows.len(), 1);
    assert!(rows.cell(0, 1).plain().contains("done"), "{:?}", rows.cell(0, 1));
}

#[test]
fn nothing_is_said_to_be_still_where_nothing_is_known() {
    let told = |state: &State| super::screens::transfers::summary(state).plain();
    assert!(told(&fixture::live()).contains("Nothing is moving"));
    let mut state = fixture::stale();
    let text = told(&state);
    assert!(!text.contains("Nothing is moving") && text.contains("last known: 1 run moving"), "{text}");
    fixture::connection(&mut state, "site-b", fixture::away());
    let text = told(&state);
    assert!(text.contains("site-b away since 04:50; last known: nothing moving"), "{text}");
    assert!(told(&fixture::connecting()).contains("connecting"));
}

#[test]
fn a_form_closed_while_it_is_saved_goes_with_the_reply() {
    let mut state = fixture::many();
    let sent = press(&mut state, "3 n space ctrl-s");
    let id = fixture::call_id(&sent, |request| matches!(request, Request::JobCreate(_)));
    let before = state.form.clone().unwrap();
    assert!(before.submitting.is_some());
    press(&mut state, "tab tab x ctrl-n");
    let form = state.form.as_ref().unwrap();
    assert_eq!(form.request(), before.request(), "what is on its way stays as it is");
    press(&mut state, "esc");
    assert_eq!(state.drafts.len(), 1);
    let answer = Ok(Answer::JobCreate(fixture::job("job-new", "db 1")));
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: answer });
    assert!(state.drafts.is_empty());
    assert_eq!(state.table(Context::Jobs).selected.as_deref(), Some("site-a\u{1f}job-new"));
}

#[test]
fn a_new_remote_is_selected_at_once() {
    let mut state = fixture::many();
    let sent = press(&mut state, "2 n");
    fixture::answer_lists(&mut state, &sent);
    update(&mut state, NOW, Message::Paste("extra".into()));
    press(&mut state, "tab");
    update(&mut state, NOW, Message::Paste("/srv/extra".into()));
    let sent = press(&mut state, "ctrl-s");
    let id = fixture::call_id(&sent, |request| matches!(request, Request::RemoteAdd(_)));
    let proxy = state.form.as_ref().unwrap().proxy().to_owned();
    let remote = api::Remote { id: "remote-new".into(), name: "extra".into(), ..fixture::remote(true) };
    fixture::fleet(&mut state, &proxy, FleetEventKind::Reply { id, result: Ok(Answer::RemoteAdd(remote)) });
    assert_eq!(state.table(Context::Remotes).selected, Some(format!("{proxy}\u{1f}remote-new")));
}

#[test]
fn of_ended_runs_the_latest_are_kept() {
    let mut state = fixture::many();
    press(&mut state, "4");
    for n in 0..30i64 {
        let kind = api::EventKind::RunEnded { outcome: api::Outcome::Success, error: None, summary: Default::default() };
        let event = api::Event { cursor: 1, at: NOW + n, kind };
        fixture::fleet(&mut state, "site-a", FleetEventKind::Run { run: format!("old-{n:02}"), event });
    }
    let kept: Vec<&str> = state.proxies[0].live.keys().map(String::as_str).filter(|id| id.starts_with("old")).collect();
    assert_eq!((kept.len(), kept[0]), (20, "old-10"));
    let rows = super::screens::rows(&state, state.screen()).unwrap();
    assert_eq!(rows.len(), 11, "the run that goes on, and ten");
    assert_eq!(rows.id(1), "site-a\u{1f}old-29");
}

#[test]
fn actions_of_other_screens_are_reached_from_the_palette() {
    let mut state = fixture::many();
    press(&mut state, "1 :");
    for c in "job.new".chars() {
        update(&mut state, NOW, Message::Key(Key::char(c)));
    }
    press(&mut state, "enter");
    assert_eq!(*state.screen(), Screen::Jobs);
    assert!(state.form.is_some());
}

#[test]
fn a_disabled_action_tells_its_reason() {
    let mut state = fixture::many();
    press(&mut state, "3 o");
    assert!(state.notices.toast(NOW).is_some(), "by hand: no schedule to switch");
}

fn any_key() -> impl Strategy<Value = Key> {
    let code = prop_oneof![
        6 => proptest::char::range(' ', '~').prop_map(Code::Char),
        1 => any::<char>().prop_map(Code::Char),
        4 => proptest::sample::select(vec![
            Code::Enter, Code::Esc, Code::Tab, Code::BackTab, Code::Backspace, Code::Delete, Code::Up, Code::Down, Code::Left,
            Code::Right, Code::Home, Code::End, Code::PageUp, Code::PageDown, Code::F(1), Code::F(5),
        ]),
        6 => proptest::sample::select("12345678nreoDtcvya/:?sSmuFpdbiCL".chars().map(Code::Char).collect::<Vec<_>>()),
    ];
    (code, proptest::bool::weighted(0.1), proptest::bool::weighted(0.03)).prop_map(|(code, ctrl, alt)| Key { code, ctrl, alt })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn no_sequence_of_keys_panics(keys in proptest::collection::vec(any_key(), 1..80), which in 0usize..6) {
        let mut state = match which {
            0 => fixture::many(),
            1 => fixture::live(),
            2 => fixture::connecting(),
            4 => fixture::kept::kept(),
            5 => fixture::kept::examined(true),
            _ => fixture::stale(),
        };
        for (n, key) in keys.into_iter().enumerate() {
            let effects = update(&mut state, NOW + n as i64, Message::Key(key));
            fixture::answer_lists(&mut state, &effects);
            let table = state.table(state.screen().context());
            prop_assert!(table.order.is_empty() || table.cursor < table.order.len());
            for line in super::screens::details(&state, state.screen()) {
                let escapes = line.plain().contains('\u{1b}');
                prop_assert!(!escapes);
            }
        }
    }
}
