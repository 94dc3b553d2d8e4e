//! Simulated TCP in the places where gRPC opens and accepts sockets.
//!
//! Owns the edges that turn turmoil's sockets into what a store listens on ([`Port`]), dials other stores
//! with and what a client dials with ([`Cable`]). Every write goes into the trace: a dialler's with its length,
//! an acceptor's without, because hyper puts the date of the real clock into the headers of answers. No bytes:
//! a message with a map in it (error details) is not encoded in one order.
//!
//! Invariant: a simulated connection is never repaired. After a cut its bytes are lost, and whoever uses it
//! has to notice and let it go, as with TCP whose peer is gone.

use crate::trace::Trace;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rdb_server::transport::grpc as server;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::{Channel, Endpoint, Uri};
use turmoil::net::{TcpListener, TcpStream};

/// A connection whose traffic is in the trace.
pub struct Wire {
    stream: TcpStream,
    /// Who holds this end, and who the other.
    ends: String,
    dialled: bool,
    trace: Trace,
}

impl Wire {
    fn new(stream: TcpStream, dialled: bool, trace: &Trace) -> io::Result<Wire> {
        let ends = format!("{} > {}", stream.local_addr()?, stream.peer_addr()?);
        trace.note(format_args!("tcp {ends} open"));
        Ok(Wire {
            stream,
            ends,
            dialled,
            trace: trace.clone(),
        })
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        let noted_bytes = if self.dialled { written } else { 0 };
        self.trace
            .note(format_args!("tcp {} {noted_bytes} B", self.ends));
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.stream).poll_shutdown(context)) {
            // The kernel's answer to a second one.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }
}

type Accepting = BoxFuture<'static, io::Result<(TcpStream, SocketAddr)>>;

/// What a store listens on.
pub struct Port {
    listener: Arc<TcpListener>,
    accepting: Option<Accepting>,
    trace: Trace,
}

impl Port {
    /// Binds a port of the host that this is called on.
    ///
    /// # Errors
    /// It is in use.
    pub async fn bind(port: u16, trace: Trace) -> io::Result<Port> {
        let listener = TcpListener::bind(("0.0.0.0", port)).await?;
        Ok(Port {
            listener: Arc::new(listener),
            accepting: None,
            trace,
        })
    }
}

impl server::Listen for Port {
    type Io = Wire;

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(Wire, SocketAddr)>> {
        let listener = &self.listener;
        let accepting = self.accepting.get_or_insert_with(|| {
            let listener = listener.clone();
            async move { listener.accept().await }.boxed()
        });
        let accepted = ready!(accepting.poll_unpin(context));
        self.accepting = None;
        let (stream, from) = accepted?;
        Poll::Ready(Ok((Wire::new(stream, false, &self.trace)?, from)))
    }
}

/// What stores and clients dial with.
#[derive(Clone)]
pub struct Cable {
    /// Where the traffic is noted.
    pub trace: Trace,
}

impl Cable {
    async fn connect(self, address: String) -> io::Result<Wire> {
        let stream = TcpStream::connect(address.as_str()).await?;
        Wire::new(stream, true, &self.trace)
    }
}

impl server::Dial for Cable {
    fn channel(&self, endpoint: &Endpoint) -> Channel {
        let cable = self.clone();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let address = uri.authority().map(ToString::to_string).unwrap_or_default();
            let connecting = cable.clone().connect(address);
            async move { connecting.await.map(TokioIo::new) }
        }))
    }
}

impl rdb_client::Dial for Cable {
    fn dial(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn rdb_client::Io>>> {
        let connecting = self.clone().connect(address.to_owned());
        async move { Ok(Box::new(connecting.await?) as Box<dyn rdb_client::Io>) }.boxed()
    }
}
