//! Connections that come in, bounded before anybody knows who they are from.
//!
//! Owns where connections come from ([`Listen`]), the accepted sockets' options, and the time that a caller has to say its first words in HTTP/2,
//! or, where clients hold every place, that it is a store. How many there may be is [`Places`]'. Knows
//! nothing of what is said after: from then on HTTP/2's keep-alives find the dead, and the handshake the
//! strangers.
//!
//! Invariants: a connection without a place is closed at once, so that its caller hears of it instead of
//! waiting in the kernel's queue; one that has not sent HTTP/2's preface within [`HANDSHAKE_TIMEOUT`] is
//! closed, and so is one on probation that is not a store's by then; no error of one connection, or of
//! accepting one, ends the listening.

use super::HANDSHAKE_TIMEOUT;
use super::places::{Kind, Place, Places};
use futures::Stream;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};
use tonic::transport::server::Connected;

/// What every HTTP/2 connection begins with: `PRI * HTTP/2.0` and two empty lines.
const PREFACE_BYTES: usize = 24;

/// How long accepting rests after an error. Most often there are no file descriptors left, and
/// trying again at once would only burn the processor.
const REST: Duration = Duration::from_millis(50);

/// How often the log says that there are too many connections.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// Where connections come from.
pub trait Listen: Send + Unpin + 'static {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection and the address of its caller, set up so that small answers leave at once.
    ///
    /// # Errors
    /// None can be accepted at the moment.
    fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(Self::Io, SocketAddr)>>;
}

impl Listen for TcpListener {
    type Io = TcpStream;

    fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let (stream, from) = ready!(TcpListener::poll_accept(self, context))?;
        // An answer is not worth less for being small. A socket that is gone already fails to be
        // set, and says so when it is read.
        let _ = stream.set_nodelay(true);
        Poll::Ready(Ok((stream, from)))
    }
}

/// The connections to a port, for tonic's `serve_with_incoming`.
pub struct Incoming<L = TcpListener> {
    listener: L,
    places: Arc<Places>,
    rest: Option<Pin<Box<Sleep>>>,
    said: Option<Instant>,
}

impl<L: Listen> Incoming<L> {
    /// Accepts from `listener` what has a place.
    pub fn new(listener: L, places: Arc<Places>) -> Incoming<L> {
        Incoming {
            listener,
            places,
            rest: None,
            said: None,
        }
    }

    /// Says, but not for each connection, that clients find no place.
    fn say_full(&mut self, from: SocketAddr) {
        if self.said.is_some_and(|said| said.elapsed() < SAID_EVERY) {
            return;
        }
        self.said = Some(Instant::now());
        tracing::warn!(
            %from,
            limit = self.places.max_clients(),
            refused = self.places.refused(),
            "clients hold every connection that limits.max_connections allows; only stores are let in: raise it, or let clients share connections"
        );
    }
}

impl<L: Listen> Stream for Incoming<L> {
    type Item = io::Result<Accepted<L::Io>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(rest) = &mut self.rest {
                ready!(rest.as_mut().poll(context));
                self.rest = None;
            }
            let (stream, from) = match ready!(self.listener.poll_accept(context)) {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    self.rest = Some(Box::pin(sleep(REST)));
                    continue;
                }
            };
            let place = self.places.take();
            if place
                .as_ref()
                .is_none_or(|place| place.kind() == Kind::Probation)
            {
                self.say_full(from);
            }
            let Some(place) = place else {
                continue;
            };
            return Poll::Ready(Some(Ok(Accepted {
                stream,
                read_bytes: 0,
                patience: Some(Box::pin(sleep(HANDSHAKE_TIMEOUT))),
                place,
            })));
        }
    }
}

/// An accepted connection, which ends if its caller stays silent, or is no store where only stores are
/// let in.
pub struct Accepted<I = TcpStream> {
    stream: I,
    read_bytes: usize,
    /// Until it may stay.
    patience: Option<Pin<Box<Sleep>>>,
    place: Arc<Place>,
}

impl<I> Accepted<I> {
    fn may_stay(&self) -> bool {
        self.place.kind() != Kind::Probation && self.read_bytes >= PREFACE_BYTES
    }
}

impl<I> Drop for Accepted<I> {
    fn drop(&mut self) {
        // Requests that are still worked on may hold the place, too; the connection is what counts.
        self.place.give_back();
    }
}

impl<I> Connected for Accepted<I> {
    type ConnectInfo = Arc<Place>;

    fn connect_info(&self) -> Arc<Place> {
        Arc::clone(&self.place)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Accepted<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.patience.is_some() && self.may_stay() {
            self.patience = None;
        }
        if let Some(patience) = &mut self.patience
            && patience.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no HTTP/2 preface in time, or no place for a client",
            )));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.patience.is_some() {
            self.read_bytes += buffer.filled().len() - before;
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Accepted<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
