//! The `Kv` service: what application developers call.
//!
//! Decodes, checks limits, hands to the [`Router`], encodes. Decides nothing.

use crate::config::LiveConfig;
use crate::error::{Error, Outcome};
use crate::grpc_edge::{LONGEST_CALL, deadline_of, in_our_words};
use crate::metrics::{Metrics, Timed};
use crate::router::{Found, Read, Router, ScanSpec, Written};
use crate::session::SessionToken;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, Stream, StreamExt};
use rdb_proto::kv::{self, batch_request, batch_response, compare_and_swap_request, kv_server::Kv};
use rdb_proto::raft::{WriteOp, write_op::Kind};
use rdb_types::key::prefix_end;
use rdb_types::{Reason, request_id};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// The longest time to live: 100 years. A longer one is a mistake in its unit.
pub const MAX_TTL_MS: i64 = 100 * 366 * 24 * 3600 * 1000;
/// Messages of one batch stream that are worked on at once; then no more is read from it.
const BATCH_WINDOW: usize = 64;

/// The service.
#[derive(Clone)]
pub struct KvService {
    router: Router,
    config: LiveConfig,
    metrics: Arc<Metrics>,
}

impl KvService {
    /// Over a router.
    pub fn new(router: Router, config: LiveConfig, metrics: Arc<Metrics>) -> KvService {
        KvService {
            router,
            config,
            metrics,
        }
    }

    /// Until when an operation may wait that its caller gives so long; `None`: he did not say.
    fn deadline(&self, timeout: Option<Duration>) -> Instant {
        let timeout = timeout.unwrap_or_else(|| self.config.load().consistency.request_timeout);
        Instant::now() + timeout.min(LONGEST_CALL)
    }

    /// The deadline of a call: its caller's, or the default. One that has passed is refused.
    fn in_time(&self, deadline: Option<Instant>) -> Result<Instant, Error> {
        let deadline = deadline.unwrap_or_else(|| self.deadline(None));
        if deadline <= Instant::now() {
            return Err(Error::new(
                Reason::DeadlineExceeded,
                "the deadline had passed when the request came; give it more time",
            )
            .outcome(Outcome::NotApplied));
        }
        Ok(deadline)
    }

    fn check_key(&self, key: &Bytes) -> Result<(), Error> {
        if key.is_empty() {
            return Err(Error::invalid(
                "key",
                "the key is empty; a key has at least one byte",
            ));
        }
        let max_key = self.config.load().limits.max_key.as_bytes();
        if key.len() as u64 > max_key {
            return Err(Error::over_limit("key", max_key, key.len() as u64));
        }
        Ok(())
    }

    /// Whatever the read is served with, what it asks for has to make sense.
    fn check_read(options: &kv::ReadOptions) -> Result<(), Error> {
        if kv::Consistency::try_from(options.consistency).is_err() {
            return Err(Error::invalid(
                "consistency",
                format!(
                    "{} is no consistency that this store knows: 0 is the namespace's own, 1 linearizable, 2 stale; if a newer client sent it, upgrade this store",
                    options.consistency
                ),
            ));
        }
        if !options.session.is_empty() {
            SessionToken::decode(&options.session)?;
        }
        Ok(())
    }

    fn write_op(
        &self,
        kind: Kind,
        key: Bytes,
        value: Bytes,
        ttl_ms: i64,
        request_id: Bytes,
    ) -> Result<WriteOp, Error> {
        let checked = self.check_key(&key).and_then(|()| {
            let max_value = self.config.load().limits.max_value.as_bytes();
            if value.len() as u64 > max_value {
                return Err(Error::over_limit("value", max_value, value.len() as u64));
            }
            if ttl_ms < 0 {
                return Err(Error::invalid(
                    "ttl_ms",
                    format!(
                        "ttl_ms is {ttl_ms}; it is the milliseconds until the key expires, or 0"
                    ),
                ));
            }
            if ttl_ms > MAX_TTL_MS {
                return Err(Error::invalid(
                    "ttl_ms",
                    format!("ttl_ms is {ttl_ms}; the limit is {MAX_TTL_MS} (100 years)"),
                )
                .with("limit", MAX_TTL_MS));
            }
            if request_id.len() > request_id::MAX_BYTES {
                return Err(Error::over_limit(
                    "request_id",
                    request_id::MAX_BYTES as u64,
                    request_id.len() as u64,
                ));
            }
            Ok(())
        });
        checked.map_err(|error| error.outcome(Outcome::NotApplied))?;
        Ok(WriteOp {
            kind: kind as i32,
            key,
            value,
            ttl_ms,
            request_id,
            ..WriteOp::default()
        })
    }

    fn decode(&self, op: batch_request::Op) -> Result<Decoded, Error> {
        match op {
            batch_request::Op::Get(get) => {
                self.check_key(&get.key)?;
                let options = get.read.unwrap_or_default();
                Self::check_read(&options)?;
                Ok(Decoded::Read {
                    namespace: get.namespace,
                    read: Read {
                        key: get.key,
                        options,
                    },
                })
            }
            batch_request::Op::Put(put) => {
                let op =
                    self.write_op(Kind::Put, put.key, put.value, put.ttl_ms, put.request_id)?;
                Ok(Decoded::Write {
                    namespace: put.namespace,
                    op,
                    seen_epoch: put.seen_epoch,
                })
            }
            batch_request::Op::Delete(delete) => {
                let op =
                    self.write_op(Kind::Delete, delete.key, Bytes::new(), 0, delete.request_id)?;
                Ok(Decoded::Write {
                    namespace: delete.namespace,
                    op,
                    seen_epoch: delete.seen_epoch,
                })
            }
            batch_request::Op::CompareAndSwap(cas) => {
                let (kind, value) = match cas.change {
                    Some(compare_and_swap_request::Change::Value(value)) => (Kind::CasPut, value),
                    Some(compare_and_swap_request::Change::Delete(true)) => {
                        (Kind::CasDelete, Bytes::new())
                    }
                    Some(compare_and_swap_request::Change::Delete(false)) | None => {
                        return Err(Error::invalid(
                            "change",
                            "compare_and_swap needs a value to write, or delete = true",
                        )
                        .outcome(Outcome::NotApplied));
                    }
                };
                let mut op = self.write_op(kind, cas.key, value, cas.ttl_ms, cas.request_id)?;
                op.expected_version = cas.expected_version;
                Ok(Decoded::Write {
                    namespace: cas.namespace,
                    op,
                    seen_epoch: cas.seen_epoch,
                })
            }
        }
    }

    /// Works on operations of one namespace and kind together; answers by position.
    async fn run(&self, group: Group, deadline: Instant) -> Vec<Answer> {
        match group {
            Group::Reads {
                namespace,
                ids,
                reads,
            } => {
                let found = self.router.read(&namespace, reads, deadline).await;
                ids.into_iter()
                    .zip(found)
                    .map(|(id, found)| (id, found.map(got).map_err(|error| (error, true))))
                    .collect()
            }
            Group::Writes {
                namespace,
                ids,
                ops,
            } => {
                let shapes: Vec<(Kind, bool, i64)> = ops
                    .iter()
                    .map(|(op, _)| {
                        (
                            Kind::try_from(op.kind).unwrap_or(Kind::Put),
                            !op.request_id.is_empty(),
                            op.ttl_ms,
                        )
                    })
                    .collect();
                let written = self.router.write(&namespace, ops, deadline).await;
                let answers = ids.into_iter().zip(shapes).zip(written);
                answers
                    .map(|((id, (kind, has_id, _)), written)| {
                        (
                            id,
                            written
                                .map(|written| wrote(kind, &written))
                                .map_err(|error| (error, has_id)),
                        )
                    })
                    .collect()
            }
        }
    }

    async fn unary(
        &self,
        method: &'static str,
        deadline: Option<Instant>,
        op: batch_request::Op,
    ) -> Result<batch_response::Result, Status> {
        let timed = Timed::start(&self.metrics, method, namespace_of(&op));
        let result = async {
            let deadline = self.in_time(deadline).map_err(|error| (error, false))?;
            let group = self.decode(op).map_err(|error| (error, false))?.alone();
            let mut answers = self.run(group, deadline).await;
            answers.pop().map_or_else(
                || Err((Error::new(Reason::NotReady, "no answer"), true)),
                |(_, answer)| answer,
            )
        }
        .await;
        timed.done(result.as_ref().err().map(|(error, _)| error));
        result.map_err(|(error, has_id)| error.to_status(has_id))
    }

    /// What a batch stream ends with whose next message could not be taken.
    fn end_of_stream(&self, status: Status) -> Status {
        let max_request_bytes = self.config.load().limits.max_request.as_bytes();
        match in_our_words(&status, max_request_bytes) {
            Some(mut error) => {
                error.message.push_str(
                    ". The stream ends with it; the messages before it were answered each on its own",
                );
                error.to_status(false)
            }
            None => status,
        }
    }

    /// One message of a batch stream: its operations grouped by namespace and kind, one answer message
    /// for each group.
    fn message(&self, message: kv::BatchRequest) -> Vec<BoxFuture<'static, kv::BatchResponse>> {
        let mut refused = Vec::new();
        let mut groups: BTreeMap<(String, bool, u64), Group> = BTreeMap::new();
        let mut message = message;
        let also = std::mem::take(&mut message.also);
        for request in std::iter::once(message).chain(also) {
            let id = request.id;
            let timeout_ms = request.timeout_ms.min(LONGEST_CALL.as_millis() as u64);
            let decoded = match request.op {
                Some(op) => self.decode(op),
                None => Err(Error::invalid("op", "this operation is empty, or of a kind that this store does not know; upgrade it").outcome(Outcome::NotApplied)),
            };
            match decoded {
                Err(error) => refused.push((id, Err((error, false)))),
                // Operations with about the same time left go together, within a tenth of a second.
                Ok(decoded) => decoded.join(&mut groups, id, timeout_ms.div_ceil(100) * 100),
            }
        }
        let mut work: Vec<BoxFuture<'static, kv::BatchResponse>> = Vec::new();
        if !refused.is_empty() {
            for _ in &refused {
                Timed::start(&self.metrics, "Batch", "").done(
                    refused
                        .first()
                        .and_then(|(_, result)| result.as_ref().err())
                        .map(|(error, _)| error),
                );
            }
            work.push(async move { response_of(refused) }.boxed());
        }
        for ((namespace, _, timeout_ms), group) in groups {
            let service = self.clone();
            let timeout = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms));
            work.push(
                async move {
                    let method = if matches!(group, Group::Reads { .. }) {
                        "Get"
                    } else {
                        "Write"
                    };
                    let timed = Timed::start(&service.metrics, method, &namespace);
                    let asked = group.asked();
                    let work = service.run(group, service.deadline(timeout));
                    let answers = guarded(asked, work).await;
                    timed.done_all(
                        answers
                            .iter()
                            .map(|(_, answer)| answer.as_ref().err().map(|(error, _)| error)),
                    );
                    response_of(answers)
                }
                .boxed(),
            );
        }
        work
    }
}

/// The answer to the operation with this id; a refusal, with whether a repeat cannot apply it twice.
type Answer = (u64, Result<batch_response::Result, (Error, bool)>);

enum Decoded {
    Read {
        namespace: String,
        read: Read,
    },
    Write {
        namespace: String,
        op: WriteOp,
        seen_epoch: u64,
    },
}

enum Group {
    Reads {
        namespace: String,
        ids: Vec<u64>,
        reads: Vec<Read>,
    },
    Writes {
        namespace: String,
        ids: Vec<u64>,
        ops: Vec<(WriteOp, u64)>,
    },
}

impl Decoded {
    fn alone(self) -> Group {
        match self {
            Decoded::Read { namespace, read } => Group::Reads {
                namespace,
                ids: vec![0],
                reads: vec![read],
            },
            Decoded::Write {
                namespace,
                op,
                seen_epoch,
            } => Group::Writes {
                namespace,
                ids: vec![0],
                ops: vec![(op, seen_epoch)],
            },
        }
    }

    fn join(self, groups: &mut BTreeMap<(String, bool, u64), Group>, id: u64, timeout_ms: u64) {
        match self {
            Decoded::Read { namespace, read } => {
                // A stale read never waits for a barrier, so it does not go with one that does.
                let stale = read.options.consistency == kv::Consistency::Stale as i32;
                let group = groups
                    .entry((namespace.clone(), false, timeout_ms * 2 + u64::from(stale)))
                    .or_insert_with(|| Group::Reads {
                        namespace,
                        ids: Vec::new(),
                        reads: Vec::new(),
                    });
                if let Group::Reads { ids, reads, .. } = group {
                    ids.push(id);
                    reads.push(read);
                }
            }
            Decoded::Write {
                namespace,
                op,
                seen_epoch,
            } => {
                let group = groups
                    .entry((namespace.clone(), true, timeout_ms * 2))
                    .or_insert_with(|| Group::Writes {
                        namespace,
                        ids: Vec::new(),
                        ops: Vec::new(),
                    });
                if let Group::Writes { ids, ops, .. } = group {
                    ids.push(id);
                    ops.push((op, seen_epoch));
                }
            }
        }
    }
}

/// An operation that waits for its answer: its id, and for a write whether it has a request id.
type Asked = (u64, Option<bool>);

impl Group {
    fn asked(&self) -> Vec<Asked> {
        match self {
            Group::Reads { ids, .. } => ids.iter().map(|id| (*id, None)).collect(),
            Group::Writes { ids, ops, .. } => {
                let has_ids = ops.iter().map(|(op, _)| Some(!op.request_id.is_empty()));
                ids.iter().copied().zip(has_ids).collect()
            }
        }
    }
}

/// The answers of a group; were there a panic in its work, each operation of it hears of that under its
/// own id, and the stream goes on.
async fn guarded(asked: Vec<Asked>, work: impl Future<Output = Vec<Answer>>) -> Vec<Answer> {
    // Nothing that the work holds is looked at again.
    if let Ok(answers) = AssertUnwindSafe(work).catch_unwind().await {
        return answers;
    }
    let failed = |(id, write): Asked| {
        let error = match write {
            None => Error::new(
                Reason::NotReady,
                "this store failed at the read, its log says where; try again, and please report this",
            ),
            Some(_) => Error::new(
                Reason::OutcomeUnknown,
                "this store failed at the write, its log says where; whether it was applied is not known: please report this",
            )
            .outcome(Outcome::Unknown),
        };
        (id, Err((error, write.unwrap_or(true))))
    };
    asked.into_iter().map(failed).collect()
}

fn namespace_of(op: &batch_request::Op) -> &str {
    match op {
        batch_request::Op::Get(get) => &get.namespace,
        batch_request::Op::Put(put) => &put.namespace,
        batch_request::Op::Delete(delete) => &delete.namespace,
        batch_request::Op::CompareAndSwap(cas) => &cas.namespace,
    }
}

fn got(found: Found) -> batch_response::Result {
    let receipt = Some(found.receipt);
    batch_response::Result::Get(match found.record {
        None => kv::GetResponse {
            receipt,
            ..Default::default()
        },
        Some(record) => kv::GetResponse {
            found: true,
            value: record.value,
            version: record.stamp.0,
            expires_at_ms: i64::try_from(record.expires_at_ms).unwrap_or(i64::MAX),
            receipt,
        },
    })
}

fn wrote(kind: Kind, written: &Written) -> batch_response::Result {
    let (applied, receipt) = (written.applied, Some(written.receipt.clone()));
    match kind {
        Kind::Put => batch_response::Result::Put(kv::PutResponse {
            version: applied.version,
            receipt,
        }),
        Kind::Delete => batch_response::Result::Delete(kv::DeleteResponse {
            existed: applied.existed,
            version: applied.version,
            receipt,
        }),
        Kind::CasPut | Kind::CasDelete => {
            let new_version = if applied.swapped && kind == Kind::CasPut {
                applied.version
            } else {
                0
            };
            let current_version = if applied.swapped { 0 } else { applied.version };
            batch_response::Result::CompareAndSwap(kv::CompareAndSwapResponse {
                success: applied.swapped,
                current_version,
                new_version,
                receipt,
            })
        }
    }
}

fn response_of(answers: Vec<Answer>) -> kv::BatchResponse {
    let mut responses = answers.into_iter().map(|(id, answer)| {
        let result = answer.unwrap_or_else(|(error, has_id)| {
            batch_response::Result::Failure(error.to_failure(has_id))
        });
        kv::BatchResponse {
            id,
            result: Some(result),
            also: Vec::new(),
        }
    });
    let first = responses.next().unwrap_or_default();
    kv::BatchResponse {
        also: responses.collect(),
        ..first
    }
}

fn other_answer() -> Status {
    Status::internal("the store answered another operation than was asked; please report this")
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn get(
        &self,
        request: Request<kv::GetRequest>,
    ) -> Result<Response<kv::GetResponse>, Status> {
        let deadline = deadline_of(&request);
        match self
            .unary(
                "Get",
                deadline,
                batch_request::Op::Get(request.into_inner()),
            )
            .await?
        {
            batch_response::Result::Get(response) => Ok(Response::new(response)),
            _ => Err(other_answer()),
        }
    }

    async fn put(
        &self,
        request: Request<kv::PutRequest>,
    ) -> Result<Response<kv::PutResponse>, Status> {
        let deadline = deadline_of(&request);
        match self
            .unary(
                "Put",
                deadline,
                batch_request::Op::Put(request.into_inner()),
            )
            .await?
        {
            batch_response::Result::Put(response) => Ok(Response::new(response)),
            _ => Err(other_answer()),
        }
    }

    async fn delete(
        &self,
        request: Request<kv::DeleteRequest>,
    ) -> Result<Response<kv::DeleteResponse>, Status> {
        let deadline = deadline_of(&request);
        match self
            .unary(
                "Delete",
                deadline,
                batch_request::Op::Delete(request.into_inner()),
            )
            .await?
        {
            batch_response::Result::Delete(response) => Ok(Response::new(response)),
            _ => Err(other_answer()),
        }
    }

    async fn compare_and_swap(
        &self,
        request: Request<kv::CompareAndSwapRequest>,
    ) -> Result<Response<kv::CompareAndSwapResponse>, Status> {
        let deadline = deadline_of(&request);
        match self
            .unary(
                "CompareAndSwap",
                deadline,
                batch_request::Op::CompareAndSwap(request.into_inner()),
            )
            .await?
        {
            batch_response::Result::CompareAndSwap(response) => Ok(Response::new(response)),
            _ => Err(other_answer()),
        }
    }

    type ScanStream = BoxStream<'static, Result<kv::ScanResponse, Status>>;

    async fn scan(
        &self,
        request: Request<kv::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let deadline = deadline_of(&request);
        let scan = request.into_inner();
        let timed = Timed::start(&self.metrics, "Scan", &scan.namespace);
        let result = async {
            let deadline = self.in_time(deadline)?;
            let options = scan.read.unwrap_or_default();
            Self::check_read(&options)?;
            let by_prefix = !scan.prefix.is_empty();
            if by_prefix && !(scan.start.is_empty() && scan.end.is_empty()) {
                return Err(Error::invalid(
                    "prefix",
                    "give a prefix, or start and end, not both",
                ));
            }
            for (field, bound) in [
                ("start", &scan.start),
                ("end", &scan.end),
                ("prefix", &scan.prefix),
            ] {
                let max_key = self.config.load().limits.max_key.as_bytes();
                if bound.len() as u64 > max_key {
                    return Err(Error::over_limit(field, max_key, bound.len() as u64));
                }
            }
            let (start, end) = if by_prefix {
                let end = prefix_end(&scan.prefix);
                (scan.prefix, end)
            } else {
                (scan.start, (!scan.end.is_empty()).then_some(scan.end))
            };
            let spec = ScanSpec {
                start,
                end,
                limit: scan.limit as usize,
                reverse: scan.reverse,
                keys_only: scan.keys_only,
                options,
            };
            self.router.scan(&scan.namespace, spec, deadline).await
        }
        .await;
        timed.done(result.as_ref().err());
        match result {
            Ok(pages) => Ok(Response::new(
                ReceiverStream::new(pages)
                    .map(|page| page.map_err(|error| error.to_status(true)))
                    .boxed(),
            )),
            Err(error) => Err(error.to_status(true)),
        }
    }

    type BatchStream = Pin<Box<dyn Stream<Item = Result<kv::BatchResponse, Status>> + Send>>;

    async fn batch(
        &self,
        request: Request<Streaming<kv::BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        deadline_of(&request);
        let mut requests = request.into_inner();
        let (answers, reader) = mpsc::channel(BATCH_WINDOW);
        let service = self.clone();
        tokio::spawn(async move {
            let mut work = FuturesUnordered::new();
            let mut open = true;
            let mut end = None;
            while open || !work.is_empty() {
                tokio::select! {
                    Some(response) = work.next(), if !work.is_empty() => {
                        // An error: the runtime is shutting down, and the stream with it.
                        let Ok(response) = response else { return };
                        if answers.send(Ok(response)).await.is_err() {
                            return;
                        }
                    }
                    message = requests.next(), if open && work.len() < BATCH_WINDOW => match message {
                        // Spawned, so that one message does not wait for another one's disk.
                        Some(Ok(message)) => {
                            work.extend(service.message(message).into_iter().map(tokio::spawn));
                        }
                        Some(Err(status)) => {
                            end = Some(service.end_of_stream(status));
                            open = false;
                        }
                        None => open = false,
                    },
                }
            }
            // Last, because it ends the stream: every message before it has its answer by now.
            if let Some(status) = end {
                let _ = answers.send(Err(status)).await; // the reader may be gone
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(reader))))
    }

    type WatchStream = BoxStream<'static, Result<kv::WatchResponse, Status>>;

    async fn watch(
        &self,
        _: Request<kv::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(not_built("Watch"))
    }
}

/// The answer of an RPC that is declared and not built yet.
pub fn not_built(rpc: &str) -> Status {
    Error::new(
        Reason::Unimplemented,
        format!(
            "{rpc} is not built yet in this version ({})",
            env!("CARGO_PKG_VERSION")
        ),
    )
    .to_status(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_to_each_operation_under_its_own_id() {
        let asked = vec![(7, None), (9, Some(true)), (11, Some(false))];
        let response = response_of(guarded(asked, async { panic!("a broken invariant") }).await);
        let answers: Vec<_> = std::iter::once(&response).chain(&response.also).collect();
        let said: Vec<_> = answers
            .iter()
            .map(|answer| match &answer.result {
                Some(batch_response::Result::Failure(failure)) => {
                    let outcome = failure.metadata.get("outcome").map(String::as_str);
                    (answer.id, outcome, failure.retry_after_ms > 0)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            said,
            [
                (7, None, true),
                (9, Some("unknown"), true),
                (11, Some("unknown"), false)
            ]
        );
    }
}
