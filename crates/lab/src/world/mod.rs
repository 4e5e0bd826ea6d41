//! Builds a pool from nothing: records first, then what is on the disks.

mod content;
mod gpt;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use disks::{BlockRead as _, Layer};
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
use crate::tally::{self, TAKEN};

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
    tally::reckon(&mut world.store);
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
        let mut networks = vec![network.clone()];
        for (number, more) in spec.networks.iter().enumerate() {
            let bridge = if more.wired { format!("xenbr{}", number + 1) } else { format!("xapi{number}") };
            let added =
                self.add("network", &format!("network {}", more.name), json!({ "name_label": more.name, "bridge": bridge }));
            networks.extend(more.wired.then_some(added));
        }
        let mut storage = Vec::new();
        for (number, wanted) in spec.storage.iter().enumerate() {
            // The first has had that name since there was one only: its UUID follows from it.
            let name = if number == 0 { "local".to_owned() } else { format!("storage {}", wanted.name) };
            let fields = json!({
                "name_label": wanted.name, "type": wanted.kind, "content_type": "user", "shared": spec.hosts > 1,
                "physical_size": wanted.bytes, "other_config": { TAKEN: wanted.taken.to_string() }
            });
            storage.push((self.add("SR", &name, fields), name));
        }
        let sr = storage.first().map(|(sr, _)| sr.clone()).unwrap_or_else(|| NULL.to_owned());
        let isos = self.add(
            "SR",
            "isos",
            json!({
                "name_label": "XCP-ng Tools", "type": "iso", "content_type": "iso", "shared": true, "is_tools_sr": true
            }),
        );
        storage.push((isos, "isos".to_owned()));
        for (kind, name) in [("ext", "Local EXT3 VHD"), ("nfs", "NFS VHD"), ("lvmoiscsi", "LVHD over iSCSI")] {
            self.add(
                "SM",
                kind,
                json!({
                    "name_label": name, "type": kind,
                    "capabilities": ["VDI_CREATE", "VDI_DELETE", "VDI_SNAPSHOT", "VDI_CLONE", "VDI_RESIZE", "VDI_CONFIG_CBT"],
                    "features": { "VDI_CREATE": "1", "VDI_DELETE": "1", "VDI_SNAPSHOT": "1", "VDI_CLONE": "1", "VDI_RESIZE": "1", "VDI_CONFIG_CBT": "1" }
                }),
            );
        }
        let (mut hosts, mut domains) = (Vec::new(), Vec::new());
        for index in 0..usize::from(spec.hosts) {
            let (host, domain) = self.host(index, &networks);
            for (sr, name) in &storage {
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

    /// A host with an interface on each of the networks; management runs over the first.
    fn host(&mut self, index: usize, networks: &[String]) -> (String, String) {
        let label = format!("{}-host-{}", self.spec.name, index + 1);
        let address = Pool::host_address(index);
        let metrics =
            self.add("host_metrics", &label, json!({ "memory_total": self.spec.host_memory, "last_updated": record::now() }));
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
        let memory = 2u64 << 30;
        let domain_metrics = self.add("VM_metrics", &format!("domain {label}"), json!({ "memory_actual": memory }));
        let domain = self.add(
            "VM",
            &format!("domain {label}"),
            json!({
                "name_label": format!("Control domain on host: {label}"), "is_control_domain": true, "power_state": "Running",
                "resident_on": host, "domid": 0, "domain_type": "pv", "metrics": domain_metrics, "memory_static_max": memory,
                "memory_dynamic_max": memory, "memory_dynamic_min": memory
            }),
        );
        let known = self.store.set("host", &host, "control_domain", domain.as_str());
        debug_assert!(known.is_ok());
        for (number, network) in networks.iter().enumerate() {
            let name = if number == 0 { label.clone() } else { format!("{label} {number}") };
            let mac = rpc::mac(&mut self.rng.fork(&name));
            let mut fields = json!({ "network": network, "host": host, "MAC": mac, "device": format!("eth{number}") });
            if number == 0 {
                fields["IP"] = address.as_str().into();
                fields["netmask"] = "255.0.0.0".into();
                fields["management"] = true.into();
            } else {
                fields["ip_configuration_mode"] = "None".into();
            }
            self.add("PIF", &name, fields);
        }
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
            let used = disks::View::new(Arc::clone(&image), Layer::Live).and_then(|view| view.allocated()).map_err(failed)?;
            let used: u64 = used.iter().map(|range| range.end - range.start).sum();
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
                    "cbt_enabled": spec.cbt, "physical_utilisation": used
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
}
