use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use vhd::BLOCK_SIZE;

use super::*;
use crate::budget::Budget;
use crate::limit::Limiter;

/// A disk in memory; block `n` is full of `n`, so block 0 is zero.
struct Memory {
    blocks: VecDeque<u32>,
    delta: bool,
    /// Blocks announced that never come.
    missing: u64,
    given: Arc<AtomicUsize>,
    fail_at: Option<usize>,
}

impl Memory {
    fn new(blocks: impl IntoIterator<Item = u32>) -> Self {
        Self { blocks: blocks.into_iter().collect(), delta: false, missing: 0, given: Arc::default(), fail_at: None }
    }
}

#[async_trait]
impl Source for Memory {
    fn virtual_size(&self) -> u64 {
        u64::from(u32::MAX)
    }
    fn block_count(&self) -> u64 {
        self.blocks.len() as u64 + self.missing
    }
    fn is_delta(&self) -> bool {
        self.delta
    }
    fn path(&self) -> &'static str {
        "memory"
    }
    async fn next(&mut self, flow: &Flow) -> Result<Option<Block>, SourceError> {
        if self.fail_at == Some(self.given.load(Ordering::SeqCst)) {
            return Err(SourceError::Failed { what: "read".into(), source: "the source broke".into() });
        }
        let Some(index) = self.blocks.pop_front() else { return Ok(None) };
        let permit = flow.permit().await;
        self.given.fetch_add(1, Ordering::SeqCst);
        Ok(Some(Block::new(index, Bytes::from(vec![index as u8; BLOCK_SIZE]), permit)))
    }
    async fn close(&mut self) {}
}

/// A target in memory whose writes need a ticket each.
struct Store {
    tickets: Semaphore,
    taken: Mutex<BTreeMap<u32, Bytes>>,
    fail_at: Option<u32>,
}

impl Store {
    fn new(tickets: usize) -> Arc<Self> {
        Arc::new(Self { tickets: Semaphore::new(tickets), taken: Mutex::default(), fail_at: None })
    }
    fn failing_at(index: u32) -> Arc<Self> {
        Arc::new(Self { tickets: Semaphore::new(usize::MAX >> 3), taken: Mutex::default(), fail_at: Some(index) })
    }
    fn indexes(&self) -> Vec<u32> {
        self.taken.lock().unwrap().keys().copied().collect()
    }
}

const ENDLESS: usize = usize::MAX >> 3;

#[async_trait]
impl Sink for Store {
    async fn write(&self, index: u32, data: Bytes) -> Result<(), Cause> {
        self.tickets.acquire().await.unwrap().forget();
        if self.fail_at == Some(index) {
            return Err("the target broke".into());
        }
        assert!(data.iter().all(|byte| *byte == index as u8));
        self.taken.lock().unwrap().insert(index, data);
        Ok(())
    }
}

fn target(store: &Arc<Store>) -> Target {
    Target { words: "write to a store".into(), sink: Arc::clone(store) as Arc<dyn Sink> }
}

fn flow(blocks: u64) -> Flow {
    Flow {
        budget: Arc::new(Budget::new(blocks * BLOCK_SIZE as u64)),
        limiter: Arc::new(Limiter::new(0)),
        meter: Arc::new(Meter::new(None)),
        cancel: CancellationToken::new(),
        stall: Duration::from_secs(60),
        source_words: "a read".into(),
        memory_words: "a write".into(),
    }
}

/// Lets every task run until all of them wait for something that only the test can give.
async fn settle() {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn every_target_gets_every_block_without_a_copy() {
    let (one, two, flow) = (Store::new(ENDLESS), Store::new(ENDLESS), flow(4));
    let ends = pump(&mut Memory::new(1..50), vec![target(&one), target(&two)], &flow).await.unwrap();
    assert!(ends.iter().all(Result::is_ok));
    assert_eq!(one.indexes(), (1..50).collect::<Vec<_>>());
    let (one, two) = (one.taken.lock().unwrap(), two.taken.lock().unwrap());
    assert!(one.iter().zip(two.iter()).all(|(a, b)| a.0 == b.0 && a.1.as_ptr() == b.1.as_ptr()));
    let meter = flow.meter.read();
    assert_eq!(meter.bytes_done, 49 * BLOCK_SIZE as u64);
    assert_eq!(meter.bytes_written, 2 * meter.bytes_read);
}

#[tokio::test]
async fn zero_blocks_are_dropped_from_a_full_disk_and_kept_in_a_delta() {
    for (delta, expected) in [(false, vec![1, 2]), (true, vec![0, 1, 2])] {
        let (store, flow) = (Store::new(ENDLESS), flow(4));
        let mut source = Memory { delta, ..Memory::new(0..3) };
        pump(&mut source, vec![target(&store)], &flow).await.unwrap();
        assert_eq!(store.indexes(), expected);
        assert_eq!(flow.meter.read().bytes_done, 3 * BLOCK_SIZE as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_target_slows_the_read_and_is_named() {
    let (fast, slow, flow) = (Store::new(ENDLESS), Store::new(0), flow(64));
    let mut source = Memory::new(1..100);
    let given = Arc::clone(&source.given);
    let targets = vec![target(&fast), Target { words: "write to the slow one".into(), ..target(&slow) }];
    let transfer = pump(&mut source, targets, &flow);
    tokio::pin!(transfer);
    let waiting = tokio::time::timeout(Duration::from_secs(1), &mut transfer).await;
    assert!(waiting.is_err());
    // In its writes, in its queue, and the one that waits at the door.
    assert_eq!(given.load(Ordering::SeqCst), WRITES + QUEUE + 1);
    assert_eq!(flow.meter.read().waiting_for.as_deref(), Some("write to the slow one"));
    slow.tickets.add_permits(ENDLESS);
    let ends = transfer.await.unwrap();
    assert!(ends.iter().all(Result::is_ok));
    assert_eq!(slow.indexes().len(), 99);
    assert!(flow.meter.read().waits[&Wait::Target] >= 1000);
}

#[tokio::test]
async fn memory_is_bounded_over_all_transfers() {
    let shared = flow(3);
    let stores: Vec<_> = (0..4).map(|_| Store::new(0)).collect();
    let counters: Vec<_> = stores
        .iter()
        .map(|store| {
            let (mut source, flow, targets) = (Memory::new(1..20), shared.clone(), vec![target(store)]);
            let given = Arc::clone(&source.given);
            tokio::spawn(async move { pump(&mut source, targets, &flow).await.map(|_| ()) });
            given
        })
        .collect();
    settle().await;
    assert_eq!(counters.iter().map(|given| given.load(Ordering::SeqCst)).sum::<usize>(), 3);
    stores.iter().for_each(|store| store.tickets.add_permits(ENDLESS));
    while stores.iter().any(|store| store.indexes().len() < 19) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_target_that_fails_is_dropped_and_the_others_go_on() {
    let (good, bad, flow) = (Store::new(ENDLESS), Store::failing_at(5), flow(8));
    let ends = pump(&mut Memory::new(1..50), vec![target(&bad), target(&good)], &flow).await.unwrap();
    assert!(matches!(ends[0], Err(TargetError::Write(_))));
    assert!(ends[1].is_ok());
    assert_eq!(good.indexes().len(), 49);
}

#[tokio::test]
async fn nothing_is_read_for_nobody() {
    let (bad, flow) = (Store::failing_at(3), flow(8));
    let mut source = Memory::new(1..200);
    let ends = pump(&mut source, vec![target(&bad)], &flow).await.unwrap();
    assert!(ends[0].is_err());
    assert!(source.given.load(Ordering::SeqCst) < 50);
}

#[tokio::test]
async fn a_broken_source_ends_the_transfer_with_its_reason() {
    let (store, flow) = (Store::new(ENDLESS), flow(8));
    let mut source = Memory { fail_at: Some(7), ..Memory::new(1..50) };
    let error = pump(&mut source, vec![target(&store)], &flow).await.unwrap_err();
    assert!(matches!(error, PumpError::Source(_)));
    assert_eq!(store.indexes().len(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_does_not_wait_for_a_target_that_hangs() {
    let (hanging, flow) = (Store::new(0), flow(8));
    let cancel = flow.cancel.clone();
    let start = tokio::time::Instant::now();
    let transfer = tokio::spawn(async move { pump(&mut Memory::new(1..50), vec![target(&hanging)], &flow).await.map(|_| ()) });
    settle().await;
    cancel.cancel();
    assert!(matches!(transfer.await.unwrap(), Err(PumpError::Cancelled)));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_takes_nothing_is_given_up_after_the_stall_limit() {
    let (hanging, good, flow) = (Store::new(0), Store::new(ENDLESS), flow(64));
    let ends = pump(&mut Memory::new(1..50), vec![target(&hanging), target(&good)], &flow).await.unwrap();
    assert!(matches!(ends[0], Err(TargetError::Stalled { .. })));
    assert!(ends[1].is_ok());
    assert_eq!(good.indexes().len(), 49);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_gives_nothing_is_given_up_after_the_stall_limit() {
    let flow = flow(1);
    let error = flow.from_source(std::future::pending::<()>()).await.unwrap_err();
    assert!(matches!(error, SourceError::Stalled { seconds: 60, .. }));
}

#[tokio::test]
async fn a_source_that_ends_before_its_last_block_has_failed() {
    let store = Store::new(ENDLESS);
    let mut source = Memory { missing: 1, ..Memory::new(1..4) };
    let end = pump(&mut source, vec![target(&store)], &flow(8)).await;
    assert!(matches!(end, Err(PumpError::Source(SourceError::Failed { .. }))), "{:?}", end.map(|ends| ends.len()));
}
