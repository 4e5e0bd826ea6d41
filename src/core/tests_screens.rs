//! What lists and forms show of what is known, and what keys do to it without a question.

use api::{DoctorCheck, ErrorReport, LogLevel, Remote, RemoteTest, Topic, Verdict};

use super::act::availability;
use super::action::{Action, Context};
use super::effect::Request;
use super::errand::Bringing;
use super::fixture::{self, NOW, kept};
use super::forms::Value;
use super::message::{Connection, FleetEventKind, Message};
use super::screens::{self, Screen};
use super::state::{State, Then};
use super::store::Proxy;
use super::tests::calls;
use super::tests_manage::{errands, go_to, on_row, press, value, write};
use super::{Answer, update};

fn cell(state: &State, row: usize, column: usize) -> String {
    screens::rows(state, state.screen()).unwrap().cell(row, column).plain()
}

fn details(state: &State) -> String {
    let lines: Vec<String> = screens::details(state, state.screen()).iter().map(|line| line.plain()).collect();
    lines.join("\n")
}

#[test]
fn a_name_with_a_blank_is_found_and_enter_ticks_it() {
    let mut state = fixture::many();
    press(&mut state, "3 n");
    write(&mut state, "db 1");
    let chosen = |state: &State| state.form.as_ref().unwrap().chosen("vms").to_vec();
    assert_eq!(chosen(&state), Vec::<String>::new(), "a blank in the middle of a search ticks nothing");
    press(&mut state, "enter");
    assert_eq!(chosen(&state), ["vm-db"]);
    press(&mut state, "space");
    assert_eq!(chosen(&state), Vec::<String>::new(), "with nothing typed it ticks and unticks");
    press(&mut state, "space");
    assert_eq!(chosen(&state), ["vm-db"]);
}

/// The remotes of site-a as they are from now on.
fn remotes(state: &mut State, change: impl Fn(&mut Remote)) {
    let mut remote = fixture::remote(true);
    change(&mut remote);
    let asked = fixture::news(state, "site-a", &[Topic::Remotes]);
    let id = fixture::call_id(&asked, |request| matches!(request, Request::Remotes(_)));
    fixture::fleet(state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Remotes(vec![remote])) });
}

/// The screen of remotes, with a test of the first that came out like this.
fn tested(success: bool) -> State {
    let mut state = fixture::many();
    press(&mut state, "2 home");
    let sent = press(&mut state, "t");
    let error = (!success).then(|| ErrorReport::new("REMOTE_TEST", "no space left on device"));
    let test = RemoteTest { success, write_rate: Some(1e8), read_rate: Some(2e8), step: None, error };
    fixture::reply(&mut state, &sent, Ok(Answer::RemoteTest(test)));
    state
}

#[test]
fn a_remote_that_went_after_its_test_is_not_shown_as_good() {
    let broken = |remote: &mut Remote| remote.error = Some(ErrorReport::new("REMOTE_HANGS", "its mount does not answer"));
    let mut state = tested(true);
    assert!(cell(&state, 0, 0).contains("tested"));
    assert!(details(&state).contains("04:50: what was written came back the same"), "{}", details(&state));
    // What is told of it again without a change says nothing against the test.
    remotes(&mut state, |remote| remote.name = "renamed".into());
    assert!(cell(&state, 0, 0).contains("tested"));
    remotes(&mut state, broken);
    assert!(cell(&state, 0, 0).contains("unusable"), "{}", cell(&state, 0, 0));
    assert!(!details(&state).contains("came back the same"));
    remotes(&mut state, |_| ());
    assert!(cell(&state, 0, 0).contains("usable"), "what was found before it broke is old");

    let mut state = tested(false);
    assert!(cell(&state, 0, 0).contains("failed"));
    remotes(&mut state, broken);
    remotes(&mut state, |_| ());
    assert!(cell(&state, 0, 0).contains("usable"), "it is mended: {}", cell(&state, 0, 0));

    // One that went well before the list says so stays.
    let mut state = fixture::many();
    press(&mut state, "2 home");
    remotes(&mut state, broken);
    let sent = press(&mut state, "t");
    let test = RemoteTest { success: true, write_rate: None, read_rate: None, step: None, error: None };
    fixture::reply(&mut state, &sent, Ok(Answer::RemoteTest(test)));
    remotes(&mut state, |_| ());
    assert!(cell(&state, 0, 0).contains("tested"), "{}", cell(&state, 0, 0));
    remotes(&mut state, |remote| remote.url = "file:///elsewhere".into());
    assert!(!cell(&state, 0, 0).contains("tested"), "another place");
}

#[test]
fn a_name_with_blanks_at_its_ends_can_be_typed() {
    for (name, typed) in [(" web-1 ", "web-1"), ("  ", "remove"), ("a b", "a b")] {
        let mut state = fixture::many();
        let proxy = state.proxy_mut("site-a").unwrap();
        proxy.points.items.iter_mut().for_each(|point| point.vm_name = name.into());
        proxy.points.version += 1;
        press(&mut state, "5 enter D");
        write(&mut state, typed);
        let sent = press(&mut state, "enter");
        assert!(matches!(calls(&sent)[..], [Request::RestorePointRemove(_)]), "{name:?}: {:?}", state.confirm);
    }
}

#[test]
fn the_worst_that_was_found_is_first_and_selected() {
    let state = kept::examined(true);
    let first = state.table(Context::Doctor).order[0] as usize;
    assert!(cell(&state, first, 0).contains("fail"), "{}", cell(&state, first, 0));
    assert!(details(&state).contains("purpose is not set"), "{}", details(&state));
    let words: Vec<String> = state.table(Context::Doctor).order.iter().map(|row| cell(&state, *row as usize, 1)).collect();
    assert_eq!(words, ["nbd", "disk", "dns", "clock", "pool", "remote", "version"], "equal ones as they came");

    // Who reads on keeps the place.
    let mut state = kept::examined(false);
    press(&mut state, "j");
    assert!(details(&state).contains("clock"));
    let id = state.proxy("site-a").unwrap().examination.as_ref().unwrap().id;
    let check = DoctorCheck { verdict: Verdict::Fail, ..kept::checks().swap_remove(3) };
    fixture::fleet(&mut state, "site-a", FleetEventKind::Check { id, check: Box::new(check) });
    assert!(details(&state).contains("clock"), "{}", details(&state));
    assert_eq!(state.table(Context::Doctor).cursor, 2);
}

#[test]
fn what_went_wrong_with_a_task_stands_before_its_figures() {
    let mut state = fixture::many();
    press(&mut state, "6 home j");
    let sent = press(&mut state, "enter");
    let id = fixture::call_id(&sent, |request| matches!(request, Request::Run(_)));
    let mut detail = fixture::detail("run-3", Some(api::Outcome::Failure));
    let error = ErrorReport::new("VDI_IN_USE", "its disk is attached elsewhere");
    detail.run.error = Some(error.clone());
    detail.tasks[0].error = Some(error);
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Run(detail)) });
    let found: Vec<usize> =
        details(&state).lines().enumerate().filter(|(_, line)| line.contains("attached elsewhere")).map(|(at, _)| at).collect();
    assert_eq!(found.first(), Some(&2), "{}", details(&state));
}

#[test]
fn starting_over_asks_where_something_is_lost() {
    let mut state = fixture::many();
    press(&mut state, "2 n");
    press(&mut state, "ctrl-n");
    assert_eq!(state.confirm, None, "nothing is lost");
    write(&mut state, "nas");
    press(&mut state, "ctrl-n");
    assert_eq!(state.confirm.as_ref().map(|confirm| (&confirm.then, confirm.yes)), Some((&Then::StartOver, false)));
    press(&mut state, "esc");
    assert_eq!(value(&state, "name"), "nas");
    press(&mut state, "ctrl-n enter");
    assert_eq!(value(&state, "name"), "nas", "no is what Enter says");
    press(&mut state, "ctrl-n y");
    assert_eq!((value(&state, "name"), state.form.as_ref().unwrap().changed), (String::new(), false));
}

#[test]
fn a_form_has_help_that_does_what_it_says() {
    let mut state = fixture::many();
    press(&mut state, "2 n f1");
    let offered: Vec<&str> = state.choices().iter().map(|action| action.info().id).collect();
    assert!(offered.contains(&"form.save") && offered.contains(&"form.close"), "{offered:?}");
    assert!(offered.iter().all(|id| id.starts_with("form.") || *id == "help"), "{offered:?}");
    press(&mut state, "esc");
    assert!(state.form.is_some() && state.chooser.is_none());
    write(&mut state, "?");
    assert_eq!(value(&state, "name"), "?", "it is part of what is typed");
    press(&mut state, "f1");
    write(&mut state, "form.close");
    press(&mut state, "enter");
    assert!(state.form.is_none());
}

#[test]
fn a_bundle_on_its_way_is_seen_on_the_row_of_its_proxy_until_the_answer() {
    let mut state = on_row("site-a");
    press(&mut state, "u / b");
    let sent = press(&mut state, "ctrl-s y");
    assert_eq!(errands(&sent).len(), 1);
    let id = kept::errand_id(&sent);
    press(&mut state, "esc");
    assert!(cell(&state, 0, 0).contains("fetching"), "{}", cell(&state, 0, 0));
    let bringing = Bringing::Fetching { done: 3 << 20, of: Some(30 << 20) };
    fixture::fleet(&mut state, "site-a", FleetEventKind::Bundle { id, bringing });
    assert!(details(&state).contains("fetching the bundle, 3.0 MiB of 30.0 MiB"), "{}", details(&state));
    let bringing = Bringing::Sending { done: 12 << 20, of: 30 << 20 };
    for (proxy, id) in [("site-b", id), ("site-a", super::RequestId(4_711))] {
        fixture::fleet(&mut state, proxy, FleetEventKind::Bundle { id, bringing });
        assert!(cell(&state, 0, 0).contains("fetching"), "of another errand");
    }
    fixture::fleet(&mut state, "site-a", FleetEventKind::Bundle { id, bringing });
    assert!(cell(&state, 0, 0).contains("sending"));
    assert!(details(&state).contains("sending the bundle, 12.0 MiB of 30.0 MiB"));
    fixture::connection(&mut state, "site-a", fixture::away());
    assert!(cell(&state, 0, 0).contains("away"), "{}", cell(&state, 0, 0));
    fixture::connection(&mut state, "site-a", Connection::Live);
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Err(ErrorReport::new("BUNDLE", "no")) });
    assert!(!cell(&state, 0, 0).contains("sending"), "{}", cell(&state, 0, 0));
    fixture::fleet(&mut state, "site-a", FleetEventKind::Bundle { id, bringing });
    assert!(!cell(&state, 0, 0).contains("sending"), "late");
}

#[test]
fn a_proxy_that_does_not_answer_is_away_whenever_it_was_last_seen() {
    for seen in [None, Some(NOW)] {
        let proxy = Proxy { connection: fixture::away(), seen, ..Proxy::default() };
        assert!(screens::connection(&proxy).plain().contains("away"), "{seen:?}");
        assert!(screens::absence(&State::default(), &proxy).unwrap().contains("away"));
    }
    let mut state = fixture::connecting();
    fixture::connection(&mut state, "site-a", fixture::away());
    assert!(screens::summary(&state, &Screen::Jobs).unwrap().plain().contains("site-a: away"));
    fixture::connection(&mut state, "site-a", Connection::Live);
    assert_eq!(screens::summary(&state, &Screen::Jobs), None);
}

#[test]
fn a_read_only_console_tests_no_remote() {
    let mut state = fixture::many();
    state.settings.read_only = true;
    press(&mut state, "2");
    assert!(calls(&press(&mut state, "t")).is_empty(), "it would write 10 MiB");
    assert!(state.notices.all.back().is_some_and(|notice| notice.text.contains("read-only")));
}

#[test]
fn a_cause_that_repeats_what_is_said_is_left_out() {
    let report = ErrorReport {
        causes: ["the disk is full", "write failed: the disk is full", "errno 28", "errno 28"].map(str::to_owned).into(),
        ..ErrorReport::new("FULL", "cannot write backups: the disk is full")
    };
    let lines: Vec<String> = screens::error_lines(&report).iter().map(|line| line.plain()).collect();
    let because: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("because ")).collect();
    assert_eq!(because, ["write failed: the disk is full", "errno 28"]);
    let mut state = State::default();
    state.notices.tell_error(NOW, "", &report);
    let told = state.notices.all.back().unwrap().more.iter().filter(|line| line.starts_with("Cause:")).count();
    assert_eq!(told, 2);
}

#[test]
fn what_an_upgrade_failed_of_is_said_once() {
    let error = ErrorReport::new("SELF_CHECK", "it did not answer within 20 s");
    let mut state = fixture::many();
    let upgrade = api::UpgradeState {
        phase: api::UpgradePhase::RolledBack,
        from: "0.1.0".into(),
        to: "0.2.0".into(),
        since: NOW,
        run: Some("run-u".into()),
        error: Some(error.clone()),
    };
    for (run, times) in [(Some("run-u"), 1), (None, 1)] {
        let last = api::LastError { at: NOW, run: run.map(str::to_owned), error: error.clone() };
        let upgrade = Some(Box::new(upgrade.clone()));
        let status = api::ProxyStatus { upgrade, last_error: Some(last), ..fixture::proxy_status("site-a", Vec::new()) };
        fixture::status(&mut state, "site-a", status);
        press(&mut state, "1 home");
        assert_eq!(details(&state).matches("it did not answer").count(), times, "{}", details(&state));
    }
    let other = api::LastError { at: NOW, run: Some("run-2".into()), error: ErrorReport::new("FULL", "the disk is full") };
    let upgrade = Some(Box::new(upgrade));
    let status = api::ProxyStatus { upgrade, last_error: Some(other), ..fixture::proxy_status("site-a", Vec::new()) };
    fixture::status(&mut state, "site-a", status);
    assert!(details(&state).contains("the disk is full"), "another error is not hidden");
}

#[test]
fn the_details_of_a_proxy_name_it() {
    let mut state = on_row("site-b");
    press(&mut state, "enter");
    assert_eq!(state.screen().crumb(&state), "Details of site-b");
    let mut state = on_row("annecy");
    press(&mut state, "enter");
    assert_eq!(state.screen().crumb(&state), "Details of annecy");
    // Renamed: what it calls itself and what this console calls it.
    let mut state = on_row("site-a");
    assert!(!details(&state).contains("Calls itself"), "{}", details(&state));
    press(&mut state, "e");
    write(&mut state, "x");
    let sent = press(&mut state, "ctrl-s");
    let status = api::ProxyStatus { name: "grenoble-1".into(), ..fixture::proxy_status("site-a", Vec::new()) };
    fixture::reply(&mut state, &sent, Ok(Answer::Configure(status)));
    let told = state.notices.all.back().unwrap().text.clone();
    assert_eq!(told, "The settings of site-a are changed; it calls itself grenoble-1, this console calls it site-a");
    assert!(details(&state).contains("grenoble-1; this console calls it site-a"), "{}", details(&state));
}

#[test]
fn a_remote_on_the_disk_of_its_proxy_says_so() {
    let mut state = fixture::many();
    press(&mut state, "2 home");
    assert!(!details(&state).contains("own disk"));
    remotes(&mut state, |remote| remote.own_disk = true);
    assert!(details(&state).contains("on the proxy's own disk: goes with its VM"), "{}", details(&state));
    for own_disk in [true, false] {
        press(&mut state, "n");
        go_to(&mut state, "url");
        write(&mut state, "file:///srv/more");
        go_to(&mut state, "name");
        write(&mut state, "more");
        let sent = press(&mut state, "ctrl-s");
        let remote = Remote { own_disk, id: "remote-c".into(), name: "more".into(), ..fixture::remote(true) };
        fixture::reply(&mut state, &sent, Ok(Answer::RemoteAdd(remote)));
        let notice = state.notices.all.back().unwrap();
        assert!(notice.text.starts_with("Remote more added"), "{}", notice.text);
        assert_eq!(notice.text.contains("goes with its VM"), own_disk, "{}", notice.text);
        assert_eq!(notice.level, if own_disk { LogLevel::Warning } else { LogLevel::Info });
    }
}

#[test]
fn a_licence_that_several_proxies_hold_is_one_row_with_one_number() {
    let mut state = kept::kept();
    let id = kept::licenses()[0].id.clone();
    let copy = |bound: &[(&str, &str)]| kept::license(&id, 3, bound);
    press(&mut state, "8");
    state.proxy_mut("site-a").unwrap().licenses.set(vec![copy(&[("id-a", "site-a"), ("id-c", "annecy")])], NOW);
    state.proxy_mut("site-b").unwrap().licenses.set(vec![copy(&[("id-b", "site-b")])], NOW);
    fixture::status(&mut state, "site-a", fixture::proxy_status("site-a", Vec::new()));
    let rows = |state: &State| screens::rows(state, state.screen()).unwrap().len();
    assert_eq!(rows(&state), 1);
    assert_eq!((cell(&state, 0, 3), cell(&state, 0, 6)), ("0 of 3".into(), "site-a, site-b".into()));
    let said = details(&state);
    for words in ["Free for     0", "Held by      site-a, site-b", "Keys act at  site-a", "annecy (id-c)", "site-b (id-b)"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // The keys go by the same number, and free it also where only another holder has noted it.
    assert!(availability(&state, Action::LicenseBind).unwrap_err().contains("it covers 3"));
    press(&mut state, "u");
    let offered = match &state.form.as_ref().unwrap().field("of").unwrap().value {
        Value::Choice { options, .. } => options.iter().map(|option| option.id.clone()).collect::<Vec<_>>(),
        _ => Vec::new(),
    };
    assert_eq!(offered, ["id-a", "id-c", "id-b"]);
    press(&mut state, "esc");
    // One that answers is acted at, and the row stays selected.
    let selected = state.table(Context::Licenses).selected.clone();
    fixture::connection(&mut state, "site-a", fixture::away());
    assert!(details(&state).contains("Keys act at  site-b"), "{}", details(&state));
    assert_eq!((state.table(Context::Licenses).selected.clone(), rows(&state)), (selected, 1));
}

#[test]
fn a_page_is_not_scrolled_past_its_end() {
    let mut state = fixture::many();
    update(&mut state, NOW, Message::Resize(80, 12));
    press(&mut state, "1 n");
    write(&mut state, "annecy");
    press(&mut state, "ctrl-s");
    let review = |state: &State| state.form.as_ref().unwrap().review.as_ref().unwrap().scroll;
    for _ in 0..40 {
        press(&mut state, "down");
    }
    let end = review(&state);
    let form = state.form.as_ref().unwrap();
    let lines = super::forms::deploy::review_lines(form, form.review.as_ref().unwrap()).len();
    assert!(end > 0 && lines - end >= 8, "the last page is full: {end} of {lines}");
    press(&mut state, "up");
    assert_eq!(review(&state), end.saturating_sub(1), "no key is lost on the way back");
}
