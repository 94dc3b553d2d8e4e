//! How bytes get to a store: the one place that opens sockets.
//!
//! Owns the [`Dial`] trait and its real implementation, [`Tcp`]. Tests and simulations bring another.
//! Knows nothing of gRPC.

use futures::future::BoxFuture;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connection, as seen from here.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Opens connections.
pub trait Dial: Send + Sync + 'static {
    /// Connects to `host:port`. Errors are the network's own; the caller bounds the time.
    fn dial(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Io>>>;
}

/// TCP, names resolved by the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

impl Dial for Tcp {
    fn dial(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        let address = address.to_owned();
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            // A message waits for company in the batch, never in the kernel.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }
}
