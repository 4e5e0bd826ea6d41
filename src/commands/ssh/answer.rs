//! How a proxy on a host answers: what it says of its certificate over SSH, and its API from here and through the tunnel.

use std::net::SocketAddr;

use api::{NoParams, ProxyStatus, ProxyStatusGet};
use client::Token;
use tls::Fingerprint;
use url::Url;

use super::plan::{self, Plan};
use super::probe::{Form, Found, paths};
use super::session::{Payload, Script, Session};
use super::shown;
use crate::commands::failure::Failure;
use crate::config::Proxy;
use crate::fleet::{CallError, Client};

/// Whether the proxy answers where consoles will look for it.
pub enum Reach {
    /// It answers from here.
    Direct,
    /// It answers on its host; why it does not from here.
    OnlyThere(String),
    /// Nobody can tell whether it is the proxy or the way; why it does not from here.
    Unknown(String),
}

/// What an earlier deployment left running.
#[derive(Default)]
pub struct Standing {
    /// Its certificate's fingerprint, from the host.
    pub fingerprint: Option<Fingerprint>,
    /// A token that it accepts; where nobody could ask it, one that this console has for this very certificate. A secret.
    pub token: Option<Token>,
    /// What it says of itself.
    pub status: Option<ProxyStatus>,
}

/// Asks what an earlier deployment left on the host. One that does not run, because it was cut short, need not answer.
///
/// # Errors
/// The service runs, and its program cannot tell its certificate.
pub async fn standing(session: &Session, found: &Found, known: &[Proxy]) -> Result<Standing, Failure> {
    let (Some(mark), Some(near)) = (found.mark, plan::near_of(found)) else { return Ok(Standing::default()) };
    let program = if mark.form == Form::Program { paths::PROGRAM } else { paths::PACKAGED_PROGRAM };
    let pin = match fingerprint(session, program).await {
        Ok(pin) => pin,
        Err(failure) if found.is("active") => return Err(failure),
        Err(_) => return Ok(Standing::default()),
    };
    let mut standing = Standing { fingerprint: Some(pin), ..Standing::default() };
    // After a rotation the token is no longer on the host, but this console may have it.
    let ours: Vec<&Proxy> = known.iter().filter(|proxy| proxy.fingerprint == pin).collect();
    let tokens: Vec<Token> = plan::token_of(found).into_iter().chain(ours.iter().map(|proxy| proxy.token.clone())).collect();
    let mut refused = vec![false; tokens.len()];
    if found.is("active") {
        // The host may forbid tunnels; then consoles reach it all the same.
        let ways = std::iter::once(None).chain(ours.iter().map(|proxy| Some(&proxy.url)));
        'ways: for way in ways {
            for (token, refused) in tokens.iter().zip(&mut refused) {
                let answer = match way {
                    None => through(session, near, token, pin).await,
                    Some(url) => directly(url, token, pin).await,
                };
                match answer {
                    Ok(status) => {
                        standing.status = Some(status);
                        standing.token = Some(token.clone());
                        return Ok(standing);
                    }
                    Err(CallError::Authentication { .. }) => *refused = true,
                    Err(_) => continue 'ways,
                }
            }
            // It answered, and knows none of them.
            break;
        }
    }
    standing.token = tokens.into_iter().zip(refused).find_map(|(token, refused)| (!refused).then_some(token));
    Ok(standing)
}

/// The certificate's fingerprint, told by the program that holds it.
///
/// # Errors
/// [`Failure`].
pub async fn fingerprint(session: &Session, program: &str) -> Result<Fingerprint, Failure> {
    let said = session.run(Script::FINGERPRINT, &[program], Payload::Nothing).await?;
    let told = said.trim().parse();
    told.map_err(|error: tls::ParseFingerprintError| Failure::failed("FINGERPRINT", format!("{said:?} is none: {error}")))
}

/// Calls the proxy, with its certificate pinned: from here, and where that fails through the SSH connection, to tell a
/// firewall from a proxy that is broken.
///
/// # Errors
/// Something else answers, or the proxy does not on its own host.
pub async fn reach(session: &Session, plan: &Plan, url: &Url, fingerprint: Fingerprint) -> Result<Reach, Failure> {
    let direct = Client::new(url, &plan.token, fingerprint)?;
    let why = match direct.call::<ProxyStatusGet>(&NoParams {}).await {
        Ok(_) => return Ok(Reach::Direct),
        Err(error @ (CallError::Unreachable { .. } | CallError::Cut { .. })) => error.to_string(),
        // With another certificate, or none of our protocol, it is something else.
        Err(error @ (CallError::Certificate { .. } | CallError::Foreign { .. })) => {
            let report = direct.explain(error).await.report();
            let text =
                format!("what answers at {} is not the proxy on {}: {}", shown(url), session.destination(), report.message);
            return Err(Failure::refused("CERTIFICATE", text).next("name its address with --host"));
        }
        Err(error) => return Err(error.into()),
    };
    match through(session, plan.near, &plan.token, fingerprint).await {
        Ok(_) => Ok(Reach::OnlyThere(why)),
        // The host may forbid tunnels.
        Err(CallError::Unreachable { .. } | CallError::Cut { .. }) => Ok(Reach::Unknown(why)),
        Err(error) => Err(error.into()),
    }
}

async fn directly(url: &Url, token: &Token, pin: Fingerprint) -> Result<ProxyStatus, CallError> {
    Client::new(url, token, pin)?.call::<ProxyStatusGet>(&NoParams {}).await
}

async fn through(session: &Session, near: SocketAddr, token: &Token, pin: Fingerprint) -> Result<ProxyStatus, CallError> {
    let broken = |reason: String| CallError::Unreachable { host: session.destination().to_string(), reason };
    let tunnel = session.tunnel(near).await.map_err(|error| broken(error.to_string()))?;
    let url = Url::parse(&format!("https://127.0.0.1:{}", tunnel.port)).map_err(|error| broken(error.to_string()))?;
    directly(&url, token, pin).await
}
