//! Answers of one JSON object a line (xo-proxy-api.md §1.4).
//!
//! What XO's reader needs, and what is kept here: the header line goes out with the first item, so that a failure
//! before it is still an error document; a space every ten seconds keeps the connection alive; spaces are only ever
//! followed by another line, because a remainder of spaces is a syntax error for it. A stream that fails, or ends
//! after such a space, is therefore broken off instead of ended: the reader sees that it was cut.

use std::pin::Pin;
use std::time::Duration;

use api::{RpcError, RpcResponse, ndjson_header};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use hyper::body::Frame;
use serde_json::Value;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use crate::rpc::Items;

/// Between two spaces of a silent stream.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The body of a stream that was broken off.
#[derive(Debug, thiserror::Error)]
#[error("the stream was broken off")]
pub struct BrokenOff;

struct State {
    id: Value,
    items: Items,
    ticks: Interval,
    begun: bool,
    /// A space has been sent since the last newline.
    spaced: bool,
    over: bool,
}

/// The frames of the body that answers request `id` with `items`.
pub fn body(id: Value, items: Items, keep_alive: Duration) -> impl Stream<Item = Result<Frame<Bytes>, BrokenOff>> + Send {
    let mut ticks = interval_at(tokio::time::Instant::now() + keep_alive, keep_alive);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let state = State { id, items, ticks, begun: false, spaced: false, over: false };
    stream::unfold(state, |mut state| async move {
        let chunk = state.next().await?;
        Some((chunk.map(|bytes| Frame::data(bytes.into())), state))
    })
}

impl State {
    async fn next(&mut self) -> Option<Result<Vec<u8>, BrokenOff>> {
        if self.over {
            return None;
        }
        let item = tokio::select! {
            biased;
            item = next(&mut self.items) => item,
            _ = self.ticks.tick() => {
                self.spaced = true;
                return Some(Ok(b" ".to_vec()));
            }
        };
        self.ticks.reset();
        match item {
            Some(Ok(item)) => {
                let mut text = self.header();
                text.extend(item);
                text.push(b'\n');
                self.spaced = false;
                Some(Ok(text))
            }
            // Too early to have promised lines: an error like any other, without newline.
            Some(Err(fault)) if !self.begun => {
                self.over = true;
                let response = RpcResponse {
                    jsonrpc: "2.0".into(),
                    id: std::mem::take(&mut self.id),
                    result: None,
                    error: Some(RpcError::from(fault)),
                };
                Some(serde_json::to_vec(&response).map_err(|_| BrokenOff))
            }
            Some(Err(fault)) => {
                self.over = true;
                tracing::warn!(error = %RpcError::from(fault), "a stream failed");
                Some(Err(BrokenOff))
            }
            None => {
                self.over = true;
                match self.header() {
                    header if !header.is_empty() => Some(Ok(header)),
                    _ if self.spaced => Some(Err(BrokenOff)),
                    _ => None,
                }
            }
        }
    }

    /// The first line, once.
    fn header(&mut self) -> Vec<u8> {
        if std::mem::replace(&mut self.begun, true) {
            return Vec::new();
        }
        let response = serde_json::json!({ "id": self.id, "jsonrpc": "2.0", "result": ndjson_header() });
        let mut line = response.to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

async fn next(items: &mut Items) -> Option<<Items as Stream>::Item> {
    Pin::new(items).next().await
}

#[cfg(test)]
mod tests {
    use api::ErrorReport;
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;
    use crate::fault::Fault;

    type Frames = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, BrokenOff>> + Send>>;
    type Sender = mpsc::UnboundedSender<Result<Vec<u8>, Fault>>;

    fn opened() -> (Sender, Frames) {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let items = stream::poll_fn(move |context| receiver.poll_recv(context)).boxed();
        (sender, Box::pin(body(json!(0), items, Duration::from_millis(5))))
    }

    async fn text(
        frames: &mut (impl Stream<Item = Result<Frame<Bytes>, BrokenOff>> + Unpin),
    ) -> Option<Result<String, BrokenOff>> {
        let frame = frames.next().await?;
        Some(frame.map(|frame| String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()))
    }

    const HEADER: &str = "{\"id\":0,\"jsonrpc\":\"2.0\",\"result\":{\"$responseType\":\"ndjson\"}}\n";

    #[tokio::test]
    async fn spaces_come_before_lines_and_never_after_the_last() {
        let (sender, mut frames) = opened();
        assert_eq!(text(&mut frames).await.unwrap().unwrap(), " ");
        assert_eq!(text(&mut frames).await.unwrap().unwrap(), " ");
        sender.send(Ok(b"{\"a\":1}".to_vec())).unwrap();
        assert_eq!(text(&mut frames).await.unwrap().unwrap(), format!("{HEADER}{{\"a\":1}}\n"));
        sender.send(Ok(b"2".to_vec())).unwrap();
        drop(sender);
        assert_eq!(text(&mut frames).await.unwrap().unwrap(), "2\n");
        assert!(text(&mut frames).await.is_none());
    }

    #[tokio::test]
    async fn an_end_after_a_space_is_a_break() {
        let (sender, mut frames) = opened();
        sender.send(Ok(b"1".to_vec())).unwrap();
        text(&mut frames).await.unwrap().unwrap();
        assert_eq!(text(&mut frames).await.unwrap().unwrap(), " ");
        drop(sender);
        assert!(text(&mut frames).await.unwrap().is_err());
        assert!(text(&mut frames).await.is_none());
    }

    #[tokio::test]
    async fn nothing_to_say_is_the_header_alone() {
        let (sender, mut frames) = opened();
        drop(sender);
        assert_eq!(text(&mut frames).await.unwrap().unwrap(), HEADER);
        assert!(text(&mut frames).await.is_none());
    }

    #[tokio::test]
    async fn an_early_failure_is_an_error_document_without_newline() {
        let (sender, mut frames) = opened();
        sender.send(Err(Fault::Failed(ErrorReport::new("X", "no")))).unwrap();
        let document = text(&mut frames).await.unwrap().unwrap();
        assert!(!document.contains('\n'));
        let document: Value = serde_json::from_str(&document).unwrap();
        assert_eq!((&document["error"]["code"], &document["error"]["message"]), (&json!(-32000), &json!("no")));
        assert!(text(&mut frames).await.is_none());
    }

    #[tokio::test]
    async fn a_late_failure_is_a_break() {
        let (sender, mut frames) = opened();
        sender.send(Ok(b"1".to_vec())).unwrap();
        sender.send(Err(Fault::InvalidJson)).unwrap();
        text(&mut frames).await.unwrap().unwrap();
        assert!(text(&mut frames).await.unwrap().is_err());
    }
}
