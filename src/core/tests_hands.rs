//! What must not change under the person's hands: the screen, the object the keys act on, the message that was not read.

use api::{DeployedState, ErrorReport, LogLevel, Outcome, RunKind, Topic};

use super::act::availability;
use super::action::{Action, Context};
use super::effect::{Effect, Request};
use super::errand::Errand;
use super::fixture::{self, NOW, kept};
use super::message::{Connection, FleetEventKind, Message};
use super::screens::{self, Screen};
use super::state::State;
use super::tests::calls;
use super::tests_manage::{errands, go_to, on_row, press, told, value, write};
use super::{Answer, update};

fn details(state: &State) -> String {
    let lines: Vec<String> = screens::details(state, state.screen()).iter().map(|line| line.plain()).collect();
    lines.join("\n")
}

fn empty(state: &State) -> String {
    let lines: Vec<String> = screens::empty(state, state.screen()).iter().map(|line| line.plain()).collect();
    lines.join("\n")
}

fn summary(state: &State) -> String {
    screens::summary(state, state.screen()).map(|line| line.plain()).unwrap_or_default()
}

/// Announces a change of a list of site-a, and answers it; what comes of that.
fn changed(state: &mut State, topic: Topic, matches: fn(&Request) -> bool, answer: Answer) -> Vec<Effect> {
    let asked = fixture::news(state, "site-a", &[topic]);
    let id = fixture::call_id(&asked, matches);
    fixture::fleet(state, "site-a", FleetEventKind::Reply { id, result: Ok(answer) })
}

/// The name of the selected row's object, from the first column that has words.
fn selected(state: &State, column: usize) -> String {
    let rows = screens::rows(state, state.screen()).unwrap();
    let row = state.table(state.screen().context()).current().unwrap();
    rows.cell(row, column).plain()
}

fn started() -> Result<Answer, ErrorReport> {
    Ok(Answer::JobRun(fixture::run("run-9", "by hand")))
}

#[test]
fn a_late_reply_leaves_the_screen_to_whoever_has_gone_on() {
    for keys in ["/ x", "n", "D", "?", ":", "1", "enter"] {
        let mut state = fixture::many();
        press(&mut state, "3");
        let sent = press(&mut state, "r");
        assert!(matches!(calls(&sent)[..], [Request::JobRun(_)]), "{sent:?}");
        press(&mut state, keys);
        let before = (state.screen().clone(), state.occupied(), state.form.is_some(), state.typing_filter());
        fixture::reply(&mut state, &sent, started());
        let after = (state.screen().clone(), state.occupied(), state.form.is_some(), state.typing_filter());
        assert_eq!(after, before, "{keys}");
        assert!(told(&state).ends_with("started; 4 shows it"), "{keys}: {}", told(&state));
        press(&mut state, "esc esc 4");
        assert_eq!(state.table(Context::Transfers).selected.as_deref(), Some("site-a\u{1f}run-9"), "{keys}");
    }
    let mut state = fixture::many();
    press(&mut state, "3");
    let sent = press(&mut state, "r");
    fixture::reply(&mut state, &sent, started());
    assert_eq!(*state.screen(), Screen::Transfers, "whoever waits is shown it");
    assert!(told(&state).ends_with(": started"), "{}", told(&state));
}

#[test]
fn a_run_started_by_a_form_that_was_left_is_not_shown_elsewhere() {
    let mut state = fixture::many();
    let sent = press(&mut state, "3 n space ctrl-r");
    press(&mut state, "esc 4 / x");
    let id = fixture::call_id(&sent, |request| matches!(request, Request::JobCreate(_)));
    let job = Ok(Answer::JobCreate(fixture::job("job-new", "db 1")));
    let sent = fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: job });
    let before = state.table(Context::Transfers).selected.clone();
    fixture::reply(&mut state, &sent, started());
    assert!(state.typing_filter(), "what is being typed goes on");
    assert_eq!(state.table(Context::Transfers).selected, before);
    // Also not when nothing is open there: the form was on another screen.
    let mut state = fixture::many();
    let sent = press(&mut state, "3 n space ctrl-r");
    press(&mut state, "esc 2");
    let id = fixture::call_id(&sent, |request| matches!(request, Request::JobCreate(_)));
    let job = Ok(Answer::JobCreate(fixture::job("job-new", "db 1")));
    let sent = fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: job });
    fixture::reply(&mut state, &sent, started());
    assert_eq!(*state.screen(), Screen::Remotes);
}

#[test]
fn the_palette_does_nothing_to_a_row_that_nobody_looked_at() {
    for (word, screen, next) in [
        ("job.run", Screen::Jobs, "select what it is for, then press r"),
        ("job.toggle", Screen::Jobs, "then press o"),
        ("job.edit", Screen::Jobs, "then press e"),
        ("remote.test", Screen::Remotes, "then press t"),
        ("backup.verify", Screen::Backups, "then press v"),
        ("backup.remove", Screen::Backups, "open what it is for, select it there, then press D"),
        ("run.cancel", Screen::Transfers, "then press c"),
    ] {
        let mut state = fixture::many();
        press(&mut state, "3 j 5 1 :");
        write(&mut state, word);
        let sent = press(&mut state, "enter");
        let writes = calls(&sent).into_iter().any(|request| request.writes() || matches!(request, Request::RemoteTest(_)));
        assert!(!writes && state.confirm.is_none() && state.form.is_none(), "{word}: {sent:?}");
        assert_eq!(*state.screen(), screen, "{word}");
        assert!(told(&state).contains(next), "{word}: {}", told(&state));
    }
    // On the screen itself it acts on what is selected there.
    let mut state = fixture::many();
    press(&mut state, "3 :");
    write(&mut state, "job.run");
    assert!(matches!(calls(&press(&mut state, "enter"))[..], [Request::JobRun(_)]));
    let mut state = fixture::many();
    press(&mut state, "5");
    assert!(availability(&state, Action::PointRemove).is_err(), "the newest of a VM is not removed unseen");
    assert!(availability(&state, Action::Restore).is_ok());
}

#[test]
fn the_details_of_a_restore_point_stay_with_it() {
    let mut state = fixture::many();
    press(&mut state, "5 j enter enter");
    let shown = details(&state);
    assert!(shown.contains("web-1"), "{shown}");
    let newer = api::RestorePoint {
        id: "remote-a/xo-vm-backups/vm-db/20261124T020000Z.json".into(),
        timestamp: NOW,
        ..fixture::points().pop().unwrap()
    };
    let list = |request: &Request| matches!(request, Request::RestorePoints(_));
    let mut points = fixture::points();
    points.splice(0..0, [newer.clone(), newer]);
    changed(&mut state, Topic::RestorePoints, list, Answer::RestorePoints(points));
    assert_eq!(details(&state), shown);
    press(&mut state, "esc");
    let rows = screens::rows(&state, state.screen()).unwrap().len();
    let of = |row| screens::backups::point(&state, "site-a", "vm-web", row).unwrap().1.vm_name.clone();
    assert_eq!((0..rows).map(of).collect::<Vec<_>>(), ["web-1"; 4]);

    press(&mut state, "enter");
    let points = fixture::points().split_off(1);
    changed(&mut state, Topic::RestorePoints, list, Answer::RestorePoints(points));
    assert!(details(&state).contains("The restore point that was shown here is gone"), "{}", details(&state));
    assert!(calls(&press(&mut state, "v D")).is_empty());
    assert!(state.confirm.is_none(), "{:?}", state.confirm);
    press(&mut state, "esc");
    assert!(matches!(state.screen(), Screen::Points { .. }));
    assert!(availability(&state, Action::Verify).is_ok(), "of the list, one is selected");
}

#[test]
fn details_say_that_they_are_old_and_never_become_a_neighbours() {
    let mut state = fixture::many();
    press(&mut state, "2 home enter");
    assert_eq!(summary(&state), "");
    fixture::connection(&mut state, "site-a", fixture::away());
    assert!(summary(&state).contains("site-a away since 04:50; what is shown is as of 04:50:00"), "{}", summary(&state));
    fixture::connection(&mut state, "site-a", Connection::Live);
    assert_eq!(summary(&state), "");

    let mut state = fixture::many();
    press(&mut state, "3 enter");
    fixture::connection(&mut state, "site-b", fixture::away());
    assert_eq!(summary(&state), "", "nothing of site-b is shown");
    let list = |request: &Request| matches!(request, Request::Jobs(_));
    changed(&mut state, Topic::Jobs, list, Answer::Jobs(fixture::jobs().split_off(1)));
    assert!(details(&state).contains("The job that was shown here is gone"), "{}", details(&state));
    assert!(calls(&press(&mut state, "r o D")).is_empty() && state.confirm.is_none());
    // It is back: it was only missing from one answer.
    changed(&mut state, Topic::Jobs, list, Answer::Jobs(fixture::jobs()));
    assert!(details(&state).contains("by hand"), "{}", details(&state));
    // A filter that it no longer matches does not hide it.
    press(&mut state, "esc / h a n d enter enter");
    let mut renamed = fixture::jobs();
    renamed[0].spec.name = "monthly".into();
    changed(&mut state, Topic::Jobs, list, Answer::Jobs(renamed));
    assert!(details(&state).contains("monthly"), "{}", details(&state));
}

#[test]
fn what_is_offered_next_is_for_what_was_saved() {
    let job = || Ok(Answer::JobCreate(fixture::job("job-new", "db 1")));
    let mut state = fixture::many();
    press(&mut state, "3 /");
    write(&mut state, "archive");
    let sent = press(&mut state, "enter n space ctrl-s");
    let id = fixture::call_id(&sent, |request| matches!(request, Request::JobCreate(_)));
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: job() });
    assert_eq!((selected(&state, 1), told(&state)), ("db 1".into(), "Job db 1 saved; r runs it now".into()));
    let sent = press(&mut state, "r");
    assert!(matches!(calls(&sent)[..], [Request::JobRun(api::IdParams { id })] if id == "job-new"), "{sent:?}");

    for (keys, filter) in [("esc 1", ""), ("esc / n", "n"), ("esc enter", "")] {
        let mut state = fixture::many();
        let sent = press(&mut state, "3 n space ctrl-s");
        press(&mut state, keys);
        let before = state.table(Context::Jobs).selected.clone();
        let id = fixture::call_id(&sent, |request| matches!(request, Request::JobCreate(_)));
        fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: job() });
        assert_eq!(told(&state), "Job db 1 saved", "{keys}");
        assert_eq!(state.table(Context::Jobs).filter.text(), filter, "{keys}");
        if *state.screen() != Screen::Proxies {
            assert_eq!(state.table(Context::Jobs).selected, before, "{keys}: it is being worked with");
        }
    }
}

#[test]
fn a_form_is_for_the_proxy_of_the_selected_row_also_when_it_is_away() {
    for keys in ["1 a", "2 home n", "3 home n", "1 n"] {
        let mut state = fixture::stale();
        press(&mut state, keys);
        assert_eq!(value(&state, "proxy"), "site-a", "{keys}");
    }
    let mut state = fixture::stale();
    press(&mut state, "1 a");
    write(&mut state, "10.0.0.2");
    go_to(&mut state, "password");
    write(&mut state, "x");
    assert!(calls(&press(&mut state, "ctrl-s")).is_empty());
    assert!(told(&state).contains("site-a is away; nothing was sent"), "{}", told(&state));
}

#[test]
fn a_draft_comes_back_where_it_was_begun() {
    let mut state = fixture::many();
    press(&mut state, "1 a");
    write(&mut state, "10.0.0.2");
    press(&mut state, "esc j a");
    assert_eq!((value(&state, "proxy"), value(&state, "url")), ("site-b".into(), String::new()));
    press(&mut state, "esc k a");
    assert_eq!((value(&state, "proxy"), value(&state, "url")), ("site-a".into(), "10.0.0.2".into()));
    assert_eq!(told(&state), "Your draft is back; ctrl-n starts over");
    // Turned to another proxy in the form, it says so, and starting over is for the first again.
    go_to(&mut state, "proxy");
    press(&mut state, "right esc a");
    assert_eq!(value(&state, "proxy"), "site-b");
    assert_eq!(told(&state), "Your draft for site-b is back; ctrl-n starts over");
    press(&mut state, "ctrl-n y");
    assert_eq!(value(&state, "proxy"), "site-a");
}

#[test]
fn a_draft_of_a_job_does_not_switch_its_schedule_on_again() {
    let mut state = fixture::many();
    press(&mut state, "3 j e");
    go_to(&mut state, "retention");
    press(&mut state, "ctrl-u");
    write(&mut state, "9");
    press(&mut state, "esc");
    let mut jobs = fixture::jobs();
    jobs[1].spec.enabled = false;
    jobs[1].spec.full_interval = 12;
    changed(&mut state, Topic::Jobs, |request| matches!(request, Request::Jobs(_)), Answer::Jobs(jobs));
    let sent = press(&mut state, "e ctrl-s");
    let spec = calls(&sent).into_iter().find_map(|request| match request {
        Request::JobUpdate(params) => Some(params.spec.clone()),
        _ => None,
    });
    let spec = spec.unwrap();
    assert_eq!((spec.retention, spec.enabled, spec.full_interval), (9, false, 12));
}

#[test]
fn a_run_without_tasks_says_why_and_what_to_do() {
    let mut state = fixture::many();
    press(&mut state, "6");
    let sent = update(&mut state, NOW, Message::Key("enter".parse().unwrap()));
    let error = ErrorReport::new("BUSY", "the run before was still going on").with_next("give the schedule more room");
    let mut detail = fixture::detail("run-1", Some(Outcome::Skipped));
    (detail.tasks, detail.log, detail.run.error) = (Vec::new(), Vec::new(), Some(error));
    fixture::reply(&mut state, &sent, Ok(Answer::Run(detail)));
    assert!(summary(&state).contains("the run before was still going on"), "{}", summary(&state));
    assert!(details(&state).contains("What to do: give the schedule more room"), "{}", details(&state));
    assert_eq!(empty(&state), "It ended before its first task.");
    press(&mut state, "enter");
    assert!(matches!(state.screen(), Screen::Detail(_)));
    assert!(details(&state).contains("give the schedule more room"));
}

#[test]
fn an_examination_that_breaks_off_at_once_says_why_and_what_to_do() {
    let mut state = kept::kept();
    let sent = press(&mut state, "1 d");
    assert_eq!(empty(&state), "No line has come yet.");
    assert!(availability(&state, Action::Open).is_err(), "there is nothing to open yet");
    let id = kept::errand_id(&sent);
    let error = ErrorReport::new("DATABASE", "the state cannot be read").with_next("look at the disk of the proxy");
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Err(error) });
    assert_eq!(told(&state), "Doctor of site-a: the state cannot be read");
    assert_eq!(empty(&state), "It broke off before its first check.");
    assert!(details(&state).contains("What to do: look at the disk of the proxy"), "{}", details(&state));
    press(&mut state, "enter");
    assert!(details(&state).contains("look at the disk of the proxy"));
    assert!(matches!(errands(&press(&mut state, "r"))[..], [("site-a", Errand::Examine)]));
    assert_eq!(state.stack, [Screen::Doctor { proxy: "site-a".into() }], "the details were of before");
}

#[test]
fn a_run_that_could_not_be_asked_about_is_asked_about_again() {
    let mut state = fixture::many();
    let sent = press(&mut state, "4");
    let id = fixture::call_id(&sent, |request| matches!(request, Request::Run(_)));
    let error = ErrorReport::new("DATABASE", "the journal cannot be read").with_next("look at the disk");
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Err(error.clone()) });
    press(&mut state, "enter");
    assert_eq!(summary(&state).trim(), "the journal cannot be read; R asks again");
    assert!(details(&state).contains("look at the disk"), "{}", details(&state));
    for keys in ["R", "esc R"] {
        let sent = press(&mut state, keys);
        assert!(matches!(calls(&sent)[..], [Request::Run(_)]), "{keys}: {sent:?}");
        assert_eq!(told(&state), "Asking again");
        fixture::reply(&mut state, &sent, Err(error.clone()));
    }
    // A watch that the proxy ended is taken up again too.
    let mut state = fixture::transferring();
    fixture::fleet(&mut state, "site-a", FleetEventKind::RunWatchEnded { run: "run-1".into(), error: Some(error) });
    press(&mut state, "enter");
    assert!(summary(&state).contains("R asks again"), "{}", summary(&state));
    let sent = press(&mut state, "R");
    let watches = |effect: &Effect| matches!(effect, Effect::Fleet(super::FleetCommand::WatchRun { cursor: 28, .. }));
    assert!(sent.iter().any(watches), "{sent:?}");
}

#[test]
fn asking_again_is_said_only_where_something_is_asked() {
    for (make, keys, words) in [
        (fixture::many as fn() -> State, "7 R", "comes by itself"),
        (fixture::live, "4 R", "comes by itself"),
        (|| kept::examined(true), "R", "r examines again"),
        (fixture::many, "3 R", "Asking again"),
        (fixture::connecting, "3 R", "No proxy answers"),
    ] {
        let mut state = make();
        press(&mut state, keys);
        assert!(told(&state).contains(words), "{keys}: {}", told(&state));
    }
}

#[test]
fn a_proxy_that_has_another_address_by_now_is_followed_there_when_that_is_asked_for() {
    let mut state = on_row("site-b");
    let mut list = state.proxies[0].deployed.items.clone();
    list.iter_mut().find(|deployed| deployed.id == "id-b").unwrap().url = Some("https://10.0.0.99:8443".into());
    let effects = changed(&mut state, Topic::Deployed, |request| matches!(request, Request::Deployed(_)), Answer::Deployed(list));
    // As long as it answers where it is known, that is where it is.
    assert!(availability(&state, Action::ProxyAdopt).unwrap_err().contains("knows site-b already"));
    fixture::connection(&mut state, "site-b", fixture::away());
    // The deployer's address may be one that this console cannot reach, as from outside of a port forward: not by itself.
    assert!(errands(&effects).is_empty());
    let effects = press(&mut state, "p");
    assert!(
        matches!(&errands(&effects)[..], [("site-a", Errand::Adopt { deployed, known: Some(known) })] if deployed == "id-b" && known == "site-b"),
        "{effects:?}"
    );
}

#[test]
fn what_a_deployer_said_counts_while_it_answers() {
    let changing = |state: &mut State| {
        let mut list = state.proxies[0].deployed.items.clone();
        list[0].state = DeployedState::Changing;
        state.proxy_mut("site-a").unwrap().deployed.set(list, NOW);
        update(state, NOW, Message::Tick);
    };
    let mut state = on_row("site-b");
    changing(&mut state);
    assert!(selected(&state, 0).contains("changing"));
    assert!(availability(&state, Action::ProxyRedeploy).unwrap_err().contains("a run is working on site-b"));
    fixture::connection(&mut state, "site-a", fixture::away());
    assert!(selected(&state, 0).contains("draining"), "its own state: {}", selected(&state, 0));
    for action in [Action::ProxyRedeploy, Action::ProxyReconfigure, Action::ProxyDestroy] {
        assert!(availability(&state, action).unwrap_err().contains("site-a is away"));
    }
    assert!(details(&state).contains("site-a away since"), "{}", details(&state));
    let mut state = on_row("valence");
    let row = state.table(Context::Proxies).current().unwrap();
    assert!(!screens::rows(&state, state.screen()).unwrap().stale(row));
    fixture::connection(&mut state, "site-a", fixture::away());
    let rows = screens::rows(&state, state.screen()).unwrap();
    assert!(rows.stale(row));
    assert!(rows.cell(row, 6).plain().contains("site-a away since"), "{}", rows.cell(row, 6).plain());
}

#[test]
fn the_message_on_the_screen_is_the_one_that_is_read() {
    let mut state = fixture::many();
    press(&mut state, "7 end esc");
    state.tell(LogLevel::Info, "earlier");
    state.notices.tell_error(NOW, "", &ErrorReport::new("X", "broken").with_next("mend it"));
    state.tell(LogLevel::Info, "a run ended well");
    state.tell(LogLevel::Warning, "something else");
    let shown = |state: &State| state.notices.toast(NOW + 60_000).map(|notice| notice.text.clone());
    assert_eq!(shown(&state).as_deref(), Some("broken"), "what was not seen is not talked over");
    state.notices.tell_error(NOW, "", &ErrorReport::new("Y", "worse").with_next("run"));
    assert_eq!(shown(&state).as_deref(), Some("worse"));
    state.tell(LogLevel::Info, "and on");
    press(&mut state, "M");
    assert!(details(&state).contains("worse") && details(&state).contains("Next: run"), "{}", details(&state));
    press(&mut state, "esc");
    state.tell(LogLevel::Info, "newest");
    press(&mut state, "j M");
    assert!(details(&state).contains("newest"), "nothing was on the screen any more: {}", details(&state));
}

#[test]
fn a_rolled_back_upgrade_is_told_with_what_to_do() {
    let mut state = fixture::many();
    let error = ErrorReport::new("SELF_CHECK", "it did not answer within 20 s").with_next("look into its log");
    let upgrade = api::UpgradeState {
        phase: api::UpgradePhase::RolledBack,
        from: "0.1.0".into(),
        to: "0.2.0".into(),
        since: NOW,
        run: None,
        error: Some(error),
    };
    let status = api::ProxyStatus { upgrade: Some(Box::new(upgrade)), ..fixture::proxy_status("site-a", Vec::new()) };
    fixture::status(&mut state, "site-a", status);
    let notice = state.notices.toast(NOW).unwrap();
    assert_eq!(notice.text, "Upgrade of site-a to 0.2.0: did not work, 0.1.0 runs again: it did not answer within 20 s");
    assert!(notice.more.contains(&"Next: look into its log".to_owned()), "{:?}", notice.more);
}

#[test]
fn cancelling_from_the_details_of_a_run_names_it() {
    let mut state = fixture::transferring();
    press(&mut state, "enter enter c");
    let asked = state.confirm.as_ref().unwrap().question.clone();
    assert_eq!(asked, "Stop the run nightly on site-a?");
}

#[test]
fn what_a_failed_deployment_was_asked_for_with_comes_back() {
    let deployed = |state: &mut State, effects: &[Effect], list: Vec<api::Deployed>| {
        let id = fixture::call_id(effects, |request| matches!(request, Request::Deployed(_)));
        fixture::fleet(state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Deployed(list)) })
    };
    for well in [true, false] {
        let mut state = fixture::many();
        press(&mut state, "1 n");
        write(&mut state, "annecy");
        press(&mut state, "ctrl-s");
        let sent = press(&mut state, "y");
        press(&mut state, "ctrl-c");
        let asked = state.confirm.take().map(|confirm| confirm.detail.join(" ")).unwrap_or_default();
        assert!(asked.contains("site-a is asked to deploy a proxy and has not answered"), "{asked}");
        let effects = fixture::reply(&mut state, &sent, Ok(Answer::DeployStart(fixture::run("run-id-c", "annecy"))));
        assert!(state.drafts.is_empty(), "nothing is unsaved while it goes on");
        let list = if well { vec![kept::deployed("id-c", "annecy", DeployedState::Ready)] } else { Vec::new() };
        deployed(&mut state, &effects, list);
        assert!(state.expected.is_empty());
        if !well {
            assert_eq!(
                told(&state),
                "annecy was not deployed; what was typed is kept as a draft; on Proxies, n at site-a brings it back"
            );
        }
        press(&mut state, "1 n");
        assert_eq!(value(&state, "name"), if well { "" } else { "annecy" });
        assert!(state.form.as_ref().is_some_and(|form| form.review.is_none() && form.submitting.is_none()));
    }
}

#[test]
fn a_proxy_that_is_being_changed_is_away_without_an_alarm() {
    let shown = |state: &State| {
        let row = state.table(Context::Proxies).current().unwrap();
        screens::rows(state, &Screen::Proxies).unwrap().cell(row, 6).plain()
    };
    let last = |state: &State| state.notices.all.back().map(|notice| (notice.level, notice.text.clone())).unwrap();
    // Asked for here.
    let mut state = on_row("site-b");
    press(&mut state, "r ctrl-s");
    let sent = press(&mut state, "y");
    let effects = fixture::reply(&mut state, &sent, Ok(Answer::Redeploy(fixture::run("run-9", "site-b"))));
    fixture::connection(&mut state, "site-b", fixture::away());
    assert_eq!(last(&state), (LogLevel::Info, "site-b restarts: site-a changes it".into()));
    press(&mut state, "1");
    assert!(shown(&state).contains("site-a changes it") && !details(&state).contains("no answer"), "{}", details(&state));
    // It is over, and site-b is back; when it is gone now, that is an alarm.
    fixture::connection(&mut state, "site-b", Connection::Live);
    let id = fixture::call_id(&effects, |request| matches!(request, Request::Deployed(_)));
    let ready = api::Deployed { run: "run-9".into(), ..kept::deployed("id-b", "site-b", DeployedState::Ready) };
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Deployed(vec![ready])) });
    fixture::status(&mut state, "site-a", fixture::proxy_status("site-a", Vec::new()));
    fixture::connection(&mut state, "site-b", fixture::away());
    assert_eq!(last(&state).0, LogLevel::Error);
    assert!(shown(&state).contains("no answer"), "{}", shown(&state));

    // Asked for by another console: the run is told before the list.
    for (kind, words) in
        [(RunKind::Reconfigure, "site-b restarts: site-a changes it"), (RunKind::Destroy, "site-b is being destroyed by site-a")]
    {
        let mut state = on_row("site-b");
        let run = api::Run { kind, ..fixture::run("run-9", "site-b") };
        fixture::status(&mut state, "site-a", fixture::proxy_status("site-a", vec![run]));
        fixture::connection(&mut state, "site-b", fixture::away());
        assert_eq!(last(&state), (LogLevel::Info, words.into()));
    }
    // A deployer that does not answer says nothing; nor does a run on another one.
    let mut state = on_row("site-b");
    let run = api::Run { kind: RunKind::Redeploy, ..fixture::run("run-9", "annecy") };
    fixture::status(&mut state, "site-a", fixture::proxy_status("site-a", vec![run]));
    fixture::connection(&mut state, "site-b", fixture::away());
    assert_eq!(last(&state).0, LogLevel::Error);
}

#[test]
fn a_failed_run_opens_at_what_failed_and_stays_where_a_person_went() {
    let opened = |outcome| {
        let mut state = fixture::many();
        press(&mut state, "6");
        let sent = update(&mut state, NOW, Message::Key("enter".parse().unwrap()));
        let mut detail = fixture::detail("run-1", outcome);
        for task in &mut detail.tasks {
            task.outcome = outcome.map(|_| Outcome::Success);
        }
        if outcome == Some(Outcome::Failure) {
            // The disk, and so the VM that it is a part of.
            detail.tasks[0].outcome = outcome;
            detail.tasks[2].outcome = outcome;
        }
        fixture::reply(&mut state, &sent, Ok(Answer::Run(detail)));
        state
    };
    for (outcome, label) in [(Some(Outcome::Failure), "xvdb"), (Some(Outcome::Success), "web-1"), (None, "web-1")] {
        let state = opened(outcome);
        assert!(selected(&state, 1).ends_with(label), "{outcome:?}: {}", selected(&state, 1));
    }
    let mut state = opened(Some(Outcome::Failure));
    press(&mut state, "home");
    update(&mut state, NOW, Message::Tick);
    assert!(selected(&state, 1).ends_with("web-1"), "{}", selected(&state, 1));
}
