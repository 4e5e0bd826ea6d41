//! The world of the demonstration.

use lab::{Lab, LabSpec};

#[tokio::test]
async fn three_sites_stand_ready_with_odd_names_and_real_disks() {
    let dir = tempfile::tempdir().unwrap();
    let begun = std::time::Instant::now();
    let lab = Lab::open(dir.path(), &LabSpec::demo()).await.unwrap();
    println!("built in {:?}", begun.elapsed());
    let names: Vec<_> = lab.pools().iter().map(|pool| pool.name().to_owned()).collect();
    assert_eq!(names, ["paris", "lyon", "annecy"]);
    for pool in lab.pools() {
        let free = |sr: &serde_json::Value| {
            sr["physical_size"].as_u64().unwrap().saturating_sub(sr["physical_utilisation"].as_u64().unwrap()) >> 30
        };
        let storage = pool.records("SR").into_iter().map(|(_, sr)| sr).filter(|sr| sr["content_type"] == "user");
        let mut kinds: Vec<_> = storage.map(|sr| (sr["type"].as_str().unwrap().starts_with("lvm"), free(&sr))).collect();
        kinds.sort();
        assert!(matches!(kinds[..], [(false, 1), (false, 100..), (true, 400)]), "{kinds:?}");
        assert_eq!(pool.records("network").len(), 3);
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
