//! The `Kv` service: what application developers call.
//!
//! Decodes, checks limits, hands to the [`Router`], encodes. Decides nothing. The batch stream is in
//! [`batch`].

mod batch;
mod group;

use crate::config::LiveConfig;
use crate::error::{Error, Outcome};
use crate::grpc_edge::{LONGEST_CALL, deadline_of};
use crate::history::ring::Keys;
use crate::metrics::{Metrics, Streamed, Timed};
use crate::router::watch::WatchSpec;
use crate::router::{Read, Router, ScanSpec};
use crate::session;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use group::{Answer, Decoded, Group, got, namespace_of, wrote};
use rdb_proto::kv::{self, batch_request, batch_response, compare_and_swap_request, kv_server::Kv};
use rdb_proto::raft::{WriteOp, write_op::Kind};
use rdb_types::key::prefix_end;
use rdb_types::namespace::MAX_TTL_MS;
use rdb_types::{Reason, request_id};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

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
            session::decode(&options.session)?;
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
                let mut op =
                    self.write_op(Kind::Put, put.key, put.value, put.ttl_ms, put.request_id)?;
                op.epoch = put.only_epoch;
                Ok(Decoded::Write {
                    namespace: put.namespace,
                    op,
                    seen_epoch: put.seen_epoch,
                })
            }
            batch_request::Op::Delete(delete) => {
                let mut op =
                    self.write_op(Kind::Delete, delete.key, Bytes::new(), 0, delete.request_id)?;
                op.epoch = delete.only_epoch;
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
        let patience = request.extensions().get().copied().unwrap_or_default();
        let scan = request.into_inner();
        let came = Instant::now();
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
                // A byte more than a key: what follows right behind the longest one begins there.
                let longest = self.config.load().limits.max_key.as_bytes() + 1;
                if bound.len() as u64 > longest {
                    return Err(Error::over_limit(field, longest, bound.len() as u64));
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
                patience,
            };
            self.router.scan(&scan.namespace, spec, deadline).await
        }
        .await;
        let pages = result.map_err(|error| {
            Timed::since(&self.metrics, "Scan", &scan.namespace, came).done(Some(&error));
            error.to_status(true)
        })?;
        let counted = Streamed::begin(self.metrics.clone(), "Scan", scan.namespace, came);
        let pages = stream::unfold((pages, counted), |(mut pages, mut counted)| async move {
            let page = pages.next().await;
            if !matches!(page, Some(Ok(_))) {
                counted.done(page.as_ref().and_then(|page| page.as_ref().err()));
            }
            let page = page?.map_err(|error| error.to_status(true));
            Some((page, (pages, counted)))
        });
        Ok(Response::new(pages.boxed()))
    }

    type BatchStream = batch::Answers;

    async fn batch(
        &self,
        request: Request<Streaming<kv::BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        deadline_of(&request);
        Ok(Response::new(batch::serve(
            self.clone(),
            request.into_inner(),
        )))
    }

    type WatchStream = BoxStream<'static, Result<kv::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<kv::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let until = deadline_of(&request);
        let watch = request.into_inner();
        let timed = Timed::start(&self.metrics, "Watch", &watch.namespace);
        let result = async {
            let deadline = self.in_time(until)?.min(self.deadline(None));
            let max_key = self.config.load().limits.max_key.as_bytes();
            for (field, given) in [("key", &watch.key), ("prefix", &watch.prefix)] {
                if given.len() as u64 > max_key {
                    return Err(Error::over_limit(field, max_key, given.len() as u64));
                }
            }
            if !watch.key.is_empty() && !watch.prefix.is_empty() {
                return Err(Error::invalid("prefix", "give a key or a prefix, not both"));
            }
            let keys = match watch.key.is_empty() {
                true => Keys::Prefix(watch.prefix),
                false => Keys::One(watch.key),
            };
            let spec = WatchSpec {
                keys,
                from_revision: watch.from_revision,
                session: watch.session,
            };
            self.router
                .watch(&watch.namespace, spec, deadline, until)
                .await
        }
        .await;
        timed.done(result.as_ref().err());
        match result {
            Ok(watching) => Ok(Response::new(
                stream::unfold(watching, |mut watching| async move {
                    let message = watching.next().await?;
                    Some((message.map_err(|error| error.to_status(true)), watching))
                })
                .boxed(),
            )),
            Err(error) => Err(error.to_status(true)),
        }
    }
}
