//! Whether a TCP connection can be made: to a pool, to its hosts, to their NBD servers, to the HTTP proxy.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use engine::plan::Secret;
use tokio::net::TcpStream;

use super::{About, Finding, Kind, Lines, dns};

/// Tries what is called `object` at its addresses; something when one of them takes the connection. `service`: what should
/// listen there, and how to look after it.
pub async fn check(lines: &Lines, object: &str, addresses: &[IpAddr], port: u16, service: &str) -> Option<()> {
    let targets: Vec<SocketAddr> = addresses.iter().map(|address| SocketAddr::new(*address, port)).collect();
    let shown = targets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let fix = format!(
        "check cables, routes and firewalls between this proxy and {shown}: a firewall that drops packets to port {port} looks \
         like this"
    );
    let about = About::new(Kind::Route, object, format!("TCP connection to {shown}"), fix.clone());
    let work = async {
        let begun = Instant::now();
        match TcpStream::connect(targets.as_slice()).await {
            Ok(stream) => {
                let peer = stream.peer_addr().map_or(shown, |peer| peer.to_string());
                (Finding::pass(format!("{peer} takes connections, after {} ms", begun.elapsed().as_millis())), Some(()))
            }
            Err(error) => (failed(&error, &shown, port, service, fix), None),
        }
    };
    lines.check(about, work).await
}

fn failed(error: &std::io::Error, shown: &str, port: u16, service: &str, fix: String) -> Finding {
    match error.kind() {
        ErrorKind::ConnectionRefused => {
            let words = format!("{shown} refuses connections: nothing listens on port {port}, or a firewall rejects it");
            Finding::fail(words, format!("check the port and {service}"))
        }
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
            let words = format!("no way leads to {shown}: {error}");
            Finding::fail(words, "check address, gateway and routes of this proxy (ip route), and whether the other side is up")
        }
        _ => Finding::fail(format!("TCP connection to {shown}: {error}"), fix),
    }
}

/// The HTTP proxy for downloads: its name and the way to it. Nothing is asked of it.
pub async fn check_http_proxy(lines: Lines, url: Secret) {
    const OBJECT: &str = "HTTP proxy";
    // Checked when the configuration was read; without a host there is nothing to look for.
    let Some(url) = url::Url::parse(url.expose()).ok() else { return };
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else { return };
    let host = host.trim_matches(['[', ']']).to_owned();
    if let Some(addresses) = dns::check(&lines, OBJECT, OBJECT, &host).await {
        check(&lines, OBJECT, &addresses, port, "http_proxy in the configuration of this proxy").await;
    }
}

#[cfg(test)]
mod tests {
    use api::Verdict;
    use tokio::sync::mpsc;

    use super::*;

    async fn tried(port: u16) -> api::DoctorCheck {
        let (sender, mut receiver) = mpsc::channel(1);
        check(&Lines::new(sender), "it", &["127.0.0.1".parse().unwrap()], port, "the service").await;
        receiver.recv().await.unwrap()
    }

    #[tokio::test]
    async fn a_port_is_open_or_closed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let open = tried(port).await;
        assert_eq!((open.verdict, open.check.as_str()), (Verdict::Pass, "route"));
        drop(listener);
        let closed = tried(port).await;
        assert_eq!(closed.verdict, Verdict::Fail);
        assert!(closed.measured.contains(&format!("127.0.0.1:{port} refuses")), "{}", closed.measured);
        assert!(closed.fix.unwrap().ends_with("check the port and the service"));
    }

    #[tokio::test]
    async fn the_password_of_an_http_proxy_is_in_no_line() {
        let (sender, mut receiver) = mpsc::channel(4);
        check_http_proxy(Lines::new(sender), Secret::new("http://user:hunter2@127.0.0.1:1")).await;
        let mut said = Vec::new();
        while let Some(line) = receiver.recv().await {
            said.push(line);
        }
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(!format!("{said:?}").contains("hunter2"));
        assert_eq!((said[0].verdict, said[1].verdict), (Verdict::Pass, Verdict::Fail));
    }
}
