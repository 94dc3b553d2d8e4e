//! The closed loop, and the alternation of targets.
//!
//! Owns when what is measured. Does not know what a target is.
//!
//! A measurement begins when all callers are connected and ends when the window does; calls that are
//! under way then are waited for, and not counted.

use crate::BenchError;
use crate::plan::{Op, Plan, Workload};
use crate::target::{Caller, Kind, Target};
use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::Serialize;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Latencies from 1 microsecond to a minute, to three digits.
const HIGHEST_US: u64 = 60_000_000;

/// Callers while the keys are loaded.
const LOADERS: u64 = 256;

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Which round it belongs to, from 1.
    pub round: usize,
    /// What was measured.
    pub kind: Kind,
    /// With which workload.
    #[serde(flatten)]
    pub workload: Workload,
    /// Calls that ended well within the window.
    pub operations: u64,
    /// Calls that failed. More than a few make the sample worthless.
    pub errors: u64,
    /// The first error, if there was one.
    pub error: Option<String>,
    /// Calls that ended well, a second.
    pub per_second: f64,
    /// Latencies in microseconds.
    pub p50_us: u64,
    /// 99 of 100 were quicker.
    pub p99_us: u64,
    /// The slowest.
    pub max_us: u64,
}

/// Writes all keys once. How long that took.
pub async fn load<T: Target>(target: &T, plan: &Plan) -> Result<Duration, BenchError> {
    let began = Instant::now();
    let callers = target.callers(LOADERS as usize).await?;
    let mut tasks = JoinSet::new();
    for (first, caller) in (0..).zip(callers) {
        let plan = plan.clone();
        tasks.spawn(async move {
            let mut random = SmallRng::seed_from_u64(first);
            for number in (first..plan.keys).step_by(LOADERS as usize) {
                caller
                    .put(plan.key(number), plan.value(&mut random))
                    .await?;
            }
            Ok::<(), String>(())
        });
    }
    while let Some(loaded) = tasks.join_next().await {
        let loaded = loaded.map_err(|error| BenchError::because("a loader broke", error))?;
        loaded.map_err(|error| BenchError::because(format!("loading {}", target.kind()), error))?;
    }
    Ok(began.elapsed())
}

/// Measures one workload on one target.
pub async fn measure<T: Target>(
    target: &T,
    plan: &Plan,
    workload: Workload,
    round: usize,
) -> Result<Sample, BenchError> {
    let callers = target.callers(workload.callers).await?;
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    let end = began + plan.window();
    for (number, caller) in (0u64..).zip(callers) {
        let plan = plan.clone();
        let seed = (round as u64) << 32 | number;
        tasks.spawn(async move { Tally::of(caller, &plan, workload.op, end, seed).await });
    }
    let mut total = Tally::new()?;
    while let Some(tally) = tasks.join_next().await {
        let tally = tally.map_err(|error| BenchError::because("a caller broke", error))??;
        total.add(tally)?;
    }
    Ok(Sample {
        round,
        kind: target.kind(),
        workload,
        operations: total.latencies_us.len(),
        errors: total.errors,
        error: total.error,
        per_second: total.latencies_us.len() as f64 / plan.window().as_secs_f64(),
        p50_us: total.latencies_us.value_at_quantile(0.5),
        p99_us: total.latencies_us.value_at_quantile(0.99),
        max_us: total.latencies_us.max(),
    })
}

/// What callers counted.
struct Tally {
    latencies_us: Histogram<u64>,
    errors: u64,
    error: Option<String>,
}

impl Tally {
    fn new() -> Result<Tally, BenchError> {
        let latencies_us = Histogram::new_with_bounds(1, HIGHEST_US, 3)
            .map_err(|error| BenchError::because("no histogram", error))?;
        Ok(Tally {
            latencies_us,
            errors: 0,
            error: None,
        })
    }

    /// One caller's loop.
    async fn of(
        caller: impl Caller,
        plan: &Plan,
        op: Op,
        end: Instant,
        seed: u64,
    ) -> Result<Tally, BenchError> {
        let mut tally = Tally::new()?;
        let mut random = SmallRng::seed_from_u64(seed);
        loop {
            let key = plan.any_key(&mut random);
            let began = Instant::now();
            let done = match op {
                Op::Put => caller.put(key, plan.value(&mut random)).await,
                Op::Get => match caller.get(key).await {
                    Ok(bytes) if bytes == plan.value_bytes => Ok(()),
                    Ok(bytes) => Err(format!(
                        "a value of {bytes} bytes, not the {} that were loaded",
                        plan.value_bytes
                    )),
                    Err(error) => Err(error),
                },
            };
            let now = Instant::now();
            if now >= end {
                return Ok(tally);
            }
            match done {
                Ok(()) => tally
                    .latencies_us
                    .saturating_record((now - began).as_micros() as u64),
                Err(error) => {
                    tally.errors += 1;
                    tally.error.get_or_insert(error);
                    // One that fails at once must not fill the window with failures.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    fn add(&mut self, other: Tally) -> Result<(), BenchError> {
        self.latencies_us
            .add(&other.latencies_us)
            .map_err(|error| BenchError::because("histograms do not add up", error))?;
        self.errors += other.errors;
        self.error = self.error.take().or(other.error);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Answers after a fixed time; fails every nth call.
    #[derive(Clone)]
    struct Fixed {
        takes: Duration,
        fails_every: u64,
        calls: Arc<AtomicU64>,
    }

    impl Caller for Fixed {
        async fn put(&self, _: Bytes, value: Bytes) -> Result<(), String> {
            self.get(value).await.map(drop)
        }

        async fn get(&self, _: Bytes) -> Result<usize, String> {
            tokio::time::sleep(self.takes).await;
            let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
            if call.is_multiple_of(self.fails_every) {
                Err("no".to_owned())
            } else {
                Ok(16)
            }
        }
    }

    impl Target for Fixed {
        type Caller = Fixed;

        fn kind(&self) -> Kind {
            Kind::Etcd
        }

        fn version(&self) -> String {
            String::new()
        }

        async fn callers(&self, count: usize) -> Result<Vec<Fixed>, BenchError> {
            Ok(vec![self.clone(); count])
        }

        fn resident_bytes(&self) -> Vec<u64> {
            Vec::new()
        }
    }

    fn fixed(fails_every: u64) -> Fixed {
        Fixed {
            takes: Duration::from_millis(10),
            fails_every,
            calls: Arc::default(),
        }
    }

    fn plan() -> Plan {
        Plan {
            workloads: Vec::new(),
            rounds: 1,
            seconds: 1.0,
            keys: 1000,
            value_bytes: 16,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_counts_what_ended_in_the_window() {
        let sample = measure(
            &fixed(u64::MAX),
            &plan(),
            Workload {
                op: Op::Get,
                callers: 4,
            },
            1,
        )
        .await
        .unwrap();
        // 100 calls of 10 ms fit into a second; the one that ends with the window does not count.
        assert_eq!((sample.operations, sample.errors), (4 * 99, 0));
        assert_eq!(sample.per_second, 396.0);
        assert!(
            (9_990..=10_010).contains(&sample.p50_us),
            "{}",
            sample.p50_us
        );
    }

    #[tokio::test(start_paused = true)]
    async fn errors_are_counted_and_quoted_and_are_no_operations() {
        let sample = measure(
            &fixed(10),
            &plan(),
            Workload {
                op: Op::Put,
                callers: 1,
            },
            1,
        )
        .await
        .unwrap();
        assert!(sample.errors > 5 && sample.operations < 99, "{sample:?}");
        assert_eq!(sample.error.as_deref(), Some("no"));
        let wrong_size = Plan {
            value_bytes: 17,
            ..plan()
        };
        let sample = measure(
            &fixed(u64::MAX),
            &wrong_size,
            Workload {
                op: Op::Get,
                callers: 1,
            },
            1,
        )
        .await
        .unwrap();
        assert_eq!(sample.operations, 0);
        assert!(sample.error.unwrap().contains("16 bytes"));
    }

    #[tokio::test(start_paused = true)]
    async fn loading_writes_each_key_once_or_says_why_not() {
        let target = fixed(u64::MAX);
        load(&target, &plan()).await.unwrap();
        assert_eq!(target.calls.load(Ordering::Relaxed), 1000);
        let error = load(&fixed(7), &plan()).await.unwrap_err();
        assert_eq!(error.to_string(), "loading etcd: no");
    }
}
