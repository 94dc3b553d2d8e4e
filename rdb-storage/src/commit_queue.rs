//! What waits to be written, and how it is gathered into groups.
//!
//! Owns the order of batches, the composition of a group, and who is called back when. It
//! has no thread, no lock and no clock: [`Committer`](crate::Committer) runs it on a thread,
//! a simulator as a task in simulated time, both with these very steps.
//!
//! ```text
//! push push push           take_group          write              sync
//! [A written] [B synced] -> one batch A+B -> A called back -> B called back
//! ```
//!
//! # Invariants
//!
//! - Batches reach the engine in the order of `push`, each in exactly one group.
//! - A callback that waits for `Written` is called after the write and before the sync; one
//!   that waits for `Synced` after a sync that began after the write.
//! - Every callback is called exactly once, or dropped together with a queue or group that is
//!   dropped.
//! - After [`CommitQueue::fail`] nothing is taken or accepted any more.

use std::collections::VecDeque;

use crate::{Engine, StorageError, WriteBatch};

/// How far a batch must have come before its submitter is called back.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Visible to readers; a power loss may still take it.
    Written,
    /// On the disk.
    Synced,
}

/// Called back with the outcome. It runs on the committer's thread (or at once on the
/// submitter's, if the committer has failed or was shut down), so it must neither block nor
/// need a lock that a submitter holds while it submits.
pub type Done = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// A batch and those who wait for it.
#[derive(Default)]
pub struct Submission {
    /// What to write. An empty batch writes nothing: it waits for all that was submitted
    /// before it.
    pub batch: WriteBatch,
    /// Called once the batch is visible.
    pub written: Option<Done>,
    /// Called once the batch is durable. If it is none and no other submission of the group
    /// has one, there is no sync.
    pub synced: Option<Done>,
}

impl Submission {
    /// A batch with one callback, at the given point.
    pub fn new(batch: WriteBatch, durability: Durability, done: Done) -> Self {
        match durability {
            Durability::Written => Self {
                batch,
                written: Some(done),
                synced: None,
            },
            Durability::Synced => Self {
                batch,
                written: None,
                synced: Some(done),
            },
        }
    }

    /// Calls everyone back with `error`.
    fn refuse(self, error: &StorageError) {
        refuse(self.written.into_iter().chain(self.synced), error);
    }
}

fn refuse(waiting: impl Iterator<Item = Done>, error: &StorageError) {
    for done in waiting {
        done(Err(error.clone()));
    }
}

/// What waits to be written, in order.
#[derive(Default)]
pub struct CommitQueue {
    waiting: VecDeque<Submission>,
    waiting_bytes: usize,
    /// How many of them wait for the write.
    wants_written: usize,
    /// Why nothing is accepted any more.
    refusal: Option<StorageError>,
}

impl CommitQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a submission behind all others. Nothing bounds the queue here: whoever submits
    /// bounds what it has under way, by [`CommitQueue::waiting_bytes`] if it likes.
    ///
    /// # Errors
    /// The queue was closed or has failed. The submission comes back with the reason and
    /// nobody was called: see [`Refused::call_back`].
    pub fn push(&mut self, submission: Submission) -> Result<(), Refused> {
        if let Some(error) = &self.refusal {
            return Err(Refused {
                submissions: VecDeque::from([submission]),
                error: error.clone(),
            });
        }
        self.waiting_bytes += submission.batch.size_bytes();
        self.wants_written += usize::from(submission.written.is_some());
        self.waiting.push_back(submission);
        Ok(())
    }

    /// Takes the next group: what waits, in order, up to `max_bytes` of batches, but at least
    /// one submission. None if nothing waits.
    pub fn take_group(&mut self, max_bytes: usize) -> Option<Group> {
        let mut group = Group::default();
        while let Some(next) = self.waiting.front() {
            let next_bytes = next.batch.size_bytes();
            if group.submissions > 0 && group.batch.size_bytes() + next_bytes > max_bytes {
                break;
            }
            let Some(mut next) = self.waiting.pop_front() else {
                break;
            };
            self.waiting_bytes -= next_bytes;
            self.wants_written -= usize::from(next.written.is_some());
            group.submissions += 1;
            group.batch.append(&mut next.batch);
            group.written.extend(next.written);
            group.synced.extend(next.synced);
        }
        (group.submissions > 0).then_some(group)
    }

    /// Accepts nothing more; what waits can still be taken.
    pub fn close(&mut self) {
        self.refusal.get_or_insert(StorageError::Closed);
    }

    /// Accepts nothing more and gives back all that waits, to be called back with `error`
    /// outside of any lock. The first failure stays the reason for every later refusal.
    #[must_use = "those who wait are to be called back"]
    pub fn fail(&mut self, error: &StorageError) -> Refused {
        // A failure outweighs an orderly close: later submitters should learn of the damage.
        if matches!(self.refusal, None | Some(StorageError::Closed)) {
            self.refusal = Some(error.clone());
        }
        self.waiting_bytes = 0;
        self.wants_written = 0;
        Refused {
            submissions: std::mem::take(&mut self.waiting),
            error: error.clone(),
        }
    }

    /// Whether someone waits to read what it wrote, rather than for the disk.
    pub fn wants_written(&self) -> bool {
        self.wants_written > 0
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether nothing is accepted any more.
    pub fn is_closed(&self) -> bool {
        self.refusal.is_some()
    }

    /// How many submissions wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes of the batches that wait.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }
}

/// Submissions that will not be written, and why.
pub struct Refused {
    submissions: VecDeque<Submission>,
    error: StorageError,
}

impl Refused {
    /// Why.
    pub fn error(&self) -> &StorageError {
        &self.error
    }

    /// Tells everyone.
    pub fn call_back(self) {
        for submission in self.submissions {
            submission.refuse(&self.error);
        }
    }
}

/// Submissions that are written as one batch and synced with one sync.
#[derive(Default)]
pub struct Group {
    submissions: usize,
    batch: WriteBatch,
    written: Vec<Done>,
    synced: Vec<Done>,
}

impl Group {
    /// How many submissions are inside.
    pub fn submissions(&self) -> usize {
        self.submissions
    }

    /// Bytes of the joint batch.
    pub fn size_bytes(&self) -> usize {
        self.batch.size_bytes()
    }

    /// Whether someone waits for a sync.
    pub fn needs_sync(&self) -> bool {
        !self.synced.is_empty()
    }

    /// Writes the joint batch and calls back those who wait for that; the rest remains to be
    /// synced.
    ///
    /// # Errors
    /// That of the engine. After [`StorageError::NoSpace`] nothing was written, nobody was called back, and
    /// the group comes back with it: to be tried again, or refused. Any other is final, and everyone in the
    /// group was called back with it.
    pub fn try_write(
        self,
        engine: &dyn Engine,
    ) -> Result<WrittenGroup, (StorageError, Option<Box<Group>>)> {
        let result = if self.batch.is_empty() {
            Ok(())
        } else {
            engine.write(&self.batch)
        };
        match result {
            Err(error) if error.is_no_space() => Err((error, Some(Box::new(self)))),
            Err(error) => {
                self.refuse(&error);
                Err((error, None))
            }
            Ok(()) => {
                // Free the batch's memory before others run.
                drop(self.batch);
                for done in self.written {
                    done(Ok(()));
                }
                Ok(WrittenGroup {
                    synced: self.synced,
                })
            }
        }
    }

    /// As [`Group::try_write`], but on every error everyone in the group is called back with it.
    ///
    /// # Errors
    /// That of the engine. [`StorageError::NoSpace`] means that none of the group was written
    /// and the next group may be tried; any other is final.
    pub fn write(self, engine: &dyn Engine) -> Result<WrittenGroup, StorageError> {
        self.try_write(engine).map_err(|(error, group)| {
            if let Some(group) = group {
                group.refuse(&error);
            }
            error
        })
    }

    /// Writes nothing and calls everyone back with `error`.
    pub fn refuse(self, error: &StorageError) {
        refuse(self.written.into_iter().chain(self.synced), error);
    }

    /// [`Group::write`], then [`WrittenGroup::sync`].
    ///
    /// # Errors
    /// As those two.
    pub fn run(self, engine: &dyn Engine) -> Result<(), StorageError> {
        self.write(engine)?.sync(engine)
    }
}

/// A group that is visible; some of its submitters may still wait for it to be durable.
#[must_use = "those who wait for durability are to be called back"]
pub struct WrittenGroup {
    synced: Vec<Done>,
}

impl WrittenGroup {
    /// Whether someone waits for a sync.
    pub fn needs_sync(&self) -> bool {
        !self.synced.is_empty()
    }

    /// Takes those who wait in a group that was written behind this one: one sync does for both.
    pub fn join(&mut self, later: WrittenGroup) {
        self.synced.extend(later.synced);
    }

    /// Does not sync and calls those who wait for it back with `error`.
    pub fn refuse(self, error: &StorageError) {
        refuse(self.synced.into_iter(), error);
    }

    /// Syncs if someone waits for it, then calls them back with the outcome.
    ///
    /// # Errors
    /// The sync failed: final, see [`Engine::sync`].
    pub fn sync(self, engine: &dyn Engine) -> Result<(), StorageError> {
        if self.synced.is_empty() {
            return Ok(());
        }
        let result = engine.sync();
        for done in self.synced {
            done(result.clone());
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{Family, MemoryEngine, View};

    type Journal = Arc<Mutex<Vec<String>>>;

    fn note(journal: &Journal, name: &'static str) -> Done {
        let journal = Arc::clone(journal);
        Box::new(move |result| {
            let outcome = match result {
                Ok(()) => "ok",
                Err(error) if error.is_no_space() => "no space",
                Err(StorageError::Closed) => "closed",
                Err(_) => "failed",
            };
            journal
                .lock()
                .expect("no test thread panics while it writes")
                .push(format!("{name} {outcome}"));
        })
    }

    fn entries(journal: &Journal) -> Vec<String> {
        std::mem::take(&mut *journal.lock().expect("as above"))
    }

    fn put(key: &'static str, value_bytes: usize) -> WriteBatch {
        let mut batch = WriteBatch::new();
        batch.put(Family::Data, key, vec![7; value_bytes]);
        batch
    }

    fn push(
        queue: &mut CommitQueue,
        batch: WriteBatch,
        durability: Durability,
        done: Done,
    ) -> Result<(), StorageError> {
        queue
            .push(Submission::new(batch, durability, done))
            .map_err(|refused| {
                let error = refused.error().clone();
                refused.call_back();
                error
            })
    }

    #[test]
    fn one_write_one_sync_and_written_is_called_before_synced() {
        let engine = MemoryEngine::new();
        let journal = Journal::default();
        let mut queue = CommitQueue::new();
        push(
            &mut queue,
            put("a", 1),
            Durability::Synced,
            note(&journal, "a"),
        )
        .expect("open");
        push(
            &mut queue,
            put("b", 1),
            Durability::Written,
            note(&journal, "b"),
        )
        .expect("open");
        queue
            .push(Submission {
                batch: put("c", 1),
                written: Some(note(&journal, "c written")),
                synced: Some(note(&journal, "c synced")),
            })
            .map_err(|_| "open")
            .expect("open");

        let group = queue.take_group(1 << 20).expect("three wait");
        assert_eq!(group.submissions(), 3);
        assert!(queue.is_empty());
        assert_eq!(queue.waiting_bytes(), 0);

        let written = group.write(&engine).expect("no fault ordered");
        assert_eq!(entries(&journal), ["b ok", "c written ok"]);
        assert_eq!(engine.stats().syncs, 0);
        assert!(engine.get(Family::Data, b"a").expect("memory").is_some());

        written.sync(&engine).expect("no fault ordered");
        assert_eq!(entries(&journal), ["a ok", "c synced ok"]);
        assert_eq!((engine.stats().writes, engine.stats().syncs), (1, 1));
    }

    #[test]
    fn nobody_waits_for_a_sync_so_there_is_none() {
        let engine = MemoryEngine::new();
        let journal = Journal::default();
        let mut queue = CommitQueue::new();
        push(
            &mut queue,
            put("a", 1),
            Durability::Written,
            note(&journal, "a"),
        )
        .expect("open");
        let group = queue.take_group(1 << 20).expect("one waits");
        group.run(&engine).expect("no fault ordered");
        assert_eq!(entries(&journal), ["a ok"]);
        assert_eq!(engine.stats().syncs, 0);

        // An empty batch is a barrier: it syncs what was written before it.
        push(
            &mut queue,
            WriteBatch::new(),
            Durability::Synced,
            note(&journal, "barrier"),
        )
        .expect("open");
        let group = queue.take_group(1 << 20).expect("one waits");
        group.run(&engine).expect("no fault ordered");
        assert_eq!(entries(&journal), ["barrier ok"]);
        assert_eq!((engine.stats().writes, engine.stats().syncs), (1, 1));
        assert_eq!(engine.unsynced_batches(), 0);
    }

    #[test]
    fn a_group_is_bounded_but_never_empty() {
        let journal = Journal::default();
        let mut queue = CommitQueue::new();
        for (key, size) in [("a", 400), ("b", 400), ("c", 5000), ("d", 1)] {
            push(
                &mut queue,
                put(key, size),
                Durability::Written,
                note(&journal, key),
            )
            .expect("open");
        }
        let sizes: Vec<usize> = std::iter::from_fn(|| queue.take_group(1000))
            .map(|group| group.submissions())
            .collect();
        assert_eq!(sizes, [2, 1, 1]);
        assert_eq!(queue.waiting_bytes(), 0);
    }

    #[test]
    fn a_full_disk_refuses_the_group_and_not_the_next_one() {
        let engine = MemoryEngine::new();
        let journal = Journal::default();
        let mut queue = CommitQueue::new();
        push(
            &mut queue,
            put("a", 1),
            Durability::Synced,
            note(&journal, "a"),
        )
        .expect("open");
        push(
            &mut queue,
            put("b", 1),
            Durability::Written,
            note(&journal, "b"),
        )
        .expect("open");
        engine.set_full(true);
        let group = queue.take_group(1 << 20).expect("two wait");
        assert!(group.run(&engine).expect_err("full").is_no_space());
        let mut seen = entries(&journal);
        seen.sort();
        assert_eq!(seen, ["a no space", "b no space"]);

        engine.set_full(false);
        push(
            &mut queue,
            put("c", 1),
            Durability::Synced,
            note(&journal, "c"),
        )
        .expect("open");
        let group = queue.take_group(1 << 20).expect("one waits");
        group.run(&engine).expect("there is room again");
        assert_eq!(entries(&journal), ["c ok"]);
        assert_eq!(engine.get(Family::Data, b"a").expect("memory"), None);
    }

    #[test]
    fn a_failure_reaches_all_who_wait_and_all_who_come_later() {
        let journal = Journal::default();
        let mut queue = CommitQueue::new();
        push(
            &mut queue,
            put("a", 1),
            Durability::Written,
            note(&journal, "a"),
        )
        .expect("open");
        push(
            &mut queue,
            put("b", 1),
            Durability::Synced,
            note(&journal, "b"),
        )
        .expect("open");
        let failure = StorageError::Io {
            doing: "syncing",
            detail: "x".into(),
        };
        queue.fail(&failure).call_back();
        assert_eq!(entries(&journal), ["a failed", "b failed"]);
        push(
            &mut queue,
            put("c", 1),
            Durability::Synced,
            note(&journal, "c"),
        )
        .expect_err("failed before");
        assert_eq!(entries(&journal), ["c failed"]);
        assert!(queue.take_group(1 << 20).is_none());
        // Closing afterwards does not hide the reason.
        queue.close();
        push(
            &mut queue,
            put("d", 1),
            Durability::Synced,
            note(&journal, "d"),
        )
        .expect_err("failed before");
        assert_eq!(entries(&journal), ["d failed"]);
    }

    #[test]
    fn a_closed_queue_still_gives_what_waits() {
        let journal = Journal::default();
        let mut queue = CommitQueue::new();
        push(
            &mut queue,
            put("a", 1),
            Durability::Written,
            note(&journal, "a"),
        )
        .expect("open");
        queue.close();
        push(
            &mut queue,
            put("b", 1),
            Durability::Written,
            note(&journal, "b"),
        )
        .expect_err("closed");
        assert_eq!(entries(&journal), ["b closed"]);
        let group = queue.take_group(1 << 20).expect("a waits");
        group.run(&MemoryEngine::new()).expect("no fault ordered");
        assert_eq!(entries(&journal), ["a ok"]);
    }
}
