//! What the process list of this machine shows while something goes on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Looks at all command lines and environments, again and again, on a thread of its own.
pub struct Processes {
    over: Arc<AtomicBool>,
    looking: JoinHandle<BTreeSet<Vec<u8>>>,
}

impl Processes {
    pub fn watch() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let seen_enough = Arc::clone(&over);
        let looking = std::thread::spawn(move || {
            let mut seen = BTreeSet::new();
            while !seen_enough.load(Ordering::Relaxed) {
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    for file in ["cmdline", "environ"] {
                        seen.insert(std::fs::read(entry.path().join(file)).unwrap_or_default());
                    }
                }
                // The machine has other things to do; a command lives longer than this.
                std::thread::park_timeout(Duration::from_millis(5));
            }
            seen
        });
        Self { over, looking }
    }

    /// That `known` was seen, so that somebody has looked, and none of the secrets.
    pub fn assert_show(self, known: &str, secrets: &[&str]) {
        self.over.store(true, Ordering::Relaxed);
        let seen: Vec<String> =
            self.looking.join().unwrap().iter().map(|line| String::from_utf8_lossy(line).replace('\0', " ")).collect();
        assert!(seen.iter().any(|line| line.contains(known)), "{known:?} was not seen");
        for secret in secrets {
            // Where it was seen is told without it.
            let shows = seen.iter().find(|line| line.contains(secret));
            assert!(shows.is_none(), "a process list shows a secret: {}", shows.unwrap().replace(secret, "***"));
        }
    }
}
