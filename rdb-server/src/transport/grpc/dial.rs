//! How the connection to another store is made: the one place of the transport that opens sockets.
//!
//! Owns [`Dial`] and its real implementation, [`Tcp`]; a simulator brings another. Knows nothing of what
//! goes over the connection, which the endpoint says.

use tonic::transport::{Channel, Endpoint};

/// Makes connections to stores.
pub trait Dial: Send + Sync + 'static {
    /// A channel that dials its endpoint when it is first used, and again whenever the connection is gone.
    fn channel(&self, endpoint: &Endpoint) -> Channel;
}

/// TCP, names resolved by the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

impl Dial for Tcp {
    fn channel(&self, endpoint: &Endpoint) -> Channel {
        endpoint.connect_lazy()
    }
}
