//! One write and one sync for everybody who waits.
//!
//! Owns the thread that takes groups from a [`CommitQueue`] and runs them against the engine,
//! and the answer to a failed disk: stop. How groups are made is the queue's business. Does
//! not know who submits or why.
//!
//! While the disk is busy with one group the next one gathers, so the number of syncs follows
//! the speed of the disk and not the number of submitters: a sync costs tens of microseconds
//! at best, and syncs from several threads do not add up.
//!
//! # Invariants
//!
//! - Submitting never blocks, so the queue has no bound of its own: the bound is what each
//!   submitter allows itself to have under way (a peer's mailbox). [`Committer::queued_bytes`]
//!   shows the sum; a submitter that ignores it makes the process grow.
//! - Any error but a full disk is final: `on_fatal` is called once, everyone who waits or comes
//!   later gets that error, nothing is tried again.
//! - A full disk refuses one group as a whole. Later batches may succeed, so a submitter whose
//!   batches build on each other has to stop at its first error.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

// parking_lot for a condition variable whose `notify` costs one load when nobody sleeps, and for
// locks without poisoning: a panic on the committer's thread is reported through `on_fatal`.
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use crate::{
    CommitQueue, Done, Durability, Engine, Group, StorageError, Submission, WriteBatch,
    commit_queue::{Refused, WrittenGroup},
};

/// How much one group may hold. Large enough that a sync is a small part of the time it takes
/// to write, small enough that the batch and its copy inside the engine do not matter beside
/// the block cache.
const MAX_GROUP_BYTES: usize = 8 << 20;

/// Called once when the engine can no longer be trusted. The process should end soon.
pub type OnFatal = Box<dyn Fn(&StorageError) + Send + Sync>;

/// Counters of a committer, from its start.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitterStats {
    /// Bytes of batches that are not yet answered.
    pub queued_bytes: u64,
    /// Batches submitted.
    pub submissions: u64,
    /// Groups run; submissions per group is how well the cost of a sync is shared.
    pub groups: u64,
}

/// What submitters and the driver share.
#[derive(Default)]
struct Shared {
    queue: Mutex<CommitQueue>,
    /// Wakes the thread.
    waiting: Condvar,
    /// Wakes a driver that runs as a task.
    notify: Notify,
    queued_bytes: AtomicUsize,
    submissions: AtomicU64,
    groups: AtomicU64,
}

impl Shared {
    fn wake(&self) {
        self.waiting.notify_one();
        self.notify.notify_one();
    }

    fn close(&self) {
        self.queue.lock().close();
        self.wake();
    }
}

/// Submits batches; clones submit to the same thread. When the last clone goes, the thread
/// finishes what is queued and ends by itself; [`Committer::shutdown`] waits for that.
#[derive(Clone)]
pub struct Committer {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Committer {
    /// Starts the thread. `on_fatal` is called on it, at most once, after which nothing is
    /// written any more.
    ///
    /// # Panics
    /// The operating system refuses to start a thread.
    pub fn start(engine: Arc<dyn Engine>, on_fatal: OnFatal) -> Self {
        let (committer, mut driver) = Self::manual(engine, on_fatal);
        let thread = thread::Builder::new()
            .name("committer".into())
            .spawn(move || driver.run_thread());
        match thread {
            Ok(thread) => *committer.handle.thread.lock() = Some(thread),
            // As `std::thread::spawn` does: a process that cannot have one thread at its start
            // has no way to go on.
            Err(error) => panic!("cannot start the committer's thread: {error}"),
        }
        committer
    }

    /// A committer without a thread, and the driver that does its work: for simulators, which
    /// run the driver as a task and decide when a group is written and when it is synced.
    pub fn manual(engine: Arc<dyn Engine>, on_fatal: OnFatal) -> (Self, CommitDriver) {
        let shared = Arc::new(Shared::default());
        let driver = CommitDriver {
            shared: Arc::clone(&shared),
            engine,
            on_fatal,
            fatal: None,
        };
        let handle = Handle {
            shared,
            thread: Mutex::new(None),
        };
        let committer = Self {
            handle: Arc::new(handle),
        };
        (committer, driver)
    }

    /// Hands over a batch. Batches take effect in the order of these calls. `done` is called
    /// once the batch came as far as `durability` says, or will not come there; see [`Done`]
    /// for what it may do.
    pub fn submit(&self, batch: WriteBatch, durability: Durability, done: Done) {
        self.submit_submission(Submission::new(batch, durability, done));
    }

    /// As [`Committer::submit`], with a callback at each stage: for a log whose entries have
    /// to be readable at once and whose acknowledgement has to wait for the disk.
    pub fn submit_staged(&self, batch: WriteBatch, written: Done, synced: Done) {
        self.submit_submission(Submission {
            batch,
            written: Some(written),
            synced: Some(synced),
        });
    }

    /// [`Committer::submit`] and wait for the outcome. Needs no runtime. Dropping the future
    /// does not take the batch back.
    ///
    /// # Errors
    /// [`StorageError::NoSpace`]: not written, and the store goes on. [`StorageError::Closed`]:
    /// not written, shutting down. Any other: final, and the outcome of this batch is unknown.
    pub async fn commit(
        &self,
        batch: WriteBatch,
        durability: Durability,
    ) -> Result<(), StorageError> {
        let (sender, receiver) = oneshot::channel();
        self.submit(
            batch,
            durability,
            Box::new(move |result| {
                // The caller may have gone; the batch stays.
                let _ = sender.send(result);
            }),
        );
        receiver.await.unwrap_or_else(|_| {
            Err(StorageError::Internal {
                doing: "committing a batch",
                detail: "the committer ended before it answered; the outcome is unknown".into(),
            })
        })
    }

    /// Bytes of batches that are not yet answered.
    pub fn queued_bytes(&self) -> usize {
        self.handle.shared.queued_bytes.load(Ordering::Relaxed)
    }

    /// Counters since the start.
    pub fn stats(&self) -> CommitterStats {
        let shared = &self.handle.shared;
        CommitterStats {
            queued_bytes: shared.queued_bytes.load(Ordering::Relaxed) as u64,
            submissions: shared.submissions.load(Ordering::Relaxed),
            groups: shared.groups.load(Ordering::Relaxed),
        }
    }

    /// Refuses new batches with [`StorageError::Closed`], finishes what is queued, ends the
    /// thread and lets go of the engine. Blocks until then, so not from an async task; calling
    /// it again, or from a callback, returns at once. A committer without a thread is only
    /// closed: its driver finishes.
    pub fn shutdown(&self) {
        self.handle.shared.close();
        let mut thread = self.handle.thread.lock();
        if thread
            .as_ref()
            .is_some_and(|thread| thread.thread().id() == thread::current().id())
        {
            return;
        }
        if let Some(thread) = thread.take() {
            // The thread catches and reports its own panics, so there is nothing to learn here.
            let _ = thread.join();
        }
    }

    fn submit_submission(&self, submission: Submission) {
        let shared = &self.handle.shared;
        let bytes = submission.batch.size_bytes();
        let mut queue = shared.queue.lock();
        let was_empty = queue.is_empty();
        match queue.push(submission) {
            Ok(()) => {
                // Before the lock is released, so that the driver cannot subtract first.
                shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
                shared.submissions.fetch_add(1, Ordering::Relaxed);
                drop(queue);
                // Whoever found the queue empty has woken the driver; it takes all there is.
                if was_empty {
                    shared.wake();
                }
            }
            Err(refused) => {
                drop(queue);
                refused.call_back();
            }
        }
    }
}

/// Does the work of a [`Committer`]: takes groups, writes, syncs, and stops at the first error
/// that is final. The thread runs it; a simulator may run it instead, step by step.
pub struct CommitDriver {
    shared: Arc<Shared>,
    engine: Arc<dyn Engine>,
    on_fatal: OnFatal,
    /// The error that ended it.
    fatal: Option<StorageError>,
}

impl CommitDriver {
    /// The next group, if something waits.
    pub fn try_group(&mut self) -> Option<Group> {
        self.shared.queue.lock().take_group(MAX_GROUP_BYTES)
    }

    /// The next group, as soon as something waits. None once the committer was shut down or has
    /// failed and nothing is left. Needs no runtime; dropping the future loses nothing.
    pub async fn next_group(&mut self) -> Option<Group> {
        loop {
            {
                let mut queue = self.shared.queue.lock();
                if let Some(group) = queue.take_group(MAX_GROUP_BYTES) {
                    return Some(group);
                }
                if queue.is_closed() {
                    return None;
                }
            }
            // A wake-up between the look and the wait is kept by `Notify`.
            self.shared.notify.notified().await;
        }
    }

    /// Writes a group and calls back those who wait for that. None if it was not written; the
    /// driver has then done all that is to be done.
    pub fn write(&mut self, group: Group) -> Option<WrittenGroup> {
        let bytes = group.size_bytes();
        let result = match &self.fatal {
            None => {
                self.shared.groups.fetch_add(1, Ordering::Relaxed);
                group.write(self.engine.as_ref())
            }
            Some(error) => {
                group.refuse(error);
                Err(error.clone())
            }
        };
        self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        match result {
            Ok(written) => Some(written),
            Err(error) if error.is_no_space() => None,
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    /// Syncs a group if someone waits for that, and calls them back.
    pub fn sync(&mut self, group: WrittenGroup) {
        if let Some(error) = &self.fatal {
            group.refuse(error);
        } else if let Err(error) = group.sync(self.engine.as_ref()) {
            self.fail(&error);
        }
    }

    /// Both steps at once.
    pub fn run(&mut self, group: Group) {
        if let Some(written) = self.write(group) {
            self.sync(written);
        }
    }

    fn run_thread(&mut self) {
        // A panic here would otherwise leave every submitter waiting for ever.
        let ended = catch_unwind(AssertUnwindSafe(|| {
            while let Some(group) = self.wait_group() {
                self.run(group);
            }
        }));
        if ended.is_err() {
            self.fail(&StorageError::Internal {
                doing: "committing a group",
                detail: "the committer's thread panicked".into(),
            });
        }
    }

    /// [`CommitDriver::next_group`] for a thread.
    fn wait_group(&mut self) -> Option<Group> {
        let mut queue = self.shared.queue.lock();
        loop {
            if let Some(group) = queue.take_group(MAX_GROUP_BYTES) {
                return Some(group);
            }
            if queue.is_closed() {
                return None;
            }
            self.shared.waiting.wait(&mut queue);
        }
    }

    fn fail(&mut self, error: &StorageError) {
        let refused = self.drain(error);
        if self.fatal.is_none() {
            self.fatal = Some(error.clone());
            (self.on_fatal)(error);
        }
        refused.call_back();
    }

    /// Closes the queue with `error` and takes all that waits out of it.
    fn drain(&self, error: &StorageError) -> Refused {
        let mut queue = self.shared.queue.lock();
        let waiting_bytes = queue.waiting_bytes();
        self.shared
            .queued_bytes
            .fetch_sub(waiting_bytes, Ordering::Relaxed);
        queue.fail(error)
    }
}

impl Drop for CommitDriver {
    fn drop(&mut self) {
        // A driver that goes while batches wait (a simulated crash, an aborted task) must not
        // leave their submitters waiting.
        self.drain(&StorageError::Closed).call_back();
    }
}
