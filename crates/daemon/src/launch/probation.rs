//! What a new program has to show: it gets ready, answers over its own door with the same certificate and token as the one
//! of before, knows the same pools, remotes and jobs, and is still there a little later.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use api::{JobList, Method, NoParams, PoolList, ProxyStatusGet, RemoteList};
use client::{Client, Token};
use url::Url;

use super::process::{Process, Ready, in_words};
use crate::upgrade::Expected;

/// It must stay up this long, or a quarter of a probation shorter than four times that.
const STEADY: Duration = Duration::from_secs(5);

/// Proves a program, or says why it is no good.
pub(super) async fn prove(process: &mut Process, expected: Option<&Expected>, limit: Duration) -> Result<String, String> {
    let ready = process.ready();
    let shown = async {
        let Some(ready) = ready.await else {
            // Its output has ended, so it has, or is about to: how, is said by the other branch.
            return std::future::pending().await;
        };
        let expected = expected.ok_or("nothing says what it has to show")?;
        let client = client(&ready, expected)?;
        check(&client, expected).await?;
        tokio::time::sleep(STEADY.min(limit / 4)).await;
        check(&client, expected).await
    };
    let shown = tokio::time::timeout(limit, shown);
    tokio::select! {
        status = process.wait() => Err(in_words(status)),
        shown = shown => match shown {
            Ok(shown) => shown,
            Err(_) => Err(format!("it was not ready and checked within {} s", limit.as_secs())),
        },
    }
}

/// A client of the program's own door.
fn client(ready: &Ready, expected: &Expected) -> Result<Client, String> {
    if ready.fingerprint != expected.fingerprint {
        return Err("it shows another certificate than before".into());
    }
    let fingerprint = ready.fingerprint.parse().map_err(|_| "its certificate's fingerprint is none".to_owned())?;
    let ip = match ready.address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let address = format!("https://{}", SocketAddr::new(ip, ready.address.port()));
    let url = Url::parse(&address).map_err(|_| format!("{address} is no address"))?;
    let token = Token::new(expected.token.expose())?;
    Client::new(&url, &token, fingerprint).map_err(|error| error.to_string())
}

async fn ask<M: Method<Params = NoParams>>(client: &Client) -> Result<M::Item, String> {
    client.call::<M>(&NoParams {}).await.map_err(|error| format!("{}: {error}", M::NAME))
}

async fn check(client: &Client, expected: &Expected) -> Result<String, String> {
    let status = ask::<ProxyStatusGet>(client).await?;
    if status.id != expected.id {
        return Err("it takes itself for another proxy".into());
    }
    let pools: Vec<String> = ask::<PoolList>(client).await?.into_iter().map(|pool| pool.id).collect();
    let remotes: Vec<String> = ask::<RemoteList>(client).await?.into_iter().map(|remote| remote.id).collect();
    let jobs: Vec<String> = ask::<JobList>(client).await?.into_iter().map(|job| job.id).collect();
    for (what, before, now) in
        [("pool", &expected.pools, &pools), ("remote", &expected.remotes, &remotes), ("job", &expected.jobs, &jobs)]
    {
        if let Some(lost) = before.iter().find(|id| !now.contains(id)) {
            return Err(format!("it does not know the {what} {lost} any more ({} of {} are left)", now.len(), before.len()));
        }
    }
    Ok(format!("it answers, with {} pools, {} remotes and {} jobs", pools.len(), remotes.len(), jobs.len()))
}
