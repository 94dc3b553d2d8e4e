//! How long writes stand still when a namespace changes its mode, as clients see it and as the stores do.
//!
//! Owns the rounds: strong, eventual and back under load, at several numbers of keys. Does not know how a
//! cluster is started. What is timed is the longest time between two acknowledgements of one caller around
//! each switch: a switch that nobody could see shows the time of a write.
//!
//! No call may fail, and every write that was acknowledged must be there in the end.

use crate::BenchError;
use crate::flaredb::FlareDb;
use rdb_client::proto::{convert, raft};
use rdb_client::{Client, ClientError, PutOptions, ReadOptions};
use rdb_types::Mode;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Callers that write while the mode changes.
const WRITERS: u64 = 16;
/// Writes under way while keys are loaded.
const LOADERS: u64 = 256;
/// Between two switches.
const CALM: Duration = Duration::from_millis(500);
/// How long a write may take before it counts as failed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
const NAMESPACE: &str = "switched";

/// What one switch cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Switched {
    to: Mode,
    /// The longest time between two acknowledgements of one caller.
    gap: Duration,
    /// How long the stores took no writes.
    pause: Duration,
}

/// The switches at one number of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switches {
    keys: u64,
    switches: Vec<Switched>,
    acknowledged: u64,
}

impl fmt::Display for Switches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys:", self.keys)?;
        for to in [Mode::Strong, Mode::Eventual] {
            let of = |what: fn(&Switched) -> Duration| {
                let switches = self.switches.iter().filter(|switch| switch.to == to);
                let mut times: Vec<Duration> = switches.map(what).collect();
                times.sort();
                let median = times.get(times.len() / 2).copied().unwrap_or_default();
                let worst = times.last().copied().unwrap_or_default();
                format!("median {:.1} ms, worst {:.1} ms", ms(median), ms(worst))
            };
            write!(
                f,
                " to {to}: longest wait of a caller {}",
                of(|switch| switch.gap)
            )?;
            if to == Mode::Strong {
                write!(
                    f,
                    "; no writes taken by a store {};",
                    of(|switch| switch.pause)
                )?;
            }
        }
        write!(
            f,
            "; {} other writes acknowledged, none failed, none lost",
            self.acknowledged
        )
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Starts three stores and switches a namespace there and back `times` times at each number of keys. `tell`
/// gets a line for each switch. An error: it could not be measured, or a write failed or was lost.
pub async fn measure(
    program: &Path,
    times: u32,
    keys: &[u64],
    tell: impl Fn(String),
) -> Result<Vec<Switches>, BenchError> {
    let stores = FlareDb::start(program, true).await?;
    let client = stores.client().clone();
    client
        .create_namespace(NAMESPACE, Some(Mode::Eventual), None)
        .await
        .map_err(|error| BenchError::because("no namespace to switch", error))?;
    let (mut loaded, mut found) = (0, Vec::new());
    for &keys in keys {
        load(&client, loaded, keys).await?;
        loaded = loaded.max(keys);
        let there = client
            .describe_namespace(NAMESPACE)
            .await
            .map_err(|error| BenchError::because("the namespace cannot be described", error))?;
        found.push(switches(&client, times, there.keys, &tell).await?);
    }
    Ok(found)
}

async fn load(client: &Client, first: u64, last: u64) -> Result<(), BenchError> {
    let next = Arc::new(AtomicU64::new(first));
    let mut loaders = JoinSet::new();
    for _ in 0..LOADERS {
        let (client, next) = (client.clone(), next.clone());
        loaders.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= last {
                    return Ok(());
                }
                put(&client, format!("key/{number:010}")).await?;
            }
        });
    }
    while let Some(ended) = loaders.join_next().await {
        ended
            .map_err(|error| BenchError::because("a loader broke", error))?
            .map_err(|error: ClientError| BenchError::because("a key is not loaded", error))?;
    }
    Ok(())
}

async fn switches(
    client: &Client,
    times: u32,
    keys: u64,
    tell: &impl Fn(String),
) -> Result<Switches, BenchError> {
    let load = Load::start(client);
    let mut switches = Vec::new();
    for round in 1..=times {
        for to in [Mode::Strong, Mode::Eventual] {
            sleep(CALM).await;
            load.longest_us.store(0, Ordering::Relaxed);
            let pause = switch(client, to).await?;
            // A write that waited for the end of it is acknowledged after it.
            sleep(CALM).await;
            let gap = Duration::from_micros(load.longest_us.load(Ordering::Relaxed));
            tell(format!(
                "{keys} keys, {round:>3}/{times} to {to}: longest wait of a caller {:.1} ms, no writes taken for {:.1} ms",
                ms(gap),
                ms(pause)
            ));
            switches.push(Switched { to, gap, pause });
        }
    }
    let acknowledged = load.stop(client).await?;
    Ok(Switches {
        keys,
        switches,
        acknowledged,
    })
}

/// Switches, waits for the end, and answers how long the stores took no writes for it.
async fn switch(client: &Client, to: Mode) -> Result<Duration, BenchError> {
    let request = raft::UpdateNamespaceModeRequest {
        namespace: NAMESPACE.to_owned(),
        mode: convert::mode_to_wire(to),
        wait: true,
        ..raft::UpdateNamespaceModeRequest::default()
    };
    let failed = |error| BenchError::because("a switch did not end", error);
    let mut changes = client.update_mode(request).await.map_err(failed)?;
    let mut pause = Duration::ZERO;
    while let Some(change) = changes.next().await.map_err(failed)? {
        if to == Mode::Strong {
            pause = Duration::from_micros(change.write_pause_us);
        }
    }
    Ok(pause)
}

/// Callers that write one key after the other.
struct Load {
    stop: Arc<AtomicBool>,
    /// The longest time between two acknowledgements of one caller since it was set to 0.
    longest_us: Arc<AtomicU64>,
    writers: JoinSet<Result<(u64, u64), ClientError>>,
}

impl Load {
    fn start(client: &Client) -> Load {
        let (stop, longest_us) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let (client, stop, longest_us) = (client.clone(), stop.clone(), longest_us.clone());
            writers.spawn(async move {
                let mut count = 0;
                let mut last = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    put(&client, key(writer, count)).await?;
                    let now = Instant::now();
                    longest_us.fetch_max((now - last).as_micros() as u64, Ordering::Relaxed);
                    last = now;
                    count += 1;
                }
                Ok((writer, count))
            });
        }
        Load {
            stop,
            longest_us,
            writers,
        }
    }

    /// Ends the load; the number of writes that were acknowledged, all of which are there.
    async fn stop(mut self, client: &Client) -> Result<u64, BenchError> {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = 0;
        while let Some(ended) = self.writers.join_next().await {
            let (writer, count) = ended
                .map_err(|error| BenchError::because("a writer broke", error))?
                .map_err(|error| BenchError::because("a write failed", error))?;
            acknowledged += count;
            // The last one of each, and some between.
            for number in (0..count).rev().step_by(97) {
                let key = key(writer, number);
                let answer = client
                    .get(NAMESPACE, key.clone(), ReadOptions::default())
                    .await
                    .map_err(|error| BenchError::because("cannot read what was written", error))?;
                if !answer.found {
                    return Err(BenchError(format!(
                        "LOST: the write of {key} was acknowledged and is gone"
                    )));
                }
            }
        }
        Ok(acknowledged)
    }
}

/// A key is written again and again, so that the number of keys stays.
fn key(writer: u64, number: u64) -> String {
    format!("load/{writer}/{}", number % 1000)
}

async fn put(client: &Client, key: String) -> Result<(), ClientError> {
    let options = PutOptions {
        timeout: Some(WRITE_TIMEOUT),
        ..PutOptions::default()
    };
    let value = vec![b'x'; 100];
    client.put(NAMESPACE, key, value, options).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_tells_both_directions() {
        let switched = |to, gap, pause| Switched {
            to,
            gap: Duration::from_millis(gap),
            pause: Duration::from_millis(pause),
        };
        let found = Switches {
            keys: 1000,
            switches: vec![
                switched(Mode::Strong, 20, 12),
                switched(Mode::Eventual, 3, 0),
                switched(Mode::Strong, 40, 30),
                switched(Mode::Strong, 30, 14),
            ],
            acknowledged: 7,
        };
        let text = found.to_string();
        assert!(
            text.contains("to strong: longest wait of a caller median 30.0 ms, worst 40.0 ms"),
            "{text}"
        );
        assert!(
            text.contains("taken by a store median 14.0 ms, worst 30.0 ms"),
            "{text}"
        );
        assert!(
            text.contains("to eventual: longest wait of a caller median 3.0 ms"),
            "{text}"
        );
    }
}
