//! One write and one sync for everybody who waits.
//!
//! Owns what submitters hand over, the driver that runs it against the engine step by step, and the
//! answer to a failed disk: stop. How groups are made is the queue's business; the threads that
//! run a store's committer are those of [`crate::commit_crew`]. Does not know who submits or why.
//!
//! While the disk is busy with one sync the next group gathers, so the number of syncs follows
//! the speed of the disk and not the number of submitters: a sync costs tens of microseconds
//! at best, and syncs from several threads do not add up. Who waits to read what it wrote does not
//! wait for that sync.
//!
//! # Invariants
//!
//! - Submitting never blocks, so the queue has no bound of its own: the bound is what each
//!   submitter allows itself to have under way (a peer's mailbox). [`Committer::queued_bytes`]
//!   shows the sum; a submitter that ignores it makes the process grow.
//! - Any error but a full disk is final: `on_fatal` is called once, everyone who waits or comes
//!   later gets that error, nothing is tried again.
//! - A full disk makes everybody wait: the group is tried again until there is room, and what was
//!   submitted later stays behind it. So batches that build on each other need not know of it, and no log
//!   has a hole. [`Committer::is_stalled`] tells; who submits on meanwhile makes the process grow. Only when
//!   the committer is shut down first is a group refused, as a whole.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

// parking_lot for a condition variable whose `notify` costs one load when nobody sleeps, and for
// locks without poisoning: a panic on the committer's thread is reported through `on_fatal`.
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use crate::{
    Done, Durability, Engine, Group, StorageError, Submission, WriteBatch,
    commit_crew::{self, Desk},
    commit_queue::WrittenGroup,
};

/// How much one group may hold. Large enough that a sync is a small part of the time it takes
/// to write, small enough that the batch and its copy inside the engine do not matter beside
/// the block cache.
pub(crate) const MAX_GROUP_BYTES: usize = 8 << 20;

/// Between two tries of a group for which there was no room. RocksDB looks for room every five seconds once
/// it had none, and refuses at once until then.
const TRY_AGAIN: Duration = Duration::from_millis(100);

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

/// What submitters and whoever does the work share.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) desk: Mutex<Desk>,
    /// Wakes a thread.
    pub(crate) waiting: Condvar,
    /// Wakes a driver that runs as a task.
    notify: Notify,
    queued_bytes: AtomicUsize,
    submissions: AtomicU64,
    groups: AtomicU64,
    /// There was no room for the group that is next.
    stalled: AtomicBool,
}

impl Shared {
    fn close(&self) {
        self.desk.lock().queue.close();
        self.waiting.notify_all();
        self.notify.notify_one();
    }

    /// Writes a group as soon as there is room for it, and calls back those who wait for that. `Err`: it was
    /// not written, and the disk is lost; `Ok(None)`: it was not written, since there was no room when the
    /// queue was closed.
    pub(crate) fn write(
        &self,
        mut group: Group,
        engine: &dyn Engine,
    ) -> Result<Option<WrittenGroup>, StorageError> {
        loop {
            match self.try_write(group, engine) {
                Ok(written) => return Ok(Some(written)),
                Err((error, None)) => return Err(error),
                Err((error, Some(back))) => {
                    if self.desk.lock().queue.is_closed() {
                        self.refuse(*back, &error);
                        return Ok(None);
                    }
                    group = *back;
                    thread::sleep(TRY_AGAIN);
                }
            }
        }
    }

    /// Tries once. With the error comes the group, if there was no room for it.
    fn try_write(
        &self,
        group: Group,
        engine: &dyn Engine,
    ) -> Result<WrittenGroup, (StorageError, Option<Box<Group>>)> {
        let bytes = group.size_bytes();
        let lost = self.desk.lock().fatal.clone();
        if let Some(error) = lost {
            self.refuse(group, &error);
            return Err((error, None));
        }
        let result = group.try_write(engine);
        let stalls = matches!(result, Err((_, Some(_))));
        self.stalled.store(stalls, Ordering::Relaxed);
        if !stalls {
            self.groups.fetch_add(1, Ordering::Relaxed);
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        result
    }

    fn refuse(&self, group: Group, error: &StorageError) {
        self.queued_bytes
            .fetch_sub(group.size_bytes(), Ordering::Relaxed);
        group.refuse(error);
    }

    /// The disk is lost: everyone who waits hears of it, and so does whoever comes later. `on_fatal` is
    /// called the first time.
    pub(crate) fn fail(&self, error: &StorageError, on_fatal: &OnFatal) {
        let (first, written) = {
            let mut desk = self.desk.lock();
            desk.lose(error);
            let first = !std::mem::replace(&mut desk.fatal_told, true);
            (first, std::mem::take(&mut desk.written))
        };
        if first {
            on_fatal(error);
        }
        for group in written {
            group.refuse(error);
        }
        self.give_back(error);
    }

    /// Closes the queue with `error` and calls back all that waits in it.
    pub(crate) fn give_back(&self, error: &StorageError) {
        let refused = {
            let mut desk = self.desk.lock();
            let waiting_bytes = desk.queue.waiting_bytes();
            self.queued_bytes
                .fetch_sub(waiting_bytes, Ordering::Relaxed);
            desk.queue.fail(error)
        };
        self.waiting.notify_all();
        refused.call_back();
    }
}

/// Submits batches; clones submit to the same threads. When the last clone goes, the threads
/// finish what is queued and end by themselves; [`Committer::shutdown`] waits for that.
#[derive(Clone)]
pub struct Committer {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Committer {
    /// Starts the threads. `on_fatal` is called on one of them, at most once, after which nothing is
    /// written any more.
    ///
    /// # Panics
    /// The operating system refuses to start a thread.
    pub fn start(engine: Arc<dyn Engine>, on_fatal: OnFatal) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = commit_crew::start(&shared, engine, on_fatal);
        Self {
            handle: Arc::new(Handle {
                shared,
                threads: Mutex::new(threads),
            }),
        }
    }

    /// A committer without threads, and the driver that does its work: for simulators, which
    /// run the driver as a task and decide when a group is written and when it is synced.
    pub fn manual(engine: Arc<dyn Engine>, on_fatal: OnFatal) -> (Self, CommitDriver) {
        let shared = Arc::new(Shared::default());
        let driver = CommitDriver {
            shared: Arc::clone(&shared),
            engine,
            on_fatal,
        };
        let handle = Handle {
            shared,
            threads: Mutex::default(),
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
    /// [`StorageError::Closed`], [`StorageError::NoSpace`]: not written, shutting down. Any other: final, and
    /// the outcome of this batch is unknown.
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

    /// Whether everything waits for room on the disk.
    pub fn is_stalled(&self) -> bool {
        self.handle.shared.stalled.load(Ordering::Relaxed)
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
    /// threads and lets go of the engine. Blocks until then, so not from an async task; calling
    /// it again, or from a callback, returns at once. A committer without threads is only
    /// closed: its driver finishes.
    pub fn shutdown(&self) {
        self.handle.shared.close();
        let threads = {
            let mut threads = self.handle.threads.lock();
            let here = thread::current().id();
            if threads.iter().any(|thread| thread.thread().id() == here) {
                return;
            }
            std::mem::take(&mut *threads)
        };
        for thread in threads {
            // They catch and report their own panics, so there is nothing to learn here.
            let _ = thread.join();
        }
    }

    fn submit_submission(&self, submission: Submission) {
        let shared = &self.handle.shared;
        let bytes = submission.batch.size_bytes();
        let mut desk = shared.desk.lock();
        let was_empty = desk.queue.is_empty();
        match desk.queue.push(submission) {
            Ok(()) => {
                // Before the lock is released, so that the driver cannot subtract first.
                shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
                shared.submissions.fetch_add(1, Ordering::Relaxed);
                let wakes = desk.wakes();
                drop(desk);
                if wakes {
                    shared.waiting.notify_one();
                }
                // Whoever found the queue empty has woken the driver; it takes all there is.
                if was_empty {
                    shared.notify.notify_one();
                }
            }
            Err(refused) => {
                drop(desk);
                refused.call_back();
            }
        }
    }
}

/// Does the work of a [`Committer`] step by step: takes groups, writes, syncs, and stops at the first
/// error that is final. For simulators; a store has [`crate::commit_crew`].
pub struct CommitDriver {
    shared: Arc<Shared>,
    engine: Arc<dyn Engine>,
    on_fatal: OnFatal,
}

impl CommitDriver {
    /// The next group, if something waits.
    pub fn try_group(&mut self) -> Option<Group> {
        self.shared.desk.lock().queue.take_group(MAX_GROUP_BYTES)
    }

    /// The next group, as soon as something waits. None once the committer was shut down or has
    /// failed and nothing is left. Needs no runtime; dropping the future loses nothing.
    pub async fn next_group(&mut self) -> Option<Group> {
        loop {
            {
                let mut desk = self.shared.desk.lock();
                if let Some(group) = desk.queue.take_group(MAX_GROUP_BYTES) {
                    return Some(group);
                }
                if desk.queue.is_closed() {
                    return None;
                }
            }
            // A wake-up between the look and the wait is kept by `Notify`.
            self.shared.notify.notified().await;
        }
    }

    /// Writes a group and calls back those who wait for that. None if it was not written; the
    /// driver has then done all that is to be done.
    ///
    /// # Errors
    /// There is no room for it: here it is, to be tried again before any other.
    pub fn try_write(&mut self, group: Group) -> Result<Option<WrittenGroup>, Group> {
        match self.shared.try_write(group, self.engine.as_ref()) {
            Ok(written) => Ok(Some(written)),
            Err((_, Some(group))) => Err(*group),
            Err((error, None)) => {
                self.shared.fail(&error, &self.on_fatal);
                Ok(None)
            }
        }
    }

    /// As [`CommitDriver::try_write`], but a group for which there is no room is refused.
    pub fn write(&mut self, group: Group) -> Option<WrittenGroup> {
        self.try_write(group).unwrap_or_else(|group| {
            let error = StorageError::NoSpace {
                doing: "committing a group",
                detail: "whoever drives this committer does not wait for room".into(),
            };
            self.shared.refuse(group, &error);
            None
        })
    }

    /// Syncs a group if someone waits for that, and calls them back.
    pub fn sync(&mut self, group: WrittenGroup) {
        let lost = self.shared.desk.lock().fatal.clone();
        if let Some(error) = lost {
            group.refuse(&error);
        } else if let Err(error) = group.sync(self.engine.as_ref()) {
            self.shared.fail(&error, &self.on_fatal);
        }
    }

    /// Both steps at once.
    pub fn run(&mut self, group: Group) {
        if let Some(written) = self.write(group) {
            self.sync(written);
        }
    }
}

impl Drop for CommitDriver {
    fn drop(&mut self) {
        // A driver that goes while batches wait (a simulated crash, an aborted task) must not
        // leave their submitters waiting.
        self.shared.give_back(&StorageError::Closed);
    }
}
