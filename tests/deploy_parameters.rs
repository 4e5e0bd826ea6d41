//! The deployment parameters as a person gives them, with the real programs: what cannot be is refused with its reason at its
//! field and touches nothing, and what looks odd works.
//!
//! One lab for all of it, because each takes a while to start.

mod support;

use std::path::{Path, PathBuf};

use lab::Dump;
use serde_json::Value;
use support::lab::Lab;
use support::{stderr, stdout};

const SECRET: &str = "s3cret-wörd";

struct Bench {
    lab: Lab,
    before: Vec<Dump>,
    /// The pool to deploy into.
    pool: &'static str,
}

impl Bench {
    fn deploy<'a>(&self, name: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let base = ["proxy", "deploy", "--proxy", "paris", "--pool", self.pool, "--name", name, "--yes"];
        let port = if more.contains(&"--port") { &[][..] } else { &["--port", "8443"] };
        [&base[..], port, more].concat()
    }

    /// A deployment that is refused: at these fields, with these words, and nothing is touched.
    async fn refused(&self, more: &[&str], says: &[&str]) {
        let refused = self.lab.run(&self.deploy("refused", more)).await;
        let said = format!("{}{}", stdout(&refused), stderr(&refused));
        assert!(!refused.status.success(), "{more:?}: {said}");
        for words in says {
            assert!(said.contains(words), "{more:?} should say {words:?}: {said}");
        }
        assert!(!said.contains(SECRET), "{more:?}: {said}");
        self.lab.assert_as(&self.before, &format!("{more:?}")).await;
        let known = self.lab.list(&["proxy", "deployed", "--proxy", "paris"]).await;
        assert!(known.iter().all(|known| known["name"] != "refused"), "{more:?}: {known:?}");
    }

    /// Deploys one that works; its URL.
    async fn works(&self, name: &str, more: &[&str]) -> String {
        let told = self.lab.ask(&self.deploy(name, more)).await;
        let url = told.last().unwrap()["url"].as_str().unwrap_or_else(|| panic!("{told:?}")).to_owned();
        self.is_live(name).await;
        url
    }

    async fn is_live(&self, name: &str) {
        let listed = self.lab.list(&["proxy", "list"]).await;
        let entry = listed.iter().find(|proxy| proxy["name"] == name).unwrap_or_else(|| panic!("{name}: {listed:?}"));
        assert_eq!(entry["state"], "live", "{entry}");
    }

    async fn destroy(&self, name: &str) {
        self.lab.ask(&["proxy", "destroy", "--proxy", "paris", name, "--confirm", name]).await;
        self.lab.assert_as(&self.before, name).await;
    }
}

fn write(path: &Path, text: &str) -> String {
    std::fs::write(path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn parameters_are_refused_at_their_fields_or_work() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(&dir.path().join("lab")).await;
    let (before, images) = (lab.dumps().await, lab.images());
    let bench = Bench { lab, before, pool: "paris" };

    resources(&bench).await;
    addresses(&bench).await;
    image_and_proxy(&bench, dir.path()).await;
    let bench = Bench { pool: "annecy", ..bench };
    odd_but_right(&bench, dir.path()).await;
    several_at_once(&bench).await;

    assert_eq!(bench.lab.images(), images);
    assert_eq!(bench.lab.list(&["proxy", "deployed"]).await, Vec::<Value>::new());
    assert!(std::fs::read_dir(bench.lab.dir.join("guests")).unwrap().next().is_none(), "a guest's folder stays behind");
}

async fn resources(bench: &Bench) {
    bench.refused(&["--vcpus", "1"], &["vcpus: at least 2"]).await;
    bench.refused(&["--vcpus", "many"], &["vcpus: a whole number"]).await;
    bench.refused(&["--vcpus", "16"], &["vcpus: the hosts of paris have 8 processors"]).await;
    bench.refused(&["--memory", "1.9 GiB"], &["memory: at least 2 GiB, 1.9 GiB is too little"]).await;
    bench.refused(&["--memory", "70 GiB"], &["memory: no host of paris has 70.0 GiB free"]).await;
    bench.refused(&["--vcpus", "1", "--memory", "1.9 GiB"], &["vcpus: ", "memory: "]).await;
    // Thick storage reserves all of it, thin storage what is used.
    bench
        .refused(&["--sr", "paris SAN", "--disk", "19 GiB"], &["disk: 19.0 GiB is too little", "paris SAN reserves all of it"])
        .await;
    bench.refused(&["--disk", "1 GiB"], &["disk: at least 20 GiB, or 2 GiB on thin storage"]).await;
    bench.refused(&["--sr", "paris SAN", "--disk", "500 GiB"], &["sr: paris SAN has 400.0 GiB free"]).await;
    bench.refused(&["--sr", "paris archive"], &["sr: paris archive: 1.0 GiB free, 2.0 GiB needed"]).await;
    bench.refused(&["--sr", "no such"], &["sr: there is no storage \"no such\""]).await;
    bench.refused(&["--network", "paris internal"], &["network: paris internal: it has no physical interface"]).await;
    bench.refused(&["--port", "0"], &["port: a number from 1 to 65535"]).await;
}

async fn addresses(bench: &Bench) {
    let fixed = |ip, more: &[&'static str]| -> Vec<&'static str> { [&["--address", "static", "--ip", ip][..], more].concat() };
    bench.refused(&fixed("127.9.0.5/24", &["--gateway", "127.8.0.1"]), &["gateway: 127.8.0.1 is outside of 127.9.0.0/24"]).await;
    bench.refused(&fixed("127.9.0.5", &[]), &["netmask: a netmask or prefix length is needed"]).await;
    bench.refused(&fixed("127.9.0.5/24", &["--netmask", "255.255.0.0"]), &["netmask: the address says /24"]).await;
    bench.refused(&fixed("127.9.0.255/24", &[]), &["ip: 127.9.0.255 is the broadcast address"]).await;
    bench.refused(&fixed("127.9.0.5/24", &["--dns", "dns.example"]), &["dns: \"dns.example\" is no IP address"]).await;
    bench.refused(&fixed("fd00::5/64", &["--gateway", "127.9.0.1"]), &["gateway: 127.9.0.1 is IPv4, the address is IPv6"]).await;
    bench.refused(&fixed("127.0.0.1/8", &[]), &["ip: 127.0.0.1 is in use by host paris-host-1"]).await;
    bench.refused(&fixed("192.0.2.10/24", &[]), &["ip: 192.0.2.10 is in use by VM web-01"]).await;
}

async fn image_and_proxy(bench: &Bench, dir: &Path) {
    let image = bench.lab.dir.join("images/backhaul-appliance.xva");
    let copy = dir.join("copy.xva");
    std::fs::copy(&image, &copy).unwrap();
    let sign =
        |copy: &Path| std::fs::copy(image.with_added_extension("manifest"), copy.with_added_extension("manifest")).unwrap();
    let copy = copy.to_str().unwrap();
    bench.refused(&["--image", "/nowhere.xva"], &["image: cannot open /nowhere.xva"]).await;
    bench.refused(&["--image", copy], &["image: nothing says what the image must be"]).await;
    // A checksum is not enough where signatures are asked for, and a signed one counts more than one that is given.
    let given = ["--image", copy, "--image-sha256", &"0".repeat(64)];
    bench.refused(&given, &["no .manifest stands beside it"]).await;
    sign(Path::new(copy));
    bench.refused(&given, &["the one given is"]).await;
    // One bit, in the middle.
    let mut bytes = std::fs::read(&image).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let torn = dir.join("torn.xva");
    std::fs::write(&torn, bytes).unwrap();
    sign(&torn);
    let sum = std::fs::read_to_string(image.with_added_extension("sha256")).unwrap();
    let sum = sum.split_whitespace().next().unwrap();
    bench.refused(&["--image", torn.to_str().unwrap(), "--image-sha256", sum], &["step upload ", "its SHA-256 is "]).await;
    let no_image = write(&dir.join("none.xva"), "this is no archive, however long it is");
    sign(Path::new(&no_image));
    bench.refused(&["--image", &no_image, "--image-sha256", sum], &["step upload ", "its SHA-256 is "]).await;
    let wrong_proxy = write(&dir.join("wrong-proxy"), &format!("ftp://user:{SECRET}@127.0.0.1\n"));
    bench.refused(&["--http-proxy-file", &wrong_proxy], &["http-proxy: "]).await;
    let short = write(&dir.join("short"), "1234567\n");
    bench.refused(&["--login", "password", "--login-password-file", &short], &["login-password: at least 8 characters"]).await;
    bench.refused(&["--login", "key", "--login-key", "mine"], &["login-key: a public key in one line"]).await;
}

async fn odd_but_right(bench: &Bench, dir: &Path) {
    // A name that no sane person gives, and an HTTP proxy whose password nobody sees again.
    let name = "né \"annecy\" 🦀 'x' $(y)";
    let proxy = write(&dir.join("http-proxy"), &format!("http://user:{SECRET}@127.0.0.1:3128\n"));
    let told = bench.lab.run(&bench.deploy(name, &["--http-proxy-file", &proxy])).await;
    assert!(told.status.success(), "{}{}", stdout(&told), stderr(&told));
    assert!(stdout(&told).contains("http://***@127.0.0.1:3128") && !stdout(&told).contains(SECRET), "{}", stdout(&told));
    bench.is_live(name).await;
    let known = bench.lab.list(&["proxy", "deployed", "--proxy", "paris"]).await;
    assert_eq!(known[0]["spec"]["httpProxy"], "http://***@127.0.0.1:3128", "{known:?}");
    for secret in [SECRET, &bench.lab.token(name)] {
        assert_eq!(bench.lab.leaks(secret), [] as [PathBuf; 0]);
    }
    // Its address is taken now, and so is its name.
    let url = known[0]["url"].as_str().unwrap();
    let taken = url.trim_start_matches("https://").split(':').next().unwrap();
    let again = ["--address", "static", "--ip", taken, "--netmask", "255.255.255.0"];
    let refused = bench.lab.run(&bench.deploy("another", &again)).await;
    assert!(stderr(&refused).contains(&format!("ip: {taken} is in use by VM")), "{}", stderr(&refused));
    let refused = bench.lab.run(&bench.deploy(name, &[])).await;
    assert!(stderr(&refused).contains("name: a proxy of this name was deployed by this one"), "{}", stderr(&refused));
    bench.destroy(name).await;

    // Thick storage, and the least that goes on it.
    bench.works("thick", &["--sr", "annecy SAN", "--disk", "20 GiB"]).await;
    bench.destroy("thick").await;
    // The least that goes on thin storage, and more of the rest.
    bench.works("thin", &["--disk", "2 GiB", "--vcpus", "4", "--memory", "3 GiB", "--network", "annecy storage network"]).await;
    bench.destroy("thin").await;
    let address = "127.9.0.5";
    let fixed = ["--address", "static", "--ip", "127.9.0.5/24", "--gateway", "127.9.0.1", "--dns", "127.9.0.2 127.9.0.3"];
    assert_eq!(bench.works("fixed", &fixed).await, format!("https://{address}:8443"));
    bench.destroy("fixed").await;
    // The only address of IPv6 that a machine without a network has.
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        let fixed = ["--address", "static", "--ip", "::1/128"];
        assert_eq!(bench.works("six", &fixed).await, "https://[::1]:8443");
        bench.destroy("six").await;
    }
}

async fn several_at_once(bench: &Bench) {
    let (one, other) = (bench.deploy("one", &[]), bench.deploy("other", &[]));
    let (one, other) = tokio::join!(bench.lab.run(&one), bench.lab.run(&other));
    for told in [&one, &other] {
        assert!(told.status.success(), "{}{}", stdout(told), stderr(told));
    }
    bench.is_live("one").await;
    bench.is_live("other").await;
    bench.lab.ask(&["proxy", "destroy", "--proxy", "paris", "other", "--confirm", "other"]).await;
    bench.destroy("one").await;

    let fixed = ["--address", "static", "--ip", "127.9.0.6/24"];
    let clashes = [
        (bench.deploy("same", &[]), bench.deploy("same", &[]), "name: a proxy of this name is being deployed"),
        (bench.deploy("same", &fixed), bench.deploy("else", &fixed), "ip: 127.9.0.6 is "),
    ];
    for (one, other, says) in clashes {
        let (one, other) = tokio::join!(bench.lab.run(&one), bench.lab.run(&other));
        let (good, bad) = if one.status.success() { (one, other) } else { (other, one) };
        assert!(
            good.status.success() && !bad.status.success(),
            "{}{}{}{}",
            stdout(&good),
            stderr(&good),
            stdout(&bad),
            stderr(&bad)
        );
        assert!(stderr(&bad).contains(says), "{says}: {}{}", stdout(&bad), stderr(&bad));
        let known = bench.lab.list(&["proxy", "deployed", "--proxy", "paris"]).await;
        assert_eq!(known.len(), 1, "{known:?}");
        bench.destroy(known[0]["name"].as_str().unwrap()).await;
    }
}
