//! The threads of a committer: one writes while the other syncs.
//!
//! Owns who does what when. Two equal threads share a desk: whoever wrote a group goes on to sync it, so a
//! lone submitter meets no hand-over; what comes in during the sync is written by the other one, if somebody
//! waits to read it, and waits for the next sync together. Does not know who submits or why.
//!
//! # Invariants
//!
//! - One thread writes at a time, so groups reach the engine in order; one syncs at a time, so groups are
//!   called back in order.
//! - A sync covers the groups that were written before it began, and no others.
//! - What failed for good is marked before anyone else gets the desk: a sync after one that failed may succeed
//!   and have lost what the failed one was for.
//! - What waits for the disk alone gathers until the sync under way is over: writing it earlier would make
//!   more writes, and not a sync less.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
};

use parking_lot::MutexGuard;

use crate::{
    CommitQueue, Engine, Group, StorageError,
    commit_queue::WrittenGroup,
    committer::{MAX_GROUP_BYTES, OnFatal, Shared},
};

/// What waits, and who is at work.
#[derive(Default)]
pub(crate) struct Desk {
    /// To be written.
    pub(crate) queue: CommitQueue,
    /// Written, and to be synced.
    pub(crate) written: Vec<WrittenGroup>,
    /// Why nothing is done any more.
    pub(crate) fatal: Option<StorageError>,
    /// Whoever has to be told why, was.
    pub(crate) fatal_told: bool,
    writing: bool,
    syncing: bool,
    /// A thread was woken, and has not looked yet.
    woken: bool,
}

/// What a thread does next.
enum Task {
    Write(Group),
    Sync(WrittenGroup),
    Wait,
    End,
}

impl Desk {
    fn may_write(&self) -> bool {
        let waits = !self.syncing
            || self.queue.wants_written()
            || self.queue.waiting_bytes() >= MAX_GROUP_BYTES;
        waits && self.fatal.is_none() && !self.writing && !self.queue.is_empty()
    }

    /// Whether a thread has to be woken for what waits. It counts as woken from here on.
    pub(crate) fn wakes(&mut self) -> bool {
        self.may_write() && !std::mem::replace(&mut self.woken, true)
    }

    /// The disk is lost for good: nothing is begun any more.
    pub(crate) fn lose(&mut self, error: &StorageError) {
        self.fatal.get_or_insert_with(|| error.clone());
    }

    fn next(&mut self) -> Task {
        if self.fatal.is_none() && !self.syncing && !self.written.is_empty() {
            let mut groups = self.written.drain(..);
            if let Some(mut first) = groups.next() {
                groups.for_each(|later| first.join(later));
                self.syncing = true;
                return Task::Sync(first);
            }
        }
        if self.may_write()
            && let Some(group) = self.queue.take_group(MAX_GROUP_BYTES)
        {
            self.writing = true;
            // Whoever was woken for it may find nothing, and what comes next wakes again.
            self.woken = false;
            return Task::Write(group);
        }
        let idle = !self.writing && !self.syncing && self.written.is_empty();
        if idle && self.queue.is_closed() && self.queue.is_empty() {
            Task::End
        } else {
            Task::Wait
        }
    }
}

/// Starts them.
///
/// # Panics
/// The operating system refuses to start a thread.
pub(crate) fn start(
    shared: &Arc<Shared>,
    engine: Arc<dyn Engine>,
    on_fatal: OnFatal,
) -> Vec<JoinHandle<()>> {
    let on_fatal = Arc::new(on_fatal);
    let threads = (0..2).map(|_| {
        let (shared, engine, on_fatal) = (shared.clone(), engine.clone(), on_fatal.clone());
        let thread = thread::Builder::new()
            .name("committer".into())
            .spawn(move || guarded(&shared, engine.as_ref(), &on_fatal));
        match thread {
            Ok(thread) => thread,
            // As `std::thread::spawn` does: a process that cannot have a thread at its start
            // has no way to go on.
            Err(error) => panic!("cannot start the committer's threads: {error}"),
        }
    });
    threads.collect()
}

fn guarded(shared: &Shared, engine: &dyn Engine, on_fatal: &OnFatal) {
    // A panic here would otherwise leave every submitter waiting for ever.
    if catch_unwind(AssertUnwindSafe(|| run(shared, engine, on_fatal))).is_err() {
        let error = StorageError::Internal {
            doing: "committing a group",
            detail: "a thread of the committer panicked".into(),
        };
        {
            let mut desk = shared.desk.lock();
            desk.lose(&error);
            (desk.writing, desk.syncing) = (false, false);
        }
        shared.fail(&error, on_fatal);
    }
}

fn run(shared: &Shared, engine: &dyn Engine, on_fatal: &OnFatal) {
    let mut desk = shared.desk.lock();
    loop {
        match desk.next() {
            Task::Write(group) => {
                let result = MutexGuard::unlocked(&mut desk, || shared.write(group, engine));
                desk.writing = false;
                match result {
                    Ok(Some(written)) if desk.fatal.is_none() => {
                        if written.needs_sync() {
                            desk.written.push(written);
                        }
                    }
                    // The other thread has lost the disk meanwhile.
                    Ok(Some(written)) => {
                        if let Some(error) = desk.fatal.clone() {
                            MutexGuard::unlocked(&mut desk, || written.refuse(&error));
                        }
                    }
                    Ok(None) => {}
                    Err(error) => {
                        desk.lose(&error);
                        MutexGuard::unlocked(&mut desk, || shared.fail(&error, on_fatal));
                    }
                }
            }
            Task::Sync(groups) => {
                let wakes = desk.wakes();
                let result = MutexGuard::unlocked(&mut desk, || {
                    if wakes {
                        shared.waiting.notify_one();
                    }
                    groups.sync(engine)
                });
                desk.syncing = false;
                if let Err(error) = result {
                    desk.lose(&error);
                    MutexGuard::unlocked(&mut desk, || shared.fail(&error, on_fatal));
                }
            }
            Task::Wait => {
                shared.waiting.wait(&mut desk);
                desk.woken = false;
            }
            Task::End => {
                // The other one may wait for this one to be done.
                shared.waiting.notify_all();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Durability, Family, MemoryEngine, Submission, WriteBatch};

    fn submit(desk: &mut Desk, durability: Durability) {
        let mut batch = WriteBatch::new();
        batch.put(Family::Data, &b"key"[..], &b"value"[..]);
        let submission = Submission::new(batch, durability, Box::new(|_| {}));
        assert!(desk.queue.push(submission).is_ok());
    }

    /// The next sync would pass, and prove nothing of what the failed one was for.
    #[test]
    fn nothing_is_begun_once_the_disk_is_lost_whoever_looks_first() {
        let engine = MemoryEngine::new();
        let mut desk = Desk::default();
        submit(&mut desk, Durability::Synced);
        let Task::Write(group) = desk.next() else {
            panic!("there is something to write");
        };
        desk.written.push(group.write(&engine).expect("memory"));
        desk.writing = false;
        submit(&mut desk, Durability::Written);

        desk.lose(&StorageError::Closed);
        assert!(matches!(desk.next(), Task::Wait));
        assert!(!desk.wakes());
    }
}
