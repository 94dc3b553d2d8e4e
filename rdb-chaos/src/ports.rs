//! Ports that nobody else takes while a test needs them, also while the store that uses one is dead.
//!
//! Ports given out by the system (bind to 0) come from the range of outgoing connections: while a
//! killed store is away, any connection of another test may be given its port. So ports are taken
//! from below that range, and each is held for the test's whole life by a UDP socket of the same
//! number: nobody talks UDP here, and the system frees it however the test ends.

use crate::ChaosError;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range of outgoing connections of any usual system (32768 on Linux).
const FIRST: u16 = 12_000;
const LAST: u16 = 31_999;

/// A port of 127.0.0.1 that is held until this is dropped.
#[derive(Debug)]
pub struct Port {
    addr: SocketAddr,
    _held: UdpSocket,
}

impl Port {
    /// The next free one. Tests in other processes start looking elsewhere.
    pub fn take() -> Result<Port, ChaosError> {
        static TURN: AtomicU16 = AtomicU16::new(0);
        let count = u32::from(LAST - FIRST);
        for _ in 0..count {
            let turn = u32::from(TURN.fetch_add(1, Ordering::Relaxed));
            // A test takes a dozen ports: processes with neighbouring ids do not meet.
            let offset = (std::process::id().wrapping_mul(37).wrapping_add(turn)) % count;
            let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + offset as u16));
            let Ok(held) = UdpSocket::bind(addr) else {
                continue;
            };
            // Something else may listen there already.
            if TcpListener::bind(addr).is_ok() {
                return Ok(Port { addr, _held: held });
            }
        }
        Err(ChaosError::Harness(format!(
            "no free port between {FIRST} and {LAST}"
        )))
    }

    /// Where it is.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}
