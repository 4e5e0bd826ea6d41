use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

static KEY: LazyLock<SecretKey> = LazyLock::new(|| SecretKey::generate().unwrap());

fn build() -> Build {
    Build { version: "0.2.0".into(), channel: "stable".into(), build: "a1b2c3d".into(), arch: "x86_64".into() }
}

fn open(bundle: &[u8]) -> Result<Opened, BundleError> {
    open_bundle(bundle, &[KEY.public()])
}

/// A bundle whose manifest says what it is told, whatever the payload is: what a careless or broken packer makes.
fn forged(change: impl FnOnce(&mut BundleManifest), payload: &[u8], program: &[u8]) -> Vec<u8> {
    let mut manifest = BundleManifest {
        build: build(),
        size: program.len() as u64,
        sha256: sum::of(program),
        payload_size: payload.len() as u64,
        payload_sha256: sum::of(payload),
    };
    change(&mut manifest);
    let mut bundle = manifest.document().sign(&KEY).unwrap().into_bytes();
    bundle.push(b'\n');
    bundle.extend_from_slice(payload);
    bundle
}

#[test]
fn a_program_comes_back_with_what_was_said_of_it() {
    let program: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    let bundle = pack_bundle(&program, &build(), &KEY).unwrap();
    assert!(bundle.len() < program.len());
    let opened = open(&bundle).unwrap();
    assert_eq!(opened.program, program);
    assert_eq!(opened.manifest.build, build());
    assert_eq!(opened.manifest.size, program.len() as u64);
}

#[test]
fn the_manifest_alone_can_be_read_and_the_payload_follows_it() {
    let bundle = pack_bundle(b"program", &build(), &KEY).unwrap();
    let mut rest = bundle.as_slice();
    let manifest = BundleManifest::read(&mut rest, &[KEY.public()]).unwrap();
    assert_eq!(rest.len() as u64, manifest.payload_size);
    assert_eq!(sum::of(rest), manifest.payload_sha256);
}

#[test]
fn a_reader_that_gives_little_at_a_time_is_read_to_its_end() {
    struct Drop<'a>(&'a [u8]);
    impl Read for Drop<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let some = buffer.len().min(3);
            self.0.read(&mut buffer[..some])
        }
    }
    let bundle = pack_bundle(b"program", &build(), &KEY).unwrap();
    assert_eq!(open_bundle(Drop(&bundle), &[KEY.public()]).unwrap().program, b"program");
}

#[test]
fn a_reader_that_fails_is_not_taken_for_a_bad_bundle() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    assert!(matches!(open_bundle(Broken, &[KEY.public()]), Err(BundleError::Read(_))));
    let bundle = pack_bundle(b"program", &build(), &KEY).unwrap();
    for cut in [10, bundle.len() - 3] {
        let error = open_bundle(bundle[..cut].chain(Broken), &[KEY.public()]).unwrap_err();
        assert!(matches!(error, BundleError::Read(_)), "{cut}: {error}");
    }
}

#[test]
fn a_bundle_cut_anywhere_is_refused() {
    let bundle = pack_bundle(b"program", &build(), &KEY).unwrap();
    for end in 0..bundle.len() {
        open(&bundle[..end]).unwrap_err();
    }
    let error = open(&bundle[..bundle.len() - 1]).unwrap_err();
    assert!(matches!(error, BundleError::Truncated { .. }), "{error}");
    let error = open(&bundle[..100]).unwrap_err();
    assert!(matches!(error, BundleError::Manifest(DocumentError::Truncated { .. })), "{error}");
}

#[test]
fn each_fault_has_its_own_error() {
    let bundle = pack_bundle(b"program", &build(), &KEY).unwrap();
    let mut longer = bundle.clone();
    longer.push(0);
    assert!(matches!(open(&longer), Err(BundleError::Trailing)));
    let mut other = bundle.clone();
    *other.last_mut().unwrap() ^= 1;
    assert!(matches!(open(&other), Err(BundleError::OtherPayload)));
    let stranger = SecretKey::generate().unwrap();
    let error = open_bundle(bundle.as_slice(), &[stranger.public()]).unwrap_err();
    assert!(matches!(error, BundleError::Manifest(DocumentError::OtherSigner { .. })), "{error}");
    let mut no_text = bundle.clone();
    no_text[60] = 0xff;
    let error = open(&no_text).unwrap_err();
    assert!(matches!(error, BundleError::Manifest(DocumentError::Damaged { .. })), "{error}");
    let error = open(&[b"#!/bin/sh\n", bundle.as_slice()].concat()).unwrap_err();
    assert!(matches!(error, BundleError::Manifest(DocumentError::Damaged { .. })), "{error}");
    for nothing in [&b""[..], b"\x7fELF\x02\x01\xff", b"hello\n"] {
        let error = open(nothing).unwrap_err();
        assert!(matches!(error, BundleError::Manifest(DocumentError::NotThere { .. })), "{error}");
    }
    let endless = open_bundle(io::repeat(b'x'), &[KEY.public()]).unwrap_err();
    assert!(matches!(endless, BundleError::Manifest(DocumentError::TooLong { .. })), "{endless}");
    let lines = open_bundle(io::repeat(b'\n'), &[KEY.public()]).unwrap_err();
    assert!(matches!(lines, BundleError::Manifest(DocumentError::TooLong { .. })), "{lines}");
}

#[test]
fn the_signature_is_checked_before_anything_is_read_of_the_payload() {
    struct Never;
    impl Read for Never {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("the payload of an untrusted bundle is read")
        }
    }
    let bundle = pack_bundle(b"program", &build(), &KEY).unwrap();
    let payload = bundle.windows(2).position(|two| two == b"\n\n").unwrap() + 2;
    let stranger = SecretKey::generate().unwrap();
    // A buffer of one byte, so that nothing is read ahead.
    let mut reader = BufReader::with_capacity(1, bundle[..payload].chain(Never));
    BundleManifest::read(&mut reader, &[stranger.public()]).unwrap_err();
}

#[test]
fn declared_sizes_are_bounded_even_if_signed() {
    let payload = zstd::bulk::compress(b"program", 1).unwrap();
    for size in [LARGEST + 1, u64::MAX] {
        let program = open(&forged(|manifest| manifest.size = size, &payload, b"program")).unwrap_err();
        assert!(matches!(program, BundleError::TooLarge { what: "program", .. }), "{program}");
        let packed = open(&forged(|manifest| manifest.payload_size = size, &payload, b"program")).unwrap_err();
        assert!(matches!(packed, BundleError::TooLarge { what: "payload", .. }), "{packed}");
    }
    assert!(matches!(open(&forged(|manifest| manifest.size = 0, &payload, b"")), Err(BundleError::Empty)));
    assert!(matches!(pack_bundle(b"", &build(), &KEY), Err(BundleError::Empty)));
}

#[test]
fn a_payload_grows_no_further_than_was_declared() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    assert!(bomb.len() < 64 << 10);
    assert_eq!(decompress(&bomb, 1000).unwrap().len(), 1001);
    let error = open(&forged(|_| (), &bomb, &[0; 1000])).unwrap_err();
    assert!(matches!(error, BundleError::OtherProgram), "{error}");
}

#[test]
fn a_signed_payload_that_is_not_the_program_is_refused() {
    let payload = zstd::bulk::compress(b"another", 1).unwrap();
    assert!(matches!(open(&forged(|_| (), &payload, b"program")), Err(BundleError::OtherProgram)));
    assert!(matches!(open(&forged(|_| (), b"no zstd", b"program")), Err(BundleError::Decompress(_))));
    assert!(matches!(open(&forged(|_| (), &payload[..payload.len() - 2], b"another")), Err(BundleError::Decompress(_))));
}

#[test]
fn a_build_whose_name_could_leave_its_folder_is_neither_packed_nor_opened() {
    let payload = zstd::bulk::compress(b"program", 1).unwrap();
    for version in ["..", ".hidden", "a/b", "../../etc", "a b", "é", &"1".repeat(65)] {
        let build = Build { version: version.to_owned(), ..build() };
        pack_bundle(b"program", &build, &KEY).unwrap_err();
        let error = open(&forged(|manifest| manifest.build = build, &payload, b"program")).unwrap_err();
        assert!(matches!(error, BundleError::Manifest(DocumentError::Damaged { .. })), "{version}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_changed_byte_goes_unseen(
        program in proptest::collection::vec(any::<u8>(), 1..2000), at in any::<prop::sample::Index>(), by in 1u8..,
    ) {
        let mut bundle = pack_bundle(&program, &build(), &KEY).unwrap();
        prop_assert_eq!(open(&bundle).unwrap().program, program);
        let at = at.index(bundle.len());
        bundle[at] ^= by;
        prop_assert!(open(&bundle).is_err(), "byte {} changed by {}", at, by);
    }
}

#[test]
fn what_a_stranger_signed_is_shown_with_its_signer_and_not_opened() {
    let stranger = SecretKey::generate().unwrap();
    let bundle = pack_bundle_at(1, b"program", &build(), &stranger).unwrap();
    let (manifest, signer) = BundleManifest::read_of_anyone(&mut bundle.as_slice()).unwrap();
    assert_eq!((manifest.build, signer), (build(), stranger.public()));
    assert!(matches!(open(&bundle), Err(BundleError::Manifest(DocumentError::OtherSigner { .. }))));
    let changed = String::from_utf8_lossy(&bundle).replacen("0.2.0", "0.3.0", 1);
    let refused = BundleManifest::read_of_anyone(&mut changed.as_bytes()).unwrap_err();
    assert!(matches!(refused, BundleError::Manifest(DocumentError::Broken { .. })), "{refused}");
}
