//! What lists and forms show of what is known, and what keys do to it without a question.

use api::{DoctorCheck, ErrorReport, Remote, RemoteTest, Topic, Verdict};

use super::Answer;
use super::action::Context;
use super::effect::Request;
use super::errand::Bringing;
use super::fixture::{self, NOW, kept};
use super::message::{Connection, FleetEventKind};
use super::screens::{self, Screen};
use super::state::{State, Then};
use super::store::Proxy;
use super::tests::calls;
use super::tests_manage::{errands, on_row, press, value, write};

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
