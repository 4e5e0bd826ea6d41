//! Proxies deployed, changed, examined and licensed with the keyboard: messages in, state and effects out.

use api::{AddressSpec, DeployedState, ErrorReport, LicenseOffer, Login, Outcome, Topic};

use super::action::{Action, Context};
use super::effect::{Effect, FleetCommand, Request};
use super::errand::{Done, Errand, LicenseSource};
use super::fixture::{self, NOW, kept};
use super::key::Key;
use super::message::{Connection, FleetEventKind, Message, ProxyEntry};
use super::screens::Screen;
use super::state::State;
use super::tests::calls;
use super::{Answer, update};

pub(super) fn press(state: &mut State, keys: &str) -> Vec<Effect> {
    let mut all = Vec::new();
    for key in keys.split(' ') {
        let effects = update(state, NOW, Message::Key(key.parse().unwrap()));
        fixture::answer_lists(state, &effects);
        all.extend(effects);
    }
    all
}

pub(super) fn write(state: &mut State, text: &str) {
    for c in text.chars() {
        let effects = update(state, NOW, Message::Key(Key::char(c)));
        fixture::answer_lists(state, &effects);
    }
}

pub(super) fn errands(effects: &[Effect]) -> Vec<(&str, &Errand)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Fleet(FleetCommand::Errand { proxy, errand, .. }) => Some((proxy.as_str(), errand)),
            _ => None,
        })
        .collect()
}

/// Puts the keys into a field of the open form.
pub(super) fn go_to(state: &mut State, field: &str) {
    let focus = |state: &State| state.form.as_ref().map(|form| form.fields[form.focus].id);
    for key in ["up", "down"] {
        for _ in 0..40 {
            if focus(state) == Some(field) {
                return;
            }
            press(state, key);
        }
    }
    panic!("no way to {field}: {:?}", focus(state));
}

pub(super) fn error(state: &State, field: &str) -> Option<String> {
    let form = state.form.as_ref().unwrap();
    form.trouble(form.field(field).unwrap()).map(str::to_owned)
}

pub(super) fn shown(state: &State, field: &str) -> bool {
    !state.form.as_ref().unwrap().field(field).unwrap().hidden
}

pub(super) fn value(state: &State, field: &str) -> String {
    state.form.as_ref().unwrap().value(field).to_owned()
}

pub(super) fn told(state: &State) -> String {
    state.notices.all.back().map(|notice| notice.text.clone()).unwrap_or_default()
}

/// The list of deployed proxies of site-a as it is from now on.
fn announce(state: &mut State, deployed: Vec<api::Deployed>) -> Vec<Effect> {
    let asked = fixture::news(state, "site-a", &[Topic::Deployed]);
    let id = fixture::call_id(&asked, |request| matches!(request, Request::Deployed(_)));
    fixture::fleet(state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Deployed(deployed)) })
}

#[test]
fn a_proxy_is_deployed_with_a_few_keys_and_comes_into_the_list_by_itself() {
    let mut state = fixture::many();
    press(&mut state, "1 n");
    assert_eq!(value(&state, "pool"), "pool-1", "the pool that can take it");
    assert_eq!((value(&state, "sr"), value(&state, "network")), ("sr-nfs".into(), "net-lan".into()));
    assert_eq!(value(&state, "image"), "/srv/images/backhaul-appliance.xva", "what the deployer has at hand");
    write(&mut state, "annecy");
    let sent = press(&mut state, "ctrl-s");
    let requests = calls(&sent);
    let [Request::DeployReview(spec)] = requests[..] else { panic!("{requests:?}") };
    assert_eq!((spec.name.as_str(), spec.sr.as_deref(), spec.vcpus), ("annecy", Some("sr-nfs"), 2));
    assert!(requests.iter().all(|request| !request.writes()), "nothing has been touched");
    let form = state.form.as_ref().unwrap();
    let page: Vec<String> =
        super::forms::deploy::review_lines(form, form.review.as_ref().unwrap()).iter().map(|line| line.plain()).collect();
    let page = page.join("\n");
    for words in
        ["nothing has been touched yet", "“annecy” in the pool", "upload", "at most 1 h 00 m", "less than the disk could grow to"]
    {
        assert!(page.contains(words), "{words}:\n{page}");
    }
    // Neither Enter nor the key that asked for the page accepts it.
    assert!(calls(&press(&mut state, "enter ctrl-s")).is_empty());
    let sent = press(&mut state, "y");
    assert!(matches!(calls(&sent)[..], [Request::DeployStart(spec)] if spec.name == "annecy"), "{sent:?}");
    assert!(calls(&press(&mut state, "y")).is_empty(), "once");

    let run = api::Run { kind: api::RunKind::Deploy, job: None, ..fixture::run("run-id-c", "annecy") };
    let effects = fixture::reply(&mut state, &sent, Ok(Answer::DeployStart(run)));
    assert!(state.form.is_none());
    assert_eq!(*state.screen(), Screen::Transfers);
    let requests = calls(&effects);
    assert!(requests.iter().any(|request| matches!(request, Request::Run(_))), "it is followed: {requests:?}");
    let id = fixture::call_id(&effects, |request| matches!(request, Request::Deployed(_)));
    let under_way = kept::deployed("id-c", "annecy", DeployedState::Deploying);
    let effects =
        fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Deployed(vec![under_way])) });
    assert!(errands(&effects).is_empty());

    press(&mut state, "3");
    let effects = announce(&mut state, vec![kept::deployed("id-c", "annecy", DeployedState::Ready)]);
    let found = errands(&effects);
    let [("site-a", Errand::Adopt { deployed, known: None })] = found[..] else { panic!("{effects:?}") };
    assert_eq!(deployed, "id-c");
    let id = kept::errand_id(&effects);
    let entry = ProxyEntry { name: "annecy".into(), url: "https://annecy.example:8443".into() };
    let done = Done::Adopted { entry, fingerprint: "SHA256:aa".into() };
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Errand(done)) });
    assert_eq!(state.proxies.iter().map(|proxy| proxy.name()).collect::<Vec<_>>(), ["site-a", "site-b", "annecy"]);
    assert!(told(&state).contains("annecy answers at https://annecy.example:8443"), "{}", told(&state));
    assert!(state.expected.is_empty());
    assert!(errands(&announce(&mut state, vec![kept::deployed("id-c", "annecy", DeployedState::Ready)])).is_empty(), "once");
}

#[test]
fn a_deployment_that_fails_adds_nothing() {
    let mut state = fixture::many();
    press(&mut state, "1 n");
    write(&mut state, "annecy");
    press(&mut state, "ctrl-s");
    let sent = press(&mut state, "y");
    let effects = fixture::reply(&mut state, &sent, Ok(Answer::DeployStart(fixture::run("run-id-c", "annecy"))));
    // What was asked before the run began says nothing about it.
    let id = fixture::call_id(&effects, |request| matches!(request, Request::Deployed(_)));
    let meanwhile = fixture::news(&mut state, "site-a", &[Topic::Deployed]);
    assert!(calls(&meanwhile).is_empty());
    let effects = fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Deployed(Vec::new())) });
    assert_eq!(state.expected.len(), 1, "it is asked again");
    let id = fixture::call_id(&effects, |request| matches!(request, Request::Deployed(_)));
    let effects = fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Deployed(Vec::new())) });
    assert!(errands(&effects).is_empty() && state.expected.is_empty());
    assert_eq!(state.proxies.len(), 2);
}

#[test]
fn faults_stand_beside_their_fields_while_one_types() {
    let mut state = fixture::many();
    press(&mut state, "1 n");
    for (field, typed, words) in [
        ("vcpus", "1", "at least 2"),
        ("vcpus", "32", "16 processors at most"),
        ("memory", "1.9 GiB", "at least 2 GiB"),
        ("memory", "64 GiB", "the most is 24.0 GiB"),
        ("disk", "1 GiB", "2 GiB on thin storage"),
        ("port", "0", "1 to 65535"),
        ("name", "site-b", "knows a proxy of this name"),
        ("image-sha256", "12", "64 hexadecimal digits"),
    ] {
        go_to(&mut state, field);
        press(&mut state, "ctrl-u");
        write(&mut state, typed);
        let told = error(&state, field).unwrap_or_default();
        assert!(told.contains(words), "{field} = {typed}: {told}");
        press(&mut state, "ctrl-u");
    }
    go_to(&mut state, "vcpus");
    write(&mut state, "4");
    assert_eq!(error(&state, "vcpus"), None);
}

#[test]
fn the_command_of_a_form_holds_no_secret_of_an_image() {
    let mut state = fixture::many();
    press(&mut state, "1 n");
    go_to(&mut state, "image");
    press(&mut state, "ctrl-u");
    write(&mut state, "https://user:hunter2@store/x.xva?sig=hunter2");
    let line = state.form.as_ref().unwrap().command();
    assert!(line.contains("https://***@store/x.xva?…") && !line.contains("hunter2"), "{line}");
}

#[test]
fn thick_storage_wants_the_whole_disk_and_what_cannot_take_it_is_passed_over() {
    let mut state = fixture::many();
    press(&mut state, "1 n");
    go_to(&mut state, "disk");
    write(&mut state, "19 GiB");
    assert_eq!(error(&state, "disk"), None, "enough on thin storage");
    go_to(&mut state, "sr");
    press(&mut state, "right");
    assert_eq!(value(&state, "sr"), "sr-lvm");
    let told = error(&state, "disk").unwrap();
    assert!(told.contains("Local storage reserves all of it (thick)"), "{told}");
    press(&mut state, "right");
    assert_eq!(value(&state, "sr"), "sr-nfs", "the full one is passed over");
    // A disk that does not fit makes the thick storage one that cannot take it, with why.
    go_to(&mut state, "disk");
    press(&mut state, "ctrl-u");
    write(&mut state, "100 GiB");
    let form = state.form.as_ref().unwrap();
    let super::forms::Value::Choice { options, .. } = &form.field("sr").unwrap().value else { panic!() };
    let why = |id: &str| options.iter().find(|option| option.id == id).and_then(|option| option.why_not.clone());
    assert_eq!(why("sr-lvm").as_deref(), Some("60.0 GiB free, the disk takes 100.0 GiB"));
    assert_eq!(why("sr-full").as_deref(), Some("1.0 GiB free, 2.0 GiB needed"));
    assert_eq!(why("sr-nfs"), None);
}

#[test]
fn an_address_is_asked_for_only_where_it_is_static() {
    let mut state = fixture::many();
    press(&mut state, "1 n");
    write(&mut state, "annecy");
    assert!(!shown(&state, "ip") && !shown(&state, "login-password"));
    go_to(&mut state, "address");
    press(&mut state, "right");
    assert!(shown(&state, "ip") && shown(&state, "gateway") && shown(&state, "dns"));
    go_to(&mut state, "ip");
    write(&mut state, "10.0.0.5/24");
    go_to(&mut state, "gateway");
    write(&mut state, "10.9.0.1");
    assert!(error(&state, "gateway").unwrap().contains("outside of 10.0.0.0/24"));
    press(&mut state, "ctrl-u");
    write(&mut state, "10.0.0.1");
    go_to(&mut state, "login");
    press(&mut state, "right");
    go_to(&mut state, "login-password");
    write(&mut state, "hunter2-hunter2");
    go_to(&mut state, "http-proxy");
    write(&mut state, "http://user:hunter2@proxy:3128");
    let form = state.form.as_ref().unwrap();
    assert!(!form.command().contains("hunter2"), "{}", form.command());
    assert!(form.command().contains("--http-proxy-file FILE") && form.command().contains("--ip 10.0.0.5/24"));
    assert!(!format!("{form:?}").contains("hunter2"));
    let sent = press(&mut state, "ctrl-s");
    let requests = calls(&sent);
    let [Request::DeployReview(spec)] = requests[..] else { panic!("{requests:?}") };
    assert!(matches!(&spec.address, AddressSpec::Static { network, .. } if network.to_string() == "10.0.0.5/24"));
    assert!(matches!(&spec.login, Some(Login::Password { password }) if password == "hunter2-hunter2"));
    // The proxy knows more: the address is in use. It says so on the page and at the field, and nothing starts.
    assert!(calls(&press(&mut state, "y")).is_empty());
    press(&mut state, "esc");
    let form = state.form.as_ref().unwrap();
    assert_eq!(form.fields[form.focus].id, "ip");
    assert!(error(&state, "ip").unwrap().contains("in use by VM web-1"));
    go_to(&mut state, "ip");
    press(&mut state, "backspace");
    assert_eq!(error(&state, "ip"), None, "what was said counts no more");
}

#[test]
fn licences_are_spoken_of_in_the_form() {
    let with = |offer: LicenseOffer| {
        let mut state = fixture::many();
        let effects = update(&mut state, NOW, Message::Key(Key::char('1')));
        fixture::answer_lists(&mut state, &effects);
        let effects = update(&mut state, NOW, Message::Key(Key::char('n')));
        let id = fixture::call_id(&effects, |request| matches!(request, Request::DeployOptions(_)));
        let options = api::DeployOptions { licensing: offer, ..kept::options() };
        fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::DeployOptions(options)) });
        state
    };
    let label = |state: &State| state.form.as_ref().unwrap().chosen_labels("license").join("");
    let note = |state: &State| state.form.as_ref().unwrap().field("license").unwrap().note.clone().map(|note| note.1);

    let state = with(LicenseOffer::default());
    assert_eq!((label(&state).as_str(), note(&state)), ("not needed", None));
    let state = with(kept::offer(kept::licenses()));
    assert_eq!(label(&state), "the first free one");
    assert!(note(&state).unwrap().contains("expires in 12 days"));
    let mut state = with(kept::offer(vec![kept::license("c0ffee00", 1, &[("id-c", "annecy")])]));
    assert!(note(&state).unwrap().contains("no free licence"), "said before anything starts");
    write(&mut state, "grenoble-2");
    assert!(calls(&press(&mut state, "ctrl-s")).is_empty());
    assert!(error(&state, "license").unwrap().contains("no free licence"));
}

#[test]
fn a_closed_form_is_a_draft_and_a_review_is_left_by_esc() {
    let mut state = fixture::many();
    press(&mut state, "1 n");
    write(&mut state, "annecy");
    press(&mut state, "ctrl-s");
    assert!(state.form.as_ref().unwrap().review.is_some());
    press(&mut state, "esc");
    assert!(state.form.as_ref().is_some_and(|form| form.review.is_none()));
    press(&mut state, "esc");
    assert!(state.form.is_none());
    press(&mut state, "n");
    assert_eq!(value(&state, "name"), "annecy");
}

#[test]
fn a_proxy_that_cannot_deploy_says_why() {
    let mut state = fixture::many();
    update(&mut state, NOW, Message::Key(Key::char('1')));
    let effects = update(&mut state, NOW, Message::Key(Key::char('n')));
    let id = fixture::call_id(&effects, |request| matches!(request, Request::DeployOptions(_)));
    let old = ErrorReport::new("METHOD_NOT_FOUND", "there is no method deploy.options");
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Err(old) });
    write(&mut state, "x");
    assert!(calls(&press(&mut state, "ctrl-s")).is_empty());
    assert_eq!(error(&state, "pool").as_deref(), Some("there is no method deploy.options"));
}

/// [`kept::kept`], on the row of a proxy.
pub(super) fn on_row(name: &str) -> State {
    let mut state = kept::kept();
    press(&mut state, "1");
    let id = {
        let rows = super::screens::rows(&state, &Screen::Proxies).unwrap();
        let row = (0..rows.len()).find(|row| rows.cell(*row, 1).plain() == name).unwrap();
        rows.id(row).into_owned()
    };
    state.table_mut(Context::Proxies).select_id(id);
    update(&mut state, NOW, Message::Tick);
    state
}

#[test]
fn the_list_shows_versions_draining_and_proxies_it_cannot_reach_yet() {
    let state = on_row("site-a");
    let rows = super::screens::rows(&state, state.screen()).unwrap();
    let text = |row: usize| (0..7).map(|column| rows.cell(row, column).plain().trim().to_owned()).collect::<Vec<_>>();
    assert_eq!(rows.len(), 4);
    assert_eq!((text(1)[0].as_str(), text(1)[3].as_str()), ("draining", "older 0.0.9 testing"));
    assert!(text(1)[6].contains("no licence is bound"), "{:?}", text(1));
    assert_eq!((text(2)[0].as_str(), text(2)[1].as_str()), ("not added", "annecy"));
    assert_eq!((text(3)[0].as_str(), text(3)[1].as_str()), ("deploying", "valence"));
    let details: Vec<String> = super::screens::proxies::details(&state, 1).iter().map(|line| line.plain()).collect();
    let details = details.join("\n");
    for words in [
        "older than this console, 0.1.0",
        "did not work, 0.0.9 runs again",
        "missing: no licence",
        "site-a, ready since",
        "vm-id-b",
    ] {
        assert!(details.contains(words), "{words}:\n{details}");
    }
}

#[test]
fn a_stranger_is_added_with_a_key_and_a_known_one_not_again() {
    let mut state = on_row("annecy");
    let effects = press(&mut state, "p");
    assert!(
        matches!(errands(&effects)[..], [("site-a", Errand::Adopt { deployed, known: None })] if deployed == "id-c"),
        "{effects:?}"
    );
    let mut state = on_row("site-b");
    assert!(errands(&press(&mut state, "p")).is_empty());
    assert!(told(&state).contains("knows site-b already"));
    let mut state = on_row("valence");
    assert!(errands(&press(&mut state, "p")).is_empty());
    assert!(told(&state).contains("is being deployed"));
}

#[test]
fn destroying_asks_for_the_name_and_takes_the_entry_along() {
    let mut state = on_row("site-b");
    press(&mut state, "D");
    write(&mut state, "site-a");
    assert!(calls(&press(&mut state, "enter")).is_empty());
    press(&mut state, "ctrl-u");
    write(&mut state, "site-b");
    let sent = press(&mut state, "enter");
    let requests = calls(&sent);
    let [Request::Destroy(params)] = requests[..] else { panic!("{requests:?}") };
    assert_eq!((params.id.as_str(), params.name.as_str()), ("id-b", "site-b"));
    let run = api::Run { kind: api::RunKind::Destroy, job: None, ..fixture::run("run-gone", "site-b") };
    let effects = fixture::reply(&mut state, &sent, Ok(Answer::Destroy(run)));
    assert_eq!(*state.screen(), Screen::Transfers);
    let id = fixture::call_id(&effects, |request| matches!(request, Request::Deployed(_)));
    let changing = api::Deployed { run: "run-gone".into(), ..kept::deployed("id-b", "site-b", DeployedState::Changing) };
    let effects =
        fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Deployed(vec![changing])) });
    assert!(errands(&effects).is_empty());
    let effects = announce(&mut state, Vec::new());
    assert!(matches!(errands(&effects)[..], [("site-b", Errand::Drop)]), "{effects:?}");
    let id = kept::errand_id(&effects);
    fixture::fleet(&mut state, "site-b", FleetEventKind::Reply { id, result: Ok(Answer::Errand(Done::Dropped)) });
    assert!(state.proxy("site-b").is_none());
}

#[test]
fn a_destruction_that_fails_leaves_the_entry() {
    let mut state = on_row("site-b");
    press(&mut state, "D");
    write(&mut state, "site-b");
    let sent = press(&mut state, "enter");
    let effects = fixture::reply(&mut state, &sent, Ok(Answer::Destroy(fixture::run("run-gone", "site-b"))));
    let id = fixture::call_id(&effects, |request| matches!(request, Request::Deployed(_)));
    let still = api::Deployed { run: "run-gone".into(), ..kept::deployed("id-b", "site-b", DeployedState::Ready) };
    let effects = fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Deployed(vec![still])) });
    assert!(errands(&effects).is_empty() && state.expected.is_empty());
    assert!(state.proxy("site-b").is_some());
}

#[test]
fn address_and_resources_are_changed_in_a_form_that_sends_only_what_changed() {
    let mut state = on_row("site-b");
    press(&mut state, "m");
    assert_eq!((value(&state, "vcpus"), value(&state, "memory")), ("2".into(), "2.0 GiB".into()));
    assert!(calls(&press(&mut state, "ctrl-s")).is_empty());
    assert!(error(&state, "address").unwrap().contains("nothing is changed"));
    go_to(&mut state, "vcpus");
    press(&mut state, "ctrl-u");
    write(&mut state, "4");
    assert!(state.form.as_ref().unwrap().command().ends_with("--vcpus 4"));
    assert!(calls(&press(&mut state, "ctrl-s")).is_empty(), "it asks: the proxy is restarted");
    let sent = press(&mut state, "y");
    let requests = calls(&sent);
    let [Request::Reconfigure(params)] = requests[..] else { panic!("{requests:?}") };
    assert_eq!((params.id.as_str(), params.vcpus, params.memory, &params.address), ("id-b", Some(4), None, &None));
    let effects = fixture::reply(&mut state, &sent, Ok(Answer::Reconfigure(fixture::run("run-id-b", "site-b"))));
    assert!(state.form.is_none());
    // Done: the entry is brought up to date under the name it has here.
    let id = fixture::call_id(&effects, |request| matches!(request, Request::Deployed(_)));
    let ready = kept::deployed("id-b", "site-b", DeployedState::Ready);
    let effects = fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Deployed(vec![ready])) });
    let found = errands(&effects);
    assert!(matches!(&found[..], [("site-a", Errand::Adopt { known: Some(known), .. })] if known == "site-b"), "{effects:?}");
}

#[test]
fn redeploying_asks_and_keeps_image_and_storage_unless_told_otherwise() {
    let mut state = on_row("site-b");
    press(&mut state, "r ctrl-s");
    let sent = press(&mut state, "y");
    let requests = calls(&sent);
    let [Request::Redeploy(params)] = requests[..] else { panic!("{requests:?}") };
    assert_eq!((params.id.as_str(), &params.image, &params.sr), ("id-b", &None, &None));
    fixture::reply(&mut state, &sent, Ok(Answer::Redeploy(fixture::run("run-id-b", "site-b"))));
    assert!(state.form.is_none());
}

#[test]
fn forgetting_takes_the_entry_along() {
    let mut state = on_row("site-b");
    press(&mut state, "F");
    let sent = press(&mut state, "y");
    assert!(matches!(calls(&sent)[..], [Request::Forget(params)] if params.id == "id-b"), "{sent:?}");
    let effects = fixture::reply(&mut state, &sent, Ok(Answer::Forget(true)));
    assert!(matches!(errands(&effects)[..], [("site-b", Errand::Drop)]), "{effects:?}");
}

#[test]
fn settings_token_certificate_drain_and_upgrade() {
    let mut state = on_row("site-a");
    press(&mut state, "e");
    assert_eq!((value(&state, "name"), value(&state, "site")), ("site-a".into(), "Grenoble".into()));
    go_to(&mut state, "site");
    press(&mut state, "ctrl-u");
    let sent = press(&mut state, "ctrl-s");
    let requests = calls(&sent);
    let [Request::Configure(params)] = requests[..] else { panic!("{requests:?}") };
    assert_eq!((params.name.as_deref(), params.site.as_deref(), params.http_proxy.as_deref()), (None, Some(""), None));
    fixture::reply(&mut state, &sent, Ok(Answer::Configure(fixture::proxy_status("site-a", Vec::new()))));
    assert!(state.form.is_none());

    assert!(errands(&press(&mut state, "t")).is_empty(), "it asks");
    assert!(matches!(errands(&press(&mut state, "y"))[..], [("site-a", Errand::RotateToken)]));
    press(&mut state, "C");
    assert!(matches!(errands(&press(&mut state, "y"))[..], [("site-a", Errand::RenewCertificate)]));
    let sent = press(&mut state, "o y");
    assert!(matches!(calls(&sent)[..], [Request::Drain(api::DrainParams { on: true })]), "{sent:?}");

    press(&mut state, "u");
    write(&mut state, "/tmp/backhaul.bundle");
    assert!(errands(&press(&mut state, "ctrl-s")).is_empty(), "it asks");
    let sent = press(&mut state, "y");
    let found = errands(&sent);
    let [("site-a", Errand::Upgrade { bundle, wait_seconds, downgrade })] = found[..] else { panic!("{sent:?}") };
    assert_eq!((bundle.as_str(), *wait_seconds, *downgrade), ("/tmp/backhaul.bundle", 3600, false));
    let upgrade = api::UpgradeState {
        phase: api::UpgradePhase::Draining,
        from: "0.1.0".into(),
        to: "0.2.0".into(),
        since: NOW,
        run: Some("a1".into()),
        error: None,
    };
    let id = kept::errand_id(&sent);
    let done = Done::Upgrading(Box::new(upgrade.clone()));
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Errand(done)) });
    assert!(state.form.is_none());
    // The restart that comes of it is no alarm.
    let away = ErrorReport::new("CUT", "the connection broke");
    let retrying = Connection::Retrying { error: away, next: NOW };
    fixture::fleet(&mut state, "site-a", FleetEventKind::Connection(retrying));
    assert!(state.notices.toast(NOW).is_some_and(|toast| toast.text.contains("restarts for its upgrade")));
    fixture::fleet(&mut state, "site-a", FleetEventKind::Connection(Connection::Live));
    let running = api::ProxyStatus { upgrade: Some(Box::new(upgrade)), ..fixture::proxy_status("site-a", Vec::new()) };
    fixture::status(&mut state, "site-a", running);
    let rows = super::screens::rows(&state, state.screen()).unwrap();
    assert!(rows.cell(0, 0).plain().contains("upgrading"));
    drop(rows);
    assert!(super::act::availability(&state, Action::ProxyUpgrade).unwrap_err().contains("going on"));
}

#[test]
fn a_wrong_bundle_keeps_the_form_and_says_why() {
    let mut state = on_row("site-a");
    press(&mut state, "u");
    write(&mut state, "/nowhere");
    let sent = press(&mut state, "ctrl-s y");
    let id = kept::errand_id(&sent);
    let error = ErrorReport::new("FILE", "cannot read /nowhere: no such file");
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Err(error.clone()) });
    let form = state.form.as_ref().unwrap();
    assert_eq!((form.error.as_ref(), form.submitting), (Some(&error), None));
}

#[test]
fn the_console_is_not_left_unasked_while_a_token_is_made() {
    let mut state = on_row("site-a");
    press(&mut state, "t y");
    assert!(!press(&mut state, "q").contains(&Effect::Quit));
    assert!(state.confirm.as_ref().is_some_and(|confirm| confirm.detail.join(" ").contains("New token for site-a")));
    assert!(press(&mut state, "y").contains(&Effect::Quit));
}

#[test]
fn licences_are_imported_by_path_or_paste_bound_freed_and_removed() {
    let mut state = kept::kept();
    press(&mut state, "8");
    assert_eq!(*state.screen(), Screen::Licenses);
    press(&mut state, "i tab");
    let text = "-----BEGIN BACKHAUL LICENSE-----\r\nId: hunter2\r-----END BACKHAUL LICENSE-----\n";
    update(&mut state, NOW, Message::Paste(text.into()));
    let form = state.form.as_ref().unwrap();
    assert!(!form.command().contains("hunter2") && !format!("{form:?}").contains("hunter2"));
    let sent = press(&mut state, "ctrl-s");
    let found = errands(&sent);
    let [("site-a", Errand::ImportLicense(LicenseSource::Text(kept_text)))] = found[..] else { panic!("{sent:?}") };
    assert_eq!(kept_text.lines().count(), 3, "line ends stay: they are signed");
    let id = kept::errand_id(&sent);
    let done = Done::LicenseKept(Box::new(kept::licenses().swap_remove(1)));
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Errand(done)) });
    assert!(state.form.is_none());

    let mut state = kept::kept();
    press(&mut state, "8 b");
    assert_eq!(value(&state, "to"), "site-b", "site-a runs under it already");
    let sent = press(&mut state, "ctrl-s");
    let found = errands(&sent);
    assert!(matches!(&found[..], [("site-a", Errand::BindLicense { to, .. })] if to == "site-b"), "{sent:?}");

    let mut state = kept::kept();
    press(&mut state, "8 u");
    let sent = press(&mut state, "y");
    let found = errands(&sent);
    assert!(matches!(&found[..], [("site-a", Errand::UnbindLicense { of, .. })] if of.proxy == "id-a"), "{sent:?}");
    let mut state = kept::kept();
    press(&mut state, "8 D");
    assert!(told(&state).contains("it serves site-a"));
    press(&mut state, "j j D");
    let sent = press(&mut state, "y");
    assert!(matches!(calls(&sent)[..], [Request::LicenseRemove(params)] if params.id.starts_with("77aa")), "{sent:?}");
}

#[test]
fn an_examination_comes_line_by_line() {
    let mut state = kept::examined(false);
    assert_eq!(*state.screen(), Screen::Doctor { proxy: "site-a".into() });
    let lines = |state: &State| super::screens::rows(state, state.screen()).unwrap().len();
    assert_eq!(lines(&state), 3);
    assert!(errands(&press(&mut state, "r")).is_empty(), "one at a time");
    let late = api::DoctorCheck { ..kept::checks().swap_remove(0) };
    let kind = FleetEventKind::Check { id: super::RequestId(4_711), check: Box::new(late) };
    fixture::fleet(&mut state, "site-a", kind);
    assert_eq!(lines(&state), 3, "a line of another examination");
    let mut state = kept::examined(true);
    let summary = super::screens::summary(&state, state.screen()).unwrap().plain();
    assert!(summary.contains("1 fail") && summary.contains("1 warning") && summary.contains("5 pass"), "{summary}");
    assert!(matches!(errands(&press(&mut state, "r"))[..], [("site-a", Errand::Examine)]));
    assert_eq!(lines(&state), 0, "it begins anew");
    let sent = press(&mut state, "b");
    assert!(matches!(errands(&sent)[..], [("site-a", Errand::SaveSupportBundle)]));
    let id = kept::errand_id(&sent);
    let done = Done::Saved { path: "/tmp/support.txt".into() };
    fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Errand(done)) });
    assert!(told(&state).contains("/tmp/support.txt"));
}

#[test]
fn a_run_of_steps_is_told_to_its_end() {
    let mut state = fixture::many();
    let ended = api::EventKind::RunEnded { outcome: Outcome::Success, error: None, summary: Default::default() };
    let events = [
        api::EventKind::RunQueued { kind: api::RunKind::Deploy, job: None, label: "annecy".into() },
        api::EventKind::TaskStarted { task: 1, parent: None, kind: api::TaskKind::Step, label: "check".into(), object: None },
        ended,
    ];
    for (n, kind) in events.into_iter().enumerate() {
        let event = api::Event { cursor: n as u64 + 1, at: NOW, kind };
        fixture::fleet(&mut state, "site-a", FleetEventKind::Run { run: "run-d".into(), event });
    }
    assert!(told(&state).contains("annecy on site-a: done"), "{}", told(&state));
    assert!(!told(&state).contains("0 B"), "nothing is said of bytes where none moved: {}", told(&state));
}
