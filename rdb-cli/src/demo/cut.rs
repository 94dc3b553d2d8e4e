//! A store that is cut off from the others, as its clients meet it.
//!
//! Owns the questions that are put to it while the cut lasts: does it refuse writes, and after how
//! long; does it refuse linearizable reads; do its stale reads say how old they are; and do the others
//! go on. Judges nothing.

use super::cluster::Cluster;
use super::load::{NAMESPACE, Shared, orders};
use crate::exit::Error;
use rdb_client::{Client, ClientError, Outcome, PutOptions, ReadOptions};
use rdb_types::{Reason, StoreId};
use std::time::{Duration, Instant};
use tokio::time::{sleep, sleep_until};

/// A key that only this module writes.
const MARKER: &str = "marker";
const BEFORE: &str = "before the cut";
const AFTER: &str = "after the cut";

/// Between two questions of one kind.
const PAUSE: Duration = Duration::from_millis(100);

/// What was seen.
#[derive(Debug)]
pub(super) struct CutOff {
    /// The first NO_QUORUM to a write that was sent after the cut.
    pub(super) refusal: Option<Refusal>,
    /// Writes that the store acknowledged though it was alone.
    pub(super) wrote_alone: u64,
    /// From the cut until the others acknowledged a write, or why they did not.
    pub(super) others_wrote_after: Result<Duration, String>,
    /// Linearizable reads that it refused.
    pub(super) reads_refused: u64,
    /// Linearizable reads that it answered with what had been overwritten by then.
    pub(super) reads_outdated: u64,
    /// Stale reads that it answered.
    pub(super) stale_reads: Vec<StaleRead>,
    /// What else went wrong with stale reads.
    pub(super) stale_failed: Option<String>,
}

/// A write that was refused for want of a quorum.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Since the cut.
    pub(super) after: Duration,
    /// How long that call took.
    pub(super) took: Duration,
    pub(super) reached: String,
    pub(super) needed: String,
    pub(super) outcome: Outcome,
}

/// A read of what the store has.
#[derive(Debug, Clone, Copy)]
pub(super) struct StaleRead {
    /// How long ago, at least, what it returned was overwritten elsewhere. Zero: it was current.
    pub(super) age: Duration,
    /// How old it says that it may be, at most.
    pub(super) bound: Duration,
}

/// Cuts `store` off for at least `how_long`, and asks. The cut stays.
pub(super) async fn watch(
    cluster: &Cluster,
    shared: &Shared,
    store: StoreId,
    how_long: Duration,
) -> Result<CutOff, Error> {
    let others: Vec<StoreId> = cluster
        .ids()
        .into_iter()
        .filter(|&other| other != store)
        .collect();
    let there = cluster.probe(store)?;
    let elsewhere = cluster.client_of(&others)?;
    shared
        .client
        .put(NAMESPACE, MARKER, BEFORE, PutOptions::default())
        .await?;
    // Linearizable, so that the store is known to have it.
    there
        .get(NAMESPACE, MARKER, ReadOptions::linearizable())
        .await?;

    cluster.isolate(store);
    let cut = Instant::now();
    let until = cut + how_long;
    let reads = async {
        let written = elsewhere
            .put(NAMESPACE, MARKER, AFTER, PutOptions::default())
            .await;
        let overwritten = Instant::now();
        if let Err(error) = written {
            // Nothing is known to be old now: there is nothing to ask.
            return (Err(error.to_string()), (0, 0), (Vec::new(), None));
        }
        let (fresh, stale) = tokio::join!(
            read_fresh(&there, until),
            read_stale(&there, overwritten, until)
        );
        (Ok(overwritten - cut), fresh, stale)
    };
    let ((refusal, wrote_alone), (others_wrote_after, fresh, stale)) =
        tokio::join!(write_alone(shared, &there, cut), reads);
    sleep_until(until.into()).await;
    let ((reads_refused, reads_outdated), (stale_reads, stale_failed)) = (fresh, stale);
    Ok(CutOff {
        refusal,
        wrote_alone,
        others_wrote_after,
        reads_refused,
        reads_outdated,
        stale_reads,
        stale_failed,
    })
}

/// Writes until the store says that it has no quorum. What it was given counts as an order like any
/// other: acknowledged means found at the end.
async fn write_alone(shared: &Shared, there: &Client, cut: Instant) -> (Option<Refusal>, u64) {
    let mut acknowledged = 0;
    for number in 0u64.. {
        let began = Instant::now();
        let key = format!("{}cut/{number:06}", orders::PREFIX);
        match orders::place(shared, there, key).await {
            Ok(()) => acknowledged += 1,
            Err(error) if error.reason == Some(Reason::NoQuorum) => {
                let metadata = |name| {
                    error
                        .metadata
                        .get(name)
                        .cloned()
                        .unwrap_or_else(|| "?".to_owned())
                };
                let (reached, needed) = (metadata("reached"), metadata("needed"));
                let refusal = Refusal {
                    after: cut.elapsed(),
                    took: began.elapsed(),
                    reached,
                    needed,
                    outcome: error.outcome,
                };
                return (Some(refusal), acknowledged);
            }
            Err(error) => tracing::debug!(%error, "not yet NO_QUORUM"),
        }
        if cut.elapsed() > Duration::from_secs(15) {
            break;
        }
        sleep(PAUSE).await;
    }
    (None, acknowledged)
}

/// Linearizable reads, all begun after the marker was overwritten elsewhere: refused, and answered with
/// what had been overwritten.
async fn read_fresh(there: &Client, until: Instant) -> (u64, u64) {
    let (mut refused, mut outdated) = (0, 0);
    // At least one, however late the others were.
    loop {
        match there
            .get(NAMESPACE, MARKER, ReadOptions::linearizable())
            .await
        {
            Ok(answer) if answer.value != AFTER.as_bytes() => outdated += 1,
            Ok(_) => {}
            Err(_) => refused += 1,
        }
        if Instant::now() > until {
            return (refused, outdated);
        }
        sleep(PAUSE).await;
    }
}

/// Stale reads, and how old each was.
async fn read_stale(
    there: &Client,
    overwritten: Instant,
    until: Instant,
) -> (Vec<StaleRead>, Option<String>) {
    let mut reads = Vec::new();
    loop {
        let age = overwritten.elapsed();
        match read_once(there, age).await {
            Ok(read) => reads.push(read),
            Err(error) => return (reads, Some(error.to_string())),
        }
        if Instant::now() > until {
            return (reads, None);
        }
        sleep(PAUSE).await;
    }
}

async fn read_once(there: &Client, age: Duration) -> Result<StaleRead, ClientError> {
    let answer = there.get(NAMESPACE, MARKER, ReadOptions::stale()).await?;
    let bound = Duration::from_millis(
        answer
            .receipt
            .map_or(0, |receipt| receipt.staleness_bound_ms),
    );
    let is_current = answer.value == AFTER.as_bytes();
    Ok(StaleRead {
        age: if is_current { Duration::ZERO } else { age },
        bound,
    })
}
