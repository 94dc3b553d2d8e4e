//! The transport of real clusters: gRPC over TCP.
//!
//! Owns the connections to other stores ([`GrpcTransport`]) and the edge that receives theirs
//! ([`PeerService`]). To each store there is one HTTP/2 connection, on it one stream per lane, all
//! opened when something is to be sent. Knows nothing of what a request means and decides nothing
//! about who may talk to whom: that is the [`Handshake`]'s.
//!
//! Invariants:
//! - No request leaves before the other store's identity was checked on that very stream.
//! - A request that was handed to a stream which then broke fails with `NoAnswer`, one that was not
//!   with `Unreachable`; neither is ever sent a second time.
//! - Sockets are opened and accepted by [`Dial`] and [`Listen`] alone, which are arguments.
//! - Every queue is bounded by `max_in_flight`. Where there is no connection nothing is queued: calls
//!   fail at once until the next attempt is due.
//! - After [`GrpcTransport::shutdown`], or once it is dropped, no task of it is left.

mod accept;
mod calls;
mod dial;
mod line;
mod link;
mod places;
mod serve;

pub use accept::{Accepted, Incoming, Listen};
pub use dial::{Dial, Tcp};
pub use places::{Kind, PROBATION, Place, Places};
pub use serve::PeerService;

use super::{Handshake, Lane, Transport, TransportError};
use crate::error::Error;
use futures::future::BoxFuture;
use line::Line;
use link::Link;
use parking_lot::RwLock;
use rdb_proto::raft::{peer_request, peer_response};
use rdb_types::{RegionId, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Server;

/// How long either side waits for the other's half of a handshake before it lets go.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a stream may hold that its reader has not taken yet. Large enough for 60 ms of a gigabit.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// As many stream windows as there are lanes: a lane whose reader stands still then cannot use up
/// what the others need.
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * Lane::ALL.len() as u32;

/// Room beyond `max_message_bytes` for the frame's own fields, so that the limit is judged in one
/// place, before sending, and answered in words instead of a broken stream.
const MESSAGE_SLACK_BYTES: usize = 1024;

/// A longer timeout than this is taken for this: it keeps deadlines representable.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Settings of connections between stores.
#[derive(Clone, Debug)]
pub struct GrpcOptions {
    /// For the TCP connection alone; the handshake has [`HANDSHAKE_TIMEOUT`].
    pub connect_timeout: Duration,
    /// A ping is sent when nothing was heard for that long, on an idle connection as well.
    pub keep_alive_interval: Duration,
    /// A connection whose ping stays unanswered for that long is given up: a silent partition breaks
    /// it after `keep_alive_interval + keep_alive_timeout`.
    pub keep_alive_timeout: Duration,
    /// The largest encoded request or answer.
    pub max_message_bytes: usize,
    /// Unanswered requests per lane, here and at the receiver.
    pub max_in_flight: usize,
}

impl Default for GrpcOptions {
    fn default() -> GrpcOptions {
        GrpcOptions {
            connect_timeout: Duration::from_secs(1),
            keep_alive_interval: Duration::from_millis(500),
            keep_alive_timeout: Duration::from_millis(1500),
            max_message_bytes: 16 << 20,
            max_in_flight: 4096,
        }
    }
}

impl GrpcOptions {
    /// A tonic server set up for what other stores send: windows and keep-alives. Serve it with
    /// [`Incoming`], which sets what belongs to the sockets.
    pub fn server(&self) -> Server {
        Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keepalive_interval(Some(self.keep_alive_interval))
            .http2_keepalive_timeout(Some(self.keep_alive_timeout))
    }
}

/// Reaches other stores over TCP.
pub struct GrpcTransport {
    me: StoreId,
    handshake: Arc<dyn Handshake>,
    options: GrpcOptions,
    dial: Arc<dyn Dial>,
    routes: RwLock<Routes>,
}

#[derive(Default)]
struct Routes {
    shut: bool,
    links: BTreeMap<StoreId, Arc<Link>>,
    lines: BTreeMap<(StoreId, Lane), Arc<Line>>,
}

impl GrpcTransport {
    /// A transport for the store `me`. Nothing is dialled before the first call.
    pub fn new(
        me: StoreId,
        handshake: Arc<dyn Handshake>,
        options: GrpcOptions,
    ) -> Arc<GrpcTransport> {
        GrpcTransport::with_dial(me, handshake, options, Arc::new(Tcp))
    }

    /// As [`GrpcTransport::new`], with another way to make connections than TCP.
    pub fn with_dial(
        me: StoreId,
        handshake: Arc<dyn Handshake>,
        options: GrpcOptions,
        dial: Arc<dyn Dial>,
    ) -> Arc<GrpcTransport> {
        Arc::new(GrpcTransport {
            me,
            handshake,
            options,
            dial,
            routes: RwLock::default(),
        })
    }

    /// Ends every stream and its task. Outstanding calls fail, and so does every later one.
    pub fn shutdown(&self) {
        let lines = {
            let mut routes = self.routes.write();
            routes.shut = true;
            routes.links.clear();
            std::mem::take(&mut routes.lines)
        };
        for line in lines.into_values() {
            line.shut();
        }
    }

    /// The line for a lane, made when it is first used. `None` after a shutdown.
    fn line(&self, to: StoreId, lane: Lane) -> Option<Arc<Line>> {
        {
            let routes = self.routes.read();
            if routes.shut {
                return None;
            }
            if let Some(line) = routes.lines.get(&(to, lane)) {
                return Some(Arc::clone(line));
            }
        }
        let mut routes = self.routes.write();
        if routes.shut {
            return None;
        }
        let Routes { links, lines, .. } = &mut *routes;
        let link = links.entry(to).or_insert_with(|| {
            let (handshake, dial) = (Arc::clone(&self.handshake), Arc::clone(&self.dial));
            Link::new(to, handshake, self.options.clone(), dial)
        });
        let line = lines
            .entry((to, lane))
            .or_insert_with(|| Line::new(lane, Arc::clone(link)));
        Some(Arc::clone(line))
    }
}

impl Transport for GrpcTransport {
    /// Must be called within a tokio runtime: the first call to a store spawns what dials it.
    ///
    /// A handshake that failed, on either side, is `Unreachable` with the reason in its text. A
    /// request over `max_message_bytes` is `Refused` and was not sent.
    fn call(
        &self,
        to: StoreId,
        lane: Lane,
        region: RegionId,
        request: peer_request::Body,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer_response::Body, TransportError>> {
        if to == self.me {
            let error = Error::invalid(
                "to",
                format!("store {to} tried to send a request to itself over the network"),
            );
            return Box::pin(std::future::ready(Err(TransportError::Refused(error))));
        }
        match self.line(to, lane) {
            Some(line) => line.call(region, request, timeout),
            None => Box::pin(std::future::ready(Err(TransportError::Unreachable {
                to,
                why: "this store is shutting down".to_owned(),
            }))),
        }
    }
}

impl Drop for GrpcTransport {
    fn drop(&mut self) {
        self.shutdown();
    }
}
