//! Frames of every screen in every state and size, and the whole loop on a fake terminal.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::stream;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Modifier;
use ratatui::{Frame, Terminal};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::drive::{Console, Ended, Outside, Surface};
use super::paint::Painter;
use super::theme::{Depth, Theme};
use super::view::View;
use super::{Performer, picture};
use crate::core::fixture::{self, NOW};
use crate::core::{Answer, Code, Connection, FleetCommand, FleetEvent, FleetEventKind, Key, Message, Request, State, update};

pub(super) fn painter(depth: Depth, ascii: bool) -> Painter {
    Painter { theme: Theme::default_for(depth), ascii }
}

pub(super) fn frame(state: &mut State, columns: u16, rows: u16, painter: Painter) -> Buffer {
    update(state, NOW, Message::Resize(columns, rows));
    let mut buffer = Buffer::empty(Rect::new(0, 0, columns, rows));
    View::new(painter).draw(state, &mut buffer);
    buffer
}

/// The characters of a frame, and which rows are marked as selected.
pub(super) fn text(buffer: &Buffer) -> String {
    let area = buffer.area;
    let mut out = String::new();
    for y in 0..area.height {
        let mut line = String::new();
        let mut skip = 0;
        for x in 0..area.width {
            let symbol = buffer[(x, y)].symbol();
            if skip == 0 {
                line.push_str(symbol);
                skip = crate::core::text::width(symbol).saturating_sub(1);
            } else {
                skip -= 1;
            }
        }
        let selected = (0..area.width).filter(|x| buffer[(*x, y)].modifier.contains(Modifier::REVERSED)).count() > 20;
        out.push_str(if selected { "»" } else { " " });
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

pub(super) fn press(state: &mut State, keys: &str) {
    for key in keys.split_whitespace() {
        let effects = update(state, NOW, Message::Key(key.parse().unwrap()));
        fixture::answer_lists(state, &effects);
    }
}

const SIZES: [(u16, u16); 3] = [(80, 24), (120, 40), (40, 12)];

fn matrix(name: &str, make: impl Fn() -> State) {
    for (columns, rows) in SIZES {
        let mut state = make();
        state.notices.dismiss();
        let fine = text(&frame(&mut state, columns, rows, painter(Depth::Sixteen, false)));
        insta::assert_snapshot!(format!("{name}@{columns}x{rows}"), fine);
        let plain = frame(&mut state, columns, rows, painter(Depth::None, true));
        for cell in plain.content() {
            assert!(cell.symbol().is_ascii(), "{name}: {:?} is not ASCII", cell.symbol());
            assert_eq!(cell.fg, ratatui::style::Color::Reset, "{name}: colour without colours");
        }
        if (columns, rows) == (80, 24) {
            insta::assert_snapshot!(format!("{name}@ascii"), text(&plain));
        }
    }
}

fn on(keys: &'static str, make: fn() -> State) -> impl Fn() -> State {
    move || {
        let mut state = make();
        press(&mut state, keys);
        state
    }
}

#[test]
fn screens_full() {
    matrix("proxies-many", on("1", fixture::many));
    matrix("remotes-many", on("2", fixture::many));
    matrix("jobs-many", on("3 j", fixture::many));
    matrix("transfers-many", fixture::transferring);
    matrix("backups-many", on("5", fixture::many));
    matrix("points-many", on("5 enter j", fixture::many));
    matrix("runs-many", on("6", fixture::many));
    matrix("run-many", || {
        let mut state = fixture::transferring();
        press(&mut state, "enter");
        state
    });
    matrix("detail-many", on("1 j enter", fixture::many));
}

#[test]
fn screens_empty() {
    for (key, name) in [("1", "proxies"), ("2", "remotes"), ("3", "jobs"), ("4", "transfers"), ("5", "backups"), ("6", "runs")] {
        matrix(&format!("{name}-connecting"), on(key, fixture::connecting));
    }
    matrix("transfers-idle", on("4", fixture::live));
    matrix("backups-nothing", || {
        let mut state = fixture::live();
        let effects = update(&mut state, NOW, Message::Key(Key::char('5')));
        fixture::answer_lists(&mut state, &effects);
        for proxy in &mut state.proxies {
            proxy.points.items.clear();
            proxy.points.version += 1;
        }
        update(&mut state, NOW, Message::Tick);
        state
    });
    matrix("no-proxies", || State::new(Default::default(), crate::core::keymap::Keymap::load(None).0, Vec::new(), NOW, (80, 24)));
}

#[test]
fn screens_stale_and_faulty() {
    for (key, name) in [("1", "proxies"), ("2", "remotes"), ("3", "jobs"), ("4", "transfers"), ("5", "backups"), ("6", "runs")] {
        matrix(&format!("{name}-stale"), on(key, fixture::stale));
    }
    matrix("jobs-error", || {
        let mut state = fixture::live();
        let effects = update(&mut state, NOW, Message::Key(Key::char('3')));
        let error = api::ErrorReport::new("DATABASE", "the daemon's state could not be read: disk I/O error");
        let id = fixture::call_id(&effects, |request| matches!(request, Request::Jobs(_)));
        fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Err(error) });
        state
    });
    matrix("messages", on("3 o 7", fixture::stale));
}

#[test]
fn overlays() {
    matrix("help", on("3 ?", fixture::many));
    matrix("palette", on("1 : r u n", fixture::many));
    matrix("confirm", on("3 D", fixture::many));
    matrix("confirm-typed", on("5 enter D w", fixture::many));
    matrix("form-job", on("3 n", fixture::many));
    matrix("form-job-find", on("3 n w e", fixture::many));
    matrix("form-job-fault", on("3 n ctrl-s", fixture::many));
    matrix("form-job-cron", on("3 n space tab tab tab tab left tab", fixture::many));
    matrix("form-help", on("3 n f1", fixture::many));
    matrix("form-restore", on("5 r", fixture::many));
    matrix("form-remote", on("2 n", fixture::many));
    matrix("form-pool", on("1 a", fixture::many));
    matrix("filter", on("3 / n i", fixture::many));
}

#[test]
fn deployment() {
    matrix("form-deploy", on("1 n", fixture::many));
    matrix("form-deploy-storage", on("1 n x tab tab tab", fixture::many));
    matrix("form-deploy-faults", on("1 n tab tab tab tab tab right tab 1 0 . 0 . 0 . 5 ctrl-s", fixture::many));
    matrix("form-deploy-review", on("1 n a n n e c y ctrl-s", fixture::many));
    matrix("form-deploy-refused", on("1 n x tab tab tab tab tab right tab 1 0 . 0 . 0 . 5 / 2 4 ctrl-s", fixture::many));
    matrix("form-reconfigure", on("1 j m", fixture::kept::kept));
    matrix("form-redeploy", on("1 j r", fixture::kept::kept));
    matrix("form-settings", on("1 e tab tab right right", fixture::kept::kept));
    matrix("form-upgrade", on("1 u", fixture::kept::kept));
    matrix("form-deploy-lost", || {
        let mut state = fixture::many();
        press(&mut state, "1 n a n n e c y");
        fixture::connection(&mut state, "site-a", fixture::away());
        state
    });
    matrix("form-refused", || {
        let mut state = fixture::kept::kept();
        press(&mut state, "1 u / b ctrl-s");
        let sent = update(&mut state, NOW, Message::Key("y".parse().unwrap()));
        let id = fixture::kept::errand_id(&sent);
        let error = api::ErrorReport::new("BUNDLE", "the bundle is signed by a key that site-a does not know: 5f1c09aa")
            .with_next("add the key to [upgrade] keys in /etc/backhaul/backhauld.toml of the proxy, or take another bundle");
        fixture::fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Err(error) });
        state
    });
}

#[test]
fn the_field_that_is_typed_into_is_in_sight() {
    let mut state = fixture::kept::kept();
    press(&mut state, "8 i - - - - - B E G I N ctrl-s");
    for (columns, rows) in SIZES {
        let shown = text(&frame(&mut state, columns, rows, painter(Depth::None, true)));
        assert!(shown.contains("File        -----BEGIN"), "{shown}");
        assert!(shown.contains("That is the licence"), "{shown}");
    }
}

#[test]
fn what_must_be_typed_is_said_at_every_size() {
    for (columns, rows) in SIZES {
        let mut state = fixture::kept::kept();
        press(&mut state, "1 j D");
        let shown = text(&frame(&mut state, columns, rows, painter(Depth::None, true)));
        assert!(shown.contains("Type site-b to go on:"), "{shown}");
    }
}

#[test]
fn kept_proxies() {
    matrix("proxies-kept", on("1", fixture::kept::kept));
    matrix("proxies-detail-kept", on("1 j enter", fixture::kept::kept));
    matrix("proxies-stranger", on("1 j j enter", fixture::kept::kept));
    matrix("proxy-destroy", on("1 j D", fixture::kept::kept));
    matrix("proxy-token", on("1 t", fixture::kept::kept));
    matrix("licenses", on("8", fixture::kept::kept));
    matrix("licenses-none", on("8", fixture::many));
    matrix("license-detail", on("8 enter", fixture::kept::kept));
    matrix("licenses-away", || {
        let mut state = fixture::kept::kept();
        press(&mut state, "8");
        fixture::connection(&mut state, "site-a", fixture::away());
        state
    });
    matrix("doctor-away", || {
        let mut state = fixture::kept::examined(true);
        fixture::connection(&mut state, "site-a", fixture::away());
        state
    });
    matrix("proxy-drain", on("1 o", fixture::kept::kept));
    matrix("license-import", on("8 i", fixture::kept::kept));
    matrix("license-bind", on("8 b", fixture::kept::kept));
    matrix("doctor-running", || fixture::kept::examined(false));
    matrix("doctor", || fixture::kept::examined(true));
    matrix("doctor-detail", || {
        let mut state = fixture::kept::examined(true);
        press(&mut state, "enter");
        state
    });
}

#[test]
fn where_the_rest_of_a_message_is_read_is_said_only_where_a_key_goes_there() {
    let error = api::ErrorReport::new("FULL", "the remote is full ".repeat(12)).with_next("free space");
    for (columns, rows) in SIZES {
        for (keys, said) in [("3", true), ("3 n", false), ("3 /", false), ("3 D", false), ("1 n x ctrl-s", false), ("3 ?", false)]
        {
            let mut state = fixture::many();
            press(&mut state, keys);
            state.notices.tell_error(NOW, "nightly", &error);
            let shown = text(&frame(&mut state, columns, rows, painter(Depth::None, true)));
            // A question or a list of actions may lie over it.
            assert!(!said || shown.contains("the remote is full"), "{keys}: {shown}");
            assert_eq!(shown.contains("  7: more"), said, "{keys}: {shown}");
        }
    }
    // With the keys as they are bound, and for every message that does not fit.
    let mut state = fixture::many();
    state.keymap = crate::core::keymap::Keymap::load(Some(("keys.toml", "[global]\n\"go.messages\" = \"f7\"\n"))).0;
    state.tell(api::LogLevel::Warning, "short");
    assert!(!text(&frame(&mut state, 80, 24, painter(Depth::None, true))).contains(": more"));
    state.tell(api::LogLevel::Warning, "long ".repeat(30));
    assert!(text(&frame(&mut state, 80, 24, painter(Depth::None, true))).contains("f7: more"));
}

#[test]
fn too_small_says_what_is_needed() {
    let mut state = fixture::many();
    let shown = text(&frame(&mut state, 30, 5, painter(Depth::None, true)));
    assert!(shown.contains("needed 40x12, present 30x5"), "{shown}");
    for (columns, rows) in [(1, 1), (0, 0), (39, 50), (200, 11)] {
        frame(&mut state, columns, rows, painter(Depth::None, true));
    }
}

#[test]
fn every_size_draws_every_screen() {
    for columns in (40..160).step_by(7) {
        for rows in [12, 13, 17, 18, 25, 60] {
            for keys in
                ["1", "2", "3", "4", "5", "6", "7", "3 n", "5 r", "3 D", "?", "5 enter D", "6 enter", "8", "1 n", "1 n x ctrl-s"]
            {
                let mut state = fixture::many();
                press(&mut state, keys);
                frame(&mut state, columns, rows, painter(Depth::True, false));
            }
        }
    }
}

#[test]
fn hostile_names_stay_in_their_cells() {
    let mut state = fixture::many();
    press(&mut state, "3 n");
    let buffer = frame(&mut state, 80, 24, painter(Depth::Sixteen, false));
    let all: String = buffer.content().iter().map(|cell| cell.symbol()).collect();
    assert!(!all.contains('\u{1b}') && !all.contains('\u{202e}'));
    assert!(all.contains("evil"), "it is still shown");
}

#[test]
fn pictures_are_made_from_frames() {
    let mut state = fixture::transferring();
    let buffer = frame(&mut state, 100, 30, painter(Depth::True, false));
    let svg = picture::svg(&buffer, None, picture::Ground::Dark);
    assert!(svg.contains("nightly") && svg.len() > 5_000);
}

// The loop.

#[derive(Clone, Default)]
struct FakeFleet {
    asked: Arc<Mutex<Vec<FleetCommand>>>,
    events: Option<UnboundedSender<FleetEvent>>,
}

impl Performer for FakeFleet {
    fn perform(&mut self, command: FleetCommand) {
        if let (Some(events), FleetCommand::Call { proxy, id, request }) = (&self.events, &command) {
            let answer = match request {
                Request::Vms(_) => Some(Answer::Vms(fixture::vms())),
                Request::Remotes(_) => Some(Answer::Remotes(vec![fixture::remote(true)])),
                Request::Jobs(_) => Some(Answer::Jobs(Vec::new())),
                Request::JobCreate(spec) => Some(Answer::JobCreate(api::Job { spec: spec.clone(), ..fixture::job("new", "") })),
                Request::JobRun(_) => Some(Answer::JobRun(fixture::run("run-1", "web-1"))),
                Request::Run(_) => Some(Answer::Run(fixture::detail("run-1", None))),
                _ => None,
            };
            if let Some(answer) = answer {
                let kind = FleetEventKind::Reply { id: *id, result: Ok(answer) };
                let _ = events.send(FleetEvent { proxy: proxy.clone(), kind });
            }
        }
        self.asked.lock().unwrap().push(command);
    }
}

struct FakeTerminal {
    terminal: Terminal<TestBackend>,
    frames: Arc<Mutex<VecDeque<String>>>,
    copied: Vec<String>,
}

impl FakeTerminal {
    fn new() -> Self {
        let terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        Self { terminal, frames: Arc::default(), copied: Vec::new() }
    }
}

impl Surface for FakeTerminal {
    fn size(&self) -> io::Result<(u16, u16)> {
        Ok((80, 24))
    }
    fn draw(&mut self, paint: &mut dyn FnMut(&mut Frame<'_>)) -> io::Result<()> {
        let Ok(_) = self.terminal.draw(|frame| paint(frame));
        self.frames.lock().unwrap().push_back(text(self.terminal.backend().buffer()));
        Ok(())
    }
    fn repaint(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn copy(&mut self, text: &str) -> Result<String, String> {
        self.copied.push(text.to_owned());
        Ok("copied".into())
    }
    fn suspend(&mut self) -> Result<(), String> {
        Err("there is no shell to return to".into())
    }
    fn resume(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs the loop with a script of keys; each waits until a frame shows the text before it.
async fn script(steps: &'static [(&'static str, &'static str)]) -> (Ended, Vec<FleetCommand>, Vec<String>, u64) {
    let (events, receiver) = unbounded_channel();
    let (_outside, outside) = unbounded_channel::<Outside>();
    let fleet = FakeFleet { events: Some(events.clone()), ..FakeFleet::default() };
    let asked = fleet.asked.clone();
    let mut terminal = FakeTerminal::new();
    let frames = terminal.frames.clone();
    let mut state = fixture::connecting();
    state.dirty = crate::core::state::Dirty::Yes;
    for proxy in ["site-a", "site-b"] {
        events.send(FleetEvent { proxy: proxy.into(), kind: FleetEventKind::Connection(Connection::Live) }).unwrap();
        let news = api::ProxyNews { status: fixture::proxy_status(proxy, Vec::new()), changed: Vec::new() };
        events.send(FleetEvent { proxy: proxy.into(), kind: FleetEventKind::News(Box::new(news)) }).unwrap();
    }
    let watched = frames.clone();
    let keys: VecDeque<(&str, Key)> = steps
        .iter()
        .flat_map(|(wait, keys)| {
            keys.split(' ').enumerate().map(move |(n, key)| (if n == 0 { *wait } else { "" }, key.parse().unwrap()))
        })
        .collect();
    let input = stream::unfold(keys, move |mut keys| {
        let watched = watched.clone();
        async move {
            let (wait, key) = keys.pop_front()?;
            // Wait for the condition, with an end in case it never comes.
            for _ in 0..2_000 {
                if watched.lock().unwrap().back().is_some_and(|frame| frame.contains(wait)) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Some((Ok(Message::Key(key)), keys))
        }
    });
    let mut console =
        Console { state, view: View::new(painter(Depth::Sixteen, false)), surface: &mut terminal, performer: fleet, frames: 0 };
    let ended = console.drive(Box::pin(input), receiver, outside).await;
    let count = console.frames;
    let frames = frames.lock().unwrap().iter().cloned().collect();
    let asked = asked.lock().unwrap().clone();
    (ended, asked, frames, count)
}

#[tokio::test]
async fn from_the_landing_screen_to_a_running_job() {
    let (ended, asked, frames, _) = script(&[
        ("idle", "3"),
        ("No job yet", "n"),
        ("evil", "w e b"),
        ("1 option found", "enter"),
        ("web-1", "ctrl-r"),
        ("xvda", "q"),
    ])
    .await;
    assert_eq!(ended, Ended::Left);
    assert!(
        asked.iter().any(|command| matches!(command, FleetCommand::Call { request: Request::JobRun(_), .. })),
        "{}",
        frames.last().unwrap()
    );
    assert!(asked.iter().any(|command| matches!(command, FleetCommand::WatchRun { run, .. } if run == "run-1")));
    assert!(frames[0].contains("connecting"), "the first frame needs no answer:\n{}", frames[0]);
}

#[tokio::test]
async fn an_idle_console_draws_once_and_then_nothing() {
    let (_outside, outside) = unbounded_channel::<Outside>();
    let (_events, receiver) = unbounded_channel();
    let mut terminal = FakeTerminal::new();
    let state = fixture::connecting();
    let mut console = Console {
        state,
        view: View::new(painter(Depth::None, true)),
        surface: &mut terminal,
        performer: FakeFleet::default(),
        frames: 0,
    };
    let idle = tokio::time::timeout(Duration::from_millis(300), console.drive(stream::pending(), receiver, outside)).await;
    assert!(idle.is_err(), "it goes on waiting");
    assert_eq!(console.frames, 1);
}

#[tokio::test]
async fn a_flood_of_progress_is_drawn_a_few_times_only() {
    let (_outside, outside) = unbounded_channel::<Outside>();
    let (events, receiver) = unbounded_channel();
    let mut terminal = FakeTerminal::new();
    let mut state = fixture::transferring();
    state.notices.dismiss();
    for n in 0..5_000u64 {
        let meter =
            api::TransferMeter { phase: api::Phase::Transferring, bytes_done: n, bytes_total: Some(9_000), ..Default::default() };
        let event = api::Event { cursor: 100 + n, at: NOW, kind: api::EventKind::TaskProgress { task: 2, meter } };
        events.send(FleetEvent { proxy: "site-a".into(), kind: FleetEventKind::Run { run: "run-1".into(), event } }).unwrap();
    }
    let mut console = Console {
        state,
        view: View::new(painter(Depth::None, true)),
        surface: &mut terminal,
        performer: FakeFleet::default(),
        frames: 0,
    };
    let _ = tokio::time::timeout(Duration::from_millis(400), console.drive(stream::pending(), receiver, outside)).await;
    assert!(console.frames <= 4, "{} frames", console.frames);
    assert_eq!(console.state.proxies[0].live["run-1"].tasks[1].task.meter.bytes_done, 4_999, "nothing is lost");
}

#[tokio::test]
async fn a_lost_terminal_and_a_signal_end_the_loop() {
    for (sent, expected) in [(Outside::Gone, Ended::Gone), (Outside::Leave, Ended::Left), (Outside::Panicked, Ended::Panicked)] {
        let (outside_sender, outside) = unbounded_channel::<Outside>();
        let (_events, receiver) = unbounded_channel();
        let mut terminal = FakeTerminal::new();
        let mut console = Console {
            state: fixture::live(),
            view: View::new(painter(Depth::None, true)),
            surface: &mut terminal,
            performer: FakeFleet::default(),
            frames: 0,
        };
        outside_sender.send(sent).unwrap();
        assert_eq!(console.drive(stream::pending(), receiver, outside).await, expected);
    }
}

#[test]
fn keys_of_the_table_are_shown_in_the_footer() {
    let mut state = fixture::many();
    press(&mut state, "3");
    let shown = text(&frame(&mut state, 80, 24, painter(Depth::None, true)));
    let footer = shown.lines().last().unwrap();
    for word in ["n new", "r run now", "? help", "q quit"] {
        assert!(footer.contains(word), "{footer}");
    }
    assert_eq!(Key::plain(Code::Enter).to_string(), "enter");
}
