//! Archives written and read back, whole, cut at every place that matters, damaged, and hostile.

use bytes::Bytes;
use proptest::prelude::*;
use xva::{
    CHUNK_SIZE, Checksums, Chunk, Compression, Compressor, Event, Importer, Summary, Validator, Writer, XvaError, upper_bound,
};

const OVA: &[u8] = b"<value><struct></struct></value>";

fn noise(seed: u32, length: usize) -> Bytes {
    (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761).rotate_left(seed % 31) ^ seed) as u8 | 1).collect()
}

/// Two disks: five chunks and a half of which three are zeros, with a keep-alive in between; and one short chunk.
fn pieces() -> Vec<Bytes> {
    let mut writer = Writer::new();
    let mut pieces = writer.ova_xml(Bytes::from_static(OVA)).unwrap();
    writer.begin_disk("Ref:12", 5 * CHUNK_SIZE as u64 + 1000).unwrap();
    assert!(!writer.skip_chunk(), "the first chunk is always there");
    pieces.extend(writer.chunk(Bytes::from(vec![0; CHUNK_SIZE])).unwrap());
    assert!(writer.chunk(Bytes::from(vec![0; CHUNK_SIZE])).unwrap().is_empty(), "zeros are left out");
    pieces.extend(writer.keep_alive().unwrap());
    pieces.extend(writer.chunk(noise(2, CHUNK_SIZE)).unwrap());
    assert!(writer.skip_chunk());
    pieces.extend(writer.chunk(noise(4, CHUNK_SIZE)).unwrap());
    assert_eq!(writer.next_chunk(), Some((5 * CHUNK_SIZE as u64, 1000)));
    assert!(!writer.skip_chunk(), "the last chunk is always there");
    pieces.extend(writer.chunk(Bytes::from(vec![0; 1000])).unwrap());
    writer.begin_disk("Ref:2", 777).unwrap();
    pieces.extend(writer.chunk(noise(5, 777)).unwrap());
    pieces.push(writer.finish().unwrap());
    pieces
}

fn archive(compression: Compression) -> Vec<u8> {
    compressed(compression, pieces())
}

fn compressed(compression: Compression, pieces: Vec<Bytes>) -> Vec<u8> {
    let mut compressor = Compressor::new(compression).unwrap();
    let mut bytes: Vec<u8> = pieces.into_iter().flat_map(|piece| compressor.push(piece).unwrap()).collect();
    bytes.extend(compressor.finish().unwrap());
    bytes
}

/// A small archive by hand: names and contents, then the mark of the end.
fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in entries {
        let mut record = [0; 512];
        record[..name.len()].copy_from_slice(name.as_bytes());
        record[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        record[148..156].fill(b' ');
        let sum: u32 = record.iter().map(|byte| u32::from(*byte)).sum();
        record[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        bytes.extend(record);
        bytes.extend(*content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn validate(bytes: &[u8], piece: usize) -> Result<Summary, XvaError> {
    let mut validator = Validator::new();
    for piece in bytes.chunks(piece.max(1)) {
        validator.push(piece)?;
    }
    validator.finish()
}

async fn import(bytes: &[u8]) -> Result<(Vec<Event>, Summary), XvaError> {
    let mut importer = Importer::new(bytes);
    let mut events = Vec::new();
    while let Some(event) = importer.next().await? {
        events.push(event);
    }
    Ok((events, importer.summary().unwrap().clone()))
}

#[tokio::test]
async fn what_is_written_reads_back_compressed_or_not() {
    let mib = CHUNK_SIZE as u64;
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let bytes = archive(compression);
        let (events, summary) = import(&bytes).await.unwrap();
        let chunk = |disk: &str, number, offset, data| Event::Chunk(Chunk { disk: disk.into(), number, offset, data });
        let expected = [
            Event::OvaXml(Bytes::from_static(OVA)),
            chunk("Ref:12", 0, 0, vec![0; CHUNK_SIZE].into()),
            chunk("Ref:12", 3, 2 * mib, noise(2, CHUNK_SIZE)),
            chunk("Ref:12", 5, 4 * mib, noise(4, CHUNK_SIZE)),
            chunk("Ref:12", 6, 5 * mib, vec![0; 1000].into()),
            chunk("Ref:2", 0, 0, noise(5, 777)),
        ];
        assert!(events == expected, "{compression}");
        assert_eq!((summary.compression, summary.length), (compression, bytes.len() as u64));
        assert_eq!(summary.checksums, Checksums::Xxh64);
        assert_eq!(summary.disks.iter().map(|disk| disk.end).collect::<Vec<_>>(), [5 * mib + 1000, 777]);
        assert!(summary.uncompressed_length <= upper_bound([5 * mib + 1000, 777]));
        for piece in [bytes.len(), 1 << 16, 4093] {
            assert_eq!(validate(&bytes, piece).unwrap(), summary);
        }
    }
}

#[test]
fn tar_itself_can_read_it() {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut tar = Command::new("tar").args(["-t", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    tar.stdin.take().unwrap().write_all(&archive(Compression::None)).unwrap();
    let output = tar.wait_with_output().unwrap();
    assert!(output.status.success());
    let names = String::from_utf8(output.stdout).unwrap();
    let chunks = names.lines().filter(|name| !name.ends_with(".xxhash")).collect::<Vec<_>>();
    let expected = [
        "ova.xml",
        "Ref:12/00000000",
        "Ref:12/00000002",
        "Ref:12/00000003",
        "Ref:12/00000005",
        "Ref:12/00000006",
        "Ref:2/00000000",
    ];
    assert_eq!(chunks, expected, "the second is the keep-alive");
}

#[test]
fn data_are_not_copied_on_the_way_out() {
    let data = noise(1, CHUNK_SIZE);
    let mut writer = Writer::new();
    writer.ova_xml(Bytes::from_static(OVA)).unwrap();
    writer.begin_disk("Ref:1", CHUNK_SIZE as u64).unwrap();
    let pieces = writer.chunk(data.clone()).unwrap();
    assert_eq!(pieces[1].as_ptr(), data.as_ptr());
}

/// Two small disks, so that every place of the archive can be tried.
fn small_archive(compression: Compression) -> Vec<u8> {
    let mut writer = Writer::new();
    let mut pieces = writer.ova_xml(Bytes::from_static(OVA)).unwrap();
    for (reference, size) in [("Ref:1", 3000), ("Ref:2", 777)] {
        writer.begin_disk(reference, size as u64).unwrap();
        pieces.extend(writer.chunk(noise(3, size)).unwrap());
    }
    pieces.push(writer.finish().unwrap());
    compressed(compression, pieces)
}

#[test]
fn every_truncation_is_refused() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let bytes = small_archive(compression);
        validate(&bytes, 1000).unwrap();
        for cut in 0..bytes.len() {
            match validate(&bytes[..cut], 1000) {
                Err(XvaError::Truncated { position, .. }) => assert_eq!(position, cut as u64, "{compression}"),
                Err(XvaError::Empty) => assert_eq!(cut, 0, "{compression}"),
                other => panic!("{compression} cut at {cut} of {}: {other:?}", bytes.len()),
            }
        }
    }
}

#[test]
fn a_cut_says_where() {
    let bytes = archive(Compression::None);
    let text = validate(&bytes[..1536 + 512], 4096).unwrap_err().to_string();
    assert_eq!(text, "the XVA is cut: it ends at byte 2048, in chunk 0 of disk Ref:12, of which 1048064 bytes are missing");
}

#[tokio::test]
async fn damage_is_found_where_it_is() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let mut bytes = archive(compression);
        let inside_a_chunk = bytes.len() * 2 / 5;
        bytes[inside_a_chunk] ^= 0x10;
        let error = validate(&bytes, 1 << 16).unwrap_err();
        match compression {
            Compression::None => {
                assert!(matches!(&error, XvaError::Checksum { chunk, .. } if chunk == "Ref:12/00000003"), "{error}")
            }
            _ => assert!(
                matches!(&error, XvaError::Checksum { .. } | XvaError::Compressed { .. } | XvaError::Truncated { .. }),
                "{error}"
            ),
        }
        assert!(import(&bytes).await.is_err());
    }
}

#[test]
fn a_wrong_checksum_of_the_compressed_stream_is_damage_and_no_cut() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut bytes = small_archive(compression);
        // gzip ends with checksum and length of four bytes each, zstd with a checksum of four.
        let place = bytes.len() - if compression == Compression::Gzip { 6 } else { 2 };
        bytes[place] ^= 1;
        assert!(matches!(validate(&bytes, 1000), Err(XvaError::Compressed { .. })), "{compression}");
    }
}

#[test]
fn more_zeros_at_the_end_are_tolerated_but_nothing_else() {
    let mut bytes = archive(Compression::None);
    bytes.resize(bytes.len() + 8192, 0);
    validate(&bytes, 1 << 20).unwrap();
    let end = bytes.len() as u64;
    bytes.push(1);
    assert!(matches!(validate(&bytes, 1 << 20), Err(XvaError::Trailing { position }) if position == end));
    let mut compressed = archive(Compression::Gzip);
    compressed.extend(b"more");
    assert!(matches!(validate(&compressed, 1 << 20), Err(XvaError::TrailingCompressed { .. })));
}

#[test]
fn older_checksums_and_none_at_all() {
    let sha1 = b"a9993e364706816aba3e25717850c26c9cd0d89d";
    let old = tar(&[("ova.xml", OVA), ("Ref:1/00000000", b"abc"), ("Ref:1/00000000.checksum", sha1), ("checksum.xml", b"<x/>")]);
    assert_eq!(validate(&old, 100).unwrap().checksums, Checksums::Sha1);
    let older = tar(&[("ova.xml", OVA), ("Ref:1/00000000", b"abc"), ("Ref:1/00000001", b"def")]);
    let summary = validate(&older, 100).unwrap();
    assert_eq!((summary.checksums, summary.disks[0].end), (Checksums::None, 6));
    let wrong = tar(&[("ova.xml", OVA), ("Ref:1/00000000", b"abd"), ("Ref:1/00000000.checksum", sha1)]);
    assert!(matches!(validate(&wrong, 100), Err(XvaError::Checksum { .. })));
}

#[test]
fn an_archive_out_of_order_is_refused() {
    let hash = b"44BC2CF5AD770999"; // XXH64 of "abc"
    let (chunk, sum) = (("Ref:1/00000000", &b"abc"[..]), ("Ref:1/00000000.xxhash", &hash[..]));
    validate(&tar(&[("ova.xml", OVA), chunk, sum]), 512).unwrap();
    let refused = |entries: &[(&str, &[u8])]| validate(&tar(entries), 512).unwrap_err();
    assert!(matches!(refused(&[]), XvaError::Empty));
    assert!(matches!(refused(&[chunk]), XvaError::OvaXmlNotFirst { found } if found == "Ref:1/00000000"));
    assert!(matches!(refused(&[("ova.xml", OVA), ("ova.xml", OVA)]), XvaError::Entry { .. }));
    assert!(matches!(refused(&[("ova.xml", OVA), sum]), XvaError::Entry { .. }));
    assert!(matches!(refused(&[("ova.xml", OVA), chunk, sum, sum]), XvaError::Entry { .. }));
    assert!(matches!(refused(&[("ova.xml", OVA), chunk, sum, chunk, sum]), XvaError::Entry { .. }), "numbers increase");
    assert!(matches!(refused(&[("ova.xml", OVA), chunk, sum, ("Ref:1/00000001", b"abc")]), XvaError::ChecksumMissing { .. }));
    let (other, other_sum) = (("Ref:2/00000000", &b"abc"[..]), ("Ref:2/00000000.xxhash", &hash[..]));
    let again = ("Ref:1/00000001", &b"abc"[..]);
    assert!(
        matches!(refused(&[("ova.xml", OVA), chunk, sum, other, other_sum, again]), XvaError::Entry { .. }),
        "disks do not mix"
    );
    assert!(matches!(refused(&[("ova.xml", OVA), chunk, sum, ("../etc/passwd", b"")]), XvaError::Entry { .. }));
    assert!(matches!(validate(b"HTTP/1.1 500 Internal Error\r\n", 512), Err(XvaError::Truncated { .. })));
    assert!(matches!(validate(&[b'x'; 600], 512), Err(XvaError::TarHeader { position: 0, .. })));
}

#[test]
fn a_claim_of_size_is_not_believed() {
    let mut bytes = tar(&[("ova.xml", OVA), ("Ref:1/00000000", b"abc")]);
    let header = &mut bytes[1024..1536];
    header[124..135].copy_from_slice(b"77777777777");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    assert!(matches!(validate(&bytes, 512), Err(XvaError::TooLarge { .. })));
    let far = tar(&[("ova.xml", OVA), ("Ref:1/00000000", b"abc"), ("Ref:1/9999999999999999999", b"abc")]);
    assert!(matches!(validate(&far, 512), Err(XvaError::Entry { .. })));
}

#[test]
fn a_writer_refuses_disorder() {
    let mut writer = Writer::new();
    assert!(writer.begin_disk("Ref:1", 1).is_err());
    writer.ova_xml(Bytes::from_static(OVA)).unwrap();
    assert!(writer.ova_xml(Bytes::from_static(OVA)).is_err());
    assert!(writer.keep_alive().is_err());
    assert!(writer.chunk(Bytes::from_static(b"x")).is_err());
    for name in ["", "a/b", "a\0"] {
        assert!(writer.begin_disk(name, 1).is_err());
    }
    writer.begin_disk("Ref:2", 1).unwrap();
    assert!(writer.begin_disk("Ref:3", 1).is_err(), "the disk is not complete");
    assert!(writer.chunk(Bytes::from_static(b"xx")).is_err());
    writer.chunk(Bytes::from_static(b"x")).unwrap();
    assert!(writer.chunk(Bytes::from_static(b"x")).is_err());
    assert!(writer.begin_disk("Ref:12", 1).is_err(), "names come in order");
    writer.finish().unwrap();
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(magic in prop_oneof![Just(&[][..]), Just(&[0x1F, 0x8B, 8, 0][..]), Just(&[0x28, 0xB5, 0x2F, 0xFD][..])],
                              bytes in proptest::collection::vec(any::<u8>(), 0..4096), piece in 1..600_usize) {
        prop_assert!(validate(&[magic, &bytes].concat(), piece).is_err());
    }

    #[test]
    fn no_flipped_byte_makes_it_panic(at: prop::sample::Index, flip in 1..=255_u8) {
        let mut bytes = tar(&[("ova.xml", OVA), ("Ref:1/00000000", b"abc"), ("Ref:1/00000000.xxhash", b"44BC2CF5AD770999")]);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let _ = validate(&bytes, 512);
    }
}
