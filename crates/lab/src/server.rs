//! The listeners of a pool: one per host, all on one port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::http::{Connection, HttpError, Request};
use crate::pool::Pool;
use crate::transfer;
use crate::{rpc, xmlrpc};

/// How long a client may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Accepts connections for the host at position `host` until the pool stops. While the pool is offline nobody listens,
/// so that connections are refused by the system itself.
pub(crate) async fn listen(pool: Arc<Pool>, host: usize, listener: TcpListener, acceptor: TlsAcceptor) {
    let Ok(address) = listener.local_addr() else { return };
    let mut offline = pool.offline.subscribe();
    let mut listener = Some(listener);
    let mut connections = pool.stop.child_token();
    loop {
        if *offline.borrow_and_update() {
            listener = None;
            connections.cancel();
            connections = pool.stop.child_token();
        } else if listener.is_none() {
            listener = bind_again(address).await;
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pool.stop.cancelled() => return,
            _ = offline.changed() => {}
            accepted = accepted => match accepted {
                Ok((socket, _)) => {
                    let serving = serve(Arc::clone(&pool), host, socket, acceptor.clone(), connections.clone());
                    pool.tracker.spawn(serving);
                }
                // Out of descriptors, most likely: let some be closed before trying again.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
}

async fn bind_again(address: SocketAddr) -> Option<TcpListener> {
    for _ in 0..100 {
        match TcpListener::bind(address).await {
            Ok(listener) => return Some(listener),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    tracing::error!(%address, "the port of a host that comes back is taken");
    None
}

async fn serve(pool: Arc<Pool>, host: usize, socket: TcpStream, acceptor: TlsAcceptor, cut: CancellationToken) {
    let serving = async {
        socket.set_nodelay(true)?;
        let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(socket)).await.map_err(|_| HttpError::Idle)??;
        converse(&pool, host, Connection::new(stream)).await
    };
    tokio::select! {
        () = cut.cancelled() => {}
        served = serving => {
            if let Err(error) = served {
                tracing::debug!(%error, "a client's connection ended");
            }
        }
    }
}

/// One request after the other.
async fn converse(pool: &Arc<Pool>, host: usize, mut connection: Connection) -> Result<(), HttpError> {
    while let Some(request) = connection.request().await? {
        let path = request.path.as_str();
        let alive = match (request.method.as_str(), path) {
            ("POST", "/jsonrpc") => json_rpc(pool, host, &mut connection, &request).await?,
            ("POST", "/xmlrpc" | "/RPC2" | "") => xml_rpc(pool, host, &mut connection, &request).await?,
            ("GET", "") => connection.answer(&request, 200, &[("content-type", "text/plain")], GREETING).await?,
            _ => match transfer::serve(pool, host, &request, connection).await? {
                Some(kept) => {
                    connection = kept;
                    continue;
                }
                None => return Ok(()),
            },
        };
        if !alive {
            break;
        }
    }
    connection.close().await;
    Ok(())
}

const GREETING: &[u8] = b"This is a simulated pool of the Backhaul lab. It speaks XAPI on /jsonrpc and /xmlrpc.\n";

async fn body(connection: &mut Connection, request: &Request) -> Result<Option<String>, HttpError> {
    let Some(length) = request.length() else {
        connection.answer(request, 411, &[], b"a Content-Length is needed").await?;
        return Ok(None);
    };
    match String::from_utf8(connection.call_body(length).await?) {
        Ok(text) => Ok(Some(text)),
        Err(_) => {
            connection.answer(request, 400, &[], b"the body is not UTF-8").await?;
            Ok(None)
        }
    }
}

async fn json_rpc(pool: &Arc<Pool>, host: usize, connection: &mut Connection, request: &Request) -> Result<bool, HttpError> {
    let Some(text) = body(connection, request).await? else { return Ok(false) };
    let answer = match serde_json::from_str::<Value>(&text) {
        Ok(Value::Object(mut call)) => {
            let id = call.shift_remove("id").unwrap_or(Value::Null);
            match (call.shift_remove("method"), call.shift_remove("params")) {
                (Some(Value::String(method)), Some(Value::Array(params))) => match rpc::call(pool, host, &method, params).await {
                    Ok(result) => json!({ "jsonrpc": "2.0", "result": result, "id": id }),
                    Err(failure) => {
                        let error = json!({ "code": 1, "message": failure.code, "data": failure.params });
                        json!({ "jsonrpc": "2.0", "error": error, "id": id })
                    }
                },
                _ => json!({ "jsonrpc": "2.0", "error": { "code": -32600, "message": "Invalid Request", "data": [] }, "id": id }),
            }
        }
        _ => json!({ "jsonrpc": "2.0", "error": { "code": -32700, "message": "Parse error", "data": [] }, "id": null }),
    };
    connection.answer(request, 200, &[("content-type", "application/json")], answer.to_string().as_bytes()).await
}

async fn xml_rpc(pool: &Arc<Pool>, host: usize, connection: &mut Connection, request: &Request) -> Result<bool, HttpError> {
    let Some(text) = body(connection, request).await? else { return Ok(false) };
    let answer = match xmlrpc::parse_call(&text) {
        Ok((method, params)) => {
            // A field asked for alone has its name in the method only.
            let field = method.rsplit_once("get_").map_or("", |(_, field)| field).to_owned();
            match rpc::call(pool, host, &method, params).await {
                Ok(value) => xmlrpc::response(&field, Ok(&value)),
                Err(failure) => xmlrpc::response("", Err(&failure.description())),
            }
        }
        Err(error) => xmlrpc::response("", Err(&json!(["MESSAGE_METHOD_UNKNOWN", error.to_string()]))),
    };
    connection.answer(request, 200, &[("content-type", "text/xml")], answer.as_bytes()).await
}
