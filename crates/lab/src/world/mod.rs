//! Builds a pool from nothing: records first, then what is on the disks.

mod content;
mod gpt;

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::error::LabError;
use crate::pool::{Identity, Pool, Saved, Settings, write_json};
use crate::record::{self, NULL};
use crate::rng::Rng;
use crate::rpc;
use crate::shelf::{Place, Shelf};
use crate::spec::{PoolSpec, VmSpec};
use crate::store::Store;

use content::Library;

/// References of what every machine hangs on.
struct Ground {
    sr: String,
    network: String,
    host: String,
}

/// Makes a pool in `dir`: its identity, its records, its images. Blocks.
pub(crate) fn build(dir: &Path, spec: &PoolSpec, seed: u64) -> Result<(), LabError> {
    let rng = Rng::new(seed).fork(&spec.name);
    let disks_dir = dir.join("disks");
    std::fs::create_dir_all(&disks_dir).map_err(LabError::file("make", &disks_dir))?;
    let names: Vec<String> = (0..usize::from(spec.hosts)).map(Pool::host_address).chain(["localhost".to_owned()]).collect();
    let certificate = tls::SelfSigned::generate(&names.iter().map(String::as_str).collect::<Vec<_>>())
        .map_err(|source| LabError::Certificate { pool: spec.name.clone(), source })?;
    let mut world = World { store: Store::new(), rng, dir: disks_dir, places: HashMap::new(), spec };
    let (ground, hosts, control_domains) = world.ground();
    world.templates();
    let library = Library::make(dir, spec, &world.rng)?;
    for vm in &spec.vms {
        world.machine(vm, &ground, &library)?;
    }
    drop(library);
    world.sum_up(&ground);
    let settings = Settings {
        detach_after: spec.detach_after,
        close_after: spec.close_after,
        writes_per_second: spec.writes_per_second,
        seed,
    };
    let identity = Identity {
        name: spec.name.clone(),
        username: "root".into(),
        // The one thing that no seed may foretell.
        password: Uuid::new_v4().simple().to_string(),
        port: 0,
        nbd_port: 0,
        certificate_pem: certificate.certificate_pem,
        key_pem: certificate.key_pem,
        hosts,
        control_domains,
    };
    let saved = Saved { settings, records: world.store.to_json(), places: world.places, vtpms: HashMap::new(), mutations: 0 };
    write_json(&dir.join("pool.json"), &saved)?;
    // Last: a directory with an identity is a pool that is complete.
    write_json(&dir.join("identity.json"), &identity)
}

struct World<'a> {
    store: Store,
    rng: Rng,
    dir: std::path::PathBuf,
    places: HashMap<String, Place>,
    spec: &'a PoolSpec,
}

impl World<'_> {
    /// Adds an object whose reference and UUID follow from its name.
    fn add(&mut self, class: &'static str, name: &str, mut fields: Value) -> String {
        let mut rng = self.rng.fork(&format!("{class} {name}"));
        let reference = format!("OpaqueRef:{}", rng.uuid());
        fields["uuid"] = rng.uuid().to_string().into();
        self.store.insert(class, &reference, fields);
        reference
    }

    /// Hosts, network, storage, the pool itself.
    fn ground(&mut self) -> (Ground, Vec<String>, Vec<String>) {
        let spec = self.spec;
        let purpose = if spec.nbd { json!(["nbd"]) } else { json!([]) };
        let network = self.add(
            "network",
            "eth0",
            json!({ "name_label": "Pool-wide network associated with eth0", "bridge": "xenbr0", "purpose": purpose }),
        );
        let sr = self.add(
            "SR",
            "local",
            json!({
                "name_label": "Local storage", "type": "ext", "content_type": "user", "shared": spec.hosts > 1,
                "physical_size": spec.sr_bytes, "other_config": { "i18n-key": "local-storage" }
            }),
        );
        let isos = self.add(
            "SR",
            "isos",
            json!({
                "name_label": "XCP-ng Tools", "type": "iso", "content_type": "iso", "shared": true, "is_tools_sr": true
            }),
        );
        self.add(
            "SM",
            "ext",
            json!({
                "name_label": "Local EXT3 VHD", "type": "ext",
                "capabilities": ["VDI_CREATE", "VDI_DELETE", "VDI_SNAPSHOT", "VDI_CLONE", "VDI_RESIZE", "VDI_CONFIG_CBT"],
                "features": { "VDI_CREATE": "1", "VDI_DELETE": "1", "VDI_SNAPSHOT": "1", "VDI_CLONE": "1", "VDI_RESIZE": "1", "VDI_CONFIG_CBT": "1" }
            }),
        );
        let (mut hosts, mut domains) = (Vec::new(), Vec::new());
        for index in 0..usize::from(spec.hosts) {
            let (host, domain) = self.host(index, &network);
            for (name, sr) in [("local", &sr), ("isos", &isos)] {
                self.add("PBD", &format!("{name} {index}"), json!({ "SR": sr, "host": host }));
            }
            hosts.push(host);
            domains.push(domain);
        }
        self.add(
            "pool",
            "pool",
            json!({ "name_label": spec.name, "master": hosts[0], "default_SR": sr, "suspend_image_SR": sr, "crash_dump_SR": sr }),
        );
        let host = hosts[0].clone();
        (Ground { sr, network, host }, hosts, domains)
    }

    fn host(&mut self, index: usize, network: &str) -> (String, String) {
        let label = format!("{}-host-{}", self.spec.name, index + 1);
        let address = Pool::host_address(index);
        let memory: u64 = 64 << 30;
        let metrics = self.add(
            "host_metrics",
            &label,
            json!({ "memory_total": memory, "memory_free": memory / 2, "last_updated": record::now() }),
        );
        let host = self.add(
            "host",
            &label,
            json!({
                "name_label": label, "hostname": label, "address": address, "metrics": metrics,
                "software_version": {
                    "product_version": "8.3.0", "product_brand": "XCP-ng", "build_number": "lab", "platform_name": "XCP",
                    "platform_version": "3.4.0", "xapi": "1.3", "hostname": "localhost"
                },
                "cpu_info": { "cpu_count": "8", "socket_count": "1", "vendor": "Simulated" }
            }),
        );
        let domain_metrics = self.add("VM_metrics", &format!("domain {label}"), json!({ "memory_actual": 2u64 << 30 }));
        let domain = self.add(
            "VM",
            &format!("domain {label}"),
            json!({
                "name_label": format!("Control domain on host: {label}"), "is_control_domain": true, "power_state": "Running",
                "resident_on": host, "domid": 0, "domain_type": "pv", "metrics": domain_metrics
            }),
        );
        let known = self.store.set("host", &host, "control_domain", domain.as_str());
        debug_assert!(known.is_ok());
        let mac = rpc::mac(&mut self.rng.fork(&label));
        self.add(
            "PIF",
            &label,
            json!({
                "network": network, "host": host, "MAC": mac, "IP": address, "netmask": "255.0.0.0", "management": true,
                "ip_configuration_mode": "Static"
            }),
        );
        (host, domain)
    }

    /// Templates, for a pool is full of VMs that are none.
    fn templates(&mut self) {
        for name in ["Other install media", "Debian Bookworm 12"] {
            self.add(
                "VM",
                name,
                json!({
                    "name_label": name, "is_a_template": true, "is_default_template": true,
                    "other_config": { "default_template": "true", "install-methods": "cdrom,nfs,http,ftp" }
                }),
            );
        }
    }

    fn machine(&mut self, spec: &VmSpec, ground: &Ground, library: &Library) -> Result<(), LabError> {
        let mut rng = self.rng.fork(&format!("machine {}", spec.name));
        let metrics = self.add(
            "VM_metrics",
            &spec.name,
            json!({ "memory_actual": 1u64 << 30, "VCPUs_number": 2, "install_time": record::EPOCH, "start_time": record::now() }),
        );
        let vm = self.add(
            "VM",
            &spec.name,
            json!({
                "name_label": spec.name, "tags": spec.tags, "metrics": metrics, "VCPUs_max": 2, "VCPUs_at_startup": 2,
                "generation_id": rpc::generation_id(), "other_config": { "mac_seed": rng.uuid().to_string(), "base_template_name": "Debian Bookworm 12" },
                "bios_strings": { "bios-vendor": "Xen", "system-manufacturer": "Xen", "system-product-name": "HVM domU" }
            }),
        );
        self.add(
            "VIF",
            &spec.name,
            json!({ "VM": vm, "network": ground.network, "device": "0", "MAC": rpc::mac(&mut rng), "MAC_autogenerated": true }),
        );
        for (position, disk) in spec.disks.iter().enumerate() {
            let name = format!("{} {position}", spec.name);
            let mut disk_rng = self.rng.fork(&format!("disk {name}"));
            let id = disk_rng.uuid();
            let bytes = disk.bytes.max(1).next_multiple_of(2 << 20);
            let failed = |source| LabError::Disk { pool: self.spec.name.clone(), source };
            let image = Shelf::new(self.dir.clone()).create(id, bytes).map_err(failed)?;
            content::fill(image.path(), bytes, disk, &spec.name, library, &mut disk_rng)?;
            if spec.cbt {
                image.enable_cbt().map_err(failed)?;
            }
            drop(image);
            let reference = format!("OpaqueRef:{}", disk_rng.uuid());
            self.store.insert(
                "VDI",
                &reference,
                json!({
                    "uuid": id.to_string(), "location": id.to_string(), "name_label": disk.name, "SR": ground.sr, "virtual_size": bytes,
                    "cbt_enabled": spec.cbt
                }),
            );
            self.places.insert(reference.clone(), Place { image: id, snapshot: None });
            self.add(
                "VBD",
                &name,
                json!({
                    "VM": vm, "VDI": reference, "userdevice": position.to_string(), "bootable": position == 0, "other_config": { "owner": "" }
                }),
            );
        }
        self.add(
            "VBD",
            &format!("{} cd", spec.name),
            json!({
                "VM": vm, "VDI": NULL, "userdevice": (spec.disks.len().max(3)).to_string(), "type": "CD", "mode": "RO", "empty": true,
                "unpluggable": true
            }),
        );
        let switched = if spec.running {
            rpc::switch_on(&mut self.store, &ground.host, &vm, false).and_then(|()| rpc::guest_reports(&mut self.store, &vm))
        } else {
            rpc::update_allowed_operations(&mut self.store, &vm)
        };
        debug_assert!(switched.is_ok());
        Ok(())
    }

    /// The sizes of the storage.
    fn sum_up(&mut self, ground: &Ground) {
        let sizes: u64 = self.store.all("VDI").filter_map(|(_, vdi)| vdi["virtual_size"].as_u64()).sum();
        let known = self.store.set("SR", &ground.sr, "virtual_allocation", sizes);
        debug_assert!(known.is_ok());
    }
}
