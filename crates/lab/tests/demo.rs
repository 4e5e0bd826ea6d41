//! The world of the demonstration.

use lab::{Lab, LabSpec};

#[tokio::test]
async fn two_sites_stand_ready_with_odd_names_and_real_disks() {
    let dir = tempfile::tempdir().unwrap();
    let begun = std::time::Instant::now();
    let lab = Lab::open(dir.path(), &LabSpec::demo()).await.unwrap();
    println!("built in {:?}", begun.elapsed());
    let names: Vec<_> = lab.pools().iter().map(|pool| pool.name().to_owned()).collect();
    assert_eq!(names, ["paris", "lyon"]);
    for pool in lab.pools() {
        for vm in pool.vms() {
            assert!(!vm.disks.is_empty(), "{}", vm.name);
            for disk in vm.disks {
                let length = std::fs::metadata(&disk.path).unwrap().len();
                assert_eq!(length, disk.bytes, "{}", disk.name);
                let reader = pool.disk(&disk.vdi).unwrap();
                let used: u64 = reader.allocated().unwrap().iter().map(|range| range.end - range.start).sum();
                assert!(used > 20 << 20, "{} holds {used} bytes only", disk.name);
                let mut table = [0; 1024];
                reader.read_at(0, &mut table).unwrap();
                assert_eq!(&table[512..520], b"EFI PART", "{}", disk.name);
            }
        }
    }
    lab.close().await.unwrap();
}
