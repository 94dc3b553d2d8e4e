//! The tasks of one store, and where they get chance and waiting room from.
//!
//! Owns the list of what a store runs, so that nothing of a store outlives it; its random numbers; and
//! whether work that waits for the disk gets a thread of its own. A task that is spawned with [`spawn`]
//! inside a store's task belongs to the same store. Knows nothing of what the tasks do.
//!
//! With a given seed and [`Blocking::Inline`], what a store's tasks do follows from the events that they
//! are given and from nothing else: many stores can be run on one thread, and run again.
//!
//! Outside of any store (a handler of a gRPC call, a test) a task is a plain task of the runtime, and
//! chance is the system's.

use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use tokio::task::{AbortHandle, JoinHandle};

/// A source of random numbers.
pub type Random = Xoshiro256PlusPlus;

tokio::task_local! {
    static STORE: Tasks;
}

/// Where work is done that waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// On a thread where nothing else waits for it.
    Threads,
    /// Where it is asked for. For disks that never make anybody wait.
    Inline,
}

/// What one store runs; clones are the same list.
#[derive(Clone)]
pub struct Tasks(Arc<Shared>);

struct Shared {
    blocking: Blocking,
    random: Mutex<Random>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    next: u64,
    handles: BTreeMap<u64, AbortHandle>,
    aborted: bool,
}

/// A task's place in the list; given up when the task ends, however it ends.
struct Listed {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.shared.running.lock().handles.remove(&self.id);
    }
}

impl Tasks {
    /// No tasks yet. All random numbers follow from `seed`.
    pub fn new(seed: u64, blocking: Blocking) -> Tasks {
        Tasks(Arc::new(Shared {
            blocking,
            random: Mutex::new(Random::seed_from_u64(seed)),
            running: Mutex::default(),
        }))
    }

    /// Chance of the system, and threads for what waits for the disk.
    pub fn system() -> Tasks {
        Tasks::new(rand::random(), Blocking::Threads)
    }

    /// Starts a task of this store.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        // Locked until the task is in the list: it may end before.
        let mut running = self.0.running.lock();
        running.next += 1;
        let listed = Listed {
            shared: self.0.clone(),
            id: running.next,
        };
        let id = listed.id;
        let handle = tokio::spawn(STORE.scope(self.clone(), async move {
            let _listed = listed;
            future.await
        }));
        running.handles.insert(id, handle.abort_handle());
        if running.aborted {
            handle.abort();
        }
        handle
    }

    /// Runs `future` as a part of this store, inside the task that awaits it.
    pub async fn enter<F: Future>(&self, future: F) -> F::Output {
        STORE.scope(self.clone(), future).await
    }

    /// Calls `f` as a part of this store.
    pub fn within<T>(&self, f: impl FnOnce() -> T) -> T {
        STORE.sync_scope(self.clone(), f)
    }

    /// Ends every task at the point where it waits now, and every later one before it begins.
    pub fn abort_all(&self) {
        let handles: Vec<AbortHandle> = {
            let mut running = self.0.running.lock();
            running.aborted = true;
            running.handles.values().cloned().collect()
        };
        for handle in handles {
            handle.abort();
        }
    }

    /// Tasks that have not ended.
    pub fn count(&self) -> usize {
        self.0.running.lock().handles.len()
    }
}

fn current() -> Option<Tasks> {
    STORE.try_with(Tasks::clone).ok()
}

/// Starts a task of the store that the caller belongs to.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    match current() {
        Some(tasks) => tasks.spawn(future),
        None => tokio::spawn(future),
    }
}

/// Makes `future` belong to the caller's store wherever it runs: for tasks that a
/// [`JoinSet`](tokio::task::JoinSet) keeps, which end with it.
pub fn inherit<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let store = current();
    async move {
        match store {
            Some(store) => store.enter(future).await,
            None => future.await,
        }
    }
}

/// A generator of random numbers, seeded by the caller's store.
pub fn random() -> Random {
    match current() {
        Some(tasks) => Random::from_rng(&mut *tasks.0.random.lock()),
        None => Random::seed_from_u64(rand::random()),
    }
}

/// Does work that waits for the disk, where nothing else waits for it.
///
/// # Errors
/// The work panicked, or the runtime is shutting down.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    match current().map_or(Blocking::Threads, |tasks| tasks.0.blocking) {
        Blocking::Inline => Ok(work()),
        Blocking::Threads => tokio::task::spawn_blocking(work)
            .await
            .map_err(io::Error::other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;
    use std::future::pending;

    #[tokio::test]
    async fn what_a_task_starts_ends_with_its_store() {
        let tasks = Tasks::new(1, Blocking::Inline);
        let spawned = tasks.spawn(async { [spawn(pending::<()>())] });
        let [inner] = spawned.await.unwrap();
        assert_eq!(tasks.count(), 1);
        tasks.abort_all();
        assert!(inner.await.unwrap_err().is_cancelled());
        assert_eq!(tasks.count(), 0);
        let late = tasks.spawn(pending::<()>());
        assert!(late.await.unwrap_err().is_cancelled());
    }

    #[tokio::test]
    async fn chance_follows_from_the_seed() {
        let draw = |seed| async move {
            let tasks = Tasks::new(seed, Blocking::Inline);
            let draws = async { (random().next_u64(), random().next_u64()) };
            tasks.enter(draws).await
        };
        let first = draw(7).await;
        assert_eq!(first, draw(7).await);
        assert_ne!(first, draw(8).await);
        assert_ne!(first.0, first.1);
    }

    #[tokio::test]
    async fn inherited_tasks_belong_to_the_store() {
        let tasks = Tasks::new(1, Blocking::Inline);
        let mut set = tokio::task::JoinSet::new();
        tasks
            .enter(async { set.spawn(inherit(async { current().is_some() })) })
            .await;
        assert!(set.join_next().await.unwrap().unwrap());
    }
}
