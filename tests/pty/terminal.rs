//! A terminal in the hands of a test: the console's binary runs on the other side of it, and what it writes is kept as
//! bytes and as a screen.

use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use portable_pty::{CommandBuilder, ExitStatus, MasterPty, PtySize, native_pty_system};
use rustix::process::{Pid, Signal, kill_process};
use vt100::{Cell, MouseProtocolMode, Screen};

/// Patience for a condition; no test waits so long unless it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the console is started.
pub struct Setup<'a> {
    config: &'a Path,
    environment: Vec<(&'a str, &'a str)>,
    script: Option<&'a str>,
    controlling: bool,
}

impl<'a> Setup<'a> {
    /// With the configuration in a folder, on a terminal of 80x24 with UTF-8 and 256 colours.
    pub fn new(config: &'a Path) -> Self {
        let environment = vec![("TERM", "xterm-256color"), ("LANG", "en_GB.UTF-8"), ("TZ", "UTC")];
        Self { config, environment, script: None, controlling: true }
    }

    /// With a variable of the environment.
    pub fn with(mut self, name: &'a str, value: &'a str) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Started by a shell script, in which `"$@"` is the console with its arguments.
    pub fn by(mut self, script: &'a str) -> Self {
        self.script = Some(script);
        self
    }

    /// On a terminal that controls nothing, so that no signal tells of its end.
    pub fn without_control(mut self) -> Self {
        self.controlling = false;
        self
    }

    /// Starts it.
    pub fn open(self) -> Terminal {
        let pair = native_pty_system().openpty(size(80, 24)).unwrap();
        let program = env!("CARGO_BIN_EXE_backhaul");
        let mut command = CommandBuilder::new(if self.script.is_some() { "/bin/sh" } else { program });
        if let Some(script) = self.script {
            command.args(["-c", script, "sh", program]);
        }
        command.arg("--config");
        command.arg(self.config);
        command.set_controlling_tty(self.controlling);
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for (name, value) in self.environment {
            command.env(name, value);
        }
        let untouched = modes(&*pair.master);
        let mut child = pair.slave.spawn_command(command).unwrap();
        let pid = Pid::from_raw(child.process_id().unwrap().try_into().unwrap()).unwrap();
        let (ended, end) = channel();
        std::thread::spawn(move || ended.send(child.wait().unwrap()));
        let shared = Arc::new(Shared {
            seen: Mutex::new(Seen { raw: Vec::new(), parser: vt100::Parser::new(cells(24), cells(80), 0), last: Instant::now() }),
            changed: Condvar::new(),
            closing: AtomicBool::new(false),
        });
        let (output, copy) = (pair.master.try_clone_reader().unwrap(), Arc::clone(&shared));
        Terminal {
            writer: Some(pair.master.take_writer().unwrap()),
            master: Some(pair.master),
            reader: Some(std::thread::spawn(move || copy.read(output))),
            pid,
            end,
            status: None,
            shared,
            untouched,
        }
    }
}

struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
    closing: AtomicBool,
}

impl Shared {
    /// A test that failed with the lock in hand has said so already.
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, mut output: Box<dyn Read + Send>) {
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = output.read(&mut bytes) {
            let mut seen = self.lock();
            seen.raw.extend_from_slice(&bytes[..read]);
            seen.parser.process(&bytes[..read]);
            seen.last = Instant::now();
            self.changed.notify_all();
            if self.closing.load(Ordering::SeqCst) {
                return;
            }
        }
    }
}

/// What came from the console so far.
pub struct Seen {
    /// Every byte.
    pub raw: Vec<u8>,
    parser: vt100::Parser,
    last: Instant,
}

impl Seen {
    /// What the terminal shows.
    pub fn screen(&self) -> &Screen {
        self.parser.screen()
    }

    /// The text on the screen.
    pub fn text(&self) -> String {
        self.screen().contents()
    }

    /// Whether this text is on the screen.
    pub fn shows(&self, text: &str) -> bool {
        self.text().contains(text)
    }

    /// A line of the screen, from 0.
    pub fn line(&self, row: u16) -> String {
        let columns = self.screen().size().1.get();
        self.screen().rows(0, columns).nth(row.into()).unwrap_or_default()
    }

    /// The first row with this text, and its cells.
    pub fn row_with(&self, text: &str) -> Option<(u16, Vec<Cell>)> {
        let (rows, columns) = self.screen().size();
        let row = (0..rows.get()).find(|row| self.line(*row).contains(text))?;
        Some((row, (0..columns.get()).filter_map(|column| self.screen().cell(row, column).cloned()).collect()))
    }

    /// Parameters of every "select graphic rendition" sequence that came.
    pub fn renditions(&self) -> Vec<Vec<String>> {
        let text = String::from_utf8_lossy(&self.raw);
        text.split("\x1b[")
            .skip(1)
            .filter_map(|rest| {
                let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';')?;
                rest[end..].starts_with('m').then(|| rest[..end].split(';').map(str::to_owned).collect())
            })
            .collect()
    }
}

/// The terminal, and the console on it. Dropped, both are gone.
pub struct Terminal {
    master: Option<Box<dyn MasterPty + Send>>,
    writer: Option<Box<dyn Write + Send>>,
    reader: Option<JoinHandle<()>>,
    pid: Pid,
    end: Receiver<ExitStatus>,
    status: Option<ExitStatus>,
    shared: Arc<Shared>,
    untouched: String,
}

impl Terminal {
    /// What came so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.lock()
    }

    /// Waits until a condition holds.
    #[track_caller]
    pub fn until(&self, what: &str, condition: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = self.seen();
        while !condition(&seen) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not seen: {what}; on the screen:\n{}", seen.text());
            seen = self.shared.changed.wait_timeout(seen, left).unwrap().0;
        }
    }

    /// Waits until a text is on the screen.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        self.until(text, |seen| seen.shows(text));
    }

    /// Waits until the screen the console is on, and the way there, is this.
    #[track_caller]
    pub fn stands_on(&self, crumbs: &str) {
        self.until(&format!("the screen {crumbs}"), |seen| seen.line(1).starts_with(crumbs));
    }

    /// Waits until nothing at all came for so long.
    #[track_caller]
    pub fn is_silent_for(&self, window: Duration) {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = self.seen();
        loop {
            let left = window.saturating_sub(seen.last.elapsed());
            if left.is_zero() {
                return;
            }
            assert!(Instant::now() < deadline, "it never stops to write; the screen:\n{}", seen.text());
            seen = self.shared.changed.wait_timeout(seen, left).unwrap().0;
        }
    }

    /// Types; fails when it is not taken in.
    #[track_caller]
    pub fn types(&mut self, bytes: impl AsRef<[u8]>) {
        let (mut writer, bytes) = (self.writer.take().unwrap(), bytes.as_ref().to_owned());
        let (done, written) = channel();
        std::thread::spawn(move || {
            let result = writer.write_all(&bytes);
            done.send(result.map(|()| writer))
        });
        let writer = written.recv_timeout(PATIENCE).expect("the console takes what is typed");
        self.writer = Some(writer.unwrap());
    }

    /// Pastes as a terminal does that was asked to mark it.
    pub fn pastes(&mut self, text: &str) {
        assert!(self.seen().screen().bracketed_paste(), "nobody asked for pastes to be marked");
        self.types(format!("\x1b[200~{text}\x1b[201~"));
    }

    /// Gives the window another size.
    pub fn resizes(&self, columns: u16, rows: u16) {
        self.seen().parser.set_size(cells(rows), cells(columns));
        self.master.as_ref().unwrap().resize(size(columns, rows)).unwrap();
    }

    /// Sends a signal.
    pub fn signals(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Processor time used so far, in ticks of 10 ms.
    pub fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero())).unwrap();
        let fields = stat.rsplit_once(") ").unwrap().1;
        fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// Whether it is still there.
    pub fn lives(&mut self) -> bool {
        self.status = self.status.take().or_else(|| self.end.try_recv().ok());
        self.status.is_none()
    }

    /// Waits until it is gone.
    #[track_caller]
    pub fn ends(&mut self) -> ExitStatus {
        if self.lives() {
            let status = self.end.recv_timeout(PATIENCE);
            self.status = Some(status.unwrap_or_else(|_| panic!("it does not end; on the screen:\n{}", self.seen().text())));
        }
        self.status.clone().unwrap()
    }

    /// Waits until the terminal is as it was before: main screen, cursor, no modes, lines edited by the kernel.
    #[track_caller]
    pub fn is_given_back(&self) {
        self.until("the terminal given back", |seen| {
            let screen = seen.screen();
            let plain = !screen.alternate_screen() && !screen.hide_cursor() && !screen.bracketed_paste();
            plain && screen.mouse_protocol_mode() == MouseProtocolMode::None
        });
        assert_eq!(modes(&**self.master.as_ref().unwrap()), self.untouched, "the kernel's side of the terminal");
    }

    /// Takes the terminal away, as when a connection breaks.
    pub fn vanishes(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        // The reader has a copy of the terminal's other end; one more frame wakes it up, and it lets go.
        self.types("?");
        self.reader.take().unwrap().join().unwrap();
        self.writer = None;
        self.master = None;
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.lives() {
            // It may have ended at this moment.
            let _ = kill_process(self.pid, Signal::KILL);
            let _ = self.end.recv_timeout(PATIENCE);
        }
    }
}

fn size(columns: u16, rows: u16) -> PtySize {
    PtySize { rows, cols: columns, pixel_width: 0, pixel_height: 0 }
}

fn cells(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).unwrap()
}

fn modes(master: &dyn MasterPty) -> String {
    format!("{:?}", master.get_termios().unwrap())
}
