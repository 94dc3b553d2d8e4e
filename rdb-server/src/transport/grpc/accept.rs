//! Connections that come in, bounded before anybody knows who they are from.
//!
//! Owns the accepted sockets' options, their number, and the time that a caller has to say its first
//! words in HTTP/2. Knows nothing of what is said after: from then on HTTP/2's keep-alives find the
//! dead, and the handshake the strangers.
//!
//! Invariants: at most `max_connections` are open, further ones are closed at once, so that a client
//! hears of it instead of waiting in the kernel's queue; a connection that
//! has not sent HTTP/2's preface after `preface_timeout` is closed; no error of one connection, or of
//! accepting one, ends the listening.

use super::HANDSHAKE_TIMEOUT;
use futures::Stream;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// What every HTTP/2 connection begins with: `PRI * HTTP/2.0` and two empty lines.
const PREFACE_BYTES: usize = 24;

/// How long accepting rests after an error. Most often there are no file descriptors left, and
/// trying again at once would only burn the processor.
const REST: Duration = Duration::from_millis(50);

/// The connections to a port, for tonic's `serve_with_incoming`.
pub struct Incoming {
    listener: TcpListener,
    max_connections: usize,
    preface_timeout: Duration,
    open: Arc<AtomicUsize>,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// Accepts from `listener` with at most `max_connections` at a time.
    pub fn new(listener: TcpListener, max_connections: usize) -> Incoming {
        Incoming {
            listener,
            max_connections,
            preface_timeout: HANDSHAKE_TIMEOUT,
            open: Arc::default(),
            rest: None,
        }
    }

    /// The number of open connections, which others may watch.
    pub fn open(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.open)
    }
}

impl Stream for Incoming {
    type Item = io::Result<Accepted>;

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
            // Only this stream adds, so the count cannot pass the limit between the two lines.
            if self.open.load(Ordering::Relaxed) >= self.max_connections {
                tracing::debug!(%from, limit = self.max_connections, "closed at once: too many connections");
                continue;
            }
            self.open.fetch_add(1, Ordering::Relaxed);
            let place = Place(Arc::clone(&self.open));
            // An answer is not worth less for being small. A socket that is gone already fails to be
            // set, and says so when it is read.
            let _ = stream.set_nodelay(true);
            let silence = Some(Box::pin(sleep(self.preface_timeout)));
            return Poll::Ready(Some(Ok(Accepted {
                stream,
                read_bytes: 0,
                silence,
                _place: place,
            })));
        }
    }
}

/// One of the `max_connections`.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An accepted connection, which ends if its caller stays silent.
pub struct Accepted {
    stream: TcpStream,
    read_bytes: usize,
    /// Until the preface was read.
    silence: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connected for Accepted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Some(silence) = &mut self.silence else {
            return read;
        };
        if read.is_pending() {
            ready!(silence.as_mut().poll(context));
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no HTTP/2 preface in time",
            )));
        }
        self.read_bytes += buffer.filled().len() - before;
        if self.read_bytes >= PREFACE_BYTES {
            self.silence = None;
        }
        read
    }
}

impl AsyncWrite for Accepted {
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
