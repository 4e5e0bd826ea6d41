//! What a form must not do by itself: go elsewhere, change under the page that is being read, wait for ever, show a secret.

use api::{DeployedState, ErrorReport};

use super::action::{Action, Context};
use super::effect::{Effect, Request};
use super::errand::{Done, Errand};
use super::fixture::{self, NOW, kept};
use super::key::{Code, Key};
use super::message::{Connection, FleetEventKind, Message, ProxyEntry};
use super::rich::Role;
use super::screens::{self, Screen};
use super::state::State;
use super::tests::calls;
use super::tests_manage::{errands, error, go_to, on_row, press, shown, told, value, write};
use super::{Answer, update};

fn form(state: &State) -> &super::forms::Form {
    state.form.as_ref().unwrap()
}

/// The review of a new proxy by site-a.
fn reviewed() -> State {
    let mut state = fixture::many();
    press(&mut state, "1 n");
    write(&mut state, "annecy");
    press(&mut state, "ctrl-s");
    assert_eq!(form(&state).review.as_ref().unwrap().proxy, "site-a");
    state
}

fn paste(state: &mut State, text: &str) {
    update(state, NOW, Message::Paste(text.into()));
}

const SIGNED: &str = "-----BEGIN BACKHAUL LICENSE-----\nId: hunter2\n-----END BACKHAUL LICENSE-----\n";

#[test]
fn what_was_reviewed_is_accepted_and_nothing_else() {
    let mut state = reviewed();
    fixture::connection(&mut state, "site-a", fixture::away());
    assert!(calls(&press(&mut state, "y")).is_empty());
    assert!(told(&state).contains("site-a is away; nothing was sent"), "{}", told(&state));
    fixture::connection(&mut state, "site-a", Connection::Live);
    // Meanwhile everything else is offered: the page stays what it was.
    let mut offered = kept::options();
    offered.pools[0].srs.remove(0);
    offered.image = Some("/srv/images/another.xva".into());
    state.proxy_mut("site-a").unwrap().options.items = vec![offered];
    update(&mut state, NOW, Message::Tick);
    let sent = press(&mut state, "y");
    let requests = calls(&sent);
    let [Request::DeployStart(spec)] = requests[..] else { panic!("{requests:?}") };
    assert_eq!((spec.name.as_str(), spec.sr.as_deref()), ("annecy", Some("sr-nfs")));
    assert_eq!(spec.image.url, "/srv/images/backhaul-appliance.xva");
    let to: Vec<&str> = sent
        .iter()
        .filter_map(|effect| match effect {
            Effect::Fleet(super::FleetCommand::Call { proxy, request: Request::DeployStart(_), .. }) => Some(proxy.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(to, ["site-a"]);
}

#[test]
fn a_lost_line_empties_no_form_and_sends_it_nowhere_else() {
    let mut state = fixture::many();
    press(&mut state, "1 n");
    write(&mut state, "annecy");
    go_to(&mut state, "sr");
    press(&mut state, "right");
    let chosen = |state: &State| ["proxy", "pool", "sr", "network"].map(|field| value(state, field));
    let before = chosen(&state);
    assert_eq!(before, ["site-a", "pool-1", "sr-lvm", "net-lan"]);
    // With another that could, then with none.
    for lost in ["site-a", "site-b"] {
        fixture::connection(&mut state, lost, fixture::away());
        assert_eq!(chosen(&state), before, "{lost} lost");
    }
    let note = form(&state).field("proxy").unwrap().note.clone();
    assert_eq!(note, Some((Role::Warn, "not connected".into())), "it is said at once");
    assert!(calls(&press(&mut state, "ctrl-s")).is_empty());
    assert_eq!(error(&state, "proxy").as_deref(), Some("not connected"));
    fixture::connection(&mut state, "site-a", Connection::Live);
    assert_eq!(chosen(&state), before);
    assert!(matches!(calls(&press(&mut state, "ctrl-s"))[..], [Request::DeployReview(_)]));

    let mut state = kept::kept();
    press(&mut state, "8 b");
    assert_eq!(value(&state, "to"), "site-b");
    fixture::connection(&mut state, "site-b", fixture::away());
    assert_eq!(value(&state, "to"), "site-b", "it does not move under Enter");
    assert!(errands(&press(&mut state, "ctrl-s")).is_empty());
    assert_eq!(error(&state, "to").as_deref(), Some("not connected"));
}

#[test]
fn another_proxy_is_not_asked_with_the_pools_of_the_first() {
    let mut state = fixture::many();
    press(&mut state, "1 n");
    go_to(&mut state, "proxy");
    update(&mut state, NOW, Message::Key(Key::plain(Code::Right)));
    assert_eq!((value(&state, "proxy"), value(&state, "pool")), ("site-b".into(), String::new()));
}

#[test]
fn a_pasted_licence_goes_where_it_is_not_shown() {
    let mut state = kept::kept();
    press(&mut state, "8 i");
    assert_eq!(form(&state).fields[form(&state).focus].id, "file");
    paste(&mut state, SIGNED);
    assert_eq!(form(&state).fields[form(&state).focus].id, "text");
    assert_eq!(form(&state).typed("file"), None);
    let sent = press(&mut state, "ctrl-s");
    assert!(matches!(errands(&sent)[..], [("site-a", Errand::ImportLicense(super::LicenseSource::Text(_)))]), "{sent:?}");

    // Pasted again, the last one counts; what was said of the empty file goes with the first.
    let mut state = kept::kept();
    press(&mut state, "8 i ctrl-s");
    assert!(error(&state, "file").unwrap().contains("is needed"));
    paste(&mut state, SIGNED);
    assert_eq!(error(&state, "file"), None);
    let second = SIGNED.replace("hunter2", "hunter3");
    paste(&mut state, &second);
    let sent = press(&mut state, "ctrl-s");
    let found = errands(&sent);
    let [(_, Errand::ImportLicense(super::LicenseSource::Text(text)))] = found[..] else { panic!("{sent:?}") };
    assert!(*text == second, "the first is replaced");

    // A terminal that gives a paste as keys: it is neither sent as a path nor said again.
    let mut state = kept::kept();
    press(&mut state, "8 i");
    write(&mut state, "-----BEGIN hunter2");
    assert!(!form(&state).command().contains("hunter2"), "{}", form(&state).command());
    assert!(errands(&press(&mut state, "ctrl-s")).is_empty());
    assert!(error(&state, "file").unwrap().contains("not a path"));
    assert!(!told(&state).contains("hunter2"));
}

#[test]
fn a_review_on_its_way_is_left_by_esc_and_comes_back() {
    let mut state = reviewed();
    press(&mut state, "down down");
    let sent = press(&mut state, "y");
    assert!(form(&state).submitting.is_some());
    press(&mut state, "esc");
    assert!(state.form.is_none(), "{}", told(&state));
    press(&mut state, "n");
    assert!(form(&state).review.is_some() && form(&state).submitting.is_some());
    press(&mut state, "esc");
    fixture::reply(&mut state, &sent, Err(ErrorReport::new("POOL", "no")));
    press(&mut state, "n");
    assert!(form(&state).review.is_none(), "what it said is of before");
    assert_eq!(form(&state).error.as_ref().map(|error| error.code.as_str()), Some("POOL"));
}

#[test]
fn a_refusal_is_in_sight_however_far_the_page_was_scrolled() {
    let mut state = reviewed();
    update(&mut state, NOW, Message::Resize(80, 12));
    press(&mut state, "down j pagedown up");
    assert!(form(&state).review.as_ref().unwrap().scroll > 0);
    let sent = press(&mut state, "y");
    fixture::reply(&mut state, &sent, Err(ErrorReport::new("POOL", "the pool refuses")));
    let page = form(&state).review.as_ref().unwrap();
    assert_eq!(page.scroll, 0);
    assert!(super::forms::deploy::review_lines(form(&state), page)[0].plain().contains("the pool refuses"));
    for (keys, at_end) in [("end", true), ("home", false), ("G", true), ("g", false)] {
        press(&mut state, keys);
        let page = form(&state).review.as_ref().unwrap();
        let lines = super::forms::deploy::review_lines(form(&state), page);
        let last = super::room::last_start(&lines, 80, 12, false);
        assert_eq!(page.scroll, if at_end { last } else { 0 }, "{keys}");
    }
}

#[test]
fn saving_twice_says_that_it_is_on_its_way() {
    let mut state = on_row("site-a");
    press(&mut state, "e");
    go_to(&mut state, "site");
    write(&mut state, "x");
    press(&mut state, "ctrl-s");
    assert!(calls(&press(&mut state, "ctrl-s")).is_empty());
    assert!(told(&state).contains("on its way"), "{}", told(&state));
    for action in [Action::FormSave, Action::FormSaveRun] {
        assert!(super::act::availability(&state, action).unwrap_err().contains("on its way"), "no footer offers it");
    }
}

#[test]
fn settings_send_what_changed_and_show_the_same_command() {
    let mut state = on_row("site-a");
    press(&mut state, "e");
    assert!(calls(&press(&mut state, "ctrl-s")).is_empty());
    assert!(error(&state, "name").unwrap().contains("nothing is changed"));
    go_to(&mut state, "http");
    press(&mut state, "right right");
    assert!(form(&state).command().ends_with("--http-proxy-file FILE"), "{}", form(&state).command());
    assert!(calls(&press(&mut state, "ctrl-s")).is_empty());
    assert!(error(&state, "http-proxy").unwrap().contains("an address is needed"));
    go_to(&mut state, "http");
    press(&mut state, "left");
    assert!(form(&state).command().ends_with("--no-http-proxy"));
    let sent = press(&mut state, "ctrl-s");
    assert!(matches!(calls(&sent)[..], [Request::Configure(params)] if params.http_proxy.as_deref() == Some("")), "{sent:?}");
}

#[test]
fn the_command_of_an_upgrade_is_whole_and_has_no_secret() {
    let mut state = on_row("site-a");
    press(&mut state, "u");
    write(&mut state, "https://me:hunter2@mirror.example/b.bundle?key=hunter3");
    go_to(&mut state, "wait");
    write(&mut state, "5");
    let command = form(&state).command();
    assert_eq!(command, "backhaul proxy upgrade site-a --bundle 'https://***@mirror.example/b.bundle?…' --wait 5m");
    press(&mut state, "esc n");
    go_to(&mut state, "image");
    write(&mut state, "https://me:hunter2@mirror.example/a.xva");
    assert!(!form(&state).command().contains("hunter2"), "{}", form(&state).command());
}

#[test]
fn the_console_is_not_left_unasked_in_the_middle_of_an_errand_of_a_form() {
    let mut state = kept::kept();
    press(&mut state, "8 b ctrl-s");
    for leave in ["ctrl-c", "esc q"] {
        assert!(!press(&mut state, leave).contains(&Effect::Quit), "{leave}");
        let asked = state.confirm.take().map(|confirm| confirm.detail.join(" ")).unwrap_or_default();
        assert!(asked.contains("site-a is asked to bind the licence"), "{leave}: {asked}");
    }
    // An examination is only looked at.
    let mut state = kept::examined(false);
    assert!(press(&mut state, "q").contains(&Effect::Quit));
}

#[test]
fn the_selection_stays_where_the_next_key_is_meant_for() {
    let adopted = |state: &mut State| {
        let entry = ProxyEntry { name: "annecy".into(), url: "https://annecy.example:8443".into() };
        let done = Done::Adopted { entry, fingerprint: "SHA256:aa".into() };
        let sent = {
            super::act::perform(state, Action::ProxyAdopt);
            std::mem::take(&mut state.outbox)
        };
        (kept::errand_id(&sent), done)
    };
    let row = |state: &State| {
        let rows = screens::rows(state, state.screen()).unwrap();
        rows.cell(state.table(Context::Proxies).current().unwrap(), 1).plain()
    };
    for (elsewhere, expected) in [(true, "site-b"), (false, "annecy")] {
        let mut state = on_row("annecy");
        assert_eq!(row(&state), "annecy");
        let (id, done) = adopted(&mut state);
        if elsewhere {
            press(&mut state, "home j");
            assert_eq!(row(&state), "site-b");
        }
        fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Errand(done)) });
        assert_eq!(row(&state), expected);
    }
}

#[test]
fn rows_of_one_name_are_told_apart() {
    let mut state = kept::kept();
    let twin = kept::deployed("id-x", "site-a", DeployedState::Ready);
    state.proxy_mut("site-a").unwrap().deployed.set(vec![twin], NOW);
    update(&mut state, NOW, Message::Tick);
    let rows = screens::rows(&state, &Screen::Proxies).unwrap();
    assert_eq!((rows.len(), rows.cell(2, 1).plain().as_str()), (3, "site-a"));
    assert_ne!(rows.id(0), rows.id(2));
}

#[test]
fn nothing_for_a_stranger_goes_to_somebody_else() {
    let mut state = on_row("annecy");
    press(&mut state, "a");
    assert!(state.form.is_none());
    assert!(told(&state).contains("p adds it"), "{}", told(&state));
    press(&mut state, "n");
    assert_eq!(value(&state, "proxy"), "site-a", "its deployer");
    // A licence is given to the proxy whose licences are looked at.
    let mut state = kept::kept();
    let licenses = state.proxy_mut("site-a").map(|proxy| std::mem::take(&mut proxy.licenses)).unwrap();
    state.proxy_mut("site-b").unwrap().licenses = licenses;
    press(&mut state, "8 i");
    assert_eq!(value(&state, "proxy"), "site-b");
}

#[test]
fn what_is_not_known_is_not_said_of_licences() {
    let says = |state: &State| screens::summary(state, &Screen::Licenses).map(|line| line.plain()).unwrap_or_default();
    let mut state = fixture::connecting();
    assert!(!says(&state).contains("No proxy needs"), "{}", says(&state));
    fixture::connection(&mut state, "site-a", Connection::Live);
    fixture::status(&mut state, "site-a", fixture::proxy_status("site-a", Vec::new()));
    assert!(!says(&state).contains("No proxy needs"), "site-b may");
    assert!(says(&fixture::many()).contains("No proxy needs"));
    // One that is away hides nothing of another.
    let mut state = kept::kept();
    fixture::connection(&mut state, "site-a", fixture::away());
    let said = says(&state);
    assert!(said.contains("Without a licence that counts: site-b") && said.contains("site-a: away"), "{said}");
}

#[test]
fn holding_runs_back_asks_and_letting_them_go_does_not() {
    let mut state = on_row("site-a");
    assert!(calls(&press(&mut state, "o")).is_empty());
    assert!(state.confirm.as_ref().is_some_and(|confirm| confirm.detail.join(" ").contains("until o lets runs start again")));
    assert!(matches!(calls(&press(&mut state, "y"))[..], [Request::Drain(params)] if params.on));
    let mut state = on_row("site-b");
    assert!(matches!(calls(&press(&mut state, "o"))[..], [Request::Drain(params)] if !params.on), "it is draining");
}

#[test]
fn an_examination_that_goes_on_is_looked_at_not_begun_anew() {
    let mut state = kept::examined(false);
    press(&mut state, "esc");
    assert!(errands(&press(&mut state, "d")).is_empty());
    assert_eq!(*state.screen(), Screen::Doctor { proxy: "site-a".into() });
    assert_eq!(screens::rows(&state, state.screen()).unwrap().len(), 3);
    // Also when the line is gone; and what was found does not look like now.
    let mut state = kept::examined(true);
    fixture::connection(&mut state, "site-a", fixture::away());
    let said = screens::summary(&state, state.screen()).unwrap().plain();
    assert!(said.contains("site-a away since") && said.contains("found at"), "{said}");
}

#[test]
fn a_form_does_not_wait_for_a_proxy_that_is_gone() {
    let mut state = on_row("site-b");
    press(&mut state, "e");
    go_to(&mut state, "site");
    write(&mut state, "x");
    press(&mut state, "ctrl-s");
    assert!(form(&state).submitting.is_some());
    super::manage::drop_entry(&mut state, "site-b");
    let id = kept::errand_id(&std::mem::take(&mut state.outbox));
    fixture::fleet(&mut state, "site-b", FleetEventKind::Reply { id, result: Ok(Answer::Errand(Done::Dropped)) });
    assert_eq!(form(&state).submitting, None);
    assert!(form(&state).error.as_ref().unwrap().message.contains("no longer in the configuration"));
    press(&mut state, "esc");
    assert!(state.form.is_none());
}

#[test]
fn a_hidden_address_is_no_fault() {
    let mut state = on_row("site-a");
    press(&mut state, "e");
    assert!(!shown(&state, "http-proxy"));
    assert_eq!(form(&state).field("http-proxy").unwrap().label, "Address");
}
