//! [`Client`]: the calls on keys.
//!
//! Owns the making of requests and the reading of answers. The attempts are `call.rs`, the namespaces
//! `namespaces.rs`, scans `scan.rs`.

use crate::batch::{MAX_ANSWER_BYTES, encoded_bytes};
use crate::call::{Call, Sending};
use crate::dial::{Dial, Tcp};
use crate::discovery::Discovery;
use crate::endpoints::{Endpoints, parse};
use crate::error::ClientError;
use crate::failure::Failure;
use crate::learned::{Learned, Seen};
use crate::node::{Connection, Node};
use crate::options::{Change, ClientOptions, PutOptions, ReadOptions, WriteOptions};
use crate::retry::Safety;
use bytes::Bytes;
use rdb_proto::kv::{
    self, batch_request::Op, batch_response::Result as Answer, kv_client::KvClient,
};
use rdb_types::SessionToken;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use uuid::Uuid;

/// A client of one cluster. Cheap to clone; clones share connections, streams and what was learned.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    pinned: Option<usize>,
    session: Option<Arc<Seen>>,
}

struct Inner {
    options: ClientOptions,
    endpoints: Endpoints,
    dial: Arc<dyn Dial>,
    discovery: Discovery,
    learned: Learned,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = &self.inner.options.endpoints;
        f.debug_struct("Client")
            .field("endpoints", endpoints)
            .field("pinned", &self.pinned)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Checks the endpoints' syntax. Connects when the first call needs it.
    pub fn new(options: ClientOptions) -> Result<Client, ClientError> {
        Client::with_dial(options, Arc::new(Tcp))
    }

    /// As [`Client::new`], with another way to open connections than TCP.
    pub fn with_dial(options: ClientOptions, dial: Arc<dyn Dial>) -> Result<Client, ClientError> {
        if options.endpoints.is_empty() {
            return Err(ClientError::usage(
                "connecting",
                "no endpoint was given; name at least one store as host:port",
            ));
        }
        let mut addresses: Vec<String> = Vec::new();
        for endpoint in &options.endpoints {
            let address = parse(endpoint)?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let discovery = Discovery::new(options.discover && addresses.len() > 1);
        let nodes = addresses
            .into_iter()
            .map(|address| Node::new(address, &options, dial.clone()).map(Arc::new))
            .collect::<Result<_, _>>()
            .map_err(|failure: Failure| ClientError::usage("connecting", failure.message))?;
        let inner = Inner {
            options,
            endpoints: Endpoints::new(nodes),
            dial,
            discovery,
            learned: Learned::default(),
        };
        Ok(Client {
            inner: Arc::new(inner),
            pinned: None,
            session: None,
        })
    }

    /// The same client, asking only the endpoint at this position of [`ClientOptions::endpoints`]
    /// (equal ones counted once).
    ///
    /// # Panics
    /// When there are not that many endpoints.
    pub fn on_endpoint(&self, position: usize) -> Client {
        let count = self.inner.endpoints.len();
        assert!(
            position < count,
            "there is no endpoint {position}: the client has {count}"
        );
        Client {
            pinned: Some(position),
            ..self.clone()
        }
    }

    /// The same client as a session of its own: its reads see its own writes, and never less than it
    /// has seen before, whichever store answers. A store that has not seen as much waits for it, or
    /// leaves the read to another. Clones belong to the session; other clients are not affected.
    ///
    /// A read of a session that has seen writes which a change of mode has set aside fails once, with
    /// `SESSION_LOST`; from then on the session goes on without them.
    ///
    /// A scan over several regions holds to it in the region that answered the session last. A read
    /// that brings a token of its own goes by that one.
    pub fn session(&self) -> Client {
        Client {
            session: Some(Arc::default()),
            ..self.clone()
        }
    }

    /// Reads a key. An absent key is an answer (`found` is false), not an error.
    pub async fn get(
        &self,
        namespace: &str,
        key: impl Into<Bytes>,
        read: ReadOptions,
    ) -> Result<kv::GetResponse, ClientError> {
        let key = key.into();
        let mut options = self.in_session(namespace, &read, None);
        loop {
            let request = kv::GetRequest {
                namespace: namespace.to_owned(),
                key: key.clone(),
                read: Some(options.clone()),
            };
            let call = Call::read("get", namespace, read.timeout);
            let answer = self.operation(call, Op::Get(request), |answer| match answer {
                Answer::Get(response) => Some(response),
                _ => None,
            });
            let answer = answer.await;
            let answer = self.not_lost(namespace, &options, answer)?;
            // Which region holds the key, the answer tells; what the session has seen of that one may be
            // more than the answer has.
            let region = answer.receipt.as_ref().map(|receipt| receipt.region_id);
            let wanted = self.in_session(namespace, &read, region);
            if self.is_of_session(answer.receipt.as_ref(), &options, &wanted) {
                self.note_read(namespace, answer.receipt.as_ref(), &options);
                return Ok(answer);
            }
            options = wanted;
        }
    }

    /// The options of a read as they travel: with what this session has seen, of a region or of the one
    /// that answered last.
    pub(crate) fn in_session(
        &self,
        namespace: &str,
        read: &ReadOptions,
        region: Option<u64>,
    ) -> kv::ReadOptions {
        let mut wire = read.to_wire();
        if wire.session.is_empty()
            && let Some(session) = &self.session
        {
            wire.session = session.token(namespace, region);
        }
        wire
    }

    /// Whether an answer was read with what the session has seen of its region.
    fn is_of_session(
        &self,
        receipt: Option<&kv::Receipt>,
        asked: &kv::ReadOptions,
        wanted: &kv::ReadOptions,
    ) -> bool {
        let region = |token: &[u8]| SessionToken::decode(token).map(|token| token.region().0);
        // Once it was asked with a token of the region that answers, it is.
        wanted.session.is_empty()
            || wanted.session == asked.session
            || receipt.is_none_or(|receipt| region(&asked.session) == Some(receipt.region_id))
    }

    /// Takes note of how a write was served. Nobody has looked for what the session saw before.
    fn note(&self, namespace: &str, receipt: Option<&kv::Receipt>) {
        self.note_read(namespace, receipt, &kv::ReadOptions::default());
    }

    /// Takes note of how a read was served that was asked like this.
    pub(crate) fn note_read(
        &self,
        namespace: &str,
        receipt: Option<&kv::Receipt>,
        asked: &kv::ReadOptions,
    ) {
        let Some(receipt) = receipt else { return };
        self.inner.learned.note(namespace, receipt);
        if let Some(session) = &self.session {
            session.note(namespace, receipt, &asked.session);
        }
    }

    /// The answer to a read that was asked like this. Where it is that the session is lost, the caller is told,
    /// and the session goes on with the fresh token: the next read is answered.
    pub(crate) fn not_lost<T>(
        &self,
        namespace: &str,
        asked: &kv::ReadOptions,
        answer: Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        answer.inspect_err(|error| {
            if let (Some(session), Some(fresh)) = (&self.session, error.fresh_session()) {
                session.lost(namespace, &asked.session, &fresh);
            }
        })
    }

    /// Writes a key.
    pub async fn put(
        &self,
        namespace: &str,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<kv::PutResponse, ClientError> {
        let call = identified(
            "put",
            namespace,
            options.request_id,
            options.no_request_id,
            options.timeout,
        );
        let request = kv::PutRequest {
            namespace: namespace.to_owned(),
            key: key.into(),
            value: value.into(),
            ttl_ms: ttl_ms("put", options.ttl)?,
            request_id: call.request_id.clone().unwrap_or_default(),
            // Each attempt tells the epoch that is known by then.
            ..Default::default()
        };
        let answer = self.operation(call, Op::Put(request), |answer| match answer {
            Answer::Put(response) => Some(response),
            _ => None,
        });
        let answer = answer.await?;
        self.note(namespace, answer.receipt.as_ref());
        Ok(answer)
    }

    /// Removes a key; removing an absent one is no error (`existed` is false).
    pub async fn delete(
        &self,
        namespace: &str,
        key: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<kv::DeleteResponse, ClientError> {
        let call = identified(
            "delete",
            namespace,
            options.request_id,
            options.no_request_id,
            options.timeout,
        );
        let request = kv::DeleteRequest {
            namespace: namespace.to_owned(),
            key: key.into(),
            request_id: call.request_id.clone().unwrap_or_default(),
            // Each attempt tells the epoch that is known by then.
            ..Default::default()
        };
        let answer = self.operation(call, Op::Delete(request), |answer| match answer {
            Answer::Delete(response) => Some(response),
            _ => None,
        });
        let answer = answer.await?;
        self.note(namespace, answer.receipt.as_ref());
        Ok(answer)
    }

    /// Changes a key only while it is at `expected_version` (0: only while it does not exist). Losing
    /// is an answer (`success` is false), not an error.
    pub async fn compare_and_swap(
        &self,
        namespace: &str,
        key: impl Into<Bytes>,
        expected_version: u64,
        change: Change,
        options: PutOptions,
    ) -> Result<kv::CompareAndSwapResponse, ClientError> {
        let call = identified(
            "compare-and-swap",
            namespace,
            options.request_id,
            options.no_request_id,
            options.timeout,
        );
        let request = kv::CompareAndSwapRequest {
            namespace: namespace.to_owned(),
            key: key.into(),
            expected_version,
            change: Some(match change {
                Change::Put(value) => kv::compare_and_swap_request::Change::Value(value),
                Change::Delete => kv::compare_and_swap_request::Change::Delete(true),
            }),
            ttl_ms: ttl_ms("compare-and-swap", options.ttl)?,
            request_id: call.request_id.clone().unwrap_or_default(),
            // Each attempt tells the epoch that is known by then.
            ..Default::default()
        };
        let answer = self.operation(call, Op::CompareAndSwap(request), |answer| match answer {
            Answer::CompareAndSwap(response) => Some(response),
            _ => None,
        });
        let answer = answer.await?;
        self.note(namespace, answer.receipt.as_ref());
        Ok(answer)
    }

    async fn operation<T>(
        &self,
        call: Call<'_>,
        op: Op,
        read: fn(Answer) -> Option<T>,
    ) -> Result<T, ClientError> {
        let options = &self.inner.options;
        let encoded_bytes = encoded_bytes(&op);
        let namespace = call.namespace;
        // After a message was refused for its size: this operation may have been what was too much.
        let alone = &AtomicBool::new(!options.batch);
        self.run(call, |node, deadline, sending| {
            let mut op = op.clone();
            self.tell_epoch(namespace, &mut op, sending);
            // One too large for a shared message travels alone: its refusal is then its own.
            let batched =
                !alone.load(Ordering::Relaxed) && encoded_bytes <= node.max_batch_bytes(options);
            async move {
                let answer = if batched {
                    let session = node.session(options, deadline).await?;
                    session.call(op, deadline).await.inspect_err(|failure| {
                        alone.fetch_or(failure.oversized.is_some(), Ordering::Relaxed);
                    })?
                } else {
                    unary(&node, op, deadline).await?
                };
                read(answer).ok_or_else(|| {
                    Failure::nonsense(node.address(), "another question than was asked")
                })
            }
        })
        .await
    }

    /// Fills in what is known by now of the namespace's epoch.
    fn tell_epoch(&self, namespace: &str, op: &mut Op, sending: Sending) {
        let learned = &self.inner.learned;
        let seen = match op {
            Op::Get(get) => &mut get.read.get_or_insert_default().seen_epoch,
            Op::Put(put) => {
                put.only_epoch = sending.only_epoch;
                &mut put.seen_epoch
            }
            Op::Delete(delete) => {
                delete.only_epoch = sending.only_epoch;
                &mut delete.seen_epoch
            }
            Op::CompareAndSwap(swap) => &mut swap.seen_epoch,
        };
        *seen = learned.seen_epoch(namespace).max(*seen);
    }

    pub(crate) fn options(&self) -> &ClientOptions {
        &self.inner.options
    }

    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.inner.endpoints
    }

    pub(crate) fn dial(&self) -> &Arc<dyn Dial> {
        &self.inner.dial
    }

    pub(crate) fn discovery(&self) -> &Discovery {
        &self.inner.discovery
    }

    pub(crate) fn learned(&self) -> &Learned {
        &self.inner.learned
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned.is_some()
    }

    /// The endpoint for the next attempt.
    pub(crate) fn route(
        &self,
        namespace: &str,
        tried: &[usize],
        now: Instant,
    ) -> (usize, Arc<Node>) {
        let pinned = self
            .pinned
            .and_then(|at| self.inner.endpoints.node(at).map(|node| (at, node)));
        let nearest = self.inner.learned.is_eventual(namespace);
        pinned.unwrap_or_else(|| self.inner.endpoints.pick(namespace, nearest, tried, now))
    }

    pub(crate) fn has_other_than(&self, tried: &[usize], now: Instant) -> bool {
        !self.is_pinned() && self.inner.endpoints.other_than(tried, now)
    }
}

/// A write, named by the caller, by a fresh id, or (on request) not at all.
fn identified<'a>(
    operation: &'static str,
    namespace: &'a str,
    given: Option<Bytes>,
    none: bool,
    timeout: Option<Duration>,
) -> Call<'a> {
    let request_id = match given.filter(|id| !id.is_empty()) {
        _ if none => None,
        Some(id) => Some(id),
        None => Some(Bytes::copy_from_slice(Uuid::now_v7().as_bytes())),
    };
    let safety = if request_id.is_some() {
        Safety::Identified
    } else {
        Safety::Anonymous
    };
    Call {
        operation,
        namespace,
        safety,
        request_id,
        timeout,
    }
}

/// A time to live as it travels; less than a millisecond is one.
fn ttl_ms(operation: &'static str, ttl: Option<Duration>) -> Result<i64, ClientError> {
    let Some(ttl) = ttl else { return Ok(0) };
    if ttl.is_zero() {
        return Err(ClientError::usage(
            operation,
            "a time to live of 0 is none; leave it out, or delete the key",
        ));
    }
    i64::try_from(ttl.as_millis().max(1)).map_err(|_| {
        ClientError::usage(operation, format!("a time to live of {ttl:?} is too long"))
    })
}

async fn unary(node: &Arc<Node>, op: Op, deadline: Instant) -> Result<Answer, Failure> {
    node.unary(deadline, async |channel| {
        let mut client = KvClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        Ok(match op {
            Op::Get(request) => client
                .get(with_deadline(request, deadline))
                .await?
                .map(Answer::Get),
            Op::Put(request) => client
                .put(with_deadline(request, deadline))
                .await?
                .map(Answer::Put),
            Op::Delete(request) => client
                .delete(with_deadline(request, deadline))
                .await?
                .map(Answer::Delete),
            Op::CompareAndSwap(request) => client
                .compare_and_swap(with_deadline(request, deadline))
                .await?
                .map(Answer::CompareAndSwap),
        })
    })
    .await
}

/// The request, telling the store how long its answer is waited for.
pub(crate) fn with_deadline<T>(message: T, deadline: Instant) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    request
}

impl Node {
    /// One plain call on this endpoint's connection.
    pub(crate) async fn unary<T>(
        &self,
        deadline: Instant,
        call: impl AsyncFnOnce(Channel) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        let connection: Connection = self.connection(deadline).await?;
        match timeout_at(deadline, call(connection.channel.clone())).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => {
                let failure = Failure::from_status(self.address(), &status);
                self.learn(&failure);
                if failure.is_network() {
                    self.forget(&connection);
                }
                Err(failure)
            }
            Err(_) => Err(Failure::deadline(self.address(), true)),
        }
    }
}
