//! How many operations clients asked of each namespace, for a store's status.
//!
//! Owns these counts: the same as `flaredb_requests_total`, added up to what a screen of a few columns shows. A rate
//! is the difference of two looks, and made by who looks.
//!
//! Invariant: as many entries as there are namespaces, and were since the start, and one for all other names.

use parking_lot::RwLock;
use rdb_proto::raft::ServedRequests;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU64,
    writes: AtomicU64,
    refused: AtomicU64,
}

/// What was served since the start.
#[derive(Debug, Default)]
pub(super) struct Served(RwLock<BTreeMap<String, Counts>>);

impl Served {
    /// Operations of a method were answered, so many of them with an error.
    pub(super) fn count(&self, namespace: &str, method: &str, answered: u64, refused: u64) {
        let known = self.0.read();
        if let Some(counts) = known.get(namespace) {
            return counts.add(method, answered, refused);
        }
        drop(known);
        let mut all = self.0.write();
        let counts = all.entry(namespace.to_owned()).or_default();
        counts.add(method, answered, refused);
    }

    /// By the names of namespaces.
    pub(super) fn all(&self) -> Vec<ServedRequests> {
        let all = self.0.read();
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        all.iter()
            .map(|(namespace, counts)| ServedRequests {
                namespace: namespace.clone(),
                reads: of(&counts.reads),
                writes: of(&counts.writes),
                refused: of(&counts.refused),
            })
            .collect()
    }
}

impl Counts {
    fn add(&self, method: &str, answered: u64, refused: u64) {
        let kind = match method {
            "Get" | "Scan" | "Watch" => &self.reads,
            _ => &self.writes,
        };
        kind.fetch_add(answered, Ordering::Relaxed);
        self.refused.fetch_add(refused, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_are_told_apart_and_refusals_are_of_both() {
        let served = Served::default();
        served.count("cart", "Get", 3, 1);
        served.count("cart", "CompareAndSwap", 2, 2);
        served.count("bank", "Scan", 1, 0);
        let line = |of: &ServedRequests| (of.namespace.clone(), of.reads, of.writes, of.refused);
        let all: Vec<_> = served.all().iter().map(line).collect();
        assert_eq!(all, [("bank".into(), 1, 0, 0), ("cart".into(), 3, 2, 3)]);
    }
}
