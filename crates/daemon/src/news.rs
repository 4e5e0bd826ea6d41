//! What changed since a watcher last looked: one counter per list and one bell. Watchers that are slow miss no change,
//! they only see several as one.

use std::sync::atomic::{AtomicU64, Ordering};

use api::Topic;
use tokio::sync::watch;

const TOPICS: [Topic; 8] =
    [Topic::Pools, Topic::Vms, Topic::Remotes, Topic::Jobs, Topic::Runs, Topic::RestorePoints, Topic::Deployed, Topic::Licenses];

/// The counters and the bell.
pub struct News {
    counters: [AtomicU64; TOPICS.len()],
    bell: watch::Sender<()>,
}

impl Default for News {
    fn default() -> Self {
        Self { counters: Default::default(), bell: watch::Sender::new(()) }
    }
}

impl News {
    /// A list changed.
    pub fn changed(&self, topic: Topic) {
        if let Some(index) = TOPICS.iter().position(|known| *known == topic) {
            self.counters[index].fetch_add(1, Ordering::Relaxed);
        }
        self.moved();
    }

    /// The state changed, but no list: progress.
    pub fn moved(&self) {
        self.bell.send_replace(());
    }

    /// A watcher that has seen everything up to now.
    pub fn watcher(&self) -> Watcher {
        Watcher { seen: self.counts(), bell: self.bell.subscribe() }
    }

    fn counts(&self) -> [u64; TOPICS.len()] {
        std::array::from_fn(|index| self.counters[index].load(Ordering::Relaxed))
    }
}

/// One reader of the news.
pub struct Watcher {
    seen: [u64; TOPICS.len()],
    bell: watch::Receiver<()>,
}

impl Watcher {
    /// Waits until something changed since the last [`Watcher::take`]; false when there will be no more news.
    pub async fn wait(&mut self) -> bool {
        self.bell.changed().await.is_ok()
    }

    /// The lists that changed since the last look.
    pub fn take(&mut self, news: &News) -> Vec<Topic> {
        self.bell.mark_unchanged();
        let now = news.counts();
        let changed = (0..TOPICS.len()).filter(|index| now[*index] != self.seen[*index]).map(|index| TOPICS[index]).collect();
        self.seen = now;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn several_changes_are_told_once_and_none_is_lost() {
        let news = News::default();
        let mut watcher = news.watcher();
        news.changed(Topic::Jobs);
        news.changed(Topic::Jobs);
        news.changed(Topic::Runs);
        assert!(watcher.wait().await);
        assert_eq!(watcher.take(&news), [Topic::Jobs, Topic::Runs]);
        news.moved();
        assert!(watcher.wait().await);
        assert_eq!(watcher.take(&news), []);
    }
}
