//! Stores that consist of a transport and nothing else: a scripted handler behind a real server.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rdb_proto::raft::{
    Hello, HelloReply, Member, Propose, ProposeReply, peer_request, peer_response,
};
use rdb_server::error::Error;
use rdb_server::transport::grpc::{GrpcOptions, GrpcTransport, Incoming, PeerService, Places};
use rdb_server::transport::{Greeting, Handshake, Lane, PeerHandler, Transport, TransportError};
use rdb_types::{Reason, RegionId, StoreId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// For calls that are expected to be answered: far beyond what a busy machine needs.
pub(crate) const PATIENT: Duration = Duration::from_secs(30);

/// The id of a caller that is told who answers, and is not served.
pub(crate) const PARTED: u32 = 1000;

/// What a [`Server`] accepts.
pub(crate) const MAX_CONNECTIONS: usize = 16;

pub(crate) fn store(id: u64) -> StoreId {
    StoreId::new(id).unwrap()
}

/// A request whose command tells the handler what to do: `echo...`, `sleep MS...`, `never...`,
/// `large BYTES`, `refuse...`.
pub(crate) fn request(command: impl Into<Bytes>) -> peer_request::Body {
    peer_request::Body::Propose(Propose {
        command: command.into(),
    })
}

/// The outcome of a call as text.
pub(crate) fn text(
    answer: Result<peer_response::Body, TransportError>,
) -> Result<String, TransportError> {
    answer.map(|body| match body {
        peer_response::Body::Propose(reply) => String::from_utf8_lossy(&reply.outcome).into_owned(),
        other => panic!("not what was asked for: {other:?}"),
    })
}

/// Calls on the control lane, as text.
pub(crate) async fn ask(
    transport: &dyn Transport,
    to: StoreId,
    command: &str,
    timeout: Duration,
) -> Result<String, TransportError> {
    text(
        transport
            .call(
                to,
                Lane::Control,
                RegionId(1),
                request(command.to_owned()),
                timeout,
            )
            .await,
    )
}

/// Calls again and again until an answer comes.
pub(crate) async fn ask_until_answered(
    transport: &dyn Transport,
    to: StoreId,
    command: &str,
) -> String {
    for _ in 0..1000 {
        match ask(transport, to, command, Duration::from_secs(2)).await {
            Ok(answer) => return answer,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("store {to} never answered");
}

/// Follows the commands that requests carry, and notes them.
#[derive(Default)]
pub(crate) struct Scripted {
    pub(crate) seen: Mutex<Vec<Bytes>>,
}

impl PeerHandler for Scripted {
    fn handle(
        &self,
        _from: StoreId,
        _region: RegionId,
        request: peer_request::Body,
        _timeout: Duration,
    ) -> BoxFuture<'static, Result<peer_response::Body, Error>> {
        let peer_request::Body::Propose(Propose { command }) = request else {
            return std::future::ready(Err(Error::invalid(
                "body",
                "this store knows only proposals",
            )))
            .boxed();
        };
        self.seen.lock().push(command.clone());
        async move {
            let words = String::from_utf8_lossy(&command[..command.len().min(64)]).into_owned();
            let mut words = words.split(' ');
            let verb = words.next().unwrap_or_default();
            let number = words
                .next()
                .and_then(|word| word.parse::<u64>().ok())
                .unwrap_or_default();
            let outcome = match verb {
                "sleep" => {
                    tokio::time::sleep(Duration::from_millis(number)).await;
                    command
                }
                "never" => std::future::pending().await,
                "large" => Bytes::from(vec![b'x'; number as usize]),
                "refuse" => {
                    return Err(Error::new(Reason::NotLeader, "ask store 3").with("leader", 3));
                }
                _ => command,
            };
            Ok(peer_response::Body::Propose(ProposeReply { outcome }))
        }
        .boxed()
    }
}

/// Identities without clusters: a store refuses whoever dialled somebody else.
pub(crate) struct Identity {
    pub(crate) me: StoreId,
    pub(crate) addresses: Mutex<BTreeMap<StoreId, String>>,
}

impl Identity {
    pub(crate) fn new(me: StoreId) -> Arc<Identity> {
        Arc::new(Identity {
            me,
            addresses: Mutex::default(),
        })
    }

    pub(crate) fn knows(me: StoreId, other: StoreId, address: &str) -> Arc<Identity> {
        let identity = Identity::new(me);
        identity.moved(other, address);
        identity
    }

    pub(crate) fn moved(&self, other: StoreId, address: &str) {
        self.addresses.lock().insert(other, address.to_owned());
    }

    fn member(&self) -> Option<Member> {
        Some(Member {
            store_id: u32::from(self.me.get()),
            ..Member::default()
        })
    }
}

impl Handshake for Identity {
    fn hello(&self, to: StoreId) -> Hello {
        Hello {
            from: self.member(),
            to_store: u32::from(to.get()),
            ..Hello::default()
        }
    }

    fn accept(&self, hello: &Hello) -> Result<Greeting, Error> {
        if hello.to_store != u32::from(self.me.get()) {
            return Err(Error::new(
                Reason::Refused,
                format!("this is store {}, not {}", self.me, hello.to_store),
            ));
        }
        Ok(Greeting {
            reply: HelloReply {
                me: self.member(),
                ..HelloReply::default()
            },
            // An id far out is that of a store which is only told who is here.
            served: hello.from.as_ref().map_or(0, |from| from.store_id) != PARTED,
        })
    }

    fn check_reply(&self, to: StoreId, reply: &HelloReply) -> Result<(), Error> {
        match reply.me.as_ref().map_or(0, |member| member.store_id) {
            id if id == u32::from(to.get()) => Ok(()),
            id => Err(Error::new(
                Reason::Refused,
                format!("dialled store {to}, found {id}"),
            )),
        }
    }

    fn address_of(&self, store: StoreId) -> Option<String> {
        self.addresses.lock().get(&store).cloned()
    }
}

/// The receiving half of a store, on a runtime of its own so that it can die in an instant.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) handler: Arc<Scripted>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    pub(crate) async fn start(id: u64) -> Server {
        Server::start_with(id, "127.0.0.1:0", &GrpcOptions::default()).await
    }

    pub(crate) async fn start_with(id: u64, address: &str, options: &GrpcOptions) -> Server {
        let handler = Arc::new(Scripted::default());
        let service = PeerService::new(
            Arc::clone(&handler) as Arc<dyn PeerHandler>,
            Identity::new(store(id)),
            options,
        );
        let mut server = options.server();
        let address = address.to_owned();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (sender, bound) = oneshot::channel();
        runtime.spawn(async move {
            let listener = TcpListener::bind(address).await.unwrap();
            sender.send(listener.local_addr().unwrap()).unwrap();
            server
                .add_service(service.server())
                .serve_with_incoming(Incoming::new(listener, Places::new(MAX_CONNECTIONS)))
                .await
                .unwrap();
        });
        let address = bound.await.unwrap().to_string();
        Server {
            address,
            handler,
            runtime: Some(runtime),
        }
    }

    /// Dies as a killed process does: its sockets are closed, nothing is said.
    pub(crate) fn kill(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) fn seen(&self) -> Vec<Bytes> {
        self.handler.seen.lock().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Store 1's transport, which knows store 2 by this address.
pub(crate) fn dialler(address: &str) -> Arc<GrpcTransport> {
    dialler_with(address, GrpcOptions::default())
}

pub(crate) fn dialler_with(address: &str, options: GrpcOptions) -> Arc<GrpcTransport> {
    GrpcTransport::new(
        store(1),
        Identity::knows(store(1), store(2), address),
        options,
    )
}
