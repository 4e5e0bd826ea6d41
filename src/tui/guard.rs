//! Enters and leaves the terminal's modes. One place does it, whoever asks: drop, panic, signal, suspend, hang-up.
//!
//! Two faults of crossterm 0.29 are guarded against here and in the loop: with SIGHUP ignored a lost terminal makes its
//! event source spin, so [`watch_for_hang_up`] ends the process; with `NO_COLOR` it writes resets in place of colours,
//! so its colour output is forced on and the theme has none.

use std::io::{self, BufWriter, Stdout, Write};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::mpsc::UnboundedSender;

use super::clipboard;
use super::drive::{Outside, Surface};

static ENTERED: AtomicBool = AtomicBool::new(false);
static OVER: AtomicBool = AtomicBool::new(false);

/// Alternate screen, bracketed paste, no cursor, cleared. No mouse: native selection stays.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?2004h\x1b[?25l\x1b[2J";
/// Frame end, mouse off, paste off, plain text, cursor, main screen, and mouse off once more for terminals that
/// remember it per screen.
const LEAVE: &[u8] =
    b"\x1b[?2026l\x1b[?1006l\x1b[?1003l\x1b[?1002l\x1b[?1000l\x1b[?2004l\x1b[0m\x1b[?25h\x1b[?1049l\x1b[?1006l\x1b[?1000l";
/// How long the loop may take to end after the terminal is gone.
const GRACE: Duration = Duration::from_millis(1_500);

/// Writes to standard output without taking its lock: a panic may come while it is held.
fn write_raw(bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), rest) {
            Ok(written @ 1..) => rest = &rest[written..],
            Err(rustix::io::Errno::INTR) => {}
            // The terminal is gone: there is nobody to restore it for.
            _ => return,
        }
    }
}

fn enter() -> io::Result<()> {
    crossterm::terminal::enable_raw_mode()?;
    ENTERED.store(true, Ordering::SeqCst);
    write_raw(ENTER);
    Ok(())
}

/// Gives the terminal back as it was. Harmless when that has been done already; never panics, never blocks on a lock.
pub fn leave() {
    if ENTERED.swap(false, Ordering::SeqCst) {
        write_raw(LEAVE);
        // On a dead terminal this fails, which is as good.
        let _ = crossterm::terminal::disable_raw_mode();
    }
}

/// The real terminal; restored when dropped.
pub struct RealTerminal {
    /// Never dropped: ratatui's drop tells standard error that the cursor cannot be shown, and where that is the lost
    /// terminal too, telling is a panic. [`leave`] shows the cursor.
    terminal: ManuallyDrop<Terminal<CrosstermBackend<BufWriter<Stdout>>>>,
}

impl RealTerminal {
    /// Takes the terminal.
    ///
    /// # Errors
    /// When it refuses raw mode or does not tell its size.
    pub fn take() -> io::Result<Self> {
        crossterm::style::force_color_output(true);
        OVER.store(false, Ordering::SeqCst);
        enter()?;
        let backend = CrosstermBackend::new(BufWriter::with_capacity(64 * 1024, io::stdout()));
        match Terminal::new(backend) {
            Ok(terminal) => Ok(Self { terminal: ManuallyDrop::new(terminal) }),
            Err(error) => {
                leave();
                Err(error)
            }
        }
    }
}

impl RealTerminal {
    /// Forgets what is on the screen. Not `Terminal::clear`: that asks the terminal where its cursor is, and the answer
    /// would go to the task that reads the keys.
    fn wipe(&mut self) -> io::Result<()> {
        let size = self.terminal.size()?;
        self.terminal.resize(Rect::new(0, 0, size.width, size.height))
    }
}

impl Drop for RealTerminal {
    fn drop(&mut self) {
        OVER.store(true, Ordering::SeqCst);
        leave();
    }
}

impl Surface for RealTerminal {
    fn size(&self) -> io::Result<(u16, u16)> {
        crossterm::terminal::size()
    }

    fn draw(&mut self, paint: &mut dyn FnMut(&mut Frame<'_>)) -> io::Result<()> {
        // ratatui does not bracket a frame; terminals that know 2026 then show it whole.
        self.terminal.backend_mut().write_all(b"\x1b[?2026h")?;
        self.terminal.draw(|frame| paint(frame))?;
        self.terminal.backend_mut().write_all(b"\x1b[?2026l")?;
        Write::flush(self.terminal.backend_mut())
    }

    fn repaint(&mut self) -> io::Result<()> {
        self.wipe()
    }

    fn copy(&mut self, text: &str) -> Result<String, String> {
        let bytes = clipboard::osc52(text, |name| std::env::var(name).ok())?;
        write_raw(&bytes);
        Ok(format!("Copied {} characters to the clipboard of your terminal (OSC 52)", text.chars().count()))
    }

    fn suspend(&mut self) -> Result<(), String> {
        // `ssh -t host backhaul` has no shell to come back to: stopped, it would hang for ever.
        let own = rustix::process::getpid();
        if rustix::process::getsid(None).is_ok_and(|session| session == own) {
            return Err("there is no shell to return to".into());
        }
        leave();
        let stopped = rustix::process::kill_process(own, rustix::process::Signal::TSTP);
        self.resume().map_err(|error| format!("the terminal failed: {error}"))?;
        stopped.map_err(|error| format!("could not stop: {error}"))
    }

    fn resume(&mut self) -> io::Result<()> {
        enter()?;
        self.wipe()
    }
}

/// Restores the terminal before a panic is reported, and ends the loop: a panic in a task would otherwise leave a
/// console that nobody sees.
pub fn restore_on_panic(outside: UnboundedSender<Outside>) {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        leave();
        previous(info);
        let _ = outside.send(Outside::Panicked);
    }));
}

/// Passes signals on to the loop.
///
/// # Errors
/// When the handlers cannot be set.
pub fn pass_on_signals(outside: UnboundedSender<Outside>) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()] {
        let mut stream = signal(kind)?;
        let outside = outside.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                let _ = outside.send(Outside::Leave);
            }
        });
    }
    // SIGCONT: somebody stopped us from outside, or fg brought us back.
    let mut continued = signal(SignalKind::from_raw(rustix::process::Signal::CONT.as_raw()))?;
    tokio::spawn(async move {
        while continued.recv().await.is_some() {
            let _ = outside.send(Outside::Continued);
        }
    });
    Ok(())
}

/// Waits on a thread for the terminal to go away, without ever waking up before; then ends the loop, and the process
/// if the loop cannot end.
pub fn watch_for_hang_up(outside: UnboundedSender<Outside>) -> io::Result<()> {
    std::thread::Builder::new().name("tty-watch".into()).spawn(move || {
        loop {
            // No event is asked for: hang-up and error are always reported.
            let mut fds = [PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::empty())];
            match poll(&mut fds, None) {
                Ok(_) if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
        let _ = outside.send(Outside::Gone);
        #[expect(clippy::disallowed_methods, reason = "the loop may be stuck in a write to a terminal that is gone")]
        {
            std::thread::sleep(GRACE);
            if !OVER.load(Ordering::SeqCst) {
                std::process::exit(129);
            }
        }
    })?;
    Ok(())
}
