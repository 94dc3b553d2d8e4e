//! Looking after the room on this store's disk.
//!
//! Owns the looking, a few times a second, and the doing: telling the store's own level, holding and giving up
//! the reserve, saying in the log what changed, and asking the engine for the room of what was deleted. What is decided
//! is [`crate::room`]'s.
//!
//! Invariant: nothing here waits for the committer, which may itself wait for room.

use super::StoreCore;
use crate::peer_manager::PeerManager;
use crate::room::{self, Act, Level, RoomJudge};
use crate::tasks::blocking;
use rdb_storage::{Committer, Reserve, Space};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Between two looks: what can be written meanwhile must be little beside the reserve.
const LOOK: Duration = Duration::from_millis(250);
/// Between two tries to hold what could not be held.
const HOLD_AGAIN: Duration = Duration::from_secs(60);
/// Writes that wait for so long with room on the disk wait in vain: RocksDB looks every five seconds, and then has to
/// flush.
const STUCK: Duration = Duration::from_secs(60);
/// What is room in any case.
const ROOM_ENOUGH: u64 = 256 << 20;
/// After a reclaim nothing is reclaimed for so long, and for so many times what it took: it rewrites much for
/// a few deletes.
const REST: Duration = Duration::from_secs(5);
const REST_TIMES: u32 = 5;

impl StoreCore {
    /// Looks after the room for as long as the store lives.
    pub(super) fn watch_room(&self) {
        let mut watch = Watch {
            manager: self.manager.clone(),
            committer: self.committer.clone(),
            reserve: self.manager.context().reserve.clone(),
            judge: RoomJudge::default(),
            told: (Level::Ample, false),
            hold_after: Instant::now(),
            stuck_since: None,
            reclaim: Reclaim::default(),
        };
        self.tasks.spawn(async move {
            loop {
                watch.look().await;
                tokio::time::sleep(LOOK).await;
            }
        });
    }
}

/// Gives up the reserve that an earlier process held, if there is no room to open the database beside it.
///
/// # Errors
/// The system refused.
pub fn make_room_to_start(reserve: &dyn Reserve, reserve_bytes: u64) -> io::Result<()> {
    let (space, held) = (reserve.space(), reserve.held_bytes());
    match RoomJudge::default()
        .look(space, held, false, reserve_bytes)
        .1
    {
        Act::GiveUp => reserve.give_up(),
        Act::Keep | Act::Hold(_) => Ok(()),
    }
}

struct Watch {
    manager: Arc<PeerManager>,
    committer: Committer,
    reserve: Arc<dyn Reserve>,
    judge: RoomJudge,
    /// The level, and whether everything waits, as the log says it.
    told: (Level, bool),
    hold_after: Instant,
    /// Since when writes wait although there is room.
    stuck_since: Option<Instant>,
    reclaim: Reclaim,
}

impl Watch {
    async fn look(&mut self) {
        let reserve = self.reserve.clone();
        let looked = blocking(move || (reserve.space(), reserve.held_bytes())).await;
        // The runtime is shutting down.
        let Ok((space, held)) = looked else { return };
        let context = self.manager.context();
        let stalled = self.committer.is_stalled();
        let (level, act) = self.judge.look(space, held, stalled, context.reserve_bytes);
        context.rooms.set_own(level, stalled);
        self.tell(level, stalled, space, held);
        self.look_for_the_stuck(stalled, space);
        match act {
            Act::Keep => {}
            Act::GiveUp => {
                let reserve = self.reserve.clone();
                match blocking(move || reserve.give_up()).await {
                    Ok(Ok(())) => tracing::warn!(
                        held_bytes = held,
                        "the reserve is given up: deletes and compactions have its room"
                    ),
                    Ok(Err(error)) => tracing::error!(%error, "the reserve cannot be given up"),
                    Err(_) => {}
                }
            }
            Act::Hold(bytes) if Instant::now() >= self.hold_after => {
                let reserve = self.reserve.clone();
                match blocking(move || reserve.hold(bytes)).await {
                    Ok(Ok(())) => tracing::info!(held_bytes = bytes, "a reserve is held"),
                    Ok(Err(error)) => {
                        self.hold_after = Instant::now() + HOLD_AGAIN;
                        tracing::warn!(%error, "no reserve can be held: once other programs have filled the disk, deletes find no room");
                    }
                    Err(_) => {}
                }
            }
            Act::Hold(_) => {}
        }
        if level != Level::Ample {
            let submitted = self.committer.stats().submissions;
            self.reclaim.keep_going(&self.manager, submitted);
        }
    }

    /// RocksDB does not go on by itself from each of the errors that a full disk can be to it. What is meant to
    /// keep it from the others is no proof, so this is the last resort: a store that is started again goes on.
    fn look_for_the_stuck(&mut self, stalled: bool, space: Option<Space>) {
        let reserve_bytes = self.manager.context().reserve_bytes;
        let has_room = space.is_some_and(|space| {
            let kept = room::kept_bytes(reserve_bytes, space.total_bytes);
            space.free_bytes >= kept.max(ROOM_ENOUGH)
        });
        if !(stalled && has_room) {
            self.stuck_since = None;
            return;
        }
        let since = *self.stuck_since.get_or_insert_with(Instant::now);
        if since.elapsed() > STUCK {
            let why = "the disk was full, and the database does not go on by itself although there is room again: start the store again; nothing acknowledged is lost";
            tracing::error!("{why}");
            let _ = self.manager.context().fatal.send(Some(why.to_owned()));
            self.stuck_since = None;
        }
    }

    fn tell(&mut self, level: Level, stalled: bool, space: Option<Space>, held_bytes: u64) {
        if std::mem::replace(&mut self.told, (level, stalled)) == (level, stalled) {
            return;
        }
        let free_bytes = space.map(|space| space.free_bytes);
        let reserve_bytes = space
            .map(|space| room::kept_bytes(self.manager.context().reserve_bytes, space.total_bytes));
        match level {
            Level::Ample => tracing::info!(
                free_bytes,
                held_bytes,
                reserve_bytes,
                "the disk has room again"
            ),
            Level::Short => tracing::warn!(
                free_bytes,
                held_bytes,
                reserve_bytes,
                "the disk is full: this store takes no more data, deletes and reads go on"
            ),
            Level::Out => tracing::warn!(
                free_bytes,
                held_bytes,
                reserve_bytes,
                waiting = stalled,
                "the disk is full and its reserve is used: what other stores send is held back, too"
            ),
        }
    }
}

/// Getting back the room of what was deleted, while the disk is full.
#[derive(Default)]
struct Reclaim {
    /// Cancelled with the store: the engine works on a thread of its own, which the end would wait for.
    stop: CancelledAtTheEnd,
    under_way: Option<(JoinHandle<()>, Instant)>,
    /// What the committer had taken when the last one began.
    submitted: Option<u64>,
    rest_until: Option<Instant>,
}

/// Cancels when it goes.
#[derive(Default)]
struct CancelledAtTheEnd(CancellationToken);

impl Drop for CancelledAtTheEnd {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Reclaim {
    fn keep_going(&mut self, manager: &Arc<PeerManager>, submitted: u64) {
        if let Some((task, began)) = self.under_way.take() {
            if !task.is_finished() {
                self.under_way = Some((task, began));
                return;
            }
            let rest = (began.elapsed() * REST_TIMES).max(REST);
            self.rest_until = Some(Instant::now() + rest);
        }
        let rests = self.rest_until.is_some_and(|until| Instant::now() < until);
        if rests || self.submitted == Some(submitted) {
            return;
        }
        self.submitted = Some(submitted);
        let task = crate::tasks::spawn(reclaim(manager.clone(), self.stop.0.clone()));
        self.under_way = Some((task, Instant::now()));
    }
}

async fn reclaim(manager: Arc<PeerManager>, stop: CancellationToken) {
    let began = Instant::now();
    // What the logs still hold of what was deleted.
    let logs = manager.peers();
    futures::future::join_all(logs.iter().map(|peer| peer.shorten_log())).await;
    let engine = manager.context().engine.clone();
    // No handle on the store is kept while the engine works.
    drop((logs, manager));
    match blocking(move || engine.reclaim(&|| stop.is_cancelled())).await {
        Ok(Ok(())) => tracing::info!(
            took_ms = began.elapsed().as_millis() as u64,
            "the room of what was deleted is given back"
        ),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the room of what was deleted is not given back yet");
        }
        Err(_) => {}
    }
}
