//! More of the small fleet: what pools offer to a new proxy, deployed proxies, licences, an examination.

use api::deploy::DEFAULT_PORT;
use api::{
    AddressSpec, Binding, DeployOptions, DeployReview, DeploySpec, Deployed, DeployedState, DoctorCheck, FieldFault, ImageSource,
    License, LicenseOffer, Licensing, NetworkOffer, PoolOffer, ProxyStatus, SrOffer, StepInfo, UpgradePhase, UpgradeState,
    Verdict,
};

use super::{NOW, State, fleet, many, proxy_status, status};
use crate::core::effect::{Answer, FleetCommand};
use crate::core::errand::Done;
use crate::core::message::{FleetEventKind, Message};
use crate::core::{Effect, Key, RequestId, update};

const GIB: u64 = 1 << 30;
const DAY: i64 = 86_400_000;

fn sr(uuid: &str, name: &str, kind: &str, thin: bool, free: u64) -> SrOffer {
    SrOffer {
        uuid: uuid.into(),
        name: name.into(),
        kind: kind.into(),
        thin,
        bytes: 500 * GIB,
        free: free * GIB,
        default: uuid == "sr-nfs",
        why_not: None,
    }
}

fn network(uuid: &str, name: &str, management: bool, nbd: bool) -> NetworkOffer {
    NetworkOffer { uuid: uuid.into(), name: name.into(), management, nbd, why_not: None }
}

/// Two pools, one of which cannot take a proxy; storage and networks of every sort.
pub fn options() -> DeployOptions {
    let full = SrOffer { why_not: Some("1.0 GiB free, 2.0 GiB needed".into()), ..sr("sr-full", "nfs-old", "nfs", true, 1) };
    let loose = NetworkOffer {
        why_not: Some("it has no physical interface: the proxy could reach neither hosts nor storage".into()),
        ..network("net-private", "private", false, false)
    };
    let pool = PoolOffer {
        id: "pool-1".into(),
        name: "xcp-grenoble".into(),
        why_not: None,
        memory_free: 24 * GIB,
        cpus: 16,
        srs: vec![sr("sr-nfs", "nfs-main", "nfs", true, 180), sr("sr-lvm", "Local storage", "lvm", false, 60), full],
        networks: vec![network("net-lan", "LAN", true, true), network("net-dmz", "DMZ", false, false), loose],
    };
    let small = PoolOffer {
        id: "pool-2".into(),
        name: "xcp-edge".into(),
        why_not: Some("no host has 2 GiB of memory free; the most is 512.0 MiB".into()),
        memory_free: GIB / 2,
        cpus: 4,
        srs: Vec::new(),
        networks: Vec::new(),
    };
    let image = Some("/srv/images/backhaul-appliance.xva".into());
    DeployOptions { pools: vec![pool, small], licensing: LicenseOffer::default(), image }
}

/// A licence for so many proxies.
pub fn license(id: &str, proxies: u32, bound: &[(&str, &str)]) -> License {
    License {
        id: id.into(),
        holder: "Example SARL".into(),
        proxies,
        not_before: NOW - 100 * DAY,
        expires_at: Some(NOW + 265 * DAY),
        bound: bound.iter().map(|(proxy, name)| Binding { proxy: (*proxy).into(), name: (*name).into() }).collect(),
        fault: None,
        warning: None,
    }
}

/// Licences of every sort.
pub fn licenses() -> Vec<License> {
    let soon = License {
        expires_at: Some(NOW + 12 * DAY),
        warning: Some("it expires in 12 days, on 2026-12-05".into()),
        ..license("8a4f3c0e-64f6-4c1c-9d0c-7f4f5d1c0001", 2, &[("id-a", "site-a")])
    };
    let expired = License {
        expires_at: Some(NOW - 3 * DAY),
        fault: Some("licence 77aa0011 expired on 2026-11-20".into()),
        ..license("77aa0011-64f6-4c1c-9d0c-7f4f5d1c0003", 1, &[])
    };
    vec![soon, license("c0ffee00-64f6-4c1c-9d0c-7f4f5d1c0002", 1, &[("id-c", "annecy")]), expired]
}

/// Licences as a form is offered them.
pub fn offer(licenses: Vec<License>) -> LicenseOffer {
    let none = licenses.iter().all(|license| license.free() == 0);
    LicenseOffer { required: true, why_not: none.then(|| "this proxy holds no free licence".into()), licenses }
}

/// What the deployer would do.
pub fn review(spec: &DeploySpec) -> DeployReview {
    let line = |label: &str, value: String| (label.to_owned(), value);
    let step = |name: &str, limit_seconds| StepInfo { name: name.into(), limit_seconds };
    let fault = FieldFault::new("ip", "10.0.0.5 is in use by VM web-1");
    let taken = matches!(spec.address, AddressSpec::Static { .. });
    DeployReview {
        faults: if taken { vec![fault] } else { Vec::new() },
        warnings: vec![FieldFault::new("sr", "nfs-main has 18.0 GiB free, less than the disk could grow to")],
        lines: vec![
            line("Name", spec.name.clone()),
            line("Site", spec.site.clone().unwrap_or_else(|| "xcp-grenoble".into())),
            line("VM", format!("“{}” in the pool xcp-grenoble, tagged {}", spec.name, api::deploy::TAGS.join(" and "))),
            line(
                "Resources",
                format!("{} vCPUs, {} of memory, starts with its host", spec.vcpus, api::format_bytes(spec.memory)),
            ),
            line(
                "Disk",
                format!("{} on nfs-main (nfs, thin: takes what is used), 18.0 GiB free there", api::format_bytes(spec.disk)),
            ),
            line("Network", "LAN".into()),
            line("Address", format!("from the network (DHCP), port {}", spec.port)),
            line("Licence", "not needed".into()),
        ],
        steps: [
            ("check", 30),
            ("upload", 3600),
            ("configure", 30),
            ("start", 120),
            ("address", 300),
            ("daemon", 120),
            ("register", 30),
        ]
        .map(|(name, limit)| step(name, limit))
        .into(),
    }
}

/// A deployed proxy.
pub fn deployed(id: &str, name: &str, state: DeployedState) -> Deployed {
    Deployed {
        id: id.into(),
        name: name.into(),
        pool: "pool-1".into(),
        pool_name: "xcp-grenoble".into(),
        vm: Some(format!("vm-{id}")),
        url: Some(format!("https://{name}.example:8443")),
        fingerprint: Some("SHA256:aa".into()),
        state,
        spec: DeploySpec {
            name: name.into(),
            site: None,
            pool: "pool-1".into(),
            sr: Some("sr-nfs".into()),
            network: Some("net-lan".into()),
            address: AddressSpec::Dhcp,
            port: DEFAULT_PORT,
            http_proxy: None,
            vcpus: 2,
            memory: 2 * GIB,
            disk: 20 * GIB,
            license: None,
            login: None,
            image: ImageSource { url: "/srv/images/backhaul-appliance.xva".into(), sha256: None },
        },
        license: None,
        run: format!("run-{id}"),
        ready_at: Some(NOW - 2 * DAY),
        copied_at: Some(NOW - DAY / 24),
    }
}

/// A proxy that keeps to its licence, drains, and is of another version.
fn kept_status(name: &str) -> ProxyStatus {
    let licensing = Licensing { required: true, license: None, fault: None, warning: None };
    let status = proxy_status(name, Vec::new());
    if name == "site-a" {
        return ProxyStatus {
            id: "id-a".into(),
            channel: Some("stable".into()),
            build: Some("2026.11.1".into()),
            licensing: Licensing { license: Some("8a4f3c0e".into()), warning: Some("it expires in 12 days".into()), ..licensing },
            ..status
        };
    }
    ProxyStatus {
        id: "id-b".into(),
        version: "0.0.9".into(),
        channel: Some("testing".into()),
        draining: true,
        licensing: Licensing { fault: Some("no licence is bound to this proxy".into()), ..licensing },
        upgrade: Some(Box::new(UpgradeState {
            phase: UpgradePhase::RolledBack,
            from: "0.0.9".into(),
            to: "0.1.0 lab.2".into(),
            since: NOW - DAY,
            run: Some("b7c1".into()),
            error: Some(api::ErrorReport::new("SELF_CHECK", "the new version did not answer within 20 s")),
        })),
        ..status
    }
}

/// [`many`], with deployed proxies, licences, and a proxy of another version.
pub fn kept() -> State {
    let mut state = many();
    for name in ["site-a", "site-b"] {
        status(&mut state, name, kept_status(name));
    }
    if let Some(proxy) = state.proxy_mut("site-a") {
        proxy.deployed.set(
            vec![
                deployed("id-b", "site-b", DeployedState::Ready),
                deployed("id-c", "annecy", DeployedState::Ready),
                deployed("id-d", "valence", DeployedState::Deploying),
            ],
            NOW,
        );
        proxy.licenses.set(licenses(), NOW);
        proxy.licenses.state = crate::core::store::ListState::Fresh(NOW);
    }
    update(&mut state, NOW, Message::Tick);
    state.notices.dismiss();
    state
}

/// The id of the errand among the effects.
pub fn errand_id(effects: &[Effect]) -> RequestId {
    let found = effects.iter().find_map(|effect| match effect {
        Effect::Fleet(FleetCommand::Errand { id, .. }) => Some(*id),
        _ => None,
    });
    found.unwrap_or(RequestId(0))
}

/// What the doctor finds.
pub fn checks() -> Vec<DoctorCheck> {
    let check = |check: &str, object: &str, verdict, measured: &str, fix: Option<&str>, took| DoctorCheck {
        check: check.into(),
        object: object.into(),
        verdict,
        measured: measured.into(),
        fix: fix.map(str::to_owned),
        took,
    };
    vec![
        check("dns", "xcp-1.example", Verdict::Pass, "10.0.0.2 in 3 ms", None, 3),
        check("clock", "this proxy", Verdict::Pass, "0.2 s behind the console", None, 1),
        check("pool", "xcp-grenoble", Verdict::Pass, "logged in", None, 48),
        check(
            "nbd",
            "LAN on xcp-1",
            Verdict::Fail,
            "purpose is not set",
            Some("xe network-param-add uuid=… param-name=purpose param-key=nbd"),
            12,
        ),
        check("remote", "backups", Verdict::Pass, "written and read in 8 ms", None, 8),
        check(
            "disk",
            "/var/lib/backhaul",
            Verdict::Warning,
            "1.2 GiB free",
            Some("free space, or give the proxy a larger disk"),
            1,
        ),
        check("version", "console", Verdict::Pass, "0.1.0, the same", None, 0),
    ]
}

/// [`kept`], with an examination of site-a; through, or with three lines of it.
pub fn examined(through: bool) -> State {
    let mut state = kept();
    let effects = update(&mut state, NOW, Message::Key(Key::char('d')));
    let id = errand_id(&effects);
    let checks = checks();
    let shown = if through { checks.len() } else { 3 };
    for check in checks.into_iter().take(shown) {
        fleet(&mut state, "site-a", FleetEventKind::Check { id, check: Box::new(check) });
    }
    if through {
        fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Errand(Done::Examined)) });
    }
    state
}
