//! A scripted store and a network in memory.
//!
//! Each operation that arrives takes the next [`Act`] of its store's script (an empty one: success)
//! and is noted down. No socket is involved, so tests run on paused time: what waits, waits exactly.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "shared by several test files, each using some of it; a test may stop at what it did not expect"
)]

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use rdb_client::proto::admin::{self, admin_server::Admin};
use rdb_client::proto::kv::{
    self, batch_request::Op, batch_response::Result as Answer, kv_server::Kv,
};
use rdb_client::{Client, ClientOptions, Dial, Io};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

/// What a store does with an operation.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Ok,
    Hang,
    /// Refuses, with this reason and metadata.
    Refuse {
        code: Code,
        reason: &'static str,
        metadata: Vec<(&'static str, String)>,
        retry_after_ms: u64,
    },
    /// The connection is cut while the answer is waited for.
    Cut,
    /// As [`Act::Cut`], after the operation was done.
    DoAndCut,
    /// The operation is done, and nobody is told.
    DoAndForget,
    /// A Batch stream is ended with this; a plain call fails with it.
    EndStream(Code),
}

pub(crate) fn refuse(code: Code, reason: &'static str, outcome: &str, retry_after_ms: u64) -> Act {
    Act::Refuse {
        code,
        reason,
        metadata: vec![("outcome", outcome.to_owned())],
        retry_after_ms,
    }
}

/// The text of a refusal, with the outcome in it as stores word it.
fn said(metadata: &[(&'static str, String)]) -> String {
    let outcome = metadata.iter().find(|(key, _)| *key == "outcome");
    match outcome.map(|(_, outcome)| outcome.as_str()) {
        Some("not_applied") => "the script says so; the write was not applied".to_owned(),
        _ => "the script says so".to_owned(),
    }
}

pub(crate) fn no_quorum() -> Act {
    refuse(Code::Unavailable, "NO_QUORUM", "not_applied", 200)
}

pub(crate) fn unknown() -> Act {
    refuse(Code::Unavailable, "OUTCOME_UNKNOWN", "unknown", 20)
}

/// An operation as a store saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) store: String,
    pub(crate) op: Op,
    pub(crate) timeout_ms: u64,
    pub(crate) batched: bool,
}

impl Seen {
    pub(crate) fn request_id(&self) -> Bytes {
        match &self.op {
            Op::Get(_) => Bytes::new(),
            Op::Put(put) => put.request_id.clone(),
            Op::Delete(delete) => delete.request_id.clone(),
            Op::CompareAndSwap(swap) => swap.request_id.clone(),
        }
    }
}

/// A namespace of one region, as a store has it by its log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stage {
    pub(crate) eventual: bool,
    /// It takes no writes, and will be strong in moments.
    pub(crate) sealing: bool,
    pub(crate) epoch: u64,
}

impl Stage {
    fn mode(self) -> kv::Mode {
        match self.eventual {
            true => kv::Mode::Eventual,
            false => kv::Mode::Strong,
        }
    }

    fn state(self) -> &'static str {
        match (self.sealing, self.eventual) {
            (true, _) => "sealing",
            (false, true) => "eventual",
            (false, false) => "strong",
        }
    }

    /// What a store says that refuses an operation for the stage that the namespace is in.
    fn refusal(self, code_reason: &'static str) -> Act {
        Act::Refuse {
            code: Code::Unavailable,
            reason: code_reason,
            metadata: vec![
                ("outcome", "not_applied".to_owned()),
                ("region", "2".to_owned()),
                ("epoch", self.epoch.to_string()),
                ("state", self.state().to_owned()),
            ],
            retry_after_ms: 10,
        }
    }
}

#[derive(Default)]
struct World {
    /// Where stores behave as their stage says; empty: all simply succeeds.
    stages: HashMap<String, Stage>,
    /// The request ids that each store knows, and those of the writes that were done, in order.
    known: HashMap<String, HashSet<Bytes>>,
    done: Vec<Bytes>,
    scripts: HashMap<String, VecDeque<Act>>,
    seen: Vec<Seen>,
    messages: usize,
    /// Pages of a scan, and after how many of them the next scans are ended.
    entries: Vec<kv::KeyValue>,
    scan_breaks: VecDeque<usize>,
    scans: Vec<kv::ScanRequest>,
    status: Option<admin::ClusterStatusResponse>,
    /// How every answer says that it was served.
    receipt: Option<kv::Receipt>,
}

/// The network, and all stores on it.
#[derive(Clone, Default)]
pub(crate) struct Net {
    world: Arc<Mutex<World>>,
    listeners: Arc<Mutex<BTreeMap<String, Listener>>>,
    dials: Arc<Mutex<Vec<String>>>,
}

enum Listener {
    Up {
        accept: mpsc::Sender<io::Result<DuplexStream>>,
        cut: CancellationToken,
    },
    /// Takes connections and says nothing, ever.
    Silent,
    /// Connections are made for it, as a kernel does for a process that was stopped; nobody serves them.
    Frozen(Vec<DuplexStream>),
}

impl Net {
    /// A network with running stores of these names, and a client of them.
    pub(crate) fn with(names: &[&str], options: ClientOptions) -> (Net, Client) {
        let net = Net::default();
        for name in names {
            net.start(name);
        }
        let client = net.client(names, options);
        (net, client)
    }

    pub(crate) fn client(&self, names: &[&str], options: ClientOptions) -> Client {
        let endpoints = names.iter().map(|name| format!("{name}:1")).collect();
        Client::with_dial(
            ClientOptions {
                endpoints,
                ..options
            },
            Arc::new(self.clone()),
        )
        .unwrap()
    }

    /// Starts a store, at `name:1`.
    pub(crate) fn start(&self, name: &str) {
        let (accept, accepted) = mpsc::channel(16);
        let cut = CancellationToken::new();
        let store = Store {
            name: name.to_owned(),
            world: self.world.clone(),
            cut: cut.clone(),
        };
        let server = tonic::transport::Server::builder()
            .add_service(kv::kv_server::KvServer::new(store.clone()))
            .add_service(admin::admin_server::AdminServer::new(store))
            .serve_with_incoming(ReceiverStream::new(accepted));
        tokio::spawn(server);
        self.listeners
            .lock()
            .unwrap()
            .insert(format!("{name}:1"), Listener::Up { accept, cut });
    }

    /// From now on connections to it are taken and never answered.
    pub(crate) fn silence(&self, name: &str) {
        self.listeners
            .lock()
            .unwrap()
            .insert(format!("{name}:1"), Listener::Silent);
    }

    /// From now on it can be connected to, and does nothing at all.
    pub(crate) fn freeze(&self, name: &str) {
        self.listeners
            .lock()
            .unwrap()
            .insert(format!("{name}:1"), Listener::Frozen(Vec::new()));
    }

    /// What this store does with the operations to come.
    pub(crate) fn script(&self, name: &str, acts: impl IntoIterator<Item = Act>) {
        self.world
            .lock()
            .unwrap()
            .scripts
            .entry(name.to_owned())
            .or_default()
            .extend(acts);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.world.lock().unwrap().seen.clone()
    }

    /// The stores that were asked, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.store).collect()
    }

    /// Messages that arrived on Batch streams.
    pub(crate) fn messages(&self) -> usize {
        self.world.lock().unwrap().messages
    }

    pub(crate) fn dials(&self) -> Vec<String> {
        self.dials.lock().unwrap().clone()
    }

    pub(crate) fn fill(&self, keys: &[&str]) {
        let entry = |key: &&str| kv::KeyValue {
            key: key.as_bytes().to_vec().into(),
            ..Default::default()
        };
        self.world.lock().unwrap().entries = keys.iter().map(entry).collect();
    }

    /// The scans to come end after so many pages of two entries.
    pub(crate) fn break_scans_after(&self, pages: &[usize]) {
        self.world.lock().unwrap().scan_breaks.extend(pages);
    }

    pub(crate) fn scans(&self) -> Vec<kv::ScanRequest> {
        self.world.lock().unwrap().scans.clone()
    }

    /// From now on the namespace is in this stage at a store.
    pub(crate) fn stage(&self, name: &str, stage: Stage) {
        let stages = &mut self.world.lock().unwrap().stages;
        stages.insert(name.to_owned(), stage);
    }

    /// As a seal does: every store knows the request ids of all.
    pub(crate) fn share_ids(&self) {
        let mut world = self.world.lock().unwrap();
        let all: HashSet<_> = world.known.values().flatten().cloned().collect();
        let stores: Vec<_> = world.stages.keys().cloned().collect();
        for store in stores {
            world.known.insert(store, all.clone());
        }
    }

    /// The request ids of the writes that were done, each as often as it was.
    pub(crate) fn done(&self) -> Vec<Bytes> {
        self.world.lock().unwrap().done.clone()
    }

    /// From now on every answer says that it was served like this.
    pub(crate) fn serve_as(&self, receipt: kv::Receipt) {
        self.world.lock().unwrap().receipt = Some(receipt);
    }

    pub(crate) fn tell_status(&self, status: admin::ClusterStatusResponse) {
        self.world.lock().unwrap().status = Some(status);
    }
}

fn cuttable(io: DuplexStream, cut: CancellationToken) -> Box<dyn Io> {
    let ended = Box::pin(cut.clone().cancelled_owned());
    Box::new(Cuttable { io, cut, ended })
}

impl Dial for Net {
    fn dial(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        self.dials.lock().unwrap().push(address.to_owned());
        let found = match self.listeners.lock().unwrap().get_mut(address) {
            None => None,
            Some(Listener::Silent) => Some(None),
            Some(Listener::Frozen(kept)) => {
                let (ours, theirs) = tokio::io::duplex(1 << 20);
                kept.push(theirs);
                return Box::pin(async move { Ok(cuttable(ours, CancellationToken::new())) });
            }
            Some(Listener::Up { accept, cut }) => Some(Some((accept.clone(), cut.clone()))),
        };
        Box::pin(async move {
            match found {
                None => Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    "connection refused",
                )),
                Some(None) => futures::future::pending().await,
                Some(Some((accept, cut))) => {
                    let (ours, theirs) = tokio::io::duplex(1 << 20);
                    accept.send(Ok(theirs)).await.map_err(io::Error::other)?;
                    Ok(cuttable(ours, cut))
                }
            }
        })
    }
}

/// A connection that can be cut from outside. One cut cuts all of a store's.
struct Cuttable {
    io: DuplexStream,
    cut: CancellationToken,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Cuttable {
    fn is_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.ended.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Cuttable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.is_cut(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.cut.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[derive(Clone)]
struct Store {
    name: String,
    world: Arc<Mutex<World>>,
    cut: CancellationToken,
}

impl World {
    /// What a store does with an operation at the stage that the namespace is in there: as real ones do, also
    /// a strong one that has not heard of a switch which the log of its leader has.
    fn staged(&mut self, store: &str, op: &Op) -> Result<Option<kv::Receipt>, Act> {
        let Some(stage) = self.stages.get(store).copied() else {
            return Ok(self.receipt.clone());
        };
        let (seen_epoch, only_epoch, request_id) = match op {
            Op::Get(get) => (get.read.as_ref().unwrap().seen_epoch, 0, None),
            Op::Put(put) => (put.seen_epoch, put.only_epoch, Some(&put.request_id)),
            other => panic!("{other:?}"),
        };
        if seen_epoch > stage.epoch {
            return Err(stage.refusal("STALE_REPLICA"));
        }
        if let Some(request_id) = request_id {
            if stage.sealing {
                return Err(stage.refusal("MODE_SWITCHING"));
            }
            let log = self.stages.values().max_by_key(|stage| stage.epoch);
            let log = log.copied().unwrap_or_default();
            if !stage.eventual && log.epoch > stage.epoch {
                return Err(log.refusal("MODE_CHANGED"));
            }
            if only_epoch != 0 && only_epoch != stage.epoch {
                return Err(stage.refusal("MODE_CHANGED"));
            }
            let known = self.known.entry(store.to_owned()).or_default();
            if request_id.is_empty() || known.insert(request_id.clone()) {
                self.done.push(request_id.clone());
            }
            if !stage.eventual {
                for store in self.stages.keys() {
                    let known = self.known.entry(store.clone()).or_default();
                    known.insert(request_id.clone());
                }
            }
        }
        Ok(Some(kv::Receipt {
            mode: stage.mode() as i32,
            epoch: stage.epoch,
            region_id: 2,
            ..Default::default()
        }))
    }
}

fn success(op: &Op, receipt: Option<kv::Receipt>) -> Answer {
    match op {
        Op::Get(get) => Answer::Get(kv::GetResponse {
            found: true,
            value: get.key.clone(),
            receipt,
            ..Default::default()
        }),
        Op::Put(_) => Answer::Put(kv::PutResponse {
            version: 7,
            receipt,
        }),
        Op::Delete(_) => Answer::Delete(kv::DeleteResponse {
            existed: true,
            receipt,
            ..Default::default()
        }),
        Op::CompareAndSwap(_) => Answer::CompareAndSwap(kv::CompareAndSwapResponse {
            success: true,
            receipt,
            ..Default::default()
        }),
    }
}

impl Store {
    /// Notes the operation down and follows the script.
    async fn act(&self, op: Op, timeout_ms: u64, batched: bool) -> Result<Answer, Status> {
        let (act, receipt) = {
            let mut world = self.world.lock().unwrap();
            let seen = Seen {
                store: self.name.clone(),
                op: op.clone(),
                timeout_ms,
                batched,
            };
            world.seen.push(seen);
            let script = world.scripts.get_mut(&self.name);
            let act = script.and_then(VecDeque::pop_front).unwrap_or(Act::Ok);
            match act {
                Act::Ok | Act::DoAndCut | Act::DoAndForget => match world.staged(&self.name, &op) {
                    Ok(receipt) => (act, receipt),
                    Err(refusal) => (refusal, None),
                },
                act => (act, None),
            }
        };
        match act {
            Act::Ok => Ok(success(&op, receipt)),
            Act::Hang => futures::future::pending().await,
            Act::DoAndForget => self.refuse(batched, unknown()),
            Act::Cut | Act::DoAndCut => {
                self.cut.cancel();
                futures::future::pending().await
            }
            Act::EndStream(code) => Err(Status::new(code, "the script says so")),
            refusal @ Act::Refuse { .. } => self.refuse(batched, refusal),
        }
    }

    fn refuse(&self, batched: bool, refusal: Act) -> Result<Answer, Status> {
        match refusal {
            Act::Refuse {
                code,
                reason,
                metadata,
                retry_after_ms,
            } if batched => Ok(Answer::Failure(kv::Failure {
                code: code as i32,
                reason: reason.to_owned(),
                message: said(&metadata),
                metadata: metadata
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect(),
                retry_after_ms,
            })),
            Act::Refuse {
                code,
                reason,
                metadata,
                retry_after_ms,
            } => {
                let mut details = ErrorDetails::new();
                let text = said(&metadata);
                let metadata: HashMap<_, _> = metadata
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect();
                details.set_error_info(reason, "flaredb", metadata);
                if retry_after_ms > 0 {
                    details.set_retry_info(Some(Duration::from_millis(retry_after_ms)));
                }
                Err(Status::with_error_details(code, text, details))
            }
            other => panic!("{other:?}"),
        }
    }

    async fn unary<T>(&self, request: Request<T>, op: fn(T) -> Op) -> Result<Answer, Status> {
        let timeout = request
            .metadata()
            .get("grpc-timeout")
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let (number, unit) = timeout.split_at(timeout.len() - 1);
        let per_ms = HashMap::from([("n", 1_000_000), ("u", 1_000), ("m", 1)]);
        let timeout_ms = match unit {
            "S" => number.parse::<u64>().unwrap() * 1000,
            unit => number.parse::<u64>().unwrap() / per_ms[unit],
        };
        self.act(op(request.into_inner()), timeout_ms, false).await
    }
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Kv for Store {
    async fn get(
        &self,
        request: Request<kv::GetRequest>,
    ) -> Result<Response<kv::GetResponse>, Status> {
        match self.unary(request, Op::Get).await? {
            Answer::Get(answer) => Ok(Response::new(answer)),
            other => panic!("{other:?}"),
        }
    }
    async fn put(
        &self,
        request: Request<kv::PutRequest>,
    ) -> Result<Response<kv::PutResponse>, Status> {
        match self.unary(request, Op::Put).await? {
            Answer::Put(answer) => Ok(Response::new(answer)),
            other => panic!("{other:?}"),
        }
    }
    async fn delete(
        &self,
        request: Request<kv::DeleteRequest>,
    ) -> Result<Response<kv::DeleteResponse>, Status> {
        match self.unary(request, Op::Delete).await? {
            Answer::Delete(answer) => Ok(Response::new(answer)),
            other => panic!("{other:?}"),
        }
    }
    async fn compare_and_swap(
        &self,
        request: Request<kv::CompareAndSwapRequest>,
    ) -> Result<Response<kv::CompareAndSwapResponse>, Status> {
        match self.unary(request, Op::CompareAndSwap).await? {
            Answer::CompareAndSwap(answer) => Ok(Response::new(answer)),
            other => panic!("{other:?}"),
        }
    }

    type ScanStream = Answers<kv::ScanResponse>;
    async fn scan(
        &self,
        request: Request<kv::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let request = request.into_inner();
        let mut world = self.world.lock().unwrap();
        world.scans.push(request.clone());
        let within = |entry: &&kv::KeyValue| {
            request.start <= entry.key && (request.end.is_empty() || entry.key < request.end)
        };
        let mut entries: Vec<_> = world.entries.iter().filter(within).cloned().collect();
        if request.reverse {
            entries.reverse();
        }
        if request.limit > 0 {
            entries.truncate(request.limit as usize);
        }
        let pages: Vec<_> = entries
            .chunks(2)
            .map(|page| {
                Ok(kv::ScanResponse {
                    entries: page.to_vec(),
                    receipt: None,
                })
            })
            .collect();
        let broken_after = world.scan_breaks.pop_front();
        let end = broken_after.map(|_| Err(Status::deadline_exceeded("the scan took too long")));
        let pages = pages
            .into_iter()
            .take(broken_after.unwrap_or(usize::MAX))
            .chain(end);
        Ok(Response::new(
            futures::stream::iter(pages.collect::<Vec<_>>()).boxed(),
        ))
    }

    type BatchStream = Answers<kv::BatchResponse>;
    async fn batch(
        &self,
        request: Request<Streaming<kv::BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        let mut incoming = request.into_inner();
        let store = self.clone();
        let (answers, outgoing) = mpsc::channel(1024);
        tokio::spawn(async move {
            loop {
                let mut message = match incoming.message().await {
                    Ok(Some(message)) => message,
                    Ok(None) => break,
                    // As a store answers a message that is too large to read.
                    Err(status) => {
                        let _ = answers.send(Err(status)).await;
                        break;
                    }
                };
                store.world.lock().unwrap().messages += 1;
                let also = std::mem::take(&mut message.also);
                for request in std::iter::once(message).chain(also) {
                    let (store, answers) = (store.clone(), answers.clone());
                    tokio::spawn(async move {
                        let answer = store
                            .act(request.op.unwrap(), request.timeout_ms, true)
                            .await;
                        let answer = answer.map(|result| kv::BatchResponse {
                            id: request.id,
                            result: Some(result),
                            also: Vec::new(),
                        });
                        let _ = answers.send(answer).await;
                    });
                }
            }
        });
        // As a real store would: a status ends the stream.
        let ends = ReceiverStream::new(outgoing).scan(false, |ended, answer| {
            let before = std::mem::replace(ended, answer.is_err());
            futures::future::ready((!before).then_some(answer))
        });
        Ok(Response::new(ends.boxed()))
    }

    type WatchStream = Answers<kv::WatchResponse>;
    async fn watch(
        &self,
        _: Request<kv::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("watch"))
    }
}

#[tonic::async_trait]
impl Admin for Store {
    async fn cluster_status(
        &self,
        _: Request<admin::ClusterStatusRequest>,
    ) -> Result<Response<admin::ClusterStatusResponse>, Status> {
        let status = self.world.lock().unwrap().status.clone();
        status
            .map(Response::new)
            .ok_or_else(|| Status::unimplemented("cluster_status"))
    }
    async fn transfer_leader(
        &self,
        _: Request<admin::TransferLeaderRequest>,
    ) -> Result<Response<admin::TransferLeaderResponse>, Status> {
        Err(Status::unimplemented("transfer_leader"))
    }

    async fn reload(
        &self,
        _: Request<admin::ReloadRequest>,
    ) -> Result<Response<admin::ReloadResponse>, Status> {
        Ok(Response::new(admin::ReloadResponse {
            store_id: 1,
            changed: vec!["namespaces.logs.mode: \"strong\" -> \"eventual\"".into()],
            ..Default::default()
        }))
    }

    async fn advance_clock(
        &self,
        _: Request<admin::AdvanceClockRequest>,
    ) -> Result<Response<admin::AdvanceClockResponse>, Status> {
        Ok(Response::new(admin::AdvanceClockResponse {}))
    }

    async fn set_log_level(
        &self,
        request: Request<admin::SetLogLevelRequest>,
    ) -> Result<Response<admin::SetLogLevelResponse>, Status> {
        let level = request.into_inner().level;
        if level == "verbose" {
            return Err(Status::invalid_argument("\"verbose\" is no log level"));
        }
        Ok(Response::new(admin::SetLogLevelResponse {
            store_id: 1,
            before: "info".into(),
            level: if level.is_empty() {
                "info".into()
            } else {
                level
            },
        }))
    }
}
