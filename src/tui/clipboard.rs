//! Copies through the terminal (OSC 52), which works over SSH and needs no X.

use base64::Engine as _;

/// Terminals drop longer sequences.
const MOST: usize = 74_000;

/// The bytes that ask the terminal to take `text` into its clipboard, wrapped for tmux and screen.
///
/// # Errors
/// In words, when the text is longer than terminals take.
pub fn osc52(text: &str, environment: impl Fn(&str) -> Option<String>) -> Result<Vec<u8>, String> {
    if text.len() > MOST {
        return Err(format!("{} are more than a terminal takes", api::format_bytes(text.len() as u64)));
    }
    let plain = format!("\x1b]52;c;{}\x07", base64::engine::general_purpose::STANDARD.encode(text));
    let set = |name: &str| environment(name).is_some_and(|value| !value.is_empty());
    let mut out = Vec::new();
    if set("TMUX") {
        // tmux takes the plain sequence itself with set-clipboard on, and passes the wrapped one on with
        // allow-passthrough on: both are sent, as either may be off.
        out.extend_from_slice(plain.as_bytes());
        out.extend_from_slice(format!("\x1bPtmux;{}\x1b\\", plain.replace('\x1b', "\x1b\x1b")).as_bytes());
    } else if environment("TERM").is_some_and(|term| term.starts_with("screen")) {
        // screen takes strings of 768 bytes at most.
        for part in plain.as_bytes().chunks(700) {
            out.extend_from_slice(b"\x1bP");
            out.extend_from_slice(part);
            out.extend_from_slice(b"\x1b\\");
        }
    } else {
        out.extend_from_slice(plain.as_bytes());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_tmux_and_screen() {
        let of = |pairs: &[(&str, &str)]| {
            String::from_utf8(osc52("hi", |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())).unwrap())
                .unwrap()
        };
        assert_eq!(of(&[]), "\x1b]52;c;aGk=\x07");
        assert!(of(&[("TMUX", "/tmp/x")]).ends_with("\x1bPtmux;\x1b\x1b]52;c;aGk=\x07\x1b\\"));
        assert_eq!(of(&[("TERM", "screen")]), "\x1bP\x1b]52;c;aGk=\x07\x1b\\");
        assert!(osc52(&"x".repeat(80_000), |_| None).is_err());
    }
}
