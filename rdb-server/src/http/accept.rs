//! Connections to the HTTP port, bounded in number and in idleness.
//!
//! Probes and scrapers are few, and the port is open to whoever reaches it. Knows nothing of what is
//! asked.
//!
//! Whether a reader takes anything shows in the room of the socket's own buffer, a third of it at a time. As the kernel lets
//! that grow, to megabytes, this is 40 kB/s within the limit; so it is held small, and a transfer goes on as long as the
//! reader takes 10 kB/s (measured: some 200 kB make room again).
//!
//! Invariants: at most [`CONNECTIONS`] are open; for one more, that on which nothing moved for the longest
//! time is closed, so that silent ones never keep the probes out; one on which nothing moved for [`IDLE`],
//! in either direction, is closed anyway.

use axum::serve::Listener;
use parking_lot::Mutex;
use socket2::SockRef;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Open connections at most.
pub const CONNECTIONS: usize = 256;

/// How long a connection may bring nothing and take nothing. Longer than the pause between two scrapes of most.
pub const IDLE: Duration = Duration::from_secs(30);

/// What the kernel holds of a connection for its reader; it doubles that for its own books. 5 MB/s over 50 ms, and with all
/// connections 64 MiB.
const SEND_BUFFER: usize = 128 << 10;

/// How long a connection that was told to close is waited for. It only has to be polled once.
const CLOSING: Duration = Duration::from_millis(500);

/// An open connection, as the port sees it.
struct Open {
    moved: Instant,
    close: CancellationToken,
}

/// All that are open, by number.
type Register = Arc<Mutex<BTreeMap<u64, Open>>>;

/// Accepts from a port within the bounds.
pub struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    open: Register,
    next: u64,
}

impl Bounded {
    /// Over a bound port.
    pub fn new(listener: TcpListener) -> Bounded {
        Bounded {
            listener,
            places: Arc::new(Semaphore::new(CONNECTIONS)),
            open: Register::default(),
            next: 0,
        }
    }

    /// A place, if need be that of the idlest connection.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        let idlest = {
            let open = self.open.lock();
            let idlest = open.values().min_by_key(|open| open.moved);
            idlest.map(|open| open.close.clone())
        };
        idlest?.cancel();
        let freed = timeout(CLOSING, self.places.clone().acquire_owned()).await;
        freed.ok()?.ok()
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            // Its errors are logged and waited out there.
            let (stream, from) = Listener::accept(&mut self.listener).await;
            let Some(place) = self.place().await else {
                tracing::debug!(%from, limit = CONNECTIONS, "closed at once: too many HTTP connections");
                continue;
            };
            if let Err(error) = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER) {
                tracing::debug!(%from, %error, "a slow reader of this connection may be cut");
            }
            let close = CancellationToken::new();
            let open = Open {
                moved: Instant::now(),
                close: close.clone(),
            };
            self.next += 1;
            self.open.lock().insert(self.next, open);
            let connection = Connection {
                stream,
                idle: Box::pin(sleep(IDLE)),
                close: Box::pin(close.cancelled_owned()),
                number: self.next,
                open: self.open.clone(),
                _place: place,
            };
            return (connection, from);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection and its place.
pub struct Connection {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    close: Pin<Box<WaitForCancellationFutureOwned>>,
    number: u64,
    open: Register,
    _place: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.lock().remove(&self.number);
    }
}

impl Connection {
    /// Bytes came, or were taken.
    fn moved(&mut self) {
        let now = Instant::now();
        self.idle.as_mut().reset(now + IDLE);
        if let Some(open) = self.open.lock().get_mut(&self.number) {
            open.moved = now;
        }
    }

    /// Waits, as long as nothing moves, until it is to be closed.
    fn poll_closed<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        let why = if self.close.as_mut().poll(context).is_ready() {
            "its place was needed"
        } else if self.idle.as_mut().poll(context).is_ready() {
            "nothing moved for too long"
        } else {
            return Poll::Pending;
        };
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending() {
            return self.poll_closed(context);
        }
        self.moved();
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_pending() {
            return self.poll_closed(context);
        }
        self.moved();
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use std::pin::pin;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::advance;

    async fn connected() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let client = TcpStream::connect(addr).await.unwrap();
        let (connection, _from) = Bounded::new(listener).accept().await;
        (connection, client)
    }

    /// Whether a read waits; else it failed.
    async fn waits(connection: &mut Connection) -> bool {
        match poll!(pin!(connection.read_u8())) {
            Poll::Pending => true,
            Poll::Ready(read) => {
                assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
                false
            }
        }
    }

    /// A download that took longer than half a minute was cut in the middle, however fast its reader was.
    #[tokio::test(start_paused = true)]
    async fn a_transfer_takes_as_long_as_it_takes() {
        let (mut connection, mut client) = connected().await;
        assert!(waits(&mut connection).await);
        for _ in 0..4 {
            advance(IDLE * 2 / 3).await;
            connection.write_all(b"piece").await.unwrap();
            client.read_exact(&mut [0; 5]).await.unwrap();
            assert!(waits(&mut connection).await);
        }
        advance(IDLE + Duration::from_secs(1)).await;
        assert!(!waits(&mut connection).await, "now nothing moved");
    }

    /// One that took less than a third of what the kernel had buffered, 1.2 MB, was taken for none. What it has to take within
    /// the limit is what counts here, not the time: the kernel's clock is not ours to stop.
    #[tokio::test]
    async fn a_slow_reader_makes_room_soon() {
        let (mut connection, mut client) = connected().await;
        let mut piece = vec![0; 64 << 10];
        let whole = vec![7; 64 << 20];
        while poll!(pin!(connection.write(&whole))).is_ready() {}
        for _ in 0..6 {
            let mut taken = 0;
            loop {
                client.read_exact(&mut piece).await.unwrap();
                taken += piece.len();
                // How long the kernel may take to see it.
                let room = timeout(Duration::from_millis(100), connection.write(&whole));
                if room.await.is_ok_and(|written| written.unwrap() > 0) {
                    break;
                }
            }
            assert!(taken <= 640 << 10, "room only after {taken} bytes");
            while poll!(pin!(connection.write(&whole))).is_ready() {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_transfer_that_nobody_reads_is_cut() {
        let (mut connection, _client) = connected().await;
        let piece = vec![0; 1 << 20];
        while poll!(pin!(connection.write_all(&piece))).is_ready() {}
        advance(IDLE + Duration::from_secs(1)).await;
        let write = connection.write_all(&piece).await;
        assert_eq!(write.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
