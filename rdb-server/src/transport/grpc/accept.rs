//! Connections that come in, bounded before anybody knows who they are from.
//!
//! Owns where connections come from ([`Listen`]), the accepted sockets' options, and the time that a caller has to say its first words in HTTP/2,
//! or, where clients hold every place, that it is a store. How many there may be is [`Places`]'. Knows
//! nothing of what is said after: from then on HTTP/2's keep-alives find the dead, and the handshake the
//! strangers.
//!
//! Invariants: a connection without a place is closed at once, so that its caller hears of it instead of
//! waiting in the kernel's queue; one that has not sent HTTP/2's preface within [`HANDSHAKE_TIMEOUT`] is
//! closed, and so is one on probation that is not a store's by then; one that begins with anything but the
//! preface is told so in words, and closed; no error of one connection, or of accepting one, ends the
//! listening.

use super::HANDSHAKE_TIMEOUT;
use super::places::{Kind, Place, Places};
use bytes::{Buf, BytesMut};
use futures::Stream;
use parking_lot::Mutex;
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

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a caller hears that speaks another protocol: an answer in HTTP/1.1, since most who come here by
/// mistake are browsers and curl.
const OTHER_PROTOCOL: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
content-type: text/plain; charset=utf-8\r\n\
connection: close\r\n\
\r\n\
This is FlareDB's gRPC port: it speaks HTTP/2 without TLS, and what arrived is something else.\n\
Use a gRPC client or `flaredb --endpoints HOST:PORT` here; probes and metrics are on the port of --http-addr.\n";

/// How long accepting rests after an error. Most often there are no file descriptors left, and
/// trying again at once would only burn the processor.
const REST: Duration = Duration::from_millis(50);

/// How often the log says that there are too many connections, or strange ones.
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
    said_strange: Arc<Mutex<Option<Instant>>>,
}

/// Whether it is time to say something again.
fn is_due(said: &mut Option<Instant>) -> bool {
    let due = said.is_none_or(|said| said.elapsed() >= SAID_EVERY);
    if due {
        *said = Some(Instant::now());
    }
    due
}

impl<L: Listen> Incoming<L> {
    /// Accepts from `listener` what has a place.
    pub fn new(listener: L, places: Arc<Places>) -> Incoming<L> {
        Incoming {
            listener,
            places,
            rest: None,
            said: None,
            said_strange: Arc::default(),
        }
    }

    /// Says, but not for each connection, that clients find no place.
    fn say_full(&mut self, from: SocketAddr) {
        if !is_due(&mut self.said) {
            return;
        }
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
                from,
                preface_bytes: 0,
                kept_back: BytesMut::new(),
                patience: Some(Box::pin(sleep(HANDSHAKE_TIMEOUT))),
                place,
                said_strange: self.said_strange.clone(),
            })));
        }
    }
}

/// An accepted connection, which ends if its caller stays silent, or is no store where only stores are
/// let in.
pub struct Accepted<I = TcpStream> {
    stream: I,
    from: SocketAddr,
    /// Bytes of the preface that have come.
    preface_bytes: usize,
    /// What HTTP/2 would have said before it heard anything: kept back until the preface is there, or
    /// the words for another protocol would stand behind it.
    kept_back: BytesMut,
    /// Until it may stay.
    patience: Option<Pin<Box<Sleep>>>,
    place: Arc<Place>,
    said_strange: Arc<Mutex<Option<Instant>>>,
}

impl<I> Accepted<I> {
    fn may_stay(&self) -> bool {
        self.place.kind() != Kind::Probation && self.greeted()
    }

    fn greeted(&self) -> bool {
        self.preface_bytes == PREFACE.len()
    }
}

impl<I: AsyncWrite + Unpin> Accepted<I> {
    /// Sends what was kept back.
    fn poll_release(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.kept_back.is_empty() {
            let stream = Pin::new(&mut self.stream);
            let written = ready!(stream.poll_write(context, &self.kept_back))?;
            self.kept_back.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Accepted<I> {
    /// Compares what came with what is still to come of the preface.
    fn check_preface(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> io::Result<()> {
        let wanted = &PREFACE[self.preface_bytes..];
        let compared = bytes.len().min(wanted.len());
        if bytes[..compared] == wanted[..compared] {
            self.preface_bytes += compared;
            return Ok(());
        }
        // As much as the socket takes at once, which is all of it unless the caller reads nothing.
        let _ = Pin::new(&mut self.stream).poll_write(context, OTHER_PROTOCOL);
        // A socket that is closed with bytes unread takes the answer back.
        let mut rest = [0; 4096];
        for _ in 0..16 {
            let mut rest = ReadBuf::new(&mut rest);
            let read = Pin::new(&mut self.stream).poll_read(context, &mut rest);
            if !matches!(read, Poll::Ready(Ok(()))) || rest.filled().is_empty() {
                break;
            }
        }
        if is_due(&mut self.said_strange.lock()) {
            let looks_like = match bytes {
                [0x16, 3, ..] => "TLS, which this port does not speak",
                bytes if bytes.windows(8).any(|part| part == b" HTTP/1.") => {
                    "HTTP/1; probes and metrics are on the port of --http-addr"
                }
                _ => "no protocol that is spoken here",
            };
            tracing::info!(from = %self.from, looks_like, "a connection to the gRPC port is closed: it does not begin as HTTP/2 does");
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not HTTP/2's preface",
        ))
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

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Accepted<I> {
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
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if !self.greeted() {
            self.check_preface(context, &buffer.filled()[before..])?;
            if self.greeted()
                && let Poll::Ready(Err(error)) = self.poll_release(context)
            {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Accepted<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.greeted() {
            self.kept_back.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_release(context))?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.greeted() {
            let before = self.kept_back.len();
            for part in parts {
                self.kept_back.extend_from_slice(part);
            }
            return Poll::Ready(Ok(self.kept_back.len() - before));
        }
        ready!(self.poll_release(context))?;
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.greeted() {
            ready!(self.poll_release(context))?;
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
