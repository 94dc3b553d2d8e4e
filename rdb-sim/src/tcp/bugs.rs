//! Bugs that are planted at the edges that only this mode has: the transport of stores, and a client.
//!
//! Owns the list and the transport that goes wrong. As with [`crate::bugs`], the server and the client have
//! no part in it.
//!
//! Invariant: without a bug, what passes is what was sent.

use crate::network::{Answer, Letter, Tap};
use crate::observer::Observer;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rdb_proto::raft::{peer_request, peer_response};
use rdb_server::transport::{Lane, SharedTransport, Transport, TransportError};
use rdb_types::{RegionId, StoreId};
use std::mem::discriminant;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bug {
    /// The transport between stores delivers an answer to another call than its own.
    AnswerToWrongCall,
    /// A client repeats a write whose outcome is unknown, without a request id.
    RepeatedWithoutId,
    /// A crash takes what was acknowledged: a sync returns before anything is durable.
    SyncIsALie,
}

/// The transport of a store, seen by the observer, and broken if that is asked for.
pub struct Watched {
    me: StoreId,
    inner: SharedTransport,
    observer: Observer,
    bug: Option<Bug>,
    /// An answer that waits to be exchanged with another one of its kind.
    held: Arc<Mutex<Option<Held>>>,
}

struct Held {
    answer: peer_response::Body,
    owner: oneshot::Sender<peer_response::Body>,
}

impl Watched {
    /// Around the transport of `me`.
    pub fn new(
        me: StoreId,
        inner: SharedTransport,
        observer: Observer,
        bug: Option<Bug>,
    ) -> Arc<Watched> {
        Arc::new(Watched {
            me,
            inner,
            observer,
            bug,
            held: Arc::default(),
        })
    }
}

impl Transport for Watched {
    fn call(
        &self,
        to: StoreId,
        lane: Lane,
        region: RegionId,
        body: peer_request::Body,
        timeout: Duration,
    ) -> BoxFuture<'static, Answer> {
        let mut letter = Letter {
            from: self.me,
            to,
            lane,
            region,
            body,
        };
        self.observer.request(&mut letter);
        let call = self.inner.call(to, lane, region, letter.body, timeout);
        // Writes: what their callers are told is what clients see.
        if self.bug != Some(Bug::AnswerToWrongCall) || lane != Lane::Forward {
            return call;
        }
        let held = self.held.clone();
        async move { exchange(&held, call.await?).await }.boxed()
    }
}

/// Gives an answer away and gets another one of the same kind, when there is one soon.
async fn exchange(
    held: &Mutex<Option<Held>>,
    answer: peer_response::Body,
) -> Result<peer_response::Body, TransportError> {
    let waiting = {
        let mut held = held.lock();
        match held.take() {
            Some(other)
                if !other.owner.is_closed()
                    && discriminant(&other.answer) == discriminant(&answer) =>
            {
                // Its owner was there a moment ago; if it gave up, this answer is lost with it.
                let _ = other.owner.send(answer);
                return Ok(other.answer);
            }
            _ => {
                let (owner, waiting) = oneshot::channel();
                let kept = answer.clone();
                *held = Some(Held {
                    answer: kept,
                    owner,
                });
                waiting
            }
        }
    };
    let other = tokio::time::timeout(Duration::from_millis(30), waiting).await;
    Ok(other.ok().and_then(Result::ok).unwrap_or(answer))
}
