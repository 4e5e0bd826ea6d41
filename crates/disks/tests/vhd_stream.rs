//! VHD streams out of an image and into another.

use std::ops::Range;
use std::sync::Arc;

use disks::{BlockRead, DiskError, Image, Layer, Shape, View, export_raw, export_vhd, import_raw, import_vhd};
use proptest::prelude::*;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// Ends within a block of 2 MiB.
const SIZE: u64 = 9 * MIB;

fn content(view: &View) -> Vec<u8> {
    let mut content = vec![0; view.size() as usize];
    view.read_at(0, &mut content).unwrap();
    content
}

fn live(image: &Arc<Image>) -> View {
    View::new(Arc::clone(image), Layer::Live).unwrap()
}

async fn collect(view: &View, base: Option<&View>, shape: Shape) -> Vec<u8> {
    let mut export = export_vhd(view, Uuid::from_u128(7), base.map(|base| (base, Uuid::from_u128(5))), shape).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = export.stream.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(bytes.len() as u64, export.length);
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(Range<u64>, u8)>> {
    prop::collection::vec((0..SIZE, 1..MIB, any::<u8>()).prop_map(|(at, length, byte)| (at..(at + length).min(SIZE), byte)), 0..5)
}

fn apply(image: &Image, changes: &[(Range<u64>, u8)]) {
    for (range, byte) in changes {
        image.write_at(range.start, &vec![*byte; (range.end - range.start) as usize]).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_full_and_a_delta_rebuild_the_disk(first in changes(), second in changes(), unordered: bool, short_last_block: bool, gap_sectors in 0..9_u16) {
        let shape = Shape { unordered, short_last_block, gap_sectors };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let source = Image::create(&dir.path().join("source"), SIZE).unwrap();
            let target = Image::create(&dir.path().join("target"), SIZE).unwrap();
            apply(&source, &first);
            let base = Uuid::new_v4();
            source.snapshot(base).unwrap();
            let base = View::new(Arc::clone(&source), Layer::Snapshot(base)).unwrap();
            let full = collect(&base, None, shape).await;
            let imported = import_vhd(&target, &full[..]).await.unwrap();
            assert!(!imported.differencing && imported.virtual_size == SIZE);
            assert!(content(&live(&target)) == content(&base));

            apply(&source, &second);
            let delta = collect(&live(&source), Some(&base), shape).await;
            // The same from images that share nothing: only reading tells what differs.
            let unrelated = collect(&live(&source), Some(&live(&target)), shape).await;
            assert_eq!(unrelated.len(), delta.len());
            let imported = import_vhd(&target, &delta[..]).await.unwrap();
            assert!(imported.differencing);
            assert!(content(&live(&target)) == content(&live(&source)));
            let touched = second.iter().flat_map(|(range, _)| range.start / (2 * MIB)..range.end.div_ceil(2 * MIB));
            assert!(u64::from(imported.blocks) <= touched.collect::<std::collections::BTreeSet<_>>().len() as u64);
        });
    }
}

#[tokio::test]
async fn a_cut_stream_and_a_stream_too_large_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = Image::create(&dir.path().join("source"), SIZE).unwrap();
    source.write_at(3 * MIB, &[1; 5000]).unwrap();
    let stream = collect(&live(&source), None, Shape::default()).await;
    let target = Image::create(&dir.path().join("target"), SIZE).unwrap();
    for length in [0, 100, 1600, 2048, 1 << 20, stream.len() - 1] {
        let error = import_vhd(&target, &stream[..length]).await.unwrap_err();
        assert!(matches!(&error, DiskError::Vhd { .. }), "{length}: {error}");
    }
    let small = Image::create(&dir.path().join("small"), MIB).unwrap();
    let error = import_vhd(&small, &stream[..]).await.unwrap_err();
    assert_eq!(error.to_string(), "the VHD stream is not usable: its disk of 9437184 bytes does not fit into one of 1048576");
}

#[tokio::test]
async fn raw_goes_out_and_in() {
    let dir = tempfile::tempdir().unwrap();
    let source = Image::create(&dir.path().join("source"), SIZE + 512).unwrap();
    source.write_at(SIZE - 5, &[9; 500]).unwrap();
    let mut stream = export_raw(&live(&source));
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    let target = Image::create(&dir.path().join("target"), SIZE + 1024).unwrap();
    target.write_at(0, &[1; 4096]).unwrap();
    import_raw(&target, &bytes[..], bytes.len() as u64).await.unwrap();
    assert!(content(&live(&target))[..bytes.len()] == content(&live(&source)));
    let early = import_raw(&target, &bytes[..100], 200).await.unwrap_err();
    assert!(matches!(early, DiskError::Import { received: 0, .. }));
    let long = import_raw(&target, &bytes[..], SIZE + 2048).await.unwrap_err();
    assert!(matches!(long, DiskError::OutOfRange { .. }));
}

/// A reader that nobody here wrote.
#[tokio::test]
async fn qemu_reads_the_same_disk() {
    use std::process::Command;
    let dir = tempfile::tempdir().unwrap();
    let source = Image::create(&dir.path().join("source"), 8 * MIB).unwrap();
    source.write_at(MIB + 77, &[3; 4_000_000]).unwrap();
    for (name, unordered) in [("plain.vhd", false), ("unordered.vhd", true)] {
        let path = dir.path().join(name);
        std::fs::write(&path, collect(&live(&source), None, Shape { unordered, ..Shape::default() }).await).unwrap();
        let compared =
            Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "vpc"]).arg(source.path()).arg(&path).output();
        let compared = compared.expect("qemu-img starts; `cargo xtask setup` installs it");
        assert!(compared.status.success(), "{compared:?}");
    }
}
