//! The connection to one store, which its lanes share, and the handshake of each of their streams.
//!
//! Owns where the store is dialled and how HTTP/2 is set up. Knows nothing of calls.

use super::{
    CONNECTION_WINDOW_BYTES, Dial, GrpcOptions, HANDSHAKE_TIMEOUT, MESSAGE_SLACK_BYTES,
    STREAM_WINDOW_BYTES,
};
use crate::error::Error;
use crate::transport::Handshake;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use rdb_proto::raft::peer_client::PeerClient;
use rdb_proto::raft::{PeerRequest, PeerResponse, peer_request, peer_response};
use rdb_types::StoreId;
use std::sync::Arc;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// Why there is no stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoStream {
    /// One of the two stores does not accept the other: trying again alone changes nothing.
    Refused(String),
    /// The other is there, and one of the two has no more to say yet. Worth trying again soon.
    NotYet(String),
    /// There is no connection, or it ended before the handshake did.
    Broken(String),
}

impl NoStream {
    /// In words.
    pub(super) fn why(&self) -> &str {
        match self {
            NoStream::Refused(why) | NoStream::NotYet(why) | NoStream::Broken(why) => why,
        }
    }

    /// A handshake that one side ended with an error. What passes by itself is no refusal.
    fn judged(by: &str, error: &Error) -> NoStream {
        let why = format!("{by}: {error}");
        if error.is_passing() {
            NoStream::NotYet(why)
        } else {
            NoStream::Refused(why)
        }
    }

    fn status(status: &Status) -> NoStream {
        NoStream::Broken(explain(status))
    }
}

/// What the lanes to one store share.
pub(super) struct Link {
    pub(super) to: StoreId,
    pub(super) options: GrpcOptions,
    handshake: Arc<dyn Handshake>,
    dial: Arc<dyn Dial>,
    /// The connection, and the address that it is for.
    channel: Mutex<Option<(String, Channel)>>,
}

impl Link {
    pub(super) fn new(
        to: StoreId,
        handshake: Arc<dyn Handshake>,
        options: GrpcOptions,
        dial: Arc<dyn Dial>,
    ) -> Arc<Link> {
        Arc::new(Link {
            to,
            options,
            handshake,
            dial,
            channel: Mutex::new(None),
        })
    }

    /// Dials where necessary, says Hello and judges the reply, within the time for both. `requests`
    /// follow Hello on the stream. The error says why there is none.
    pub(super) async fn open(
        &self,
        requests: impl Stream<Item = PeerRequest> + Send + 'static,
    ) -> Result<Streaming<PeerResponse>, NoStream> {
        let limit = self.options.connect_timeout + HANDSHAKE_TIMEOUT;
        match timeout(limit, self.shake_hands(requests)).await {
            Ok(opened) => opened,
            Err(_elapsed) => Err(NoStream::Broken(format!(
                "no handshake within {} ms",
                limit.as_millis()
            ))),
        }
    }

    async fn shake_hands(
        &self,
        requests: impl Stream<Item = PeerRequest> + Send + 'static,
    ) -> Result<Streaming<PeerResponse>, NoStream> {
        let hello = PeerRequest {
            timeout_ms: HANDSHAKE_TIMEOUT.as_millis() as u64,
            body: Some(peer_request::Body::Hello(self.handshake.hello(self.to))),
            ..PeerRequest::default()
        };
        let outbound = futures::stream::iter([hello]).chain(requests);
        let mut answers = self
            .client()
            .map_err(NoStream::Broken)?
            .exchange(outbound)
            .await
            .map_err(|status| NoStream::status(&status))?
            .into_inner();
        let first = answers
            .message()
            .await
            .map_err(|status| NoStream::status(&status))?;
        match first.and_then(|first| first.body) {
            Some(peer_response::Body::Hello(reply)) => {
                match self.handshake.check_reply(self.to, &reply) {
                    Ok(()) => Ok(answers),
                    Err(error) => Err(NoStream::judged("this store does not talk to it", &error)),
                }
            }
            Some(peer_response::Body::Error(error)) => Err(NoStream::judged(
                "it refused this store",
                &Error::from_wire(error),
            )),
            Some(_) => Err(NoStream::Broken(
                "it answered Hello with something else".to_owned(),
            )),
            None => Err(NoStream::Broken(
                "it closed the stream during the handshake".to_owned(),
            )),
        }
    }

    /// A client on the connection to where the store is now; a new connection if it has moved. The
    /// channel dials when it is first used, and again whenever its connection is gone.
    fn client(&self) -> Result<PeerClient<Channel>, String> {
        let Some(address) = self.handshake.address_of(self.to) else {
            return Err("it is not a member of the cluster, its address is unknown".to_owned());
        };
        let mut current = self.channel.lock();
        let channel = match &*current {
            Some((known, channel)) if *known == address => channel.clone(),
            _ => {
                let channel = self.channel_to(&address)?;
                *current = Some((address, channel.clone()));
                channel
            }
        };
        let max_bytes = self
            .options
            .max_message_bytes
            .saturating_add(MESSAGE_SLACK_BYTES);
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(max_bytes)
            .max_encoding_message_size(max_bytes))
    }

    fn channel_to(&self, address: &str) -> Result<Channel, String> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| format!("its address {address:?} is not host:port ({error})"))?;
        let endpoint = endpoint
            .connect_timeout(self.options.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.options.keep_alive_interval)
            .keep_alive_timeout(self.options.keep_alive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        Ok(self.dial.channel(&endpoint))
    }

    /// Lets the connection go; it ends with the last stream on it.
    pub(super) fn hang_up(&self) {
        *self.channel.lock() = None;
    }
}

/// A status in words, with the cause at the bottom of it: "connection refused" says more than
/// "transport error".
pub(super) fn explain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let layer = error.to_string();
        if !layer.is_empty() && !text.contains(&layer) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&layer);
        }
        cause = error.source();
    }
    if text.is_empty() {
        format!("{:?}", status.code())
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_types::Reason;

    #[test]
    fn a_refusal_is_told_from_what_passes_by_its_kind_and_not_by_its_words() {
        let judged = |reason| NoStream::judged("it", &Error::new(reason, "REFUSED, it says"));
        assert!(matches!(judged(Reason::Refused), NoStream::Refused(_)));
        assert!(matches!(
            judged(Reason::InvalidArgument),
            NoStream::Refused(_)
        ));
        assert!(matches!(judged(Reason::NotReady), NoStream::NotYet(_)));
        let status = NoStream::status(&Status::unavailable("REFUSED, says a proxy"));
        assert!(matches!(status, NoStream::Broken(_)));
    }
}
