//! Streams written and read back: the example of the reference, every kind of layout a pool may send, every cut.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::StreamExt;
use futures::executor::block_on;
use proptest::prelude::*;
use uuid::Uuid;
use vhd::stream::{Part, PieceError, ReadError, Reader, Writer};
use vhd::{BLOCK_SIZE, BlockTable, DiskType, DynamicHeader, FULL_BITMAP, Footer, FormatError, pad_block};

const MIB: u64 = 1 << 20;

fn footer(size: u64) -> Footer {
    Footer::new(size, Uuid::new_v4(), DiskType::Dynamic, 1_700_000_000)
}

/// A block that differs from every other one, and from sector to sector.
fn pattern(index: u32) -> Bytes {
    (0..BLOCK_SIZE as u32 / 4)
        .flat_map(|word| (word.wrapping_mul(2_654_435_761) ^ index).to_be_bytes())
        .collect::<Vec<_>>()
        .into()
}

fn written(footer: &Footer, blocks: &[u32]) -> Vec<u8> {
    let header = DynamicHeader::for_disk(footer, None).unwrap();
    let mut writer = Writer::new(footer, &header, blocks.to_vec()).unwrap();
    let mut bytes = writer.head().to_vec();
    let length = writer.length();
    for index in blocks {
        for piece in writer.block(*index, pattern(*index)).unwrap() {
            bytes.extend_from_slice(&piece);
        }
    }
    bytes.extend_from_slice(&writer.finish().unwrap());
    assert_eq!(bytes.len() as u64, length);
    bytes
}

async fn read(bytes: &[u8]) -> Result<BTreeMap<u32, Bytes>, ReadError> {
    let mut reader = Reader::open(bytes).await?;
    let mut blocks = BTreeMap::new();
    while let Some((index, data)) = reader.next_block().await? {
        assert_eq!(data.len(), BLOCK_SIZE);
        assert!(blocks.insert(index, data).is_none(), "block {index} twice");
    }
    assert!(reader.next_block().await?.is_none(), "the end stays the end");
    assert_eq!(reader.position(), bytes.len() as u64);
    Ok(blocks)
}

/// A file with blocks at positions of the test's choice; `cut` bytes are missing from the last one.
fn assembled(size: u64, table_offset: u64, places: &[(u32, u32)], cut: usize) -> Vec<u8> {
    let footer = footer(size);
    let mut header = DynamicHeader::for_disk(&footer, None).unwrap();
    header.table_offset = table_offset;
    let mut table = BlockTable::new(header.max_table_entries).unwrap();
    for (index, sector) in places {
        table.set(*index, *sector).unwrap();
    }
    let mut bytes = footer.to_bytes().to_vec();
    bytes.extend(header.to_bytes());
    bytes.resize(table_offset as usize, 0xEE);
    bytes.extend(table.to_bytes());
    for (index, sector) in places {
        let start = *sector as usize * 512;
        bytes.resize(bytes.len().max(start + 512 + BLOCK_SIZE), 0xEE);
        bytes[start..start + 512].copy_from_slice(&FULL_BITMAP);
        bytes[start + 512..start + 512 + BLOCK_SIZE].copy_from_slice(&pattern(*index));
    }
    bytes.truncate(bytes.len() - cut);
    bytes.extend(footer.to_bytes());
    bytes
}

#[tokio::test]
async fn the_example_of_the_reference() {
    let footer = footer(5 * MIB);
    let bytes = written(&footer, &[0, 2]);
    assert_eq!(bytes.len(), 4_197_888);
    assert_eq!(bytes[1536..1548], [0, 0, 0, 4, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0x10, 5]);
    let blocks = read(&bytes).await.unwrap();
    assert_eq!(blocks, BTreeMap::from([(0, pattern(0)), (2, pattern(2))]));
    let reader = Reader::open(&bytes[..]).await.unwrap();
    assert_eq!(reader.footer(), &footer);
    assert_eq!(reader.virtual_size(), 5 * MIB);
    assert!(!reader.is_differencing());
}

#[tokio::test]
async fn an_empty_disk_and_a_disk_of_nothing() {
    for size in [0, 5 * MIB] {
        assert!(read(&written(&footer(size), &[])).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn an_overlay_without_parent_is_a_delta() {
    let footer = Footer::new(4 * MIB, Uuid::new_v4(), DiskType::Differencing, 0);
    let bytes = written(&footer, &[1]);
    let reader = Reader::open(&bytes[..]).await.unwrap();
    assert!(reader.is_differencing());
    assert!(reader.header().parent_unique_id.is_nil() && reader.header().parent_name.is_empty());
}

#[tokio::test]
async fn unordered_blocks_and_gaps_everywhere() {
    let (late_table, unordered, holes) = (8192, [(2, 40), (0, 5000), (1, 9200)], 9200 * 512);
    let bytes = assembled(6 * MIB, late_table, &unordered, 0);
    assert!(bytes.len() > holes);
    let blocks = read(&bytes).await.unwrap();
    assert_eq!(blocks, BTreeMap::from([(0, pattern(0)), (1, pattern(1)), (2, pattern(2))]));
}

#[tokio::test]
async fn bytes_between_the_last_block_and_the_footer_are_skipped() {
    let mut bytes = written(&footer(4 * MIB), &[0]);
    let footer = bytes.split_off(bytes.len() - 512);
    bytes.resize(bytes.len() + 3 * 1024 * 1024 + 7, 0xEE);
    bytes.extend(footer);
    assert_eq!(read(&bytes).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_short_last_block_is_padded() {
    let half = BLOCK_SIZE / 2;
    for places in [&[(2, 4)][..], &[(0, 4), (2, 4101)]] {
        let blocks = read(&assembled(5 * MIB, 1536, places, half)).await.unwrap();
        assert_eq!(blocks.len(), places.len());
        assert_eq!(blocks[&2], pad_block(pattern(2).slice(..half)));
    }
}

#[tokio::test]
async fn a_short_last_block_may_stand_before_another_one() {
    let half = BLOCK_SIZE / 2;
    let follower = 4 + 1 + half as u32 / 512;
    let mut bytes = assembled(5 * MIB, 1536, &[(2, 4), (0, follower)], 0);
    let start = follower as usize * 512;
    bytes[start..start + 512].copy_from_slice(&FULL_BITMAP);
    let blocks = read(&bytes).await.unwrap();
    assert_eq!(blocks[&2], pad_block(pattern(2).slice(..half)));
    assert_eq!(blocks[&0], pattern(0));
}

#[tokio::test]
async fn every_cut_is_seen() {
    let bytes = written(&footer(5 * MIB), &[0, 2]);
    let block = 2048 + 512 + BLOCK_SIZE;
    let cuts =
        [0, 1, 511, 512, 1535, 1536, 2047, 2048, 2559, 2560, 5000, block - 1, block, block + 1, block + 512 + BLOCK_SIZE / 2];
    let near_the_end = (1..1600).map(|missing| bytes.len() - missing);
    for cut in cuts.into_iter().chain(near_the_end).chain((0..bytes.len()).step_by(262_139)) {
        let error = read(&bytes[..cut]).await.expect_err(&format!("cut at {cut}"));
        match error {
            ReadError::Truncated { position, .. } => assert_eq!(position, cut as u64),
            // The last block of this disk may be short, so its own bytes are first taken for the footer.
            ReadError::Format { part: Part::TrailingFooter, .. } => assert!(cut > block + 512 + BLOCK_SIZE / 2),
            other => panic!("cut at {cut}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_trailing_footer_must_be_the_leading_one() {
    let mut bytes = written(&footer(4 * MIB), &[0]);
    let end = bytes.len() - 512;
    bytes[end..].copy_from_slice(&footer(4 * MIB).to_bytes());
    let error = read(&bytes).await.unwrap_err();
    assert!(matches!(error, ReadError::Format { part: Part::TrailingFooter, source: FormatError::FootersDiffer }));
}

#[tokio::test]
async fn a_huge_table_costs_nothing_before_it_comes() {
    let footer = footer(5 * MIB);
    let header = DynamicHeader::new(vhd::MAX_TABLE_ENTRIES, None).unwrap();
    let bytes = [&footer.to_bytes()[..], &header.to_bytes()[..], &[0xFF; 1000]].concat();
    assert!(matches!(read(&bytes).await, Err(ReadError::Truncated { position: 2536, part: Part::Table })));
}

#[tokio::test]
async fn partial_bitmaps_are_counted() {
    let mut bytes = written(&footer(4 * MIB), &[0, 1]);
    bytes[2048] = 0x7F;
    let mut reader = Reader::open(&bytes[..]).await.unwrap();
    while reader.next_block().await.unwrap().is_some() {}
    assert_eq!(reader.sparse_blocks(), 1);
}

#[tokio::test]
async fn pieces_are_the_stream_and_share_the_data() {
    let footer = footer(5 * MIB);
    let header = DynamicHeader::for_disk(&footer, None).unwrap();
    let blocks = [(0, pattern(0)), (2, pattern(2))];
    let source = futures::stream::iter(blocks.clone().map(Ok::<_, std::io::Error>));
    let pieces: Vec<Bytes> =
        Writer::new(&footer, &header, vec![0, 2]).unwrap().pieces(source).map(|piece| piece.unwrap()).collect().await;
    assert_eq!(pieces.concat(), written(&footer, &[0, 2]));
    assert_eq!(pieces[2].as_ptr(), blocks[0].1.as_ptr(), "data is not copied");
}

#[tokio::test]
async fn pieces_of_other_blocks_than_announced_end_with_an_error() {
    let footer = footer(5 * MIB);
    let header = DynamicHeader::for_disk(&footer, None).unwrap();
    let cases: [&[(u32, Bytes)]; 4] = [
        &[(0, pattern(0))],
        &[(2, pattern(2))],
        &[(0, Bytes::from_static(b"short"))],
        &[(0, pattern(0)), (2, pattern(2)), (2, pattern(2))],
    ];
    for blocks in cases {
        let source = futures::stream::iter(blocks.iter().cloned().map(Ok::<_, std::io::Error>));
        let results: Vec<_> = Writer::new(&footer, &header, vec![0, 2]).unwrap().pieces(source).collect().await;
        let (last, others) = results.split_last().unwrap();
        assert!(matches!(last, Err(PieceError::Format(_))));
        assert!(others.iter().all(Result::is_ok));
    }
}

#[test]
fn a_writer_refuses_what_does_not_fit() {
    let footer = footer(5 * MIB);
    let header = DynamicHeader::for_disk(&footer, None).unwrap();
    let refused = |blocks: &[u32]| Writer::new(&footer, &header, blocks.to_vec()).unwrap_err();
    assert!(matches!(refused(&[3]), FormatError::NoSuchBlock { index: 3, entries: 3 }));
    assert!(matches!(refused(&[1, 1]), FormatError::BlockOrder { .. }));
    assert!(matches!(refused(&[1, 0]), FormatError::BlockOrder { .. }));
    let mut writer = Writer::new(&footer, &header, vec![0, 2]).unwrap();
    let error = writer.block(1, pattern(1)).unwrap_err();
    assert_eq!(error.to_string(), "block 1 came into the VHD stream where block 0 was announced");
    let error = writer.finish().unwrap_err();
    assert_eq!(error.to_string(), "the end came into the VHD stream where block 0 was announced");
    let short = DynamicHeader::new(2, None).unwrap();
    assert!(matches!(Writer::new(&footer, &short, vec![]), Err(FormatError::TooFewEntries { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_choice_of_blocks_reads_back(size in 1..20 * MIB, choice: u16) {
        let count = vhd::block_count(size).unwrap();
        let blocks: Vec<u32> = (0..count).filter(|index| choice >> index & 1 == 1).collect();
        let read = block_on(read(&written(&footer(size), &blocks))).unwrap();
        prop_assert_eq!(read.keys().copied().collect::<Vec<_>>(), blocks);
        prop_assert!(read.iter().all(|(index, data)| *data == pattern(*index)));
    }
}

proptest! {
    /// A valid head followed by a table and blocks of random bytes.
    #[test]
    fn no_stream_makes_it_panic(size in 0..64 * MIB, rest in proptest::collection::vec(any::<u8>(), 0..8192)) {
        let footer = footer(size);
        let header = DynamicHeader::for_disk(&footer, None).unwrap();
        let bytes = [&footer.to_bytes()[..], &header.to_bytes()[..], &rest].concat();
        let _ = block_on(read(&bytes));
    }
}
