//! Draws `screenshots/` anew: the real console on the real lab, in a terminal of our own, with real keys. What is on
//! the screen becomes SVG through the console's own painter of pictures, then PNG.

use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use backhaul::tui::picture::{Ground, svg};
use portable_pty::{CommandBuilder, PtySize, native_pty_system};
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier};
use resvg::{tiny_skia, usvg};

const ROWS: NonZeroU16 = NonZeroU16::new(30).expect("not zero");
const COLUMNS: NonZeroU16 = NonZeroU16::new(100).expect("not zero");
/// Whatever is waited for comes sooner.
const PATIENCE: Duration = Duration::from_secs(90);

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?.to_owned();
    let mut console = Console::start(&root)?;
    console.until("both sites idle", |text| idle(text) == 2)?;
    console.picture("proxies")?;
    console.keys("3n")?;
    console.until("the form", |text| text.contains("Type to find"))?;
    console.keys("web\r")?;
    console.until("a chosen VM", |text| text.contains("1 of"))?;
    console.picture("new-job")?;
    console.keys("\x12")?;
    console.until("disks that move", |text| {
        let half_way = (40..60).any(|percent| text.contains(&format!(" {percent}%")));
        text.contains("MOVING") && text.contains("└ disk") && half_way && text.contains("in ")
    })?;
    console.picture("transfers")?;
    console.until("the end of the run", |text| text.contains("Nothing is moving"))?;
    console.keys("5")?;
    console.until("a restore point", |text| text.contains("web-01"))?;
    console.picture("backups")?;
    console.keys("6")?;
    console.until("a run", |text| text.contains("done"))?;
    console.keys("\r")?;
    console.until("its tasks", |text| text.contains("└ disk"))?;
    console.picture("run")?;
    // An escape that another key follows at once would be that key with Alt.
    console.keys("\x1b")?;
    console.until("the history again", |text| !text.contains("└ disk"))?;
    console.keys("?")?;
    console.until("the help", |text| text.contains("What can be done here"))?;
    console.picture("help")?;
    console.keys("\x1b")?;
    console.until("no help", |text| !text.contains("What can be done here"))?;
    console.keys("1n")?;
    console.until("the form of a new proxy", |text| text.contains("New proxy") && text.contains("free of"))?;
    console.keys("annecy")?;
    console.until("its name", |text| text.contains("--name annecy"))?;
    console.picture("new-proxy")?;
    console.keys("\x13")?;
    console.until("the plan", |text| text.contains("nothing has been touched yet"))?;
    console.picture("review")?;
    console.keys("y")?;
    console.until("the end of the deployment", |text| text.contains("annecy answers at"))?;
    console.keys("1")?;
    console.until("three sites idle", |text| idle(text) == 3)?;
    console.keys("d")?;
    console.until("the end of the examination", |text| text.contains("through in"))?;
    console.picture("doctor")?;
    console.keys("q")?;
    console.end()
}

/// Proxies in the list that are idle; the details of the selected one say so too.
fn idle(text: &str) -> usize {
    text.lines().filter(|line| line.contains("idle") && !line.starts_with("State")).count()
}

struct Shared {
    screen: Mutex<vt100::Parser>,
    changed: Condvar,
}

struct Console {
    shared: Arc<Shared>,
    keys: Box<dyn Write + Send>,
    child: Box<dyn portable_pty::Child + Send + Sync>,
    fonts: Arc<usvg::fontdb::Database>,
    to: PathBuf,
}

impl Console {
    fn start(root: &Path) -> Result<Self> {
        let size = PtySize { rows: ROWS.get(), cols: COLUMNS.get(), pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size)?;
        let mut command = CommandBuilder::new(root.join("target/release/backhaul"));
        command.arg("lab");
        command.cwd(root);
        for (name, value) in [("TERM", "xterm-256color"), ("COLORTERM", "truecolor"), ("LANG", "C.UTF-8")] {
            command.env(name, value);
        }
        let child = pair.slave.spawn_command(command).context("cannot start target/release/backhaul")?;
        drop(pair.slave);
        let mut output = pair.master.try_clone_reader()?;
        let keys = pair.master.take_writer()?;
        let shared = Arc::new(Shared { screen: Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0)), changed: Condvar::new() });
        let seen = Arc::clone(&shared);
        std::thread::spawn(move || {
            // The terminal lives as long as somebody holds its master.
            let _master = pair.master;
            let mut bytes = [0; 1 << 16];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                seen.screen.lock().expect("no panic while reading").process(&bytes[..count]);
                seen.changed.notify_all();
            }
        });
        let mut fonts = usvg::fontdb::Database::new();
        fonts.load_system_fonts();
        fonts.set_monospace_family("DejaVu Sans Mono");
        Ok(Self { shared, keys, child, fonts: Arc::new(fonts), to: root.join("screenshots") })
    }

    fn keys(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes())?;
        Ok(self.keys.flush()?)
    }

    /// Waits until the screen shows something, and for the frame that shows it to be whole.
    fn until(&self, what: &str, shown: impl Fn(&str) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut screen = self.shared.screen.lock().expect("no panic while reading");
        while !shown(&screen.screen().contents()) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{what} did not show within {} s; the screen is\n{}", PATIENCE.as_secs(), screen.screen().contents());
            }
            screen = self.shared.changed.wait_timeout(screen, left).expect("no panic while reading").0;
        }
        loop {
            let (next, waited) =
                self.shared.changed.wait_timeout(screen, Duration::from_millis(60)).expect("no panic while reading");
            screen = next;
            if waited.timed_out() {
                return Ok(());
            }
        }
    }

    fn picture(&self, name: &str) -> Result<()> {
        let (buffer, cursor) = {
            let parser = self.shared.screen.lock().expect("no panic while reading");
            (cells(parser.screen()), cursor(parser.screen()))
        };
        let options = usvg::Options { fontdb: Arc::clone(&self.fonts), ..usvg::Options::default() };
        let tree = usvg::Tree::from_str(&svg(&buffer, cursor, Ground::Dark), &options)?;
        let size = tree.size().to_int_size();
        let mut pixels = tiny_skia::Pixmap::new(size.width(), size.height()).context("an empty picture")?;
        resvg::render(&tree, tiny_skia::Transform::identity(), &mut pixels.as_mut());
        std::fs::create_dir_all(&self.to)?;
        let path = self.to.join(format!("{name}.png"));
        pixels.save_png(&path).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the console ended with {status:?}");
        }
        Ok(())
    }
}

fn cursor(screen: &vt100::Screen) -> Option<Position> {
    let (y, x) = screen.cursor_position();
    (!screen.hide_cursor()).then_some(Position { x, y })
}

fn cells(screen: &vt100::Screen) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, COLUMNS.get(), ROWS.get()));
    for y in 0..ROWS.get() {
        for x in 0..COLUMNS.get() {
            let Some(seen) = screen.cell(y, x) else { continue };
            let cell = &mut buffer[(x, y)];
            if seen.has_contents() {
                cell.set_symbol(seen.contents());
            }
            cell.set_fg(color(seen.fgcolor())).set_bg(color(seen.bgcolor()));
            for (on, modifier) in [
                (seen.bold(), Modifier::BOLD),
                (seen.dim(), Modifier::DIM),
                (seen.italic(), Modifier::ITALIC),
                (seen.underline(), Modifier::UNDERLINED),
                (seen.inverse(), Modifier::REVERSED),
            ] {
                cell.modifier.set(modifier, on);
            }
        }
    }
    buffer
}

fn color(seen: vt100::Color) -> Color {
    match seen {
        vt100::Color::Default => Color::Reset,
        vt100::Color::Idx(index) => Color::Indexed(index),
        vt100::Color::Rgb(r, g, b) => Color::Rgb(r, g, b),
    }
}
