//! A store for the command's tests: a map behind the real wire, one key space for all namespaces.
//!
//! Some keys are special: `hang` is never answered, reading `no-quorum` is refused, and writing
//! `out-of-range` or `cancelled` is answered with that code and no more, as something between would.

#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

mod modes;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt};
use rdb_proto::admin::{self, admin_server::Admin};
use rdb_proto::kv::{self, kv_server::Kv};
use rdb_proto::raft::{self, raft_service_server::RaftServiceServer};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

pub(crate) use modes::CONFLICT;

#[derive(Clone, Default)]
pub(crate) struct Store {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Streams of a switch that broke off.
    broken_off: u32,
    last_version: u64,
    entries: BTreeMap<Bytes, (Bytes, u64)>,
    /// What each write brought: (ttl_ms, request_id).
    writes: Vec<(i64, Bytes)>,
    quorum: bool,
    /// Where it listens.
    address: String,
    clock_unix_ms: u64,
}

/// A running store, ended with the test.
pub(crate) struct Running {
    pub(crate) address: String,
    pub(crate) store: Store,
    _runtime: tokio::runtime::Runtime,
}

impl Store {
    pub(crate) fn start() -> Running {
        let store = Store::default();
        store.set_quorum(true);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap().to_string();
        store.state.lock().unwrap().address.clone_from(&address);
        let server = tonic::transport::Server::builder()
            .add_service(kv::kv_server::KvServer::new(store.clone()))
            .add_service(RaftServiceServer::new(store.clone()))
            .add_service(admin::admin_server::AdminServer::new(store.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(server);
        Running {
            address,
            store,
            _runtime: runtime,
        }
    }

    /// Where its stamps are.
    pub(crate) fn set_clock(&self, unix_ms: u64) {
        self.state.lock().unwrap().clock_unix_ms = unix_ms;
    }

    pub(crate) fn clock(&self) -> u64 {
        self.state.lock().unwrap().clock_unix_ms
    }

    pub(crate) fn set_quorum(&self, quorum: bool) {
        self.state.lock().unwrap().quorum = quorum;
    }

    pub(crate) fn put_raw(&self, key: &[u8], value: &[u8]) -> u64 {
        let mut state = self.state.lock().unwrap();
        state.put(key.to_vec().into(), value.to_vec().into())
    }

    pub(crate) fn value(&self, key: &[u8]) -> Option<Bytes> {
        self.state
            .lock()
            .unwrap()
            .entries
            .get(key)
            .map(|(value, _)| value.clone())
    }

    pub(crate) fn writes(&self) -> Vec<(i64, Bytes)> {
        self.state.lock().unwrap().writes.clone()
    }
}

impl State {
    fn put(&mut self, key: Bytes, value: Bytes) -> u64 {
        // Beyond what a JSON reader's numbers hold exactly.
        self.last_version = self.last_version.max(1 << 60) + 1;
        self.entries.insert(key, (value, self.last_version));
        self.last_version
    }
}

fn no_quorum() -> Status {
    let mut details = ErrorDetails::new();
    let metadata = HashMap::from([
        ("region".to_owned(), "2".to_owned()),
        ("outcome".to_owned(), "not_applied".to_owned()),
    ]);
    details.set_error_info("NO_QUORUM", "flaredb", metadata);
    details.set_retry_info(Some(Duration::from_millis(10)));
    Status::with_error_details(
        Code::Unavailable,
        "region 2 reaches 1 of 3 stores and needs 2; see `flaredb status`",
        details,
    )
}

fn compacted() -> Status {
    let mut details = ErrorDetails::new();
    let metadata = HashMap::from([
        ("oldest_revision".to_owned(), "40".to_owned()),
        ("oldest_session".to_owned(), "b2xk".to_owned()),
    ]);
    details.set_error_info("COMPACTED", "flaredb", metadata);
    Status::with_error_details(Code::OutOfRange, "not all of it is held", details)
}

#[tonic::async_trait]
impl Kv for Store {
    async fn get(
        &self,
        request: Request<kv::GetRequest>,
    ) -> Result<Response<kv::GetResponse>, Status> {
        let kv::GetRequest { key, read, .. } = request.into_inner();
        let stale = read.is_some_and(|read| read.consistency() == kv::Consistency::Stale);
        match &key[..] {
            b"hang" => futures::future::pending().await,
            b"no-quorum" => return Err(no_quorum()),
            _ => {}
        }
        let found = self.state.lock().unwrap().entries.get(&key).cloned();
        let receipt = Some(kv::Receipt {
            mode: 1,
            store_id: 1,
            region_id: 2,
            revision: 9,
            session: "token".into(),
            staleness_bound_ms: if stale { 1500 } else { 0 },
            ..Default::default()
        });
        Ok(Response::new(match found {
            Some((value, version)) => kv::GetResponse {
                found: true,
                value,
                version,
                receipt,
                ..Default::default()
            },
            None => kv::GetResponse {
                receipt,
                ..Default::default()
            },
        }))
    }

    async fn put(
        &self,
        request: Request<kv::PutRequest>,
    ) -> Result<Response<kv::PutResponse>, Status> {
        let put = request.into_inner();
        match &put.key[..] {
            b"out-of-range" => return Err(Status::out_of_range("beyond")),
            b"cancelled" => return Err(Status::cancelled("going away")),
            _ => {}
        }
        if put.key == "hang" {
            self.state
                .lock()
                .unwrap()
                .writes
                .push((put.ttl_ms, put.request_id));
            return futures::future::pending().await;
        }
        let mut state = self.state.lock().unwrap();
        state.writes.push((put.ttl_ms, put.request_id));
        let version = state.put(put.key, put.value);
        Ok(Response::new(kv::PutResponse {
            version,
            receipt: None,
        }))
    }

    async fn delete(
        &self,
        request: Request<kv::DeleteRequest>,
    ) -> Result<Response<kv::DeleteResponse>, Status> {
        let existed = self
            .state
            .lock()
            .unwrap()
            .entries
            .remove(&request.into_inner().key)
            .is_some();
        Ok(Response::new(kv::DeleteResponse {
            existed,
            ..Default::default()
        }))
    }

    async fn compare_and_swap(
        &self,
        request: Request<kv::CompareAndSwapRequest>,
    ) -> Result<Response<kv::CompareAndSwapResponse>, Status> {
        let swap = request.into_inner();
        let mut state = self.state.lock().unwrap();
        let current_version = state
            .entries
            .get(&swap.key)
            .map_or(0, |(_, version)| *version);
        if current_version != swap.expected_version {
            return Ok(Response::new(kv::CompareAndSwapResponse {
                current_version,
                ..Default::default()
            }));
        }
        let new_version = match swap.change.unwrap() {
            kv::compare_and_swap_request::Change::Value(value) => state.put(swap.key, value),
            kv::compare_and_swap_request::Change::Delete(_) => {
                state.entries.remove(&swap.key);
                0
            }
        };
        Ok(Response::new(kv::CompareAndSwapResponse {
            success: true,
            new_version,
            ..Default::default()
        }))
    }

    type ScanStream = BoxStream<'static, Result<kv::ScanResponse, Status>>;
    async fn scan(
        &self,
        request: Request<kv::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let scan = request.into_inner();
        let stale = scan
            .read
            .is_some_and(|read| read.consistency() == kv::Consistency::Stale);
        let within = |key: &Bytes| scan.start <= *key && (scan.end.is_empty() || *key < scan.end);
        let state = self.state.lock().unwrap();
        let mut entries: Vec<_> = state
            .entries
            .iter()
            .filter(|(key, _)| within(key))
            .map(|(key, (value, version))| kv::KeyValue {
                key: key.clone(),
                value: value.clone(),
                version: *version,
                ..Default::default()
            })
            .collect();
        if scan.reverse {
            entries.reverse();
        }
        if scan.limit > 0 {
            entries.truncate(scan.limit as usize);
        }
        // Without an entry, too, a store says how it read.
        let none = entries.is_empty().then_some(&entries[..]);
        let pages: Vec<_> = entries
            .chunks(100)
            .chain(none)
            .zip([1500, 2500].into_iter().cycle())
            .map(|(page, staleness_bound_ms)| {
                Ok(kv::ScanResponse {
                    entries: page.to_vec(),
                    receipt: Some(kv::Receipt {
                        mode: 1,
                        store_id: 1,
                        staleness_bound_ms: if stale { staleness_bound_ms } else { 0 },
                        session: "token".into(),
                        ..Default::default()
                    }),
                })
            })
            .collect();
        Ok(Response::new(futures::stream::iter(pages).boxed()))
    }

    type BatchStream = BoxStream<'static, Result<kv::BatchResponse, Status>>;
    async fn batch(
        &self,
        _: Request<Streaming<kv::BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        Err(Status::unimplemented("the command makes plain calls"))
    }

    type WatchStream = BoxStream<'static, Result<kv::WatchResponse, Status>>;
    async fn watch(
        &self,
        request: Request<kv::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        use kv::watch_response::{Event, event::Type};
        if request.into_inner().from_revision == 1 {
            return Err(compacted());
        }
        let event = |kind: Type, value: &'static [u8]| Event {
            r#type: kind as i32,
            kv: Some(kv::KeyValue {
                key: "k".into(),
                value: value.into(),
                version: 7,
                revision: 3,
                ..Default::default()
            }),
        };
        let told = |events| {
            Ok(kv::WatchResponse {
                events,
                revision: 3,
                session: "token".into(),
            })
        };
        let messages = [
            told(Vec::new()),
            told(vec![event(Type::Put, b"v"), event(Type::Delete, b"")]),
        ];
        // Then nothing changes.
        let quiet = futures::stream::pending();
        let messages = futures::StreamExt::chain(futures::stream::iter(messages), quiet);
        Ok(Response::new(Box::pin(messages)))
    }
}

#[tonic::async_trait]
impl Admin for Store {
    async fn cluster_status(
        &self,
        _: Request<admin::ClusterStatusRequest>,
    ) -> Result<Response<admin::ClusterStatusResponse>, Status> {
        let (quorum, address, clock_unix_ms) = {
            let state = self.state.lock().unwrap();
            let clock_unix_ms = state.clock_unix_ms;
            (state.quorum, state.address.clone(), clock_unix_ms)
        };
        let report = raft::RegionReport {
            region_id: 2,
            leader: 1,
            term: 3,
            quorum,
            ..Default::default()
        };
        let member = raft::Member {
            store_id: 1,
            address,
            ..Default::default()
        };
        Ok(Response::new(admin::ClusterStatusResponse {
            cluster_id: "c1".into(),
            stores: vec![admin::StoreSummary {
                member: Some(member),
                reachable: true,
                status: Some(raft::StoreStatus {
                    clock: Some(raft::ClockStatus {
                        skew_ms: Some(3),
                        hybrid_unix_ms: clock_unix_ms,
                        ..Default::default()
                    }),
                    regions: vec![report],
                    version: "0.1.0".into(),
                    ..Default::default()
                }),
                ..Default::default()
            }],
            regions: vec![raft::RegionDescriptor {
                id: 2,
                ..Default::default()
            }],
            namespaces: vec![raft::NamespaceRow {
                id: 1,
                name: "default".into(),
                mode: 1,
                ..Default::default()
            }],
            answered_by: 1,
        }))
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
        request: Request<admin::AdvanceClockRequest>,
    ) -> Result<Response<admin::AdvanceClockResponse>, Status> {
        self.state.lock().unwrap().clock_unix_ms = request.into_inner().to_unix_ms;
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
