//! Makes the archive of an appliance: one VM with one disk and one network interface, as a pool's import wants it.
//!
//! The same appliance always gives the same bytes, so that an image can be built again and compared.

use std::fmt::Write as _;
use std::pin::pin;

use bytes::{Bytes, BytesMut};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{Writer, WriterError};

/// The key of the VM's `other_config` by which an appliance is known; its value is the version.
pub const APPLIANCE_KEY: &str = "backhaul-appliance";

/// The network every pool has, unless somebody renamed it; otherwise the deployer puts the interface on another.
const NETWORK: &str = "Pool-wide network associated with eth0";
const NOTHING: &str = "OpaqueRef:NULL";
const EPOCH: &str = "19700101T00:00:00Z";

/// The objects of `ova.xml`; the disk's is also its directory in the archive.
const VM: &str = "Ref:0";
const VBD: &str = "Ref:1";
const VDI: &str = "Ref:2";
const SR: &str = "Ref:3";
const VIF: &str = "Ref:4";
const NET: &str = "Ref:5";

/// What stands in the VM of an appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appliance {
    /// Name of the VM.
    pub name: String,
    /// Version of the appliance.
    pub version: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory, bytes.
    pub memory: u64,
    /// Size of the disk, bytes: as many must come.
    pub disk: u64,
}

/// Why an appliance's archive cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ApplianceError {
    /// The disk cannot be read.
    #[error("cannot read the appliance's disk at byte {position}")]
    Read {
        /// Bytes of it that were read.
        position: u64,
        /// Cause.
        source: std::io::Error,
    },
    /// The disk has another size than was said.
    #[error("the appliance's disk must have {expected} bytes, more than none, but has {found}")]
    Size {
        /// Bytes it must have.
        expected: u64,
        /// What it has: `123` or `more`.
        found: String,
    },
    /// A name that cannot stand in XML.
    #[error("name and version of an appliance are texts of at least one character, without control characters")]
    Name,
    /// The archive cannot be written.
    #[error("cannot write the appliance's archive")]
    Write(#[source] std::io::Error),
    /// The pieces do not fit together.
    #[error(transparent)]
    Archive(#[from] WriterError),
}

/// Writes an uncompressed archive of a halted BIOS machine with the bootable disk `disk`, from its first byte to its last.
///
/// # Errors
/// [`ApplianceError`]; what was written until then is no archive.
pub async fn write_appliance(out: impl AsyncWrite, disk: impl AsyncRead, meta: &Appliance) -> Result<(), ApplianceError> {
    let size = |found: String| ApplianceError::Size { expected: meta.disk, found };
    if meta.disk == 0 {
        return Err(size("none".into()));
    }
    let unfit = |text: &str| text.is_empty() || text.chars().any(char::is_control);
    if unfit(&meta.name) || unfit(&meta.version) {
        return Err(ApplianceError::Name);
    }
    let (mut out, mut disk) = (pin!(out), pin!(disk));
    let mut writer = Writer::new();
    send(&mut out, writer.ova_xml(ova_xml(meta).into())?).await?;
    writer.begin_disk(VDI, meta.disk)?;
    while let Some((position, length)) = writer.next_chunk() {
        let mut chunk = BytesMut::with_capacity(length);
        while chunk.len() < length {
            let mut rest = (&mut disk).take((length - chunk.len()) as u64);
            let failed = |source| ApplianceError::Read { position, source };
            if rest.read_buf(&mut chunk).await.map_err(failed)? == 0 {
                return Err(size((position + chunk.len() as u64).to_string()));
            }
        }
        send(&mut out, writer.chunk(chunk.freeze())?).await?;
    }
    let failed = |source| ApplianceError::Read { position: meta.disk, source };
    if disk.read(&mut [0]).await.map_err(failed)? > 0 {
        return Err(size("more".into()));
    }
    send(&mut out, vec![writer.finish()?]).await?;
    out.flush().await.map_err(ApplianceError::Write)
}

async fn send(out: &mut (impl AsyncWrite + Unpin), pieces: Vec<Bytes>) -> Result<(), ApplianceError> {
    for piece in pieces {
        out.write_all(&piece).await.map_err(ApplianceError::Write)?;
    }
    Ok(())
}

/// A value of XAPI's dialect of XML-RPC: numbers are texts.
enum Value {
    Text(String),
    Flag(bool),
    Real(&'static str),
    Date,
    Map(Vec<(&'static str, Value)>),
    List(Vec<Value>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Text(number.to_string())
    }
}

fn texts<const N: usize>(members: [(&'static str, &str); N]) -> Value {
    Value::Map(members.into_iter().map(|(name, text)| (name, text.into())).collect())
}

/// A record's members: those given, and empty ones of each kind.
fn record<const N: usize>(given: [(&'static str, Value); N], empty: &Empty) -> Value {
    let mut members = Vec::from(given);
    members.extend(empty.texts.iter().map(|name| (*name, "".into())));
    members.extend(empty.references.iter().map(|name| (*name, NOTHING.into())));
    members.extend(empty.lists.iter().map(|name| (*name, Value::List(Vec::new()))));
    members.extend(empty.maps.iter().map(|name| (*name, Value::Map(Vec::new()))));
    members.extend(empty.flags.iter().map(|name| (*name, false.into())));
    members.extend(empty.numbers.iter().map(|name| (*name, 0.into())));
    Value::Map(members)
}

/// Names of members that say nothing, but that an import may insist on.
struct Empty {
    texts: &'static [&'static str],
    references: &'static [&'static str],
    lists: &'static [&'static str],
    maps: &'static [&'static str],
    flags: &'static [&'static str],
    numbers: &'static [&'static str],
}

fn ova_xml(meta: &Appliance) -> String {
    let version = record(
        [("product_version", "8.3.0".into()), ("xapi_major", 1.into()), ("xapi_minor", 3.into()), ("export_vsn", 2.into())],
        &Empty {
            texts: &["hostname", "date", "product_brand", "build_number"],
            references: &[],
            lists: &[],
            maps: &[],
            flags: &[],
            numbers: &[],
        },
    );
    let objects = [
        ("VM", VM, machine(meta)),
        ("VBD", VBD, drive(meta)),
        ("VDI", VDI, disk(meta)),
        ("SR", SR, storage(meta)),
        ("VIF", VIF, interface(meta)),
        ("network", NET, network(meta)),
    ];
    let objects = objects
        .into_iter()
        .map(|(class, id, snapshot)| Value::Map(vec![("class", class.into()), ("id", id.into()), ("snapshot", snapshot)]));
    let mut xml = String::from("<?xml version=\"1.0\"?>");
    write_value(&mut xml, &Value::Map(vec![("version", version), ("objects", Value::List(objects.collect()))]));
    xml
}

fn machine(meta: &Appliance) -> Value {
    record(
        [
            ("uuid", uuid(meta, "VM").as_str().into()),
            ("name_label", meta.name.as_str().into()),
            ("name_description", format!("Backhaul proxy {}", meta.version).as_str().into()),
            ("power_state", "Halted".into()),
            ("user_version", 1.into()),
            ("memory_target", meta.memory.into()),
            ("memory_static_max", meta.memory.into()),
            ("memory_dynamic_max", meta.memory.into()),
            ("memory_dynamic_min", meta.memory.into()),
            ("memory_static_min", meta.memory.into()),
            ("VCPUs_max", u64::from(meta.vcpus).into()),
            ("VCPUs_at_startup", u64::from(meta.vcpus).into()),
            ("actions_after_softreboot", "soft_reboot".into()),
            ("actions_after_shutdown", "destroy".into()),
            ("actions_after_reboot", "restart".into()),
            ("actions_after_crash", "restart".into()),
            ("VBDs", Value::List(vec![VBD.into()])),
            ("VIFs", Value::List(vec![VIF.into()])),
            ("HVM_boot_policy", "BIOS order".into()),
            ("HVM_boot_params", texts([("order", "c"), ("firmware", "bios")])),
            ("HVM_shadow_multiplier", Value::Real("1.")),
            ("domain_type", "hvm".into()),
            (
                "platform",
                texts([
                    ("nx", "true"),
                    ("acpi", "1"),
                    ("apic", "true"),
                    ("pae", "true"),
                    ("viridian", "false"),
                    ("device-model", "qemu-upstream-compat"),
                    ("secureboot", "false"),
                ]),
            ),
            ("other_config", texts([(APPLIANCE_KEY, &meta.version), ("base_template_name", "Other install media")])),
            ("domid", "-1".into()),
            ("snapshot_time", Value::Date),
        ],
        &Empty {
            texts: &[
                "PV_bootloader",
                "PV_kernel",
                "PV_ramdisk",
                "PV_args",
                "PV_bootloader_args",
                "PV_legacy_args",
                "PCI_bus",
                "domarch",
                "last_booted_record",
                "recommendations",
                "ha_restart_priority",
                "transportable_snapshot_id",
                "snapshot_metadata",
                "generation_id",
                "reference_label",
            ],
            references: &[
                "suspend_VDI",
                "resident_on",
                "scheduled_to_be_resident_on",
                "affinity",
                "metrics",
                "guest_metrics",
                "snapshot_of",
                "parent",
                "protection_policy",
                "snapshot_schedule",
                "appliance",
                "suspend_SR",
            ],
            lists: &[
                "allowed_operations",
                "consoles",
                "VUSBs",
                "crash_dumps",
                "VTPMs",
                "snapshots",
                "tags",
                "children",
                "VGPUs",
                "attached_PCIs",
                "pending_guidances",
            ],
            maps: &[
                "current_operations",
                "VCPUs_params",
                "last_boot_CPU_flags",
                "xenstore_data",
                "blobs",
                "blocked_operations",
                "snapshot_info",
                "bios_strings",
                "NVRAM",
            ],
            flags: &[
                "is_a_template",
                "is_default_template",
                "is_control_domain",
                "ha_always_run",
                "is_a_snapshot",
                "is_snapshot_from_vmpp",
                "is_vmss_snapshot",
                "has_vendor_device",
                "requires_reboot",
            ],
            numbers: &["memory_overhead", "start_delay", "shutdown_delay", "order", "version", "hardware_platform_version"],
        },
    )
}

fn drive(meta: &Appliance) -> Value {
    record(
        [
            ("uuid", uuid(meta, "VBD").as_str().into()),
            ("VM", VM.into()),
            ("VDI", VDI.into()),
            ("device", "xvda".into()),
            ("userdevice", "0".into()),
            ("bootable", true.into()),
            ("mode", "RW".into()),
            ("type", "Disk".into()),
            ("unpluggable", false.into()),
        ],
        &Empty {
            texts: &["status_detail", "qos_algorithm_type"],
            references: &["metrics"],
            lists: &["allowed_operations", "qos_supported_algorithms"],
            maps: &["current_operations", "other_config", "runtime_properties", "qos_algorithm_params"],
            flags: &["storage_lock", "empty", "currently_attached"],
            numbers: &["status_code"],
        },
    )
}

fn disk(meta: &Appliance) -> Value {
    record(
        [
            ("uuid", uuid(meta, "VDI").as_str().into()),
            ("name_label", format!("{} system", meta.name).as_str().into()),
            ("name_description", format!("Backhaul proxy {}", meta.version).as_str().into()),
            ("SR", SR.into()),
            ("VBDs", Value::List(vec![VBD.into()])),
            ("virtual_size", meta.disk.into()),
            ("type", "user".into()),
            ("managed", true.into()),
            ("on_boot", "persist".into()),
            ("snapshot_time", Value::Date),
        ],
        &Empty {
            texts: &["location"],
            references: &["parent", "snapshot_of", "metadata_of_pool"],
            lists: &["allowed_operations", "crash_dumps", "snapshots", "tags"],
            maps: &["current_operations", "other_config", "xenstore_data", "sm_config"],
            flags: &[
                "sharable",
                "read_only",
                "storage_lock",
                "missing",
                "is_a_snapshot",
                "allow_caching",
                "metadata_latest",
                "is_tools_iso",
                "cbt_enabled",
            ],
            numbers: &["physical_utilisation"],
        },
    )
}

fn storage(meta: &Appliance) -> Value {
    record(
        [
            ("uuid", uuid(meta, "SR").as_str().into()),
            ("name_label", "Local storage".into()),
            ("VDIs", Value::List(vec![VDI.into()])),
            ("type", "ext".into()),
            ("content_type", "user".into()),
        ],
        &Empty {
            texts: &["name_description"],
            references: &["introduced_by"],
            lists: &["allowed_operations", "PBDs", "tags"],
            maps: &["current_operations", "other_config", "sm_config", "blobs"],
            flags: &["shared", "local_cache_enabled", "clustered", "is_tools_sr"],
            numbers: &["virtual_allocation", "physical_utilisation", "physical_size"],
        },
    )
}

fn interface(meta: &Appliance) -> Value {
    record(
        [
            ("uuid", uuid(meta, "VIF").as_str().into()),
            ("device", "0".into()),
            ("network", NET.into()),
            ("VM", VM.into()),
            ("MTU", 1500.into()),
            // The pool gives it an address of its own.
            ("MAC_autogenerated", true.into()),
            ("locking_mode", "network_default".into()),
            ("ipv4_configuration_mode", "None".into()),
            ("ipv6_configuration_mode", "None".into()),
        ],
        &Empty {
            texts: &["MAC", "status_detail", "qos_algorithm_type", "ipv4_gateway", "ipv6_gateway"],
            references: &["metrics"],
            lists: &[
                "allowed_operations",
                "qos_supported_algorithms",
                "ipv4_allowed",
                "ipv6_allowed",
                "ipv4_addresses",
                "ipv6_addresses",
            ],
            maps: &["current_operations", "other_config", "runtime_properties", "qos_algorithm_params"],
            flags: &["currently_attached"],
            numbers: &["status_code"],
        },
    )
}

fn network(meta: &Appliance) -> Value {
    record(
        [
            ("uuid", uuid(meta, "network").as_str().into()),
            ("name_label", NETWORK.into()),
            ("VIFs", Value::List(vec![VIF.into()])),
            ("MTU", 1500.into()),
            ("bridge", "xenbr0".into()),
            ("managed", true.into()),
            ("default_locking_mode", "unlocked".into()),
        ],
        &Empty {
            texts: &["name_description"],
            references: &[],
            lists: &["allowed_operations", "PIFs", "tags", "purpose"],
            maps: &["current_operations", "other_config", "blobs", "assigned_ips"],
            flags: &[],
            numbers: &[],
        },
    )
}

/// A UUID (version 5) made of the appliance and what it is for.
fn uuid(meta: &Appliance, what: &str) -> String {
    let sum = Sha1::digest(format!("{APPLIANCE_KEY}\n{}\n{}\n{what}", meta.name, meta.version));
    let mut hex = String::new();
    for (position, byte) in sum.iter().take(16).enumerate() {
        let byte = match position {
            6 => byte & 0x0F | 0x50,
            8 => byte & 0x3F | 0x80,
            _ => *byte,
        };
        let dash = if [4, 6, 8, 10].contains(&position) { "-" } else { "" };
        // Writing to a text cannot fail.
        let _ = write!(hex, "{dash}{byte:02x}");
    }
    hex
}

fn write_value(out: &mut String, value: &Value) {
    out.push_str("<value>");
    match value {
        Value::Text(text) => out.push_str(&escape(text)),
        Value::Flag(flag) => out.push_str(if *flag { "<boolean>1</boolean>" } else { "<boolean>0</boolean>" }),
        Value::Real(number) => {
            let _ = write!(out, "<double>{number}</double>");
        }
        Value::Date => {
            let _ = write!(out, "<dateTime.iso8601>{EPOCH}</dateTime.iso8601>");
        }
        Value::List(items) => {
            out.push_str("<array><data>");
            items.iter().for_each(|item| write_value(out, item));
            out.push_str("</data></array>");
        }
        Value::Map(members) => {
            out.push_str("<struct>");
            for (name, member) in members {
                let _ = write!(out, "<member><name>{name}</name>");
                write_value(out, member);
                out.push_str("</member>");
            }
            out.push_str("</struct>");
        }
    }
    out.push_str("</value>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CHUNK_SIZE, Event, Importer, first_entry, mark};

    fn meta(disk: u64) -> Appliance {
        Appliance { name: "Proxy <a> & b".into(), version: "1.2.3".into(), vcpus: 2, memory: 2 << 30, disk }
    }

    async fn archive(disk: &[u8], meta: &Appliance) -> Result<Vec<u8>, ApplianceError> {
        let mut out = Vec::new();
        write_appliance(&mut out, disk, meta).await.map(|()| out)
    }

    #[tokio::test]
    async fn what_is_written_reads_back_whole_and_is_the_same_each_time() {
        let mut disk = vec![0; 3 * CHUNK_SIZE + 512];
        disk[5] = 7;
        disk[3 * CHUNK_SIZE + 100] = 9;
        let meta = meta(disk.len() as u64);
        let written = archive(&disk, &meta).await.unwrap();
        assert_eq!(written, archive(&disk, &meta).await.unwrap());
        let mut importer = Importer::new(written.as_slice());
        let Some(Event::OvaXml(xml)) = importer.next().await.unwrap() else { panic!("no ova.xml") };
        let xml = String::from_utf8(xml.to_vec()).unwrap();
        for part in [
            "<name>name_label</name><value>Proxy &lt;a&gt; &amp; b</value>",
            "<name>backhaul-appliance</name><value>1.2.3</value>",
            "<name>memory_static_max</name><value>2147483648</value>",
            "<name>VCPUs_max</name><value>2</value>",
            "<name>firmware</name><value>bios</value>",
            "<name>bootable</name><value><boolean>1</boolean></value>",
            "<name>export_vsn</name><value>2</value>",
            &format!("<name>virtual_size</name><value>{}</value>", disk.len()),
        ] {
            assert!(xml.contains(part), "{part}");
        }
        let mut read = vec![0; disk.len()];
        while let Some(event) = importer.next().await.unwrap() {
            let Event::Chunk(chunk) = event else { panic!("a second ova.xml") };
            assert_eq!(&*chunk.disk, VDI);
            read[chunk.offset as usize..][..chunk.data.len()].copy_from_slice(&chunk.data);
        }
        assert!(read == disk);
        // Zeros in the middle are left out.
        assert!(written.len() < 3 * CHUNK_SIZE);
    }

    #[tokio::test]
    async fn its_vm_can_be_marked() {
        let written = archive(&[1; 4096], &meta(4096)).await.unwrap();
        let length = first_entry(written.first_chunk().unwrap()).unwrap();
        let marked = mark(&written[..length], APPLIANCE_KEY, &[("run", "42")]).unwrap();
        let all = [&marked, &written[length..]].concat();
        let mut importer = Importer::new(all.as_slice());
        let Some(Event::OvaXml(xml)) = importer.next().await.unwrap() else { panic!("no ova.xml") };
        let text = String::from_utf8_lossy(&xml);
        let mark =
            "<name>other_config</name><value><struct><member><name>run</name><value>42</value></member><member><name>backhaul";
        assert!(text.contains(mark), "{text}");
        assert!(matches!(importer.next().await.unwrap(), Some(Event::Chunk(_))));
        assert_eq!(importer.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_disk_of_another_size_and_a_broken_name_are_refused() {
        for size in [0, 4095, 4097] {
            let refused = archive(&[1; 4096], &meta(size)).await.unwrap_err();
            assert!(matches!(refused, ApplianceError::Size { .. }), "{refused}");
        }
        let broken = Appliance { version: "1\n".into(), ..meta(4096) };
        assert!(matches!(archive(&[1; 4096], &broken).await, Err(ApplianceError::Name)));
    }
}
