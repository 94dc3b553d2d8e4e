//! Crashes that are aimed at a message: right after a vote has left its store.
//!
//! Owns who is aimed at. A vote that was answered and not kept is the classic hole of an election, and
//! chance alone hardly ever hits the moment after it.

use crate::door::Door;
use crate::network::{Answer, Letter, Tap};
use crate::store::Ended;
use parking_lot::Mutex;
use rdb_proto::raft::peer_response;
use rdb_types::StoreId;
use std::collections::BTreeMap;

/// Whom to stop after how many votes.
pub struct Aim {
    door: Door,
    at: Mutex<BTreeMap<StoreId, u32>>,
}

impl Aim {
    /// At nobody.
    pub fn new(door: Door) -> Aim {
        Aim {
            door,
            at: Mutex::default(),
        }
    }

    /// The store stops right after the vote that follows the next `after` ones.
    pub fn at(&self, store: StoreId, after: u32) {
        self.at.lock().insert(store, after);
    }

    /// Nobody is aimed at any more.
    pub fn lower(&self) {
        self.at.lock().clear();
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
