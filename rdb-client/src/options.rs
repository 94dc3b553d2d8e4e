//! What a caller chooses, and the defaults.
//!
//! Owns plain data only. A default is a number with a reason; everything else about it is in the
//! module that uses it.

use bytes::Bytes;
use rdb_proto::kv;
use std::time::Duration;

/// How a [`crate::Client`] behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Stores to ask, `host:port` or `http://host:port`, in order of preference. One is never left
    /// for another store; several are failed over between, within 1 s from one that says nothing at
    /// all on a connection that is there.
    pub endpoints: Vec<String>,
    /// How long a call may take, all its attempts included, unless it brings its own timeout.
    pub request_timeout: Duration,
    /// How long one connection may take to be made.
    pub connect_timeout: Duration,
    /// When an attempt that failed is followed by another.
    pub retry: RetryPolicy,
    /// Operations that wait together travel together (the Batch stream). `false`: a plain gRPC call
    /// for each.
    pub batch: bool,
    /// Most operations in one message.
    pub max_batch_ops: usize,
    /// A message is closed before it grows beyond this. A larger operation goes as a call of its own,
    /// so that a refusal of it harms nobody else.
    pub max_batch_bytes: usize,
    /// Batch streams to each endpoint.
    pub streams_per_endpoint: usize,
    /// Operations that may wait to be sent on one stream; more wait for room, until their deadline.
    pub max_queued_ops: usize,
    /// While no endpoint can be connected to, or the stores have no quorum: `true` keeps trying until
    /// the deadline, `false` gives up once each was tried (what a command for people wants).
    pub wait_for_ready: bool,
    /// With several endpoints: ask the cluster now and then who leads, which other stores there are and,
    /// for eventual namespaces, which of them is nearest, so that calls go where they need no forwarding.
    pub discover: bool,
}

impl ClientOptions {
    /// The defaults, for these endpoints.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> ClientOptions {
        let endpoints = endpoints.into_iter().map(Into::into).collect();
        ClientOptions {
            endpoints,
            ..ClientOptions::default()
        }
    }
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            endpoints: vec!["127.0.0.1:50051".to_owned()],
            request_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            retry: RetryPolicy::default(),
            batch: true,
            // Beyond some hundred the fixed price of a message no longer shows.
            max_batch_ops: 512,
            // A quarter of what a store accepts (limits.max_request).
            max_batch_bytes: 1 << 20,
            streams_per_endpoint: 1,
            max_queued_ops: 4096,
            wait_for_ready: true,
            discover: true,
        }
    }
}

/// When an attempt that failed is followed by another.
///
/// What a store asks for (RetryInfo) is the least wait; this says how much longer.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Upper bound of the first wait; it doubles with each attempt.
    pub initial_backoff: Duration,
    /// It stops doubling here.
    pub max_backoff: Duration,
    /// Waits are drawn evenly between 0 and the bound ("full jitter"), so that callers who failed
    /// together do not return together. `false`: exactly the bound, for tests.
    pub jitter: bool,
    /// Attempts of one call; `None`: as many as its deadline allows.
    pub max_attempts: Option<u32>,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            initial_backoff: Duration::from_millis(10),
            max_backoff: Duration::from_millis(500),
            jitter: true,
            max_attempts: None,
        }
    }
}

/// Which reads are good enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// What the namespace's mode promises: linearizable in a strong one.
    #[default]
    Default,
    /// Linearizable, or an error.
    Linearizable,
    /// What the asked store has now; the receipt says how old it may be.
    Stale,
}

impl Consistency {
    fn to_wire(self) -> kv::Consistency {
        match self {
            Consistency::Default => kv::Consistency::Default,
            Consistency::Linearizable => kv::Consistency::Linearizable,
            Consistency::Stale => kv::Consistency::Stale,
        }
    }
}

/// How to read.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Which answers are good enough.
    pub consistency: Consistency,
    /// Session token of an earlier answer; empty: none.
    pub session: Bytes,
    /// Highest epoch seen for this region; 0: none.
    pub seen_epoch: u64,
    /// Instead of [`ClientOptions::request_timeout`].
    pub timeout: Option<Duration>,
}

impl ReadOptions {
    /// Linearizable, or an error.
    pub fn linearizable() -> ReadOptions {
        ReadOptions {
            consistency: Consistency::Linearizable,
            ..ReadOptions::default()
        }
    }

    /// What the asked store has now.
    pub fn stale() -> ReadOptions {
        ReadOptions {
            consistency: Consistency::Stale,
            ..ReadOptions::default()
        }
    }

    pub(crate) fn to_wire(&self) -> kv::ReadOptions {
        kv::ReadOptions {
            consistency: self.consistency.to_wire() as i32,
            session: self.session.clone(),
            seen_epoch: self.seen_epoch,
        }
    }
}

/// How to put or to compare and swap.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// Time to live; `None`: the namespace's default.
    pub ttl: Option<Duration>,
    /// Names this write, so that repeating it applies it once; at most 64 bytes. `None`: a fresh
    /// UUIDv7.
    pub request_id: Option<Bytes>,
    /// No request id at all: the write is repeated only while it is certain that nothing was applied.
    pub no_request_id: bool,
    /// Instead of [`ClientOptions::request_timeout`].
    pub timeout: Option<Duration>,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// As in [`PutOptions::request_id`].
    pub request_id: Option<Bytes>,
    /// As in [`PutOptions::no_request_id`].
    pub no_request_id: bool,
    /// Instead of [`ClientOptions::request_timeout`].
    pub timeout: Option<Duration>,
}

/// What a compare-and-swap does when it wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stores this value.
    Put(Bytes),
    /// Removes the key.
    Delete,
}

/// What to scan, and how.
#[derive(Clone, Debug, Default)]
pub struct ScanOptions {
    /// First key, inclusive; empty: the beginning.
    pub start: Bytes,
    /// Last key, exclusive; empty: the end.
    pub end: Bytes,
    /// Keys that begin with this; instead of `start` and `end`.
    pub prefix: Bytes,
    /// Most entries; 0: all.
    pub limit: u32,
    /// From the last key to the first.
    pub reverse: bool,
    /// Leave values out.
    pub keys_only: bool,
    /// How to read. Its timeout bounds the wait for each page, not the whole scan.
    pub read: ReadOptions,
}

/// What to watch, and from where.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// This key alone; empty: not one alone.
    pub key: Bytes,
    /// Keys that begin with this; instead of `key`. Empty both: the namespace.
    pub prefix: Bytes,
    /// In a strong namespace that lies in one region: the first revision that is wanted; 0: from now on.
    pub from_revision: u64,
    /// Behind this: the token of a message of a watch, or of a receipt. Empty: from now on.
    pub session: Bytes,
    /// How long may pass until a store serves it, at the beginning and whenever one has failed; instead of
    /// [`ClientOptions::request_timeout`].
    pub timeout: Option<Duration>,
}
