//! Room on the disks: what a store still takes when its own is full, or those of others are.
//!
//! Owns the decisions, all of them pure: how full a disk is ([`RoomJudge`]), whether a region still takes what
//! grows ([`judge_region`]), which writes grow ([`Sieve`]); and what a store knows of the others ([`Rooms`]).
//! Looking at the disk, and doing what is decided, is [`crate::store`]'s.
//!
//! # The rules
//!
//! Let *room* be what is free and what the reserve file holds, and *R* what is to be kept: `storage.reserve`,
//! but at most a tenth of the file system. A quarter of R is held in the file.
//!
//! | Room | Level | The store |
//! |---|---|---|
//! | from R on | ample | takes everything |
//! | below R | short | takes no data of clients: `NO_SPACE`; deletes, reads, Raft's own entries and what other stores send go on |
//! | below R/2, or a write found none | out | takes nothing more of other stores that still take data themselves |
//!
//! - A level is left a quarter of R above where it was entered, so that it does not come and go.
//! - The file is given up when less than a quarter of it is free beside it, or a write found no room: then
//!   deletes and compactions go on in its room. It is held again when there is room for it above R.
//! - A strong region takes data while a quorum of its voters has ample room: a store that is short counts
//!   like one that is down, and what it lacks in the end it fetches. A leader that is short gives the lead to a voter with
//!   room. Where no such quorum is left, nothing grows any more, and all replicas take what is still under way.
//! - An eventual namespace is each store's own business: another one may have room.
//!
//! # Invariants
//!
//! - What is refused here entered no log: `not_applied`.
//! - Deletes are refused only while even they find no room (the committer waits).
//! - A level is a matter of the moment: nothing of it is written down, or in a log.

use crate::error::{Error, Outcome};
use parking_lot::Mutex;
use rdb_proto::raft::{WriteOp, WriteResult, write_op, write_result};
use rdb_storage::Space;
use rdb_types::{Reason, RegionId, StoreId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// R is at most this part of the file system.
const LARGEST_PART: u64 = 10;
/// The part of R that the file holds, and that leaving a level takes more than entering it.
const QUARTER: u64 = 4;
/// What a store said of its room counts for so long. Stores ask each other every second.
const FRESH: Duration = Duration::from_secs(5);

/// How full a disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// There is room.
    #[default]
    Ample,
    /// The reserve begins: nothing grows any more by clients of this store.
    Short,
    /// Half of the reserve is gone, or all of it.
    Out,
}

impl Level {
    /// As it goes over the wire.
    pub fn to_wire(self) -> u32 {
        self as u32
    }

    /// From the wire; what a newer build says worse than out is out.
    pub fn from_wire(level: u32) -> Level {
        match level {
            0 => Level::Ample,
            1 => Level::Short,
            _ => Level::Out,
        }
    }
}

/// How much is to be kept on a file system of this size: R.
pub fn kept_bytes(reserve_bytes: u64, total_bytes: u64) -> u64 {
    reserve_bytes.min(total_bytes / LARGEST_PART)
}

/// How much of it the file holds.
pub fn held_bytes(kept_bytes: u64) -> u64 {
    kept_bytes / QUARTER
}

/// What is to be done with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Keep,
    /// Hold so much.
    Hold(u64),
    /// Give it up.
    GiveUp,
}

/// Decides how full a disk is, look by look.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoomJudge {
    level: Level,
}

impl RoomJudge {
    /// What a look at the disk says. `stalled`: a write found no room, and waits for some.
    pub fn look(
        &mut self,
        space: Option<Space>,
        held: u64,
        stalled: bool,
        reserve_bytes: u64,
    ) -> (Level, Act) {
        let Some(space) = space else {
            self.level = if stalled { Level::Out } else { Level::Ample };
            return (self.level, Act::Keep);
        };
        let kept = kept_bytes(reserve_bytes, space.total_bytes);
        let (to_hold, more) = (held_bytes(kept), kept / QUARTER);
        let room = space.free_bytes.saturating_add(held);
        // Where the level that it is in begins lies a quarter higher.
        let below = |limit: u64, already: bool| room < limit + if already { more } else { 0 };
        self.level = if stalled || below(kept / 2, self.level == Level::Out) {
            Level::Out
        } else if below(kept, self.level != Level::Ample) {
            Level::Short
        } else {
            Level::Ample
        };
        let act = if held > 0 && (stalled || space.free_bytes < held / QUARTER) {
            Act::GiveUp
        } else if self.level == Level::Ample
            && held.abs_diff(to_hold) > to_hold / 8
            && room >= kept + more
        {
            Act::Hold(to_hold)
        } else {
            Act::Keep
        };
        (self.level, act)
    }
}

/// What a region's leader knows of a voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voter {
    /// It has room, or has not said that it has not.
    Ample,
    /// It said that it is short or out of room.
    Short,
    /// Nothing is heard of it.
    Silent,
}

/// Whether a quorum of these voters has room. Where there is none because too few are heard of, room is not
/// what is missing.
pub fn judge_region(voters: &[Voter]) -> bool {
    let needed = voters.len() / 2 + 1;
    let count = |what| voters.iter().filter(|voter| **voter == what).count();
    let (ample, short) = (count(Voter::Ample), count(Voter::Short));
    ample >= needed || ample + short < needed
}

/// How this store and the others are off for room.
#[derive(Debug)]
pub struct Rooms {
    own: AtomicU8,
    stalled: AtomicBool,
    others: Mutex<BTreeMap<StoreId, (Level, Instant)>>,
}

impl Default for Rooms {
    fn default() -> Rooms {
        Rooms {
            own: AtomicU8::new(Level::Ample as u8),
            stalled: AtomicBool::new(false),
            others: Mutex::default(),
        }
    }
}

impl Rooms {
    /// This store's own level.
    pub fn own(&self) -> Level {
        Level::from_wire(u32::from(self.own.load(Ordering::Relaxed)))
    }

    /// Whether not even a delete finds room here.
    pub fn stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    /// This store was looked at.
    pub fn set_own(&self, level: Level, stalled: bool) {
        self.own.store(level as u8, Ordering::Relaxed);
        self.stalled.store(stalled, Ordering::Relaxed);
    }

    /// Another store said how it is.
    pub fn heard(&self, store: StoreId, level: Level) {
        self.others.lock().insert(store, (level, Instant::now()));
    }

    /// Whether any other store is known to be short now.
    pub fn any_short(&self) -> bool {
        let known = self.others.lock();
        let mut known = known.values();
        known.any(|(level, at)| *level != Level::Ample && at.elapsed() < FRESH)
    }

    /// What is known of another store now.
    pub fn of(&self, store: StoreId) -> Level {
        let known = self.others.lock().get(&store).copied();
        known
            .filter(|(_, at)| at.elapsed() < FRESH)
            .map_or(Level::Ample, |(level, _)| level)
    }
}

/// Why writes are refused for want of room.
#[derive(Clone, Debug)]
pub struct NoRoom {
    /// What is told.
    pub error: Error,
    /// Deletes, too.
    pub deletes: bool,
}

impl NoRoom {
    /// This store takes no more data into an eventual namespace.
    pub fn here(me: StoreId, region: RegionId) -> NoRoom {
        let why = format!(
            "the disk of store {me} is full: less is free than its reserve (storage.reserve), so it takes no more data"
        );
        let next = "Delete what is not needed (deletes are taken) or make room on that disk, and it goes on by itself; meanwhile write at another store";
        NoRoom::new(region, &[me], &why, next, false)
    }

    /// Not even a delete can be written.
    pub fn stalled(me: StoreId, region: RegionId) -> NoRoom {
        let why =
            format!("the disk of store {me} is full, its reserve included: nothing finds room");
        let next = "Make room on that disk, and it goes on by itself within seconds";
        NoRoom::new(region, &[me], &why, next, true)
    }

    /// A strong region takes no more data: of its voters, these are short of room.
    pub fn in_region(region: RegionId, short: &[StoreId]) -> NoRoom {
        let names: Vec<String> = short.iter().map(StoreId::to_string).collect();
        let (stores, have) = match short {
            [_] => ("store", "has"),
            _ => ("stores", "have"),
        };
        let why = format!(
            "the disks are full: {stores} {} {have} less room than the reserve (storage.reserve), so region {region} takes no more data",
            names.join(", ")
        );
        let next = "Delete what is not needed (deletes are taken) or make room on those disks, and it goes on by itself";
        NoRoom::new(region, short, &why, next, false)
    }

    fn new(region: RegionId, short: &[StoreId], why: &str, next: &str, deletes: bool) -> NoRoom {
        let outcome = Outcome::NotApplied;
        let message = format!("{why}; {}. {next}", outcome.clause("the write"));
        let stores: Vec<String> = short.iter().map(StoreId::to_string).collect();
        let error = Error::new(Reason::NoSpace, message)
            .with("limit", "storage.reserve")
            .with("region", region)
            .with("stores", stores.join(","))
            .outcome(outcome);
        NoRoom { error, deletes }
    }
}

/// Whether a write makes what is stored larger. A delete that is logged does, too, by little and for a while.
fn grows(op: &WriteOp) -> bool {
    !matches!(
        op.kind(),
        write_op::Kind::Delete | write_op::Kind::CasDelete
    )
}

/// The writes of a request of which some are refused for want of room: each is answered by itself, since one
/// message may hold writes of many callers.
#[derive(Debug)]
pub struct Sieve {
    refused: Vec<bool>,
    no_room: NoRoom,
}

impl Sieve {
    /// Takes out what is refused; the rest is to be written.
    pub fn new(ops: Vec<WriteOp>, no_room: NoRoom) -> (Sieve, Vec<WriteOp>) {
        let refused: Vec<bool> = ops.iter().map(|op| no_room.deletes || grows(op)).collect();
        let taken = ops
            .into_iter()
            .zip(&refused)
            .filter(|(_, refused)| !**refused)
            .map(|(op, _)| op)
            .collect();
        (Sieve { refused, no_room }, taken)
    }

    /// All answers in the order of the request.
    pub fn answers(self, taken: Vec<WriteResult>) -> Vec<WriteResult> {
        let mut taken = taken.into_iter();
        let refusal = WriteResult {
            outcome: Some(write_result::Outcome::Error(self.no_room.error.to_wire())),
        };
        let refused = self.refused.into_iter();
        refused
            .map(|refused| match refused {
                true => refusal.clone(),
                false => taken.next().unwrap_or_default(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
