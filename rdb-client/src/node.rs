//! One endpoint: its connection, its Batch streams, its health.
//!
//! Owns when a connection is made and given up. Knows nothing of calls, retries or other endpoints.
//!
//! Invariants: at most one connection is being made at a time, and all who waited for it share its
//! fate, so that a store that is gone costs each caller one connect timeout at most; a connection
//! that broke is never used again.

use crate::batch::Session;
use crate::dial::Dial;
use crate::failure::Failure;
use crate::options::ClientOptions;
use futures::FutureExt;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::transport::{Channel, Endpoint, Uri};

/// For how long an endpoint that failed is asked only when no other is left.
const AVOID: Duration = Duration::from_millis(500);
/// A store that says nothing at all, not even on the connection, is noticed after the sum of these two,
/// at most, while calls are under way; one that is only slow with its answer is not cut off by them.
/// Where there is another store to ask: soon. Where there is none: a pause is better waited out.
const KEEP_ALIVE_OF_SEVERAL: (Duration, Duration) =
    (Duration::from_millis(300), Duration::from_millis(700));
const KEEP_ALIVE_OF_ONE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(2));
/// Flow-control windows: a page of a scan, and many of them, without waiting for the other side.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

pub(crate) struct Node {
    address: String,
    endpoint: Endpoint,
    dial: Arc<dyn Dial>,
    connecting: tokio::sync::Mutex<Option<(Instant, Failure)>>,
    channel: Mutex<Option<Connection>>,
    avoided_until: Mutex<Option<Instant>>,
    sessions: Vec<Mutex<Option<Arc<Session>>>>,
    next_session: AtomicUsize,
    /// The largest message it takes, as far as it has said so: `usize::MAX` until then. A store may be
    /// told another limit while it runs, so this decides how operations travel, never whether.
    max_message_bytes: AtomicUsize,
    /// Smoothed, in microseconds; 0: not measured.
    answer_us: AtomicU64,
}

/// A connection and its number: only who saw it break takes it away.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    number: u64,
}

impl Node {
    /// `address` is `host:port`, checked already.
    pub(crate) fn new(
        address: String,
        options: &ClientOptions,
        dial: Arc<dyn Dial>,
    ) -> Result<Node, Failure> {
        let uri = format!("http://{address}")
            .parse::<Uri>()
            .map_err(|error| Failure::connect(&address, &error))?;
        let (interval, timeout) = if options.endpoints.len() > 1 {
            KEEP_ALIVE_OF_SEVERAL
        } else {
            KEEP_ALIVE_OF_ONE
        };
        let endpoint = Endpoint::from(uri)
            .connect_timeout(options.connect_timeout)
            .http2_keep_alive_interval(interval)
            .keep_alive_timeout(timeout)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        Ok(Node {
            address,
            endpoint,
            dial,
            connecting: tokio::sync::Mutex::new(None),
            channel: Mutex::new(None),
            avoided_until: Mutex::new(None),
            sessions: (0..options.streams_per_endpoint.max(1))
                .map(|_| Mutex::new(None))
                .collect(),
            next_session: AtomicUsize::new(0),
            max_message_bytes: AtomicUsize::new(usize::MAX),
            answer_us: AtomicU64::new(0),
        })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Until when other endpoints are better; `None`: nothing speaks against this one.
    pub(crate) fn avoided_until(&self, now: Instant) -> Option<Instant> {
        self.avoided_until.lock().filter(|until| *until > now)
    }

    /// This endpoint failed a call.
    pub(crate) fn failed(&self, now: Instant) {
        *self.avoided_until.lock() = Some(now + AVOID);
    }

    /// This endpoint answered.
    pub(crate) fn answered(&self) {
        *self.avoided_until.lock() = None;
    }

    /// How long it takes to answer, smoothed; `None`: not measured.
    pub(crate) fn answer_time(&self) -> Option<Duration> {
        match self.answer_us.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        }
    }

    /// It took so long to answer something that costs a store next to nothing.
    pub(crate) fn measured(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let smoothed = match self.answer_us.load(Ordering::Relaxed) {
            0 => took,
            // A quarter of what is new: a single slow answer is no reason to leave.
            known => (known / 4 * 3).saturating_add(took / 4).max(1),
        };
        self.answer_us.store(smoothed, Ordering::Relaxed);
    }

    /// Takes note of a limit that a refusal names.
    pub(crate) fn learn(&self, failure: &Failure) {
        if let Some(limit) = failure.oversized.and_then(|it| it.limit_bytes) {
            self.max_message_bytes.store(limit, Ordering::Relaxed);
        }
    }

    /// How large a message of several operations may be.
    pub(crate) fn max_batch_bytes(&self, options: &ClientOptions) -> usize {
        let known = self.max_message_bytes.load(Ordering::Relaxed);
        options.max_batch_bytes.min(known)
    }

    /// The connection, made if there is none.
    pub(crate) async fn connection(&self, deadline: Instant) -> Result<Connection, Failure> {
        if let Some(connection) = self.channel.lock().clone() {
            return Ok(connection);
        }
        timeout_at(deadline, self.connect())
            .await
            .unwrap_or_else(|_| Err(Failure::deadline(&self.address, false)))
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let asked_at = Instant::now();
        let mut last_failure = self.connecting.lock().await;
        if let Some(connection) = self.channel.lock().clone() {
            return Ok(connection);
        }
        if let Some((at, failure)) = &*last_failure
            && *at >= asked_at
        {
            return Err(failure.clone());
        }
        let (dial, address) = (self.dial.clone(), self.address.clone());
        let connector =
            tower::service_fn(move |_: Uri| dial.dial(&address).map(|io| io.map(TokioIo::new)));
        match self.endpoint.connect_with_connector(connector).await {
            Ok(channel) => {
                static NUMBERS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
                let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
                let connection = Connection { channel, number };
                *self.channel.lock() = Some(connection.clone());
                tracing::debug!(endpoint = self.address, "connected");
                Ok(connection)
            }
            Err(error) => {
                let failure = Failure::connect(&self.address, &root_cause(&error));
                tracing::debug!(
                    endpoint = self.address,
                    error = failure.message,
                    "cannot connect"
                );
                *last_failure = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    /// Gives a connection up that broke; a newer one stays.
    pub(crate) fn forget(&self, broken: &Connection) {
        let mut channel = self.channel.lock();
        if channel
            .as_ref()
            .is_some_and(|current| current.number == broken.number)
        {
            *channel = None;
        }
    }

    /// A Batch stream that is open, opened if there is none.
    pub(crate) async fn session(
        self: &Arc<Self>,
        options: &ClientOptions,
        deadline: Instant,
    ) -> Result<Arc<Session>, Failure> {
        let at = self.next_session.fetch_add(1, Ordering::Relaxed) % self.sessions.len();
        if let Some(session) = self.sessions[at]
            .lock()
            .as_ref()
            .filter(|session| session.is_open())
        {
            return Ok(session.clone());
        }
        let connection = self.connection(deadline).await?;
        let mut slot = self.sessions[at].lock();
        if let Some(session) = slot.as_ref().filter(|session| session.is_open()) {
            return Ok(session.clone());
        }
        let session = Arc::new(Session::open(
            Arc::downgrade(self),
            &self.address,
            connection,
            options,
            self.max_batch_bytes(options),
        ));
        *slot = Some(session.clone());
        Ok(session)
    }
}

/// The innermost error says what happened ("connection refused"); the outer ones say "transport".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
