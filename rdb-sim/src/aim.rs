//! Crashes that are aimed at a moment: right after a vote has left its store, or when a step of a change of
//! mode takes effect.
//!
//! Owns who is aimed at. A vote that was answered and not kept is the classic hole of an election, and
//! chance alone hardly ever hits the moment after it; a switch is over in milliseconds, and whoever drives it
//! may die at each of its steps.

use crate::door::Door;
use crate::network::{Answer, Letter, Tap};
use crate::plan::{Driving, Step};
use crate::store::Ended;
use parking_lot::Mutex;
use rdb_proto::raft::peer_response;
use rdb_types::{RegionId, StoreId};
use std::collections::{BTreeMap, BTreeSet};

/// Whom to stop after how many votes, and at which steps.
pub struct Aim {
    door: Door,
    at: Mutex<BTreeMap<StoreId, u32>>,
    steps: Mutex<BTreeSet<(Step, Driving)>>,
}

impl Aim {
    /// At nobody.
    pub fn new(door: Door) -> Aim {
        Aim {
            door,
            at: Mutex::default(),
            steps: Mutex::default(),
        }
    }

    /// The store stops right after the vote that follows the next `after` ones.
    pub fn at(&self, store: StoreId, after: u32) {
        self.at.lock().insert(store, after);
    }

    /// Whoever drives a switch stops when this step takes effect the next time.
    pub fn at_step(&self, step: Step, whom: Driving) {
        self.steps.lock().insert((step, whom));
    }

    /// Nobody is aimed at any more.
    pub fn lower(&self) {
        self.at.lock().clear();
        self.steps.lock().clear();
    }

    /// A step takes effect in a region, at the first replica that applies it.
    pub fn stepped(&self, step: Step, region: RegionId) {
        for whom in Driving::ALL {
            if !self.steps.lock().remove(&(step, whom)) {
                continue;
            }
            let led = match whom {
                Driving::Namespace => RegionId::META,
                Driving::Region => region,
            };
            let running = self.door.running();
            let leader = running.iter().find(|(_, process)| {
                let peer = process.core.manager().peer(led);
                peer.is_some_and(|peer| peer.quorum().is_leader())
            });
            if let Some((_, process)) = leader {
                process.stop(Ended::AtStep);
            }
        }
    }
}

impl Tap for Aim {
    fn request(&self, _: &mut Letter) -> Option<Answer> {
        None
    }

    fn answer(&self, letter: &Letter, answer: &mut Answer) {
        let Ok(peer_response::Body::Vote(reply)) = answer else {
            return;
        };
        if !reply.granted || !matches!(letter.body, rdb_proto::raft::peer_request::Body::Vote(_)) {
            return;
        }
        let voter = letter.to;
        let mut at = self.at.lock();
        match at.get_mut(&voter) {
            None => return,
            Some(0) => {
                at.remove(&voter);
            }
            Some(after) => {
                *after -= 1;
                return;
            }
        }
        drop(at);
        let running = self.door.running();
        if let Some((_, process)) = running.into_iter().find(|(id, _)| *id == voter) {
            process.stop(Ended::AfterVote);
        }
    }
}
