//! What is done to the stores, and what must hold.
//!
//! Owns the trait and the list. A fault is one file with one struct; its choices come from the dice when
//! it is made, before anything runs, so that a schedule is the same on every machine. Who leads is found
//! out when it comes to it.
//!
//! To add one: a file, a line in [`Kind::ALL`] and in [`Kind::make`], a section in `docs/chaos.md`.

mod clocks;
mod disk_full;
mod flipped_bit;
mod freeze;
mod kill;
mod partition;
mod torn_tail;

use crate::ChaosError;
use crate::cluster::Cluster;
use crate::dice::Dice;
use crate::load::Load;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;

pub use partition::Shape;

/// A step of a fault; its result is for the reader of the run.
pub type Step<'a, T> = Pin<Box<dyn Future<Output = Result<T, ChaosError>> + 'a>>;

/// What a fault is inflicted on.
pub struct Site<'a> {
    /// The stores.
    pub cluster: &'a mut Cluster,
    /// The load on them.
    pub load: &'a Load,
}

/// What was done.
pub struct Inflicted {
    /// When it began: writes are out from here on, if at all.
    pub at: Instant,
    /// To whom, and what came of it at once.
    pub story: String,
}

/// What must hold, beside what always does: everything linearizable, nothing acknowledged lost, nothing
/// refused applied.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// While it lasts, writes are taken again within this. `None`: there is no quorum.
    pub during: Option<Duration>,
    /// After it was healed, writes are taken again within this.
    pub after: Duration,
}

/// The aims of the table in `docs/chaos.md`.
pub(crate) const QUORUM_LEFT: Promise = Promise {
    during: Some(Duration::from_secs(3)),
    after: Duration::from_secs(3),
};

/// A fault, with all its choices made.
pub trait Fault {
    /// What it is going to do, for the schedule.
    fn plan(&self) -> String;
    /// Why it cannot be done here.
    ///
    /// # Errors
    ///
    /// The line that is printed instead.
    fn possible(&self, _cluster: &Cluster) -> Result<(), String> {
        Ok(())
    }
    /// What must hold.
    fn promise(&self) -> Promise {
        QUORUM_LEFT
    }
    /// How long it lasts.
    fn lasts(&self) -> Duration;
    /// Does it.
    fn inflict<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, Inflicted>;
    /// While it lasts: checks what only this fault promises; the rest is waited for. Gives a line, or
    /// nothing to say.
    fn watch<'a>(&'a mut self, _site: &'a mut Site<'_>) -> Step<'a, String> {
        Box::pin(async { Ok(String::new()) })
    }
    /// Takes it back. The stores are waited for afterwards.
    fn heal<'a>(&'a mut self, site: &'a mut Site<'_>) -> Step<'a, ()>;
}

/// The kinds of faults.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9 of any store
    KillOne,
    /// kill -9 of the leader
    KillLeader,
    /// kill -9 of all stores at once
    KillAll,
    /// SIGSTOP of the leader, SIGCONT later
    FreezeLeader,
    /// The leader is cut off from the others
    CutLeader,
    /// A follower is cut off from the others
    CutFollower,
    /// The leader and a follower do not hear each other; both hear the third
    CutPair,
    /// What one store sends arrives nowhere; what the others send arrives
    CutOneWay,
    /// No store hears another
    CutAll,
    /// A store's disk has no room left
    DiskFull,
    /// What power loss leaves at the end of the write-ahead log of a killed store
    TornTail,
    /// One bit of one file of a killed store is another
    FlippedBit,
    /// A store's clock is off, jumps ahead and back
    Clocks,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 13] = [
        Kind::KillOne,
        Kind::KillLeader,
        Kind::KillAll,
        Kind::FreezeLeader,
        Kind::CutLeader,
        Kind::CutFollower,
        Kind::CutPair,
        Kind::CutOneWay,
        Kind::CutAll,
        Kind::DiskFull,
        Kind::TornTail,
        Kind::FlippedBit,
        Kind::Clocks,
    ];

    /// Its name, as `--only` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::KillOne => "kill-one",
            Kind::KillLeader => "kill-leader",
            Kind::KillAll => "kill-all",
            Kind::FreezeLeader => "freeze-leader",
            Kind::CutLeader => "cut-leader",
            Kind::CutFollower => "cut-follower",
            Kind::CutPair => "cut-pair",
            Kind::CutOneWay => "cut-one-way",
            Kind::CutAll => "cut-all",
            Kind::DiskFull => "disk-full",
            Kind::TornTail => "torn-tail",
            Kind::FlippedBit => "flipped-bit",
            Kind::Clocks => "clocks",
        }
    }

    /// One of this kind, that lasts no longer than `longest`.
    pub fn make(self, dice: &mut Dice, longest: Duration) -> Box<dyn Fault> {
        match self {
            Kind::KillOne => Box::new(kill::Kill::one(dice)),
            Kind::KillLeader => Box::new(kill::Kill::leader(dice)),
            Kind::KillAll => Box::new(kill::Kill::all(dice)),
            Kind::FreezeLeader => Box::new(freeze::Freeze::new(dice, longest)),
            Kind::CutLeader => Box::new(partition::Partition::new(Shape::Leader, dice, longest)),
            Kind::CutFollower => {
                Box::new(partition::Partition::new(Shape::Follower, dice, longest))
            }
            Kind::CutPair => Box::new(partition::Partition::new(Shape::Pair, dice, longest)),
            Kind::CutOneWay => Box::new(partition::Partition::new(Shape::OneWay, dice, longest)),
            Kind::CutAll => Box::new(partition::Partition::new(Shape::All, dice, longest)),
            Kind::DiskFull => Box::new(disk_full::DiskFull::new(dice)),
            Kind::TornTail => Box::new(torn_tail::TornTail::new(dice)),
            Kind::FlippedBit => Box::new(flipped_bit::FlippedBit::new(dice)),
            Kind::Clocks => Box::new(clocks::Clocks::new(dice)),
        }
    }
}

/// Milliseconds drawn evenly.
fn millis(dice: &mut Dice, low: u64, high: u64) -> Duration {
    Duration::from_millis(dice.between(low, high))
}

/// A store that stopped by itself, as it may: with exit code 1, without a panic, with a clear last line,
/// which is returned.
fn clear_end(
    cluster: &Cluster,
    store: usize,
    status: std::process::ExitStatus,
) -> Result<String, ChaosError> {
    let log = cluster.node(store).log_since_start();
    let last = log.lines().last().unwrap_or_default().trim().to_owned();
    if status.code() == Some(1) && !log.contains("panicked at") && !last.is_empty() {
        Ok(last)
    } else {
        Err(ChaosError::Broken(format!(
            "store {} ended with {status} and without a clear line; the last it said: {last:?}",
            store + 1
        )))
    }
}
