//! What a load saw, and whether it keeps the promises.
//!
//! Owns the last reads, and the application of `rdb-check`'s judges to the whole. Whether a history is
//! linearizable is decided there, not here.

use super::{Ack, LoadOptions, OWN, Seen, outage, shared_key};
use crate::ChaosError;
use crate::registers::Registers;
use crate::wait::eventually;
use rdb_check::{Call, Op, Outcome, Recorder, Verdict, check_linearizable, set};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;
use tokio::time::Instant;

/// The load is over and everything healed: a store answers at once, or something is broken. The rest
/// is for a busy machine.
const LAST_READ: Duration = Duration::from_secs(30);
/// A load that does next to nothing proves nothing.
const LEAST_WRITES: usize = 100;

/// What all clients saw.
pub struct Loaded {
    pub(crate) seen: Seen,
    pub(crate) panics: Vec<String>,
    pub(crate) options: LoadOptions,
    pub(crate) eras: u64,
    pub(crate) recorder: Recorder,
}

/// A history that keeps every promise.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// Calls on shared keys.
    pub calls: usize,
    /// Those of them that changed something or not: nobody knows.
    pub unknown: usize,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Failed calls, by reason.
    pub errors: BTreeMap<String, u64>,
    /// What became of the keys that were put once.
    pub own_keys: String,
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} calls on shared keys ({} of unknown outcome): linearizable; {} writes acknowledged, \
             failed calls {:?}\nkeys put once: {}",
            self.calls, self.unknown, self.acknowledged, self.errors, self.own_keys
        )
    }
}

impl Loaded {
    /// Calls on shared keys, so far.
    pub fn calls(&self) -> Vec<Call> {
        self.recorder.calls()
    }

    /// The writes that were acknowledged, by the time of their answer.
    pub fn acks(&self) -> &[Ack] {
        &self.seen.acks
    }

    /// Failed calls, by reason.
    pub fn errors(&self) -> &BTreeMap<String, u64> {
        &self.seen.errors
    }

    /// From `fault` to the answer of the first write that was begun after it; `None`: there was none.
    pub fn outage(&self, fault: Instant) -> Option<Duration> {
        outage(&self.seen.acks, fault)
    }

    /// The longest time between two acknowledged writes.
    pub fn longest_silence(&self) -> Duration {
        let gaps = self
            .seen
            .acks
            .windows(2)
            .map(|pair| pair[1].answered - pair[0].answered);
        gaps.max().unwrap_or_default()
    }

    /// Reads every shared key once more through each of `readers` (one for each store, linearizable),
    /// and judges everything.
    ///
    /// # Errors
    ///
    /// [`ChaosError::Broken`] with the promise that does not hold, and why.
    pub async fn judge<R: Registers>(&self, readers: &[R]) -> Result<Judgement, ChaosError> {
        for (process, reader) in (1_000_000..).zip(readers) {
            for key in 0..self.eras * self.options.keys {
                self.read_last(process, key, reader).await?;
            }
        }
        if let Some(panic) = self.panics.first() {
            return Err(ChaosError::Harness(format!("a client panicked: {panic}")));
        }
        if let Some(nonsense) = &self.seen.nonsense {
            return Err(ChaosError::Broken(nonsense.clone()));
        }
        if self.seen.acks.len() < LEAST_WRITES {
            return Err(ChaosError::Broken(format!(
                "only {} writes were acknowledged: that proves nothing; failed calls {:?}",
                self.seen.acks.len(),
                self.seen.errors
            )));
        }
        let calls = self.calls();
        let count = calls.len();
        let unknown = calls
            .iter()
            .filter(|call| call.outcome == Outcome::Unknown && call.op != Op::Read)
            .count();
        let verdict = judge_history(calls).await?;
        if !verdict.is_linearizable() {
            return Err(ChaosError::Broken(format!(
                "the history of {count} calls ({unknown} of unknown outcome): {verdict}"
            )));
        }
        let mut own_keys = String::new();
        for (store, reader) in (1..).zip(readers) {
            own_keys = self.judge_own(store, reader).await?;
        }
        Ok(Judgement {
            calls: count,
            unknown,
            acknowledged: self.seen.acks.len(),
            errors: self.seen.errors.clone(),
            own_keys,
        })
    }

    async fn read_last<R: Registers>(
        &self,
        process: u64,
        key: u64,
        reader: &R,
    ) -> Result<(), ChaosError> {
        eventually(LAST_READ, "the last read of a key", async || {
            let token = self.recorder.invoke(process, key, Op::Read);
            match reader.read(shared_key(key)).await {
                Ok((_, value)) => {
                    self.recorder.complete(token, Outcome::Read(value));
                    Ok(())
                }
                Err(failed) => {
                    self.recorder.complete(token, Outcome::NotApplied);
                    Err(failed.text)
                }
            }
        })
        .await
    }

    async fn judge_own<R: Registers>(&self, store: u64, reader: &R) -> Result<String, ChaosError> {
        let found = eventually(LAST_READ, "the last scan", async || {
            reader.keys(OWN).await.map_err(|failed| failed.text)
        })
        .await?;
        let sneaked: Vec<&String> = self.seen.refused.intersection(&found).collect();
        if !sneaked.is_empty() {
            return Err(ChaosError::Broken(format!(
                "at store {store}: these were refused as not applied, and are there: {sneaked:?}"
            )));
        }
        let report = set::check(&self.seen.acknowledged, &self.seen.unknown, &found);
        if !report.is_ok() {
            return Err(ChaosError::Broken(format!("at store {store}: {report}")));
        }
        Ok(report.to_string())
    }
}

/// What the checker says of a history; it may take a while, and other tasks go on.
///
/// # Errors
///
/// When the checker itself failed.
pub async fn judge_history(calls: Vec<Call>) -> Result<Verdict, ChaosError> {
    tokio::task::spawn_blocking(move || check_linearizable(&calls))
        .await
        .map_err(|error| ChaosError::because("the checker failed", error))
}

/// What of `acknowledged` is missing in a scan through `reader`.
///
/// # Errors
///
/// When the scan failed.
pub async fn missing<R: Registers>(
    acknowledged: &BTreeSet<String>,
    reader: &R,
) -> Result<Vec<String>, String> {
    let found = reader.keys(OWN).await.map_err(|failed| failed.text)?;
    Ok(acknowledged.difference(&found).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Load;
    use crate::registers::Failed;
    use parking_lot::Mutex;
    use std::sync::Arc;

    /// What a store of the test does wrong.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Defect {
        None,
        /// Every tenth read is of what was there before the last write.
        StaleReads,
        /// One key that was put once is not kept.
        LosesOne,
        /// Says of one write that it was not applied, and applies it.
        LiesOnce,
        /// Holds what is no number.
        Nonsense,
    }

    /// Version, value, and the value before it.
    type Held = (u64, Option<u64>, Option<u64>);

    /// A store in memory.
    #[derive(Clone)]
    struct Memory {
        keys: Arc<Mutex<BTreeMap<String, Held>>>,
        turn: Arc<Mutex<u64>>,
        defect: Defect,
    }

    impl Memory {
        fn next(&self) -> u64 {
            let mut turn = self.turn.lock();
            *turn += 1;
            *turn
        }

        fn set(&self, key: String, value: Option<u64>) {
            let version = self.next();
            let mut keys = self.keys.lock();
            let before = keys.get(&key).and_then(|held| held.1);
            keys.insert(key, (version, value, before));
        }
    }

    fn refused(reason: &str, not_applied: bool) -> Failed {
        Failed {
            reason: reason.to_owned(),
            text: reason.to_owned(),
            not_applied,
        }
    }

    impl Registers for Memory {
        async fn read(&self, key: String) -> Result<(u64, Option<u64>), Failed> {
            let turn = self.next();
            if self.defect == Defect::Nonsense && turn.is_multiple_of(50) {
                return Err(refused(crate::registers::NOT_A_NUMBER, false));
            }
            let (version, value, before) = self.keys.lock().get(&key).copied().unwrap_or_default();
            if self.defect == Defect::StaleReads && turn.is_multiple_of(10) {
                return Ok((version, before));
            }
            Ok((if value.is_some() { version } else { 0 }, value))
        }

        async fn write(&self, key: String, value: u64) -> Result<(), Failed> {
            let own = key.ends_with("/00000020") || key.ends_with("/00000021");
            if self.defect == Defect::LosesOne && own {
                return Ok(());
            }
            self.set(key, Some(value));
            if self.defect == Defect::LiesOnce && own {
                return Err(refused("NO_QUORUM", true));
            }
            Ok(())
        }

        async fn delete(&self, key: String) -> Result<(), Failed> {
            self.set(key, None);
            Ok(())
        }

        async fn swap(&self, key: String, version: u64, value: u64) -> Result<bool, Failed> {
            let (at, held, _) = self.keys.lock().get(&key).copied().unwrap_or_default();
            let at = if held.is_some() { at } else { 0 };
            if at == version {
                self.set(key, Some(value));
            }
            Ok(at == version)
        }

        async fn keys(&self, prefix: &'static str) -> Result<BTreeSet<String>, Failed> {
            let keys = self.keys.lock();
            let found = keys
                .iter()
                .filter(|(key, held)| key.starts_with(prefix) && held.1.is_some());
            Ok(found.map(|(key, _)| key.clone()).collect())
        }
    }

    /// One thread: what the store does in one call nobody interrupts.
    async fn judged(defect: Defect) -> Result<Judgement, ChaosError> {
        let store = Memory {
            keys: Arc::default(),
            turn: Arc::default(),
            defect,
        };
        let options = LoadOptions {
            pace: Duration::from_millis(1),
            ..LoadOptions::default()
        };
        let load = Load::start(vec![store.clone(); 6], options);
        load.more(200).await?;
        load.next_era();
        load.more(1200).await?;
        load.stop().await.judge(&[store]).await
    }

    #[tokio::test]
    async fn a_store_that_is_right_passes() {
        let judgement = judged(Defect::None).await.unwrap();
        assert!(judgement.calls > 800, "{judgement}");
        assert_eq!(judgement.unknown, 0);
    }

    #[tokio::test]
    async fn every_defect_is_caught() {
        for (defect, said) in [
            (Defect::StaleReads, "not linearizable"),
            (Defect::LosesOne, "missing"),
            (Defect::LiesOnce, "refused as not applied, and are there"),
            (Defect::Nonsense, "NOT_A_NUMBER"),
        ] {
            let error = judged(defect).await.unwrap_err().to_string();
            assert!(error.contains(said), "{defect:?}: {error}");
        }
    }
}
