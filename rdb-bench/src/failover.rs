//! How long writes stand still when the leader is killed, as a client sees it.
//!
//! Owns the rounds: kill -9 of the leader's process, a write, its acknowledgement, the restart. Does
//! not know how a cluster is started, nor how results are shown beyond their lines.
//!
//! What is timed is a write that begins with the kill, through the same client as everybody's; so no
//! answer that the dead leader sent before can be taken for it. Other callers write all the while. None
//! of their calls may fail, and every write that was acknowledged must be there in the end: a failover
//! that loses one is no result, but an error.

use crate::BenchError;
use crate::flaredb::{FlareDb, NAMESPACE};
use crate::process::NODES;
use futures::TryStreamExt;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rdb_client::{Client, ClientError, PutOptions, ReadOptions, ScanOptions};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Callers that write while leaders die.
const WRITERS: u64 = 4;
/// Between two writes of one of them: a load, but none that fills the machine.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a write may take before it counts as failed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a restarted store may take until it has what it missed.
const CATCH_UP: Duration = Duration::from_secs(60);
/// Between a store's return and the next kill; drawn, so that kills meet every phase of a heartbeat.
const CALM_MS: std::ops::Range<u64> = 1000..1500;

/// What a run found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failovers {
    /// From each kill to the acknowledgement of the write that began with it; sorted.
    times: Vec<Duration>,
    /// Writes of the other callers that were acknowledged. All are there.
    pub acknowledged: usize,
}

impl Failovers {
    /// The time that `share` of all (0 to 1) did not exceed: the nearest rank.
    fn quantile(&self, share: f64) -> Duration {
        let rank = (share * self.times.len() as f64).ceil() as usize;
        self.times[rank.clamp(1, self.times.len()) - 1]
    }
}

impl std::fmt::Display for Failovers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "failover over {} kills: median {} ms, p90 {} ms, worst {} ms; {} other writes acknowledged \
             meanwhile, none failed, none lost",
            self.times.len(),
            self.quantile(0.5).as_millis(),
            self.quantile(0.9).as_millis(),
            self.quantile(1.0).as_millis(),
            self.acknowledged
        )
    }
}

/// Starts three stores and kills whoever leads, `times` times (at least once). `tell` gets a line for
/// each. An error: it could not be measured, or a write failed or was lost.
pub async fn measure(
    program: &Path,
    times: u32,
    tell: impl Fn(String),
) -> Result<Failovers, BenchError> {
    let mut stores = FlareDb::start(program, true).await?;
    let client = stores.client().clone();
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(client.clone(), writer, stop.clone()));
    }
    let mut random = SmallRng::from_rng(&mut rand::rng());
    let mut took = Vec::new();
    for round in 1..=times {
        sleep(Duration::from_millis(random.random_range(CALM_MS))).await;
        let leader = leader(&client).await?;
        let began = Instant::now();
        stores.cluster().kill(leader)?;
        put(&client, format!("probe/{round}"))
            .await
            .map_err(|error| BenchError::because("no write after a leader's end", error))?;
        took.push(began.elapsed());
        tell(format!(
            "{round:>3}/{times}  store {} killed, next write acknowledged after {} ms",
            leader + 1,
            began.elapsed().as_millis()
        ));
        stores.cluster().restart(leader)?;
        caught_up(&mut stores, leader, &format!("probe/{round}")).await?;
        if let Some(ended) = writers.try_join_next() {
            return Err(broken(ended));
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut counts = vec![0; WRITERS as usize];
    while let Some(ended) = writers.join_next().await {
        match ended {
            Ok(Ok((writer, count))) => counts[writer as usize] = count,
            ended => return Err(broken(ended)),
        }
    }
    for (writer, count) in (0..).zip(&counts) {
        all_there(&client, writer, *count).await?;
    }
    took.sort();
    Ok(Failovers {
        times: took,
        acknowledged: counts.iter().sum(),
    })
}

/// A writer that ended before it was told to.
fn broken(ended: Result<Result<(u64, usize), ClientError>, tokio::task::JoinError>) -> BenchError {
    match ended {
        Ok(Ok(_)) => BenchError("a writer stopped by itself".to_owned()),
        Ok(Err(error)) => BenchError::because("a write under way was lost", error),
        Err(error) => BenchError::because("a writer broke", error),
    }
}

/// Writes one key after the other until told to stop: its number, and how many were acknowledged.
async fn write(
    client: Client,
    writer: u64,
    stop: Arc<AtomicBool>,
) -> Result<(u64, usize), ClientError> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        put(&client, key(writer, count)).await?;
        count += 1;
        sleep(PAUSE).await;
    }
    Ok((writer, count))
}

fn key(writer: u64, number: usize) -> String {
    format!("load/{writer}/{number:010}")
}

async fn put(client: &Client, key: String) -> Result<(), ClientError> {
    let options = PutOptions {
        timeout: Some(WRITE_TIMEOUT),
        ..PutOptions::default()
    };
    client.put(NAMESPACE, key, "x", options).await.map(drop)
}

/// An error unless all of a writer's keys are there.
async fn all_there(client: &Client, writer: u64, count: usize) -> Result<(), BenchError> {
    let options = ScanOptions {
        prefix: format!("load/{writer}/").into(),
        keys_only: true,
        read: ReadOptions::linearizable(),
        ..ScanOptions::default()
    };
    let found: Vec<_> = client
        .scan(NAMESPACE, options)
        .map_ok(|entry| entry.key)
        .try_collect()
        .await
        .map_err(|error| BenchError::because("cannot read what was written", error))?;
    let missing = (0..count).map(|number| key(writer, number)).find(|key| {
        found
            .binary_search_by(|found| (**found).cmp(key.as_bytes()))
            .is_err()
    });
    match missing {
        Some(key) => Err(BenchError(format!(
            "LOST: the write of {key} was acknowledged and is gone"
        ))),
        None => Ok(()),
    }
}

/// The number of the store that leads the namespace's region. That a store says so of itself counts,
/// and of several the one in the latest term.
async fn leader(client: &Client) -> Result<usize, BenchError> {
    let answer = client
        .get(NAMESPACE, "probe/0", ReadOptions::linearizable())
        .await
        .map_err(|error| BenchError::because("no read between two kills", error))?;
    let region = answer.receipt.map_or(0, |receipt| receipt.region_id);
    let status = client
        .cluster_status()
        .await
        .map_err(|error| BenchError::because("FlareDB's status", error))?;
    let leads = status
        .stores
        .iter()
        .filter_map(|store| {
            let id = store.member.as_ref()?.store_id;
            let reports = &store.status.as_ref()?.regions;
            let report = reports.iter().find(|it| it.region_id == region)?;
            (report.leader == id).then_some((report.term, id))
        })
        .max();
    match leads {
        Some((_, id)) if (1..=NODES).contains(&(id as usize)) => Ok(id as usize - 1),
        _ => Err(BenchError(format!(
            "nobody says that it leads region {region}"
        ))),
    }
}

/// Waits until a restarted store has `key` itself.
async fn caught_up(stores: &mut FlareDb, number: usize, key: &str) -> Result<(), BenchError> {
    let restarted = stores.client().on_endpoint(number);
    let give_up = Instant::now() + CATCH_UP;
    let read = ReadOptions {
        timeout: Some(Duration::from_secs(1)),
        ..ReadOptions::stale()
    };
    loop {
        stores.cluster().check()?;
        let found = restarted.get(NAMESPACE, key.to_owned(), read.clone()).await;
        if found.is_ok_and(|answer| answer.found) {
            return Ok(());
        }
        if Instant::now() > give_up {
            let words = stores.cluster().last_words(number);
            return Err(BenchError(format!(
                "store {} does not have within {} s what it missed; {words}",
                number + 1,
                CATCH_UP.as_secs()
            )));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_the_ninetieth_of_a_hundred_and_the_worst() {
        let failovers = |count: u64| Failovers {
            times: (1..=count)
                .map(|n| Duration::from_millis(n * 100))
                .collect(),
            acknowledged: 7,
        };
        let text = failovers(20).to_string();
        assert!(
            text.contains("median 1000 ms, p90 1800 ms, worst 2000 ms"),
            "{text}"
        );
        let text = failovers(1).to_string();
        assert!(
            text.contains("median 100 ms, p90 100 ms, worst 100 ms"),
            "{text}"
        );
    }
}
