//! When this store last heard from each other one.
//!
//! Owns one number a store; written on every request and answer, read when somebody asks who can be
//! reached. Knows nothing of what was said.

use crate::transport::{Lane, SharedTransport, Transport, TransportError};
use futures::future::BoxFuture;
use rdb_proto::raft::{peer_request, peer_response};
use rdb_types::{RegionId, StoreId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Times of the last contact.
pub struct Contacts {
    started: Instant,
    /// Milliseconds since `started`, plus one; 0: never.
    heard: Vec<AtomicU64>,
}

impl Contacts {
    /// Nobody was heard of.
    pub fn new() -> Contacts {
        Contacts {
            started: Instant::now(),
            heard: (0..=StoreId::MAX).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// A request or an answer came from this store.
    pub fn heard_from(&self, store: StoreId) {
        let now = self.started.elapsed().as_millis() as u64 + 1;
        self.heard[usize::from(store.get())].store(now, Ordering::Relaxed);
    }

    /// How long ago that was; `None`: never since the start.
    pub fn age(&self, store: StoreId) -> Option<Duration> {
        match self.heard[usize::from(store.get())].load(Ordering::Relaxed) {
            0 => None,
            at => Some(
                self.started
                    .elapsed()
                    .saturating_sub(Duration::from_millis(at - 1)),
            ),
        }
    }
}

impl Default for Contacts {
    fn default() -> Self {
        Self::new()
    }
}

/// A transport that notes who answered.
pub struct Listening {
    inner: SharedTransport,
    contacts: Arc<Contacts>,
}

impl Listening {
    /// Notes answers that come through `inner`.
    pub fn new(inner: SharedTransport, contacts: Arc<Contacts>) -> Arc<Listening> {
        Arc::new(Listening { inner, contacts })
    }
}

impl Transport for Listening {
    fn call(
        &self,
        to: StoreId,
        lane: Lane,
        region: RegionId,
        request: peer_request::Body,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<peer_response::Body, TransportError>> {
        let answer = self.inner.call(to, lane, region, request, timeout);
        let contacts = self.contacts.clone();
        Box::pin(async move {
            let answer = answer.await;
            if matches!(answer, Ok(_) | Err(TransportError::Refused(_))) {
                contacts.heard_from(to);
            }
            answer
        })
    }
}
