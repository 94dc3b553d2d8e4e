//! A value that many look at and wait on, woken in the order in which they began to wait.
//!
//! Owns the newest value and who waits for the next one. tokio's own channel of this kind wakes in an
//! order that it draws from a generator of its own; with this one, a run of a store that is given the
//! same events goes the same way.
//!
//! Invariant: whoever waits is woken by every change after the value that it saw last, and when the last
//! sender goes.

use openraft::async_runtime::watch::{RecvError, SendError};
use openraft::async_runtime::{Watch, WatchReceiver, WatchSender};
use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// The kind of channel; see the [module](self).
pub struct OrderedWatch;

/// Changes the value.
pub struct Sender<T>(Arc<Shared<T>>);

/// Looks at the value and waits for changes.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// The version that was seen last.
    seen: u64,
}

/// The value as it is now. The value cannot change while this is held: hold it for moments only.
pub type Ref<'a, T> = MappedRwLockReadGuard<'a, T>;

struct Shared<T> {
    value: RwLock<T>,
    turn: Mutex<Turn>,
}

struct Turn {
    /// Goes up after the value has changed: who knows a version sees its value, or a newer one.
    version: u64,
    senders: usize,
    receivers: usize,
    next_ticket: u64,
    waiting: BTreeMap<u64, Waker>,
}

/// A channel that holds `value`.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        value: RwLock::new(value),
        turn: Mutex::new(Turn {
            version: 0,
            senders: 1,
            receivers: 1,
            next_ticket: 0,
            waiting: BTreeMap::new(),
        }),
    });
    let receiver = Receiver {
        shared: shared.clone(),
        seen: 0,
    };
    (Sender(shared), receiver)
}

impl<T> Shared<T> {
    fn borrow(&self) -> Ref<'_, T> {
        RwLockReadGuard::map(self.value.read(), |value| value)
    }

    /// Wakes all, outside of the lock: a waker may do anything.
    fn wake(mut turn: parking_lot::MutexGuard<'_, Turn>) {
        let waiting = std::mem::take(&mut turn.waiting);
        drop(turn);
        for waker in waiting.into_values() {
            waker.wake();
        }
    }

    fn changed(&self) {
        let mut turn = self.turn.lock();
        turn.version += 1;
        Self::wake(turn);
    }
}

impl<T> Sender<T> {
    /// Changes the value in place; `modify` says whether it did, and only then anybody is woken.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = modify(&mut self.0.value.write());
        if modified {
            self.0.changed();
        }
        modified
    }

    /// The value.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.0.borrow()
    }

    /// Another receiver; it has seen the present value.
    pub fn subscribe(&self) -> Receiver<T> {
        let seen = {
            let mut turn = self.0.turn.lock();
            turn.receivers += 1;
            turn.version
        };
        Receiver {
            shared: self.0.clone(),
            seen,
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.turn.lock().senders += 1;
        Sender(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut turn = self.0.turn.lock();
        turn.senders -= 1;
        if turn.senders == 0 {
            Shared::<T>::wake(turn);
        }
    }
}

impl<T> Receiver<T> {
    fn poll_changed(
        &mut self,
        cx: &mut Context<'_>,
        ticket: &mut Ticket<'_, T>,
    ) -> Poll<Result<(), RecvError>> {
        let mut turn = self.shared.turn.lock();
        if turn.version != self.seen {
            self.seen = turn.version;
            return Poll::Ready(Ok(()));
        }
        if turn.senders == 0 {
            return Poll::Ready(Err(RecvError(())));
        }
        let number = *ticket.number.get_or_insert_with(|| {
            turn.next_ticket += 1;
            turn.next_ticket
        });
        turn.waiting.insert(number, cx.waker().clone());
        Poll::Pending
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.turn.lock().receivers += 1;
        Receiver {
            shared: self.shared.clone(),
            seen: self.seen,
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.turn.lock().receivers -= 1;
    }
}

/// The place of one who waits; given up when the wait ends, however it ends.
struct Ticket<'a, T> {
    shared: &'a Shared<T>,
    number: Option<u64>,
}

impl<T> Drop for Ticket<'_, T> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.shared.turn.lock().waiting.remove(&number);
        }
    }
}

impl Watch for OrderedWatch {
    type Sender<T: Send + Sync> = Sender<T>;
    type Receiver<T: Send + Sync> = Receiver<T>;
    type Ref<'a, T: Send + 'a> = Ref<'a, T>;

    fn channel<T: Send + Sync>(init: T) -> (Sender<T>, Receiver<T>) {
        channel(init)
    }
}

impl<T: Send + Sync> WatchSender<OrderedWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.turn.lock().receivers == 0 {
            return Err(SendError(value));
        }
        *self.0.value.write() = value;
        self.0.changed();
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        Sender::send_if_modified(self, modify)
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        Sender::subscribe(self)
    }
}

impl<T: Send + Sync> WatchReceiver<OrderedWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        let shared = self.shared.clone();
        let mut ticket = Ticket {
            shared: &shared,
            number: None,
        };
        poll_fn(|cx| self.poll_changed(cx, &mut ticket)).await
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.shared.borrow()
    }

    fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.seen = self.shared.turn.lock().version;
        self.shared.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn whoever_waits_is_woken_in_order() {
        let (sender, _receiver) = channel(0);
        let order = Arc::new(Mutex::new(Vec::new()));
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..100 {
            let (mut receiver, order) = (sender.subscribe(), order.clone());
            let waiting = waiting.clone();
            tasks.spawn(async move {
                waiting.fetch_add(1, Ordering::Relaxed);
                receiver.changed().await.unwrap();
                order.lock().push(number);
            });
        }
        while waiting.load(Ordering::Relaxed) < 100 {
            tokio::task::yield_now().await;
        }
        assert!(sender.send_if_modified(|value| std::mem::replace(value, 1) == 0));
        while tasks.join_next().await.is_some() {}
        assert_eq!(*order.lock(), (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_change_that_was_not_seen_is_not_waited_for() {
        let (sender, mut receiver) = channel(0);
        sender.send(1).unwrap();
        receiver.changed().await.unwrap();
        assert_eq!(*receiver.borrow_watched(), 1);
        sender.send(2).unwrap();
        assert_eq!(*receiver.borrow_and_update(), 2);
        drop(sender);
        assert!(receiver.changed().await.is_err());
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_leaves_nothing_behind() {
        let (sender, mut receiver) = channel(0);
        {
            let mut wait = std::pin::pin!(receiver.changed());
            assert!(futures::poll!(wait.as_mut()).is_pending());
            assert_eq!(sender.0.turn.lock().waiting.len(), 1);
        }
        assert!(sender.0.turn.lock().waiting.is_empty());
    }

    #[test]
    fn a_value_that_nobody_would_see_is_given_back() {
        let (sender, receiver) = channel(0);
        drop(receiver);
        assert_eq!(sender.send(1).unwrap_err().0, 1);
        assert_eq!(*sender.borrow(), 0);
    }
}
