//! An image against a model that keeps every content whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use disks::{BLOCK, BlockRead, DiskError, Image, Layer, View};
use proptest::prelude::*;
use uuid::Uuid;

const SIZE: u64 = 7 * BLOCK + 512;

#[derive(Debug, Clone)]
enum Step {
    Write { at: u64, length: u64, byte: u8 },
    Trim { at: u64, length: u64 },
    Snapshot,
    Delete(prop::sample::Index),
    DestroyData(prop::sample::Index),
    EnableCbt,
    DisableCbt,
    Grow(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..SIZE, 1..3 * BLOCK);
    prop_oneof![
        6 => (range(), any::<u8>()).prop_map(|((at, length), byte)| Step::Write { at, length, byte }),
        2 => range().prop_map(|(at, length)| Step::Trim { at, length }),
        4 => Just(Step::Snapshot),
        3 => any::<prop::sample::Index>().prop_map(Step::Delete),
        1 => any::<prop::sample::Index>().prop_map(Step::DestroyData),
        2 => Just(Step::EnableCbt),
        1 => Just(Step::DisableCbt),
        1 => (1..2 * BLOCK).prop_map(Step::Grow),
        1 => Just(Step::Reopen),
    ]
}

/// One point in time as the model remembers it.
struct Point {
    id: Uuid,
    content: Option<Vec<u8>>,
    tracked: bool,
    /// How far the logs below had come.
    writes: usize,
    losses: usize,
}

struct Model {
    live: Vec<u8>,
    points: Vec<Point>,
    tracked: bool,
    /// Blocks of every write, in order.
    writes: Vec<BTreeSet<u64>>,
    /// How often tracking was switched off.
    losses: usize,
}

impl Model {
    fn change(&mut self, at: u64, length: u64, byte: u8) -> (u64, u64) {
        let end = (at + length).min(self.live.len() as u64);
        self.live[at as usize..end as usize].fill(byte);
        self.writes.push((at / BLOCK..end.div_ceil(BLOCK)).collect());
        (at, end - at)
    }

    fn check(&self, image: &Arc<Image>) {
        check_content(image, Layer::Live, &self.live);
        for (index, point) in self.points.iter().enumerate() {
            match &point.content {
                Some(content) => check_content(image, Layer::Snapshot(point.id), content),
                None => assert!(matches!(image.layer_size(Layer::Snapshot(point.id)), Err(DiskError::DataDestroyed(_)))),
            }
            let newer = self.points[index + 1..]
                .iter()
                .map(|to| (Layer::Snapshot(to.id), to.writes, to.losses, to.tracked, to.content.as_ref()));
            let live = (Layer::Live, self.writes.len(), self.losses, self.tracked, Some(&self.live));
            for (to, writes, losses, tracked, content) in newer.chain([live]) {
                let changed = image.changed_blocks(point.id, to);
                if !(point.tracked && tracked && point.losses == losses) {
                    assert!(matches!(changed, Err(DiskError::NotTracked { .. })), "{changed:?}");
                    continue;
                }
                let changed: BTreeSet<u64> = changed.unwrap().runs().flatten().collect();
                let written: BTreeSet<u64> = self.writes[point.writes..writes].iter().flatten().copied().collect();
                assert_eq!(changed, written);
                if let (Some(from), Some(content)) = (&point.content, content) {
                    let mut from = from.clone();
                    from.resize(content.len(), 0);
                    let differing = from.chunks(BLOCK as usize).zip(content.chunks(BLOCK as usize));
                    let differing = (0..).zip(differing).filter(|(_, (one, other))| one != other).map(|(block, _)| block);
                    assert!(differing.collect::<BTreeSet<u64>>().is_subset(&changed));
                }
            }
        }
    }
}

fn check_content(image: &Arc<Image>, layer: Layer, expected: &[u8]) {
    let view = View::new(Arc::clone(image), layer).unwrap();
    let mut content = vec![0xEE; view.size() as usize];
    view.read_at(0, &mut content).unwrap();
    assert!(content == expected, "{layer} has another content");
    let mut sparse = vec![0; expected.len()];
    for range in view.allocated().unwrap() {
        view.read_at(range.start, &mut sparse[range.start as usize..range.end as usize]).unwrap();
    }
    assert!(sparse == expected, "{layer} has data outside of what it calls allocated");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_layer_keeps_its_content_and_changed_blocks_are_true(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("image");
        let mut image = Image::create(&dir, SIZE).unwrap();
        let mut model =
            Model { live: vec![0; SIZE as usize], points: Vec::new(), tracked: false, writes: Vec::new(), losses: 0 };
        for step in steps {
            match step {
                Step::Write { at, length, byte } => {
                    let (at, length) = model.change(at, length, byte);
                    image.write_at(at, &vec![byte; length as usize]).unwrap();
                }
                Step::Trim { at, length } => {
                    let (at, length) = model.change(at, length, 0);
                    image.trim(at, length).unwrap();
                }
                Step::Snapshot => {
                    let id = Uuid::new_v4();
                    image.snapshot(id).unwrap();
                    let content = Some(model.live.clone());
                    let (writes, losses) = (model.writes.len(), model.losses);
                    model.points.push(Point { id, content, tracked: model.tracked, writes, losses });
                }
                Step::Delete(which) if !model.points.is_empty() => {
                    let point = model.points.remove(which.index(model.points.len()));
                    image.delete_snapshot(point.id).unwrap();
                }
                Step::DestroyData(which) if !model.points.is_empty() => {
                    let index = which.index(model.points.len());
                    let point = &mut model.points[index];
                    match image.destroy_data(point.id) {
                        Ok(()) => point.content = None,
                        Err(error) => prop_assert!(!point.tracked, "{}", error),
                    }
                }
                Step::EnableCbt => {
                    image.enable_cbt().unwrap();
                    model.tracked = true;
                }
                Step::DisableCbt => {
                    image.disable_cbt().unwrap();
                    model.losses += usize::from(model.tracked);
                    model.tracked = false;
                }
                Step::Grow(by) => {
                    model.live.resize(model.live.len() + by as usize, 0);
                    image.resize(model.live.len() as u64).unwrap();
                }
                Step::Reopen => {
                    drop(image);
                    image = Image::open(&dir).unwrap();
                }
                Step::Delete(_) | Step::DestroyData(_) => {}
            }
            model.check(&image);
        }
        prop_assert_eq!(std::fs::read(image.path()).unwrap(), model.live);
    }
}

#[test]
fn a_snapshot_costs_no_space_and_a_copy_keeps_holes() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let image = Image::create(&dir.path().join("one"), 1 << 30).unwrap();
    image.write_at(5 << 20, &[7; 100_000]).unwrap();
    image.snapshot(Uuid::new_v4()).unwrap();
    let copy = image.copy_to(Layer::Live, &dir.path().join("two")).unwrap();
    assert_eq!(image.snapshots().len(), 1, "the copy leaves no snapshot behind");
    check_content_of_range(&copy, 5 << 20, &[7; 100_000]);
    for path in [image.path(), copy.path()] {
        let blocks = std::fs::metadata(path).unwrap().blocks();
        assert!(blocks * 512 < 1 << 20, "{} takes {blocks} sectors", path.display());
    }
}

fn check_content_of_range(image: &Image, at: u64, expected: &[u8]) {
    let mut content = vec![0; expected.len()];
    image.read_at(at, &mut content).unwrap();
    assert_eq!(content, expected);
}

#[test]
fn bad_requests_are_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("image");
    let image = Image::create(&home, BLOCK).unwrap();
    let text = |error: DiskError| error.to_string();
    assert_eq!(text(image.write_at(BLOCK - 1, &[0; 2]).unwrap_err()), "bytes 65535..65537 lie outside a disk of 65536 bytes");
    assert_eq!(text(image.resize(1).unwrap_err()), "a disk of 65536 bytes cannot shrink to 1");
    assert!(matches!(image.read_at(u64::MAX, &mut [0]), Err(DiskError::OutOfRange { .. })));
    assert!(matches!(image.delete_snapshot(Uuid::nil()), Err(DiskError::NoSuchSnapshot(_))));
    assert!(matches!(Image::open(&home), Err(DiskError::InUse { .. })));
    drop(image);
    std::fs::write(home.join("state.json"), "{").unwrap();
    assert!(matches!(Image::open(&home), Err(DiskError::State { .. })));
}

#[test]
fn leftovers_of_a_killed_process_go_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("image");
    let image = Image::create(&home, BLOCK).unwrap();
    image.snapshot(Uuid::nil()).unwrap();
    drop(image);
    std::fs::write(home.join("99.data"), "half a snapshot").unwrap();
    std::fs::write(home.join("99.notes"), "not ours").unwrap();
    Image::open(&home).unwrap();
    assert!(!home.join("99.data").exists() && home.join("99.notes").exists() && home.join("1.data").exists());
}
