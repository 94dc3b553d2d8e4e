//! Driving the changes of mode of a region's namespaces, while this replica leads it.
//!
//! Owns the rhythm: when to look, how long to wait for an answer, when the patience with a seal is over. What is asked
//! and proposed, [`super::Drive`] decides.
//!
//! Invariant: nothing is kept that outlives the lead; whoever leads looks at what the log says.

use super::{Drive, Effect, Facts, Held};
use crate::config::LiveConfig;
use crate::error::Error;
use crate::peer::Peer;
use crate::peer::orders::{Order, OrderBook};
use crate::region::state::NamespaceState;
use crate::region::switching::Members;
use crate::transport::{Lane, SharedTransport};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use rdb_proto::convert::vector;
use rdb_proto::raft::{
    self, AskSealing, SealingReply, SwitchProgress, SwitchStep, command, command_outcome,
    peer_request, peer_response,
};
use rdb_types::{Digest, Epoch, NamespaceId, Stamp, StoreId};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often to look at what is wanted while nothing is to be done.
const IDLE: Duration = Duration::from_millis(200);
/// How often to look while something is.
const BUSY: Duration = Duration::from_millis(10);
/// How long a replica may take to say what it holds before a seal. While one lasts, the patience with the
/// seal counts.
const ASKED: Duration = Duration::from_millis(500);
/// How long a step may take to get into the log.
const PROPOSED: Duration = Duration::from_secs(2);
/// How long to rest after a seal was given up: what it was given up for takes longer than moments to mend.
const AFTER_ABORT: Duration = Duration::from_millis(250);

/// How far the switches are that this replica drives.
#[derive(Clone, Default)]
pub struct Progress(Arc<Mutex<BTreeMap<NamespaceId, SwitchProgress>>>);

impl Progress {
    /// Of a namespace, if this replica drives one of it.
    pub fn of(&self, namespace: NamespaceId) -> Option<SwitchProgress> {
        self.0.lock().get(&namespace).cloned()
    }
}

/// What the driver works with.
pub struct DriverCore {
    /// This store.
    pub me: StoreId,
    /// The region's replica; gone when the region is.
    pub peer: Weak<Peer>,
    /// The way to the others.
    pub transport: SharedTransport,
    /// What the cluster's tables want.
    pub orders: Arc<OrderBook>,
    /// The configuration in force.
    pub config: LiveConfig,
    /// Where it is said how far the switches are.
    pub progress: Progress,
    /// Ends the task.
    pub stop: CancellationToken,
}

struct Driven {
    drive: Drive,
    order: Order,
    /// Nothing is looked at before.
    rest_until: Instant,
    /// How long the slowest answer of a round took.
    slowest: Duration,
}

/// What came back.
enum Came {
    Answer {
        namespace: NamespaceId,
        from: StoreId,
        round: u64,
        took: Duration,
        answer: Result<Held, String>,
    },
    Proposed {
        namespace: NamespaceId,
        result: Result<(), Error>,
        was_abort: bool,
    },
}

/// The task. Ends with the region.
pub async fn run(core: DriverCore) {
    let mut orders = core.orders.subscribe();
    let mut driver = Driver {
        core,
        driven: BTreeMap::new(),
        under_way: FuturesUnordered::new(),
    };
    loop {
        let rest = if driver.driven.is_empty() { IDLE } else { BUSY };
        tokio::select! {
            biased;
            () = driver.core.stop.cancelled() => return,
            Some(came) = driver.under_way.next(), if !driver.under_way.is_empty() => {
                let Some(peer) = driver.core.peer.upgrade() else { return };
                driver.take(&peer, came);
            }
            changed = orders.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(rest) => {}
        }
        let Some(peer) = driver.core.peer.upgrade() else {
            return;
        };
        driver.look(&peer);
    }
}

struct Driver {
    core: DriverCore,
    driven: BTreeMap<NamespaceId, Driven>,
    under_way: FuturesUnordered<BoxFuture<'static, Came>>,
}

/// What the log says of a namespace, and who replicates it.
struct Seen {
    state: NamespaceState,
    members: Members,
    /// Since when writes are refused.
    sealing_since: Option<Instant>,
}

impl Seen {
    fn facts<'f>(&'f self, namespace: NamespaceId, order: &'f Order) -> Facts<'f> {
        Facts {
            namespace,
            state: &self.state,
            order,
            members: &self.members,
        }
    }
}

fn see(peer: &Peer, namespace: NamespaceId) -> Option<Seen> {
    let (state, sealing_since) = peer.cell().with(|summary| {
        let state = summary.namespaces.get(&namespace)?.clone();
        let pause = summary.pauses.get(&namespace);
        Some((state, pause.and_then(|pause| pause.since)))
    })?;
    Some(Seen {
        state,
        members: Members {
            voters: peer.quorum().voters().into_iter().collect(),
            all: peer.quorum().replicas(),
        },
        sealing_since,
    })
}

impl Driver {
    /// Looks at every namespace of which something is wanted.
    fn look(&mut self, peer: &Arc<Peer>) {
        if !peer.quorum().is_leader() {
            if !self.driven.is_empty() {
                self.driven.clear();
                self.core.progress.0.lock().clear();
            }
            return;
        }
        let orders = self.core.orders.all();
        self.driven
            .retain(|namespace, _| orders.contains_key(namespace));
        for (namespace, order) in orders {
            let Some(seen) = see(peer, namespace) else {
                continue;
            };
            if seen.facts(namespace, &order).followed() {
                if self.driven.remove(&namespace).is_some() {
                    self.core.progress.0.lock().remove(&namespace);
                }
                continue;
            }
            self.step(peer, namespace, order, &seen);
        }
    }

    fn step(&mut self, peer: &Arc<Peer>, namespace: NamespaceId, order: Order, seen: &Seen) {
        let now = Instant::now();
        let driven = self.driven.entry(namespace).or_insert_with(|| Driven {
            drive: Drive::default(),
            order: order.clone(),
            rest_until: now,
            slowest: Duration::ZERO,
        });
        driven.order = order;
        let facts = seen.facts(namespace, &driven.order);
        let patience = self.core.config.load().consistency.seal_timeout;
        let mut effects = Vec::new();
        if now >= driven.rest_until {
            let since = seen.sealing_since;
            if since.is_some_and(|since| now.saturating_duration_since(since) >= patience) {
                effects = driven.drive.patience_is_over(facts);
            }
            effects.extend(driven.drive.look(facts));
            driven.rest_until = now + BUSY;
        }
        self.publish(namespace, seen);
        self.perform(peer, namespace, effects);
    }

    fn publish(&self, namespace: NamespaceId, seen: &Seen) {
        if let Some(driven) = self.driven.get(&namespace) {
            let mut progress = driven.drive.progress(seen.facts(namespace, &driven.order));
            // A seal is two rounds of questions and two steps through the log; a step is a round, too.
            progress.estimated_write_pause_us = driven.slowest.as_micros() as u64 * 4;
            self.core.progress.0.lock().insert(namespace, progress);
        }
    }

    fn take(&mut self, peer: &Arc<Peer>, came: Came) {
        match came {
            Came::Answer {
                namespace,
                from,
                round,
                took,
                answer,
            } => {
                let (Some(seen), Some(driven)) =
                    (see(peer, namespace), self.driven.get_mut(&namespace))
                else {
                    return;
                };
                driven.slowest = took.max(driven.slowest / 2);
                let facts = seen.facts(namespace, &driven.order);
                let effects = driven.drive.heard(facts, from, round, answer);
                self.publish(namespace, &seen);
                self.perform(peer, namespace, effects);
            }
            Came::Proposed {
                namespace,
                result,
                was_abort,
            } => {
                if let Err(error) = &result {
                    tracing::debug!(
                        region = peer.id().0,
                        namespace_id = namespace.0,
                        %error,
                        "a step of a switch is not in the log"
                    );
                }
                if let Some(driven) = self.driven.get_mut(&namespace) {
                    driven.drive.proposed();
                    // What was refused at once would be at once again.
                    let rest = match result {
                        Ok(()) if was_abort => AFTER_ABORT,
                        Ok(()) => Duration::ZERO,
                        Err(_) => BUSY,
                    };
                    driven.rest_until = Instant::now() + rest;
                }
            }
        }
    }

    fn perform(&mut self, peer: &Arc<Peer>, namespace: NamespaceId, effects: Vec<Effect>) {
        for effect in effects {
            let came = match effect {
                Effect::Ask { to, ask, round } => self.ask(peer, namespace, to, ask, round),
                Effect::Propose(step) => propose(peer.clone(), namespace, step),
            };
            self.under_way.push(came);
        }
    }

    fn ask(
        &self,
        peer: &Arc<Peer>,
        namespace: NamespaceId,
        to: StoreId,
        ask: AskSealing,
        round: u64,
    ) -> BoxFuture<'static, Came> {
        let asked = Instant::now();
        let request = peer_request::Body::AskSealing(ask);
        let answer: BoxFuture<'static, Result<peer_response::Body, String>> = if to == self.core.me
        {
            let answer = peer.handle(to, request, ASKED);
            Box::pin(async move { answer.await.map_err(|error| error.to_string()) })
        } else {
            let answer = self
                .core
                .transport
                .call(to, Lane::Control, peer.id(), request, ASKED);
            Box::pin(async move { answer.await.map_err(|error| error.to_string()) })
        };
        Box::pin(async move {
            let answer = match tokio::time::timeout(ASKED, answer).await {
                Ok(Ok(peer_response::Body::Sealing(reply))) => held(&reply),
                Ok(Ok(_)) => Err("it answered something else".to_owned()),
                Ok(Err(why)) => Err(why),
                Err(_) => Err(format!("no answer within {} ms", ASKED.as_millis())),
            };
            Came::Answer {
                namespace,
                from: to,
                round,
                took: asked.elapsed(),
                answer,
            }
        })
    }
}

fn held(reply: &SealingReply) -> Result<Held, String> {
    let broken = || "its answer makes no sense".to_owned();
    Ok(Held {
        epoch: Epoch(reply.epoch),
        vector: vector(&reply.vector).ok_or_else(broken)?,
        digest: Digest::from_bytes(&reply.digest).ok_or_else(broken)?,
        expired_through_ms: reply.expired_through_ms,
        partial: reply.partial,
        last_stamp: Stamp(reply.last_stamp),
    })
}

fn propose(peer: Arc<Peer>, namespace: NamespaceId, step: SwitchStep) -> BoxFuture<'static, Came> {
    use rdb_proto::raft::switch_step::Step;
    let told = match &step.step {
        Some(Step::SetEventual(_)) => "the namespace becomes eventual",
        Some(Step::BeginSeal(_)) => "the namespace is being sealed: no writes until it is strong",
        Some(Step::Seal(_)) => "the namespace becomes strong",
        Some(Step::AbortSeal(_)) | None => "",
    };
    let why = match &step.step {
        Some(Step::AbortSeal(abort)) => abort.why.clone(),
        _ => String::new(),
    };
    Box::pin(async move {
        let (attempt, epoch) = (step.attempt, step.expected_epoch);
        let command = raft::Command {
            kind: Some(command::Kind::SwitchStep(step)),
        };
        let result = match peer.command(command, Instant::now() + PROPOSED).await {
            Ok(command_outcome::Outcome::Error(error)) => Err(Error::from_wire(error)),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        let (region, term) = (peer.id().0, peer.term());
        let namespace_id = namespace.0;
        match &result {
            Ok(()) if !why.is_empty() => {
                tracing::warn!(
                    region,
                    term,
                    namespace_id,
                    epoch,
                    attempt,
                    why,
                    "the seal was given up: the namespace goes on as eventual"
                );
            }
            Ok(()) if !told.is_empty() => {
                tracing::info!(region, term, namespace_id, epoch, attempt, "{told}");
            }
            _ => {}
        }
        Came::Proposed {
            namespace,
            result,
            was_abort: !why.is_empty(),
        }
    })
}
