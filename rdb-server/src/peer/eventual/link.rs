//! Sending to one other replica: entries as they are synced, and a regular question what it has.
//!
//! Owns the connection's rhythm: when to ask, when to rest after a failure. What is sent, how much of it at a
//! time and what again, [`crate::eventual::outbox`] decides; the order on the way is the transport's.
//!
//! Invariant: only synced entries are read.

use super::{Shared, report_from_wire};
use crate::eventual::layout;
use crate::eventual::outbox::{Held, Outbox, Run};
use crate::room::Level;
use crate::transport::{Lane, TransportError};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver;
use rdb_proto::convert::vector;
use rdb_proto::raft::{self, OriginRun, peer_request, peer_response};
use rdb_storage::Family;
use rdb_types::{NamespaceId, StoreId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of entries in one push, at most one entry more.
const PUSH_BYTES: usize = 512 << 10;
/// Entries in one push.
const PUSH_ENTRIES: usize = 4096;
/// How often the other is asked what it has.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How long the answer to a push may take, and that to a question. What was lost in a cut holds its place
/// in the window for so long after the heal.
const PATIENCE: Duration = Duration::from_secs(2);
const ASKED: Duration = Duration::from_millis(500);
/// How long sending rests after a failure: at first, and at most.
const REST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What came back.
enum Answer {
    Pushed {
        runs: Vec<Run>,
        reply: Result<peer_response::Body, TransportError>,
    },
    Reports {
        asked: Instant,
        reply: Result<peer_response::Body, TransportError>,
    },
}

/// Sends to `to` until the region stops, or until nobody is a member under that id any more.
pub(super) async fn run(shared: Arc<Shared>, to: StoreId) {
    let mut link = Link {
        outbox: Outbox::new(),
        shared: shared.clone(),
        to,
        next: NamespaceId(0),
        rest: REST.0,
        resting: None,
    };
    let mut synced = shared.synced.subscribe();
    let mut answers: FuturesUnordered<BoxFuture<'static, Answer>> = FuturesUnordered::new();
    let (mut asking, mut ask_at) = (false, Instant::now());
    loop {
        let now = Instant::now();
        if !asking && now >= ask_at {
            answers.push(link.ask());
            asking = true;
        }
        link.resting.take_if(|until| now >= *until);
        while link.resting.is_none()
            && link.outbox.is_open()
            && let Some(push) = link.push()
        {
            answers.push(push);
        }
        // Only what is still to come: a question that waits for its answer is not due again, and a moment
        // that has passed would wake this task for ever.
        let mut wake = now + PATIENCE;
        if !asking {
            wake = wake.min(ask_at);
        }
        if let Some(until) = link.resting {
            wake = wake.min(until);
        }
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            Some(answer) = answers.next(), if !answers.is_empty() => match answer {
                Answer::Pushed { runs, reply } => link.pushed(&runs, reply),
                Answer::Reports { asked, reply } => {
                    asking = false;
                    ask_at = asked.max(Instant::now() - ASK_EVERY) + ASK_EVERY;
                    link.reported(asked, reply);
                }
            },
            changed = synced.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(wake) => {}
        }
        if !shared.others().contains(&to) && answers.is_empty() {
            // Not a member any more, or not one yet: look again later, and begin anew.
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return,
                () = tokio::time::sleep(REST.1) => {}
            }
            if !shared.others().contains(&to) {
                return;
            }
        }
    }
}

struct Link {
    shared: Arc<Shared>,
    to: StoreId,
    outbox: Outbox,
    /// The namespace to begin with, so that none waits for ever behind a busy one.
    next: NamespaceId,
    rest: Duration,
    resting: Option<Instant>,
}

impl Link {
    fn call(
        &self,
        request: peer_request::Body,
        patience: Duration,
    ) -> BoxFuture<'static, Result<peer_response::Body, TransportError>> {
        let shared = &self.shared;
        shared
            .core
            .transport
            .call(self.to, Lane::Origins, shared.region, request, patience)
    }

    fn ask(&self) -> BoxFuture<'static, Answer> {
        let asked = Instant::now();
        let reply = self.call(peer_request::Body::Reports(raft::ReportsRequest {}), ASKED);
        Box::pin(async move {
            Answer::Reports {
                asked,
                reply: reply.await,
            }
        })
    }

    fn reported(&mut self, asked: Instant, reply: Result<peer_response::Body, TransportError>) {
        let Ok(peer_response::Body::Reports(reply)) = reply else {
            // Whatever is under way gets no answer either.
            return;
        };
        let shared = self.shared.clone();
        let mut reports = shared.reports.lock();
        for wire in &reply.reports {
            // One that makes no sense counts as none.
            let Some((namespace, report)) = report_from_wire(wire) else {
                continue;
            };
            if shared
                .serves(namespace)
                .is_none_or(|served| served.epoch != report.epoch)
            {
                self.outbox.forget(namespace);
                continue;
            }
            let (me, own) = (shared.core.me, shared.state(namespace).vector);
            // What was pushed is on the disk, and so known as durable; the writer may not have come to say that it
            // can be read, which takes it a moment longer.
            let durable = shared.durable_state(namespace).vector;
            let last = own.get(me).max(durable.get(me));
            if report.vector.get(me) > last {
                let _ = shared.core.fatal.send(Some(format!(
                    "store {} holds write {} of this store in namespace {namespace}, and this disk ends at {last}: it is older than what the cluster has seen. Was it restored from an older copy? Bring back the directory that was used last, or leave this store out",
                    self.to, report.vector.get(me)
                )));
                return;
            }
            self.outbox.acknowledged(namespace, &report.vector);
            reports.heard(namespace, self.to, report, reply.applied_index, asked);
            reports.applied(namespace, &own);
        }
    }

    fn pushed(&mut self, runs: &[Run], reply: Result<peer_response::Body, TransportError>) {
        if let Ok(peer_response::Body::PushOrigins(reply)) = reply {
            for part in &reply.vectors {
                let namespace = NamespaceId(part.namespace_id);
                let served = self.shared.serves(namespace);
                match vector(&part.vector) {
                    Some(vector) if served.is_some_and(|served| served.epoch.0 == part.epoch) => {
                        self.outbox.acknowledged(namespace, &vector);
                    }
                    // It is not there yet, or already beyond: its next report says.
                    _ => self.outbox.forget(namespace),
                }
            }
        }
        if self.outbox.answered(runs) {
            self.rest = REST.0;
        } else {
            self.resting = Some(Instant::now() + self.rest);
            self.rest = (self.rest * 2).min(REST.1);
        }
    }

    /// The next push, if there is something to send.
    fn push(&mut self) -> Option<BoxFuture<'static, Answer>> {
        let shared = self.shared.clone();
        let served = shared.served();
        let after = served.range(self.next..);
        let order: Vec<_> = after
            .chain(served.range(..self.next))
            .map(|(namespace, served)| (*namespace, *served))
            .collect();
        let (mut runs, mut wire, mut bytes, mut count) = (Vec::new(), Vec::new(), 0, 0);
        for (namespace, served) in order {
            if bytes >= PUSH_BYTES || count >= PUSH_ENTRIES {
                break;
            }
            let durable = shared.durable_state(namespace);
            let held = Held {
                vector: durable.vector,
                // Rows go when they are written off, not when that is synced.
                truncated: shared.state(namespace).truncated,
            };
            let wanted = {
                let reports = shared.reports.lock();
                self.outbox
                    .runs(namespace, shared.core.me, &held, |origin| {
                        origin != self.to
                            && reports.is_stalled(namespace, self.to, origin, &held.vector)
                    })
            };
            for run in wanted {
                let Some((entries, size, last)) =
                    self.read(run, PUSH_BYTES - bytes.min(PUSH_BYTES))
                else {
                    continue;
                };
                bytes += size;
                count += entries.len();
                runs.push(Run { last, ..run });
                wire.push(OriginRun {
                    namespace_id: namespace.0,
                    epoch: served.epoch.0,
                    origin: u32::from(run.origin.get()),
                    entries,
                });
            }
            self.next = NamespaceId(namespace.0 + 1);
        }
        if wire.is_empty() {
            return None;
        }
        self.outbox.sent(&runs);
        let push = peer_request::Body::PushOrigins(raft::PushOrigins {
            runs: wire,
            growing: shared.core.rooms.own() == Level::Ample,
        });
        let reply = self.call(push, PATIENCE);
        Some(Box::pin(async move {
            Answer::Pushed {
                runs,
                reply: reply.await,
            }
        }))
    }

    /// The first entries of a run, some `room` bytes of them; and the number of the last.
    fn read(&self, run: Run, room: usize) -> Option<(Vec<bytes::Bytes>, usize, u64)> {
        let shared = &self.shared;
        let range = layout::entries(
            shared.region,
            run.namespace,
            run.origin,
            run.first,
            run.last,
        );
        let (mut entries, mut size, mut last) = (Vec::new(), 0, None);
        for item in shared.core.engine.scan(Family::OriginLog, &range, false) {
            // What cannot be read is not sent; the other takes a copy from somebody else in the end.
            let Ok((key, value)) = item else { break };
            if size >= room.max(1) || entries.len() >= PUSH_ENTRIES {
                break;
            }
            size += value.len();
            last = layout::sequence_of(&key);
            entries.push(value);
        }
        last.map(|last| (entries, size, last))
    }
}
