//! The starts of this data directory, and those that it has seen of others, on its disk.
//!
//! Owns the rows; what they mean is [`crate::cluster::starts`]'s.
//!
//! Invariant: a start is synced before anything is served or dialled: [`count_start`] is called while the
//! store is put together, and waits for the disk.

use super::StartError;
use crate::cluster::{NoteSeen, starts};
use crate::layout_store as layout;
use prost::Message;
use rdb_proto::raft::{Start, Starts};
use rdb_storage::{Committer, Durability, Engine, Family, KeyRange, StorageError, WriteBatch};
use std::collections::BTreeMap;

/// Counts a start of this directory, durably. Nothing else writes the disk yet, so this goes past the
/// committer, which in a simulation would have to be waited for.
///
/// # Errors
/// The directory was found to be an older copy; the disk cannot be read or written.
pub(super) fn count_start(engine: &dyn Engine, incarnation: u64) -> Result<Starts, StartError> {
    let before = stored(engine)?;
    if !before.refused.is_empty() {
        return Err(StartError::Disk(before.refused));
    }
    let now = starts::started(before, incarnation);
    engine.write(&row_of(&now))?;
    engine.sync()?;
    Ok(now)
}

/// The start that each other store was in when it was last met.
pub(super) fn seen(engine: &dyn Engine) -> Result<BTreeMap<u32, Start>, StorageError> {
    let prefix = layout::row(SEEN);
    let mut seen = BTreeMap::new();
    for row in engine.scan(Family::Region, &KeyRange::prefix(&prefix), false) {
        let (key, value) = row?;
        let damaged =
            |what: String| StorageError::corruption("the starts of the other stores", what);
        let store = std::str::from_utf8(&key[prefix.len()..])
            .ok()
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| damaged(format!("a row with the key {key:?}")))?;
        let start = Start::decode(value).map_err(|error| damaged(error.to_string()))?;
        seen.insert(store, start);
    }
    Ok(seen)
}

/// Keeps what is seen from now on. All batches lie behind each other in one write-ahead log, so nothing
/// that this store writes after having met the other is durable without it.
pub(super) fn notes(committer: Committer) -> NoteSeen {
    Box::new(move |store, start| {
        let mut batch = WriteBatch::new();
        let key = layout::row(&format!("{SEEN}{store}"));
        batch.put(Family::Region, key, start.encode_to_vec());
        let done = move |result: Result<(), StorageError>| {
            if let Err(error) = result {
                tracing::warn!(store, %error, "which start of that store was met is not kept");
            }
        };
        committer.submit(batch, Durability::Synced, Box::new(done));
    })
}

/// Keeps that this directory may not be started any more, and why.
pub(super) async fn refuse(
    engine: &dyn Engine,
    committer: &Committer,
    why: &str,
) -> Result<(), StorageError> {
    let refused = Starts {
        refused: why.to_owned(),
        ..stored(engine)?
    };
    committer.commit(row_of(&refused), Durability::Synced).await
}

/// What the key of a row about another store begins with; its id follows.
const SEEN: &str = "seen/";

fn stored(engine: &dyn Engine) -> Result<Starts, StorageError> {
    match engine.get(Family::Region, &layout::row("starts"))? {
        None => Ok(Starts::default()),
        Some(stored) => Starts::decode(stored)
            .map_err(|error| StorageError::corruption("the count of starts", error.to_string())),
    }
}

fn row_of(starts: &Starts) -> WriteBatch {
    let mut batch = WriteBatch::new();
    batch.put(
        Family::Region,
        layout::row("starts"),
        starts.encode_to_vec(),
    );
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdb_storage::MemoryEngine;

    #[test]
    fn a_start_is_counted_before_a_power_loss_can_undo_it() {
        let engine = MemoryEngine::new();
        for count in 1..=3 {
            let now = count_start(&engine, 100 + count).unwrap();
            assert_eq!((now.count, now.incarnations[0]), (count, 100 + count));
            assert_eq!(engine.unsynced_batches(), 0);
            engine.crash(0);
        }
    }

    #[tokio::test]
    async fn what_was_refused_does_not_start_again() {
        let engine = std::sync::Arc::new(MemoryEngine::new());
        let (committer, mut driver) = Committer::manual(engine.clone(), Box::new(|_| ()));
        count_start(&*engine, 1).unwrap();
        let kept = refuse(&*engine, &committer, "an older copy");
        let written = async {
            let group = driver.next_group().await.unwrap();
            driver.run(group);
        };
        futures::join!(async { kept.await.unwrap() }, written);
        engine.crash(0);
        let error = count_start(&*engine, 2).unwrap_err();
        assert_eq!(error.to_string(), "an older copy");
    }

    #[tokio::test]
    async fn what_was_seen_of_others_is_found_again() {
        let engine = std::sync::Arc::new(MemoryEngine::new());
        let (committer, mut driver) = Committer::manual(engine.clone(), Box::new(|_| ()));
        let note = notes(committer);
        let start = |count| Start {
            count,
            incarnation: u64::MAX - count,
        };
        for (store, count) in [(2, 1), (3, 1), (2, 4), (1023, 2)] {
            note(store, start(count));
        }
        let group = driver.next_group().await.unwrap();
        driver.run(group);
        engine.crash(0);
        let expected = BTreeMap::from([(2, start(4)), (3, start(1)), (1023, start(2))]);
        assert_eq!(seen(&*engine).unwrap(), expected);
    }
}
