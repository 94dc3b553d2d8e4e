//! What is measured.
//!
//! Owns the choices of a run and the making of keys and values. Pure, but for the dice.

use bytes::Bytes;
use rand::RngExt;
use rand::rngs::SmallRng;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// An operation on one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// Write a value over a loaded key, synced on a quorum.
    Put,
    /// Read a loaded key, linearizably.
    Get,
}

/// One thing that is measured on every target in every round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Workload {
    /// What each caller does.
    pub op: Op,
    /// How many callers there are.
    pub callers: usize,
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// In this order, in every round.
    pub workloads: Vec<Workload>,
    /// How often everything is measured.
    pub rounds: usize,
    /// How long each measurement takes.
    pub seconds: f64,
    /// Keys that are loaded first, and used.
    pub keys: u64,
    /// Size of each value.
    pub value_bytes: usize,
}

impl Plan {
    /// How long each measurement takes.
    pub fn window(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// The nth key.
    pub fn key(&self, number: u64) -> Bytes {
        format!("key/{number:010}").into()
    }

    /// A key drawn evenly.
    pub fn any_key(&self, random: &mut SmallRng) -> Bytes {
        self.key(random.random_range(0..self.keys))
    }

    /// A value of the right size whose bytes do not compress: what a store saves by compressing is
    /// not what is compared.
    pub fn value(&self, random: &mut SmallRng) -> Bytes {
        let mut value = vec![0; self.value_bytes];
        random.fill(&mut value[..]);
        value.into()
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = match self.op {
            Op::Put => "put",
            Op::Get => "get",
        };
        let plural = if self.callers == 1 { "" } else { "s" };
        write!(f, "{op}, {} caller{plural}", self.callers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn keys_and_values_are_as_planned() {
        let plan = Plan {
            workloads: Vec::new(),
            rounds: 1,
            seconds: 0.5,
            keys: 3,
            value_bytes: 256,
        };
        let mut random = SmallRng::seed_from_u64(7);
        let all: Vec<Bytes> = (0..3).map(|number| plan.key(number)).collect();
        assert_eq!(all[2], "key/0000000002");
        assert!((0..50).all(|_| all.contains(&plan.any_key(&mut random))));
        let values = [plan.value(&mut random), plan.value(&mut random)];
        assert_eq!(values[0].len(), 256);
        assert_ne!(values[0], values[1]);
        assert_eq!(plan.window(), Duration::from_millis(500));
    }
}
