//! The real console on a real terminal: what it writes there, what it does with what is typed, and how it gives the
//! terminal back, whoever asks.

mod support;
#[path = "pty/terminal.rs"]
mod terminal;

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use backhaul::config::{Config, Proxy, Token, check_url};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{FakeProxy, Reply, TOKEN};
use terminal::{Seen, Setup, Terminal};
use vt100::{Color, MouseProtocolMode};

/// Nothing written for so long counts as silence.
const SILENCE: Duration = Duration::from_millis(1_500);

const ANY_CERTIFICATE: &str = "00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff";

fn know(config: &Path, name: &str, url: &str, token: &str, fingerprint: &str) {
    let proxy = Proxy {
        name: name.into(),
        url: check_url(url).unwrap(),
        token: Token::new(token).unwrap(),
        fingerprint: fingerprint.parse().unwrap(),
    };
    Config::add_proxy(config, proxy).unwrap();
}

/// A proxy at a port where nobody listens.
fn know_absent(config: &Path, name: &str) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    know(config, name, &format!("https://{address}"), TOKEN, ANY_CERTIFICATE);
}

/// A proxy that takes connections and never says a word.
fn know_silent(config: &Path, name: &str) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    know(config, name, &format!("https://{}", listener.local_addr().unwrap()), TOKEN, ANY_CERTIFICATE);
    listener
}

/// A proxy with a remote and nothing to do.
async fn know_idle(config: &Path, name: &'static str) -> FakeProxy {
    let status = json!({
        "name": name, "site": "Göteborg", "version": "0.1.0", "startedAt": 0, "running": [], "bytesPerSecond": 0,
        "fingerprint": ""
    });
    let remote = |name: &str| json!({ "id": "r-1", "name": name, "url": "file:///srv", "kind": "local", "vhdDirectory": false });
    let proxy = FakeProxy::start(move |method, _: &Value| match method {
        "proxy.watch" => Some(Reply::Open(vec![json!({ "status": status, "changed": [] }).to_string()])),
        "remote.list" => Some(Reply::Result(json!([remote("東京 🗼")]))),
        "remote.add" => Some(Reply::Result(remote("nas"))),
        method if method.ends_with(".list") => Some(Reply::Result(json!([]))),
        _ => None,
    })
    .await;
    know(config, name, &proxy.url, TOKEN, &proxy.fingerprint);
    proxy
}

/// The console over a proxy nobody reaches, once it shows that.
fn away(config: &Path, setup: impl FnOnce(Setup<'_>) -> Setup<'_>) -> Terminal {
    know_absent(config, "lyon");
    let terminal = setup(Setup::new(config)).open();
    terminal.until("a proxy that is away", |seen| seen.row_with("lyon").is_some() && seen.shows("away"));
    terminal
}

#[test]
fn the_screen_is_there_before_any_proxy_answers() {
    let config = tempfile::tempdir().unwrap();
    let _silent = know_silent(config.path(), "silent");
    know_absent(config.path(), "absent");
    let mut terminal = Setup::new(config.path()).open();
    terminal.until("a proxy that does not answer yet", |seen| {
        seen.row_with("silent").is_some_and(|(row, _)| seen.line(row).contains("connecting"))
    });
    terminal
        .until("a proxy that is away", |seen| seen.row_with("absent").is_some_and(|(row, _)| seen.line(row).contains("away")));
    terminal.stands_on("Proxies  2");
    let seen = terminal.seen();
    assert!(seen.screen().alternate_screen() && seen.screen().bracketed_paste() && seen.screen().hide_cursor());
    assert_eq!(seen.screen().mouse_protocol_mode(), MouseProtocolMode::None);
    let raw = String::from_utf8_lossy(&seen.raw);
    for mouse in ["?9h", "?1000h", "?1002h", "?1003h", "?1005h", "?1006h", "?1015h"] {
        assert!(!raw.contains(mouse), "the mouse was taken: {mouse}");
    }
    for question in ["\x1b[c", "\x1b[6n", "\x1b]10;?", "\x1b]11;?", "\x1b[>c"] {
        assert!(!raw.contains(question), "the terminal was asked {question:?}");
    }
    drop(seen);
    // It does not wait for the silent one either.
    terminal.types("q");
    assert_eq!(terminal.ends().exit_code(), 0);
    terminal.is_given_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_screen_on_which_nothing_moves_writes_nothing() {
    let config = tempfile::tempdir().unwrap();
    let _proxy = know_idle(config.path(), "lyon").await;
    let mut terminal = Setup::new(config.path()).open();
    terminal.shows("idle");
    for tab in ["1", "2", "4"] {
        terminal.types(tab);
        terminal.is_silent_for(SILENCE);
        let (before, ticks) = (terminal.seen().raw.len(), terminal.ticks());
        terminal.is_silent_for(SILENCE * 2);
        let used = terminal.ticks() - ticks;
        assert_eq!(terminal.seen().raw.len(), before, "screen {tab}");
        // A loop that spins takes more than a hundred.
        assert!(used <= 5, "{used} ticks of 10 ms went into an idle screen");
    }
    assert!(terminal.lives());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn keys_change_screens_and_open_and_close_what_lies_over_them() {
    let config = tempfile::tempdir().unwrap();
    let _proxy = know_idle(config.path(), "lyon").await;
    let mut terminal = Setup::new(config.path()).open();
    terminal.shows("idle");
    for (key, crumbs) in [
        ("2", "Remotes  1"),
        ("3", "Jobs"),
        ("4", "Transfers"),
        ("5", "Backups"),
        ("6", "Runs"),
        ("7", "Runs › Messages"),
        ("1", "Proxies  1"),
    ] {
        terminal.types(key);
        terminal.stands_on(crumbs);
    }
    for (key, title) in [("?", "What can be done here"), (":", "All actions")] {
        terminal.types(key);
        terminal.shows(title);
        terminal.types("\x1b");
        terminal.until("the list closed", |seen| !seen.shows(title) && seen.shows("? help"));
    }
    terminal.types("/");
    terminal.shows("keep the filter");
    terminal.types("no such proxy");
    terminal.stands_on("Proxies  0 of 1  /no such proxy");
    assert!(!terminal.seen().screen().hide_cursor(), "no cursor where one types");
    terminal.types("\x1b");
    terminal.until("the filter cleared", |seen| seen.row_with("lyon").is_some() && seen.screen().hide_cursor());
    terminal.types("\x1bOQ");
    terminal.shows("All actions");
    // Palette: typed, chosen, done.
    terminal.types("go.jobs\r");
    terminal.stands_on("Jobs");
}

#[test]
fn any_size_is_survived_and_too_small_a_one_says_what_is_needed() {
    let config = tempfile::tempdir().unwrap();
    let mut terminal = away(config.path(), |setup| setup);
    terminal.resizes(40, 12);
    terminal.until("the screen in 40x12", |seen| seen.line(1).starts_with("Proxies") && seen.line(11).contains("quit"));
    for (columns, rows) in [(39, 12), (40, 11), (30, 3), (31, 1)] {
        terminal.resizes(columns, rows);
        let told = format!("needed 40x12, present {columns}x{rows}");
        terminal.until(&told, |seen| seen.text().trim() == told);
    }
    // Nothing can be told here; it must only stay alive.
    terminal.resizes(1, 1);
    terminal.resizes(80, 24);
    terminal.until("the screen in 80x24", |seen| seen.line(1).starts_with("Proxies") && seen.line(23).contains("quit"));
    terminal.resizes(300, 90);
    terminal.until("the screen in 300x90", |seen| seen.line(89).contains("quit"));
    terminal.types("q");
    assert_eq!(terminal.ends().exit_code(), 0);
}

/// Whether a parameter of "select graphic rendition" chooses a colour. Back to the terminal's own (39, 49, 59) is none.
fn is_colour(parameter: &str) -> bool {
    matches!(parameter.parse(), Ok(30..=38 | 40..=48 | 58 | 90..=97 | 100..=107))
}

fn selected(seen: &Seen) -> bool {
    seen.row_with("lyon").is_some_and(|(_, cells)| {
        let written: Vec<_> = cells.iter().skip(1).filter(|cell| !cell.contents().trim().is_empty()).collect();
        !written.is_empty() && written.iter().all(|cell| cell.inverse())
    })
}

#[test]
fn without_colours_there_are_none_and_the_selected_row_still_shows() {
    let config = tempfile::tempdir().unwrap();
    let mut terminal = away(config.path(), |setup| setup.with("NO_COLOR", "1"));
    terminal.until("the selected row in reverse, from end to end", selected);
    for keys in ["2", "3", "4", "5", "6", "7", "1", "?", "\x1b"] {
        terminal.types(keys);
        terminal.is_silent_for(Duration::from_millis(200));
    }
    let seen = terminal.seen();
    for parameters in seen.renditions() {
        assert!(!parameters.iter().any(|parameter| parameter.is_empty()), "a reset nobody asked for: {parameters:?}");
        assert!(!parameters.iter().any(|parameter| is_colour(parameter)), "a colour: {parameters:?}");
    }
    drop(seen);

    // The same with colours, so that the above means something.
    let coloured = tempfile::tempdir().unwrap();
    let terminal = away(coloured.path(), |setup| setup);
    terminal.until("a colour", |seen| {
        let (_, cells) = seen.row_with("1 Proxies").unwrap();
        cells.iter().any(|cell| cell.fgcolor() != Color::Default || cell.bgcolor() != Color::Default)
    });
    assert!(terminal.seen().renditions().iter().flatten().any(|parameter| is_colour(parameter)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn where_only_seven_bits_are_safe_only_seven_bits_come() {
    let config = tempfile::tempdir().unwrap();
    let _proxy = know_idle(config.path(), "lyon-Zürich").await;
    let mut terminal = Setup::new(config.path()).with("LANG", "C").open();
    terminal.shows("idle");
    for (keys, sight) in
        [("2", "????"), ("n", "New remote"), ("\x1b", "? help"), (":", "All actions"), ("\x1b", "? help"), ("1", "G?teborg")]
    {
        terminal.types(keys);
        terminal.shows(sight);
    }
    for keys in ["3", "4", "5", "6", "7", "?", "\x1b"] {
        terminal.types(keys);
        terminal.is_silent_for(Duration::from_millis(200));
    }
    let seen = terminal.seen();
    let strange = seen.raw.iter().position(|byte| !byte.is_ascii());
    assert_eq!(strange, None, "{:?}", strange.map(|at| String::from_utf8_lossy(&seen.raw[at.saturating_sub(20)..][..40])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_pasted_line_break_never_submits() {
    let config = tempfile::tempdir().unwrap();
    let proxy = know_idle(config.path(), "lyon").await;
    let added = || proxy.calls().into_iter().filter(|(method, _)| method == "remote.add").collect::<Vec<_>>();
    let mut terminal = Setup::new(config.path()).open();
    terminal.shows("idle");
    terminal.types("2");
    terminal.stands_on("Remotes  1");
    terminal.types("n");
    terminal.stands_on("Remotes › New remote");
    terminal.pastes("nas\r\nof\nLyon\r\n\r\n");
    terminal.shows("nas  of Lyon");
    terminal.types("\t");
    terminal.pastes("/srv/nas\n");
    terminal.shows("/srv/nas");
    // On the last field Enter submits: a break pasted there must not, though all is filled in.
    terminal.types("\t");
    terminal.pastes("\n\n\r\r\n");
    terminal.types("\x1b[Z\x1b[Z\x1b[H");
    terminal.pastes("the ");
    terminal.shows("the nas  of Lyon");
    terminal.stands_on("Remotes › New remote");
    assert_eq!(added(), []);
    terminal.types("\x13");
    terminal.until("the form gone", |seen| !seen.shows("New remote"));
    let params = json!({ "name": "the nas  of Lyon", "url": "file:///srv/nas" });
    assert_eq!(added(), [("remote.add".into(), params)]);
}

#[test]
fn a_long_paste_leaves_the_keys_working() {
    let config = tempfile::tempdir().unwrap();
    let mut terminal = away(config.path(), |setup| setup);
    terminal.types("/");
    terminal.shows("keep the filter");
    // More than the kernel keeps for a terminal, and more than a reader takes at once.
    terminal.pastes(&"lyon ".repeat(4_000));
    terminal.shows("on lyon lyon lyo");
    terminal.types("\x1b");
    terminal.until("the filter cleared", |seen| seen.shows("? help") && seen.row_with("lyon").is_some());
}

#[test]
fn whoever_asks_it_to_end_gets_the_terminal_back() {
    let by_signal = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT];
    for signal in by_signal {
        let config = tempfile::tempdir().unwrap();
        let mut terminal = away(config.path(), |setup| setup);
        terminal.signals(signal);
        let status = terminal.ends();
        assert!(status.success(), "{signal:?}: {status}");
        terminal.is_given_back();
    }
    for key in ["q", "\x03"] {
        let config = tempfile::tempdir().unwrap();
        let mut terminal = away(config.path(), |setup| setup);
        terminal.types(key);
        let status = terminal.ends();
        assert!(status.success(), "{key:?}: {status}");
        terminal.is_given_back();
    }
}

#[test]
fn a_lost_terminal_ends_it_whether_or_not_a_signal_says_so() {
    let ways: [fn(Setup<'_>) -> Setup<'_>; 3] = [
        |setup| setup,
        // As under nohup.
        |setup| setup.by("trap '' HUP; exec \"$@\""),
        |setup| setup.without_control(),
    ];
    for (way, setup) in ways.into_iter().enumerate() {
        let config = tempfile::tempdir().unwrap();
        let mut terminal = away(config.path(), setup);
        terminal.vanishes();
        let status = terminal.ends();
        // 129 is what the watch of the terminal says when the loop could not end by itself.
        assert!(status.signal().is_none() && [0, 129].contains(&status.exit_code()), "way {way}: {status}");
    }
}

#[test]
fn it_does_not_stop_where_nobody_could_wake_it_up() {
    let config = tempfile::tempdir().unwrap();
    let mut terminal = away(config.path(), |setup| setup);
    terminal.types("\x1a");
    terminal.shows("suspend: there is no shell to return to");
    terminal.types("2");
    terminal.stands_on("Remotes");
    terminal.types("q");
    assert_eq!(terminal.ends().exit_code(), 0);
}

#[test]
fn it_stops_for_a_shell_and_comes_back() {
    let config = tempfile::tempdir().unwrap();
    let script = "set -m; \"$@\"; echo the shell has it; read line; fg >/dev/null; echo it left";
    let mut terminal = away(config.path(), |setup| setup.by(script));
    terminal.types("\x1a");
    terminal.shows("the shell has it");
    terminal.until("the terminal in the hands of the shell", |seen| {
        !seen.screen().alternate_screen() && !seen.screen().hide_cursor() && !seen.screen().bracketed_paste()
    });
    terminal.types("\n");
    terminal.until("the console again", |seen| seen.screen().alternate_screen() && seen.row_with("lyon").is_some());
    terminal.types("2");
    terminal.stands_on("Remotes");
    terminal.types("q");
    terminal.shows("it left");
    assert_eq!(terminal.ends().exit_code(), 0);
    terminal.is_given_back();
}

/// Bytes without a pattern, the same in every run.
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
}

#[test]
fn noise_and_halves_of_sequences_are_survived() {
    let config = tempfile::tempdir().unwrap();
    let mut terminal = away(config.path(), |setup| setup);
    let halves = ["\x1b[<0;1;1", "\x1b[99999999999999999999;1R", "\x1b]52;c;AAAA", "\x1b[1;2", "\x1bP+q", "\x1b[?", "\x1bO"];
    for half in halves {
        terminal.types(half);
        // Ends whatever was begun.
        terminal.types("~~\x1b\x1b");
    }
    terminal.types(b"\xff\xfe\xf0\x9f\x97\xed\xa0\x80\xc0\xaf\xf8\x00");
    for seed in 1..=4 {
        // Not what leaves by right: q, ctrl-c, and the lists in which leaving can be chosen.
        let bytes: Vec<u8> = noise(seed).filter(|byte| !matches!(byte, b'q' | b'Q' | 3 | b'?' | b':')).take(10_000).collect();
        terminal.types(&bytes);
    }
    terminal.is_silent_for(Duration::from_millis(500));
    assert!(terminal.lives());
    terminal.resizes(30, 2);
    terminal.shows("needed 40x12");
    terminal.resizes(80, 24);
    // The end of a paste, in case one was begun; then out of everything.
    terminal.types("\x1b[201~");
    terminal.until("the screen again", |seen| seen.shows("1 Proxies") || seen.shows(" 1 "));
    terminal.signals(Signal::TERM);
    assert_eq!(terminal.ends().exit_code(), 0);
    terminal.is_given_back();
    assert!(!String::from_utf8_lossy(&terminal.seen().raw).contains("panicked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_proxy_that_refuses_is_said_in_words_and_the_other_works() {
    let config = tempfile::tempdir().unwrap();
    let _idle = know_idle(config.path(), "lyon").await;
    let strict = FakeProxy::with(Vec::new()).await;
    know(config.path(), "nice", &strict.url, "not-the-token-at-all", &strict.fingerprint);
    let other = FakeProxy::with(Vec::new()).await;
    know(config.path(), "metz", &other.url, TOKEN, ANY_CERTIFICATE);
    let mut terminal = Setup::new(config.path()).with("NO_COLOR", "1").open();
    for (name, state) in [("lyon", "idle"), ("nice", "refused"), ("metz", "refused")] {
        terminal
            .until(&format!("{name} {state}"), |seen| seen.row_with(name).is_some_and(|(row, _)| seen.line(row).contains(state)));
    }
    assert!(other.calls().is_empty(), "something was asked of a proxy with another certificate");
    terminal.types("2");
    terminal.stands_on("Remotes  1");
    assert!(!String::from_utf8_lossy(&terminal.seen().raw).contains("not-the-token-at-all"));
}
