//! The format as an independent program understands it: `qemu-img`, which must be installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use uuid::Uuid;
use vhd::stream::{Reader, Writer};
use vhd::{BLOCK_SIZE, DiskType, DynamicHeader, Footer, is_zero, pad_block};

/// 7 MiB and a bit: four blocks, of which the third is zero and the last short.
const SIZE: usize = (7 << 20) + 1024;

fn disk() -> Vec<u8> {
    let mut disk: Vec<u8> = (0..SIZE as u32 / 4).flat_map(|word| word.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    disk[2 * BLOCK_SIZE..3 * BLOCK_SIZE].fill(0);
    disk
}

fn qemu_img(arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img is installed");
    assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

#[tokio::test]
async fn a_file_of_qemu_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, vhd) = (folder.path().join("disk.raw"), folder.path().join("disk.vhd"));
    fs::write(&raw, disk()).unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on", text(&raw), text(&vhd)]);

    let mut reader = Reader::open(tokio::fs::File::open(&vhd).await.unwrap()).await.unwrap();
    assert_eq!(reader.virtual_size(), SIZE as u64);
    assert_eq!(reader.footer().disk_type, DiskType::Dynamic);
    let mut read = vec![0; SIZE.next_multiple_of(BLOCK_SIZE)];
    while let Some((index, data)) = reader.next_block().await.unwrap() {
        assert_ne!(index, 2, "qemu-img stores no zeros");
        let start = index as usize * BLOCK_SIZE;
        read[start..start + BLOCK_SIZE].copy_from_slice(&data);
    }
    assert!(read[..SIZE] == disk());
    assert!(is_zero(&read[SIZE..]));
}

#[test]
fn a_file_of_ours_is_understood_by_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, vhd, back) = (folder.path().join("disk.raw"), folder.path().join("disk.vhd"), folder.path().join("back.raw"));
    let disk = disk();
    fs::write(&raw, &disk).unwrap();
    let footer = Footer::new(SIZE as u64, Uuid::new_v4(), DiskType::Dynamic, 1_700_000_000);
    let header = DynamicHeader::for_disk(&footer, None).unwrap();
    let blocks: Vec<u32> =
        (0..).zip(disk.chunks(BLOCK_SIZE)).filter(|(_, data)| !is_zero(data)).map(|(index, _)| index).collect();
    assert_eq!(blocks, [0, 1, 3]);
    let mut writer = Writer::new(&footer, &header, blocks.clone()).unwrap();
    let mut bytes = writer.head().to_vec();
    for index in blocks {
        let data = disk.chunks(BLOCK_SIZE).nth(index as usize).unwrap();
        bytes.extend(writer.block(index, pad_block(Bytes::copy_from_slice(data))).unwrap().concat());
    }
    bytes.extend(writer.finish().unwrap());
    fs::write(&vhd, bytes).unwrap();

    // Without the option, qemu-img trusts the geometry of writers it does not know; ours is rounded up to a cylinder.
    let exact = format!("driver=vpc,force_size_calc=current_size,file.filename={}", text(&vhd));
    qemu_img(&["info", "--image-opts", &exact]);
    qemu_img(&["convert", "--image-opts", "-O", "raw", &exact, text(&back)]);
    assert!(fs::read(&back).unwrap() == disk);
    qemu_img(&["compare", "-f", "raw", "-F", "raw", text(&raw), text(&back)]);
}
