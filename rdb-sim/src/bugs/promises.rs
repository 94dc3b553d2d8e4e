//! Promises for a seal that are not kept, or not those that were asked for.
//!
//! Owns the forging of questions and answers between the leader of a region and those that promise. A forged promise
//! has the digest of an honest one, or the seal would be given up at once: so somebody promises honestly first, and is
//! held back, or stays honest.

use super::Bug;
use crate::network::{Answer, Letter};
use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use rdb_proto::convert::{vector, vector_to_wire};
use rdb_proto::raft::{AskSealing, FetchOriginsReply, OriginEntry, OriginHolder, VectorPart};
use rdb_proto::raft::{peer_request, peer_response};
use rdb_server::eventual::layout;
use rdb_server::transport::TransportError;
use rdb_storage::{Family, MemoryEngine, View};
use rdb_types::{NamespaceId, RegionId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A seal: region, namespace, epoch.
type Seal = (RegionId, u32, u64);
/// The disks of all stores.
pub(super) type Disks = Arc<Mutex<BTreeMap<StoreId, Arc<MemoryEngine>>>>;

/// Answers that are held back of each seal.
const PATIENCE: u32 = 4;

#[derive(Default)]
struct Heard {
    /// Whom each seal's leader asked first for a promise.
    first: BTreeMap<Seal, StoreId>,
    /// The digest of an honest promise.
    digests: BTreeMap<Seal, Bytes>,
    /// Whose questions were bent.
    bent: BTreeSet<(Seal, StoreId)>,
    /// What each replica said last that it holds.
    reported: BTreeMap<(Seal, StoreId), Vec<VectorPart>>,
    /// What each was asked to promise.
    asked: BTreeMap<(Seal, StoreId), Vec<VectorPart>>,
    /// How often an answer was held back.
    held_back: BTreeMap<Seal, u32>,
}

/// What was said of seals.
pub(super) struct Promises {
    heard: Mutex<Heard>,
    disks: Disks,
}

impl Promises {
    pub(super) fn new(disks: Disks) -> Promises {
        Promises {
            heard: Mutex::default(),
            disks,
        }
    }

    /// Bends a question; or answers it in the place of who was asked.
    pub(super) fn request(&self, bug: Bug, letter: &mut Letter) -> Option<Answer> {
        let (region, from, to) = (letter.region, letter.from, letter.to);
        let mut heard = self.heard.lock();
        match &mut letter.body {
            peer_request::Body::AskSealing(ask) if ask.promise => {
                let seal = (region, ask.namespace_id, ask.epoch);
                heard.asked.insert((seal, to), ask.fence.clone());
                let first = *heard.first.entry(seal).or_insert(to);
                match bug {
                    // It is asked for no more than it has.
                    Bug::FenceSkipped if first != to => {
                        ask.fence = heard.reported.get(&(seal, to))?.clone();
                        ask.holders.clear();
                    }
                    // What it merges behind its promise, it merges now: it promises the fence, and holds more.
                    Bug::PromiseNotBinding if heard.digests.contains_key(&seal) => {
                        self.go_on(region, ask, from);
                    }
                    _ => return None,
                }
                heard.bent.insert((seal, to));
                None
            }
            peer_request::Body::FetchOrigins(fetch) if bug == Bug::PromiseNotBinding => {
                let seal = (region, fetch.namespace_id, fetch.epoch);
                let promised = vector(heard.asked.get(&(seal, from))?)?;
                let origin = StoreId::new(u64::from(fetch.origin))?;
                if fetch.first <= promised.get(origin) {
                    return None;
                }
                let of = (region, NamespaceId(fetch.namespace_id));
                let mut entries = self.beyond(of, origin, fetch.first - 1, fetch.epoch - 1);
                entries.truncate(usize::try_from(fetch.last - fetch.first + 1).ok()?);
                let reply = FetchOriginsReply { entries };
                Some(Ok(peer_response::Body::FetchOrigins(reply)))
            }
            _ => None,
        }
    }

    /// Bends an answer.
    pub(super) fn answer(&self, bug: Bug, letter: &Letter, answer: &mut Answer) {
        let peer_request::Body::AskSealing(ask) = &letter.body else {
            return;
        };
        let Ok(peer_response::Body::Sealing(reply)) = answer else {
            return;
        };
        let (seal, to) = ((letter.region, ask.namespace_id, ask.epoch), letter.to);
        let mut heard = self.heard.lock();
        if !ask.promise {
            heard.reported.insert((seal, to), reply.vector.clone());
            return;
        }
        let is_bent = heard.bent.contains(&(seal, to));
        if !is_bent {
            heard.digests.insert(seal, reply.digest.clone());
            if bug == Bug::FenceSkipped {
                return;
            }
        }
        let digest = heard.digests.get(&seal).cloned();
        if let (true, Some(digest), Some(fence)) = (is_bent, digest, heard.asked.get(&(seal, to))) {
            reply.vector.clone_from(fence);
            reply.digest = digest;
            return;
        }
        // It is asked again, and an honest promise is known by then; unless nobody gives one.
        let held_back = heard.held_back.entry(seal).or_default();
        if *held_back < PATIENCE {
            *held_back += 1;
            *answer = Err(TransportError::Unreachable {
                to,
                why: "the answer is held back".to_owned(),
            });
        }
    }

    /// Moves the fence of a question to what stores that have no part in the seal have on their disks.
    fn go_on(&self, region: RegionId, ask: &mut AskSealing, holder: StoreId) {
        let Some(mut fence) = vector(&ask.fence) else {
            return;
        };
        let origins: Vec<StoreId> = self.disks.lock().keys().copied().collect();
        for origin in origins {
            let (id, last) = (u32::from(origin.get()), fence.get(origin));
            let of = (region, NamespaceId(ask.namespace_id));
            let more = self.beyond(of, origin, last, ask.epoch - 1).len() as u64;
            if more == 0 {
                continue;
            }
            fence.raise(origin, last + more);
            if !ask.holders.iter().any(|holder| holder.origin == id) {
                ask.holders.push(OriginHolder {
                    origin: id,
                    store_id: u32::from(holder.get()),
                });
            }
        }
        ask.fence = vector_to_wire(&fence);
    }

    /// What an origin has on its own disk of its writes in an epoch, beyond a number.
    fn beyond(
        &self,
        (region, namespace): (RegionId, NamespaceId),
        origin: StoreId,
        last: u64,
        epoch: u64,
    ) -> Vec<Bytes> {
        let Some(disk) = self.disks.lock().get(&origin).cloned() else {
            return Vec::new();
        };
        let range = layout::entries(region, namespace, origin, last + 1, u64::MAX);
        let rows = disk.scan(Family::OriginLog, &range, false).flatten();
        let of_epoch = rows.map(|(_, entry)| entry).take_while(|entry| {
            let entry = OriginEntry::decode(entry.clone());
            entry.is_ok_and(|entry| entry.epoch == epoch && entry.filler_from == 0)
        });
        of_epoch.collect()
    }
}
