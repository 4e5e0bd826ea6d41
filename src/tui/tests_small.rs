//! What a person needs to see on a small screen: what is wrong, which key does what, that there is more.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::tests::{frame, painter, press, text};
use super::theme::Depth;
use super::view::View;
use crate::core::fixture::{self, NOW};
use crate::core::{Bringing, FleetEventKind, Message, State, update};

/// The last line of a frame at 80x24.
fn footer(state: &mut State) -> String {
    let shown = text(&frame(state, 80, 24, painter(Depth::None, true)));
    shown.lines().last().unwrap().to_owned()
}

#[test]
fn opening_help_and_quitting_are_never_cut_from_the_footer() {
    for (keys, make) in [
        ("1", fixture::kept::kept as fn() -> State),
        ("1 j", fixture::kept::kept),
        ("1 j j", fixture::kept::kept),
        ("2", fixture::many),
        ("3 j", fixture::many),
        ("5", fixture::many),
        ("6", fixture::many),
        ("8", fixture::kept::kept),
    ] {
        let mut state = make();
        press(&mut state, keys);
        let shown = footer(&mut state);
        assert!(shown.ends_with("enter open  ? help  q quit"), "{keys}: {shown}");
    }
}

#[test]
fn a_form_says_how_its_field_is_answered_and_how_it_is_left() {
    for (keys, words) in [("3 n", "space tick"), ("3 n w", "enter tick"), ("3 n tab tab tab", "left/right choose"), ("2 n", "")] {
        let mut state = fixture::many();
        press(&mut state, keys);
        let shown = footer(&mut state);
        assert!(shown.contains(words) && shown.ends_with("esc close  f1 help"), "{keys}: {shown}");
    }
    let mut state = fixture::many();
    press(&mut state, "3 n f1");
    let shown = text(&frame(&mut state, 80, 24, painter(Depth::None, true)));
    for words in ["ctrl-s", "Check and save", "left and right choose", "Space ticks"] {
        assert!(shown.contains(words), "{words}:\n{shown}");
    }
}

#[test]
fn what_is_wrong_with_the_selected_row_is_seen_on_a_small_screen() {
    for (keys, make, words) in [
        ("1", fixture::stale as fn() -> State, "no answer from site-a.example:8443 within 10 s"),
        ("1 j", fixture::many, "free space, or lower the retention"),
        ("1 j", fixture::kept::kept, "8 shows the licences"),
        ("3", fixture::many, "run the job again in a few minutes"),
        ("6 home j", fixture::many, "run the job again in a few minutes"),
    ] {
        let mut state = make();
        press(&mut state, keys);
        state.notices.dismiss();
        let shown = text(&frame(&mut state, 80, 24, painter(Depth::None, true)));
        assert!(shown.contains(words), "{keys}: {words}\n{shown}");
    }
}

#[test]
fn a_page_key_passes_over_no_row() {
    let mut state = fixture::many();
    for n in 0..60 {
        state.tell(api::LogLevel::Info, format!("message {n:02}"));
    }
    state.notices.dismiss();
    press(&mut state, "7");
    let mut view = View::new(painter(Depth::None, true));
    let mut seen = |state: &mut State| {
        update(state, NOW, Message::Resize(80, 24));
        let mut buffer = Buffer::empty(Rect::new(0, 0, 80, 24));
        view.draw(state, &mut buffer);
        let shown = text(&buffer);
        let rows = shown.lines().take(15).filter_map(|line| line.split("message ").nth(1)?.get(..2)?.parse::<usize>().ok());
        rows.collect::<Vec<_>>()
    };
    let before = seen(&mut state);
    assert!(before.len() >= 8, "{before:?}");
    press(&mut state, "pagedown pagedown");
    let after = seen(&mut state);
    let gap = before.iter().min().unwrap() - after.iter().max().unwrap();
    assert!((1..=before.len()).contains(&gap) || before.iter().any(|row| after.contains(row)), "{before:?} {after:?}");
}

#[test]
fn a_page_that_goes_on_says_so() {
    let mut state = fixture::kept::kept();
    press(&mut state, "1 j enter");
    let shown = text(&frame(&mut state, 80, 24, painter(Depth::None, true)));
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[22].ends_with('v'), "it goes on below:\n{shown}");
    assert!(lines[23].contains("up/down scroll"), "{shown}");
    press(&mut state, "end");
    let shown = text(&frame(&mut state, 80, 24, painter(Depth::None, true)));
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[2].ends_with('^') && !lines[22].ends_with('v'), "{shown}");
}

#[test]
fn no_label_of_a_form_is_cut() {
    for (keys, make) in [
        ("3 n", fixture::many as fn() -> State),
        ("5 r", fixture::many),
        ("2 n", fixture::many),
        ("1 a", fixture::many),
        ("1 n", fixture::many),
        ("1 j m", fixture::kept::kept),
        ("1 j r", fixture::kept::kept),
        ("1 e", fixture::kept::kept),
        ("1 u", fixture::kept::kept),
        ("8 i", fixture::kept::kept),
        ("8 b", fixture::kept::kept),
    ] {
        let mut state = make();
        press(&mut state, keys);
        for field in &state.form.as_ref().unwrap().fields {
            let room = usize::from(super::widgets::form::LABEL) - 3;
            assert!(crate::core::text::width(field.label) <= room, "{keys}: {}", field.label);
        }
    }
}

#[test]
fn a_form_says_how_far_its_bundle_is() {
    let mut state = fixture::kept::kept();
    press(&mut state, "1 u / b ctrl-s");
    let sent = update(&mut state, NOW, Message::Key("y".parse().unwrap()));
    let id = fixture::kept::errand_id(&sent);
    for (bringing, words) in [
        (None, "Fetching the bundle"),
        (Some(Bringing::Sending { done: 12 << 20, of: 30 << 20 }), "Sending the bundle, 12.0 MiB of 30.0 MiB"),
        (Some(Bringing::Sending { done: 30 << 20, of: 30 << 20 }), "The bundle is sent, waiting for the proxy"),
    ] {
        if let Some(bringing) = bringing {
            fixture::fleet(&mut state, "site-a", FleetEventKind::Bundle { id, bringing });
        }
        let shown = text(&frame(&mut state, 80, 24, painter(Depth::None, true)));
        assert!(shown.contains(words), "{shown}");
    }
}

#[test]
fn a_planned_restart_does_not_count_as_a_proxy_that_is_away() {
    for (kind, counted) in [(api::RunKind::Redeploy, false), (api::RunKind::Backup, true)] {
        let mut state = fixture::kept::kept();
        let run = api::Run { kind, ..fixture::run("run-9", "site-b") };
        fixture::status(&mut state, "site-a", fixture::proxy_status("site-a", vec![run]));
        fixture::connection(&mut state, "site-b", fixture::away());
        state.notices.dismiss();
        let shown = text(&frame(&mut state, 120, 40, painter(Depth::None, true)));
        let tabs = shown.lines().next().unwrap_or_default();
        assert_eq!(tabs.contains("1 away"), counted, "{kind:?}: {tabs}");
    }
}
