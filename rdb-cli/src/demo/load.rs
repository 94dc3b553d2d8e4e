//! The load of the demo: eight clients that work without a pause while stores die around them, and
//! write down what they were told.
//!
//! | clients | do | judged by |
//! |---|---|---|
//! | 4 | read, write, swap and delete a few registers ([`registers`]) | linearizable |
//! | 2 | write each key once ([`orders`]) | nothing acknowledged is missing |
//! | 2 | move money between accounts ([`transfers`]) | the total holds |
//!
//! Owns what clients saw. Does not know what happens to the stores, and judges nothing.
//!
//! Invariant: what is written down is what a client can know. An error says "not applied" only where
//! the client crate does; everything else is an unknown outcome.

pub(super) mod orders;
pub(super) mod registers;
pub(super) mod transfers;

use super::acks::Acks;
use orders::Orders;
use parking_lot::Mutex;
use rdb_check::Recorder;
use rdb_client::{Client, ClientError};
use rdb_types::StoreId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;
use transfers::Bank;

/// The namespace of everything that the demo stores.
pub(super) const NAMESPACE: &str = "bank";

const REGISTER_CLIENTS: u64 = 4;
const ORDER_CLIENTS: u64 = 2;
const TRANSFER_CLIENTS: u64 = 2;
/// All of them.
pub(super) const CLIENTS: u64 = REGISTER_CLIENTS + ORDER_CLIENTS + TRANSFER_CLIENTS;

/// Between two calls of one client. Keeps the history small enough to be checked in a second or two,
/// and leaves the stores, which share the machine, time to breathe.
const PACE: Duration = Duration::from_millis(2);
/// After an error, so that a store which refuses at once is not asked without end.
const AFTER_ERROR: Duration = Duration::from_millis(20);

/// What the clients share.
pub(super) struct Shared {
    pub(super) client: Client,
    /// One client for each store, which asks only that store.
    pub(super) at_store: BTreeMap<StoreId, Client>,
    pub(super) acks: Acks,
    pub(super) recorder: Recorder,
    pub(super) orders: Mutex<Orders>,
    pub(super) bank: Mutex<Bank>,
    /// Calls that ended with an error, by what the error said of the outcome.
    pub(super) refused: AtomicU64,
    pub(super) unknown: AtomicU64,
    next_value: AtomicU64,
    stopping: AtomicBool,
}

/// The clients at work.
pub(super) struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Shared {
    pub(super) fn new(client: Client, at_store: BTreeMap<StoreId, Client>) -> Arc<Shared> {
        Arc::new(Shared {
            client,
            at_store,
            acks: Acks::new(),
            recorder: Recorder::new(),
            orders: Mutex::default(),
            bank: Mutex::default(),
            refused: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            next_value: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
        })
    }

    /// A number that no register held before.
    fn fresh_value(&self) -> u64 {
        self.next_value.fetch_add(1, Ordering::Relaxed)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Counts an error, and waits a moment.
    async fn failed(&self, error: &ClientError) {
        let counter = match error.outcome {
            rdb_client::Outcome::Unknown => &self.unknown,
            rdb_client::Outcome::NotApplied | rdb_client::Outcome::NotAWrite => &self.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%error, "a client was refused");
        sleep(AFTER_ERROR).await;
    }
}

impl Load {
    /// Sets every client to work.
    pub(super) fn start(shared: &Arc<Shared>) -> Load {
        let mut tasks = JoinSet::new();
        for number in 0..REGISTER_CLIENTS {
            tasks.spawn(registers::work(Arc::clone(shared), number));
        }
        for number in 0..ORDER_CLIENTS {
            tasks.spawn(orders::work(Arc::clone(shared), number));
        }
        for _ in 0..TRANSFER_CLIENTS {
            tasks.spawn(transfers::work(Arc::clone(shared)));
        }
        Load {
            shared: Arc::clone(shared),
            tasks,
        }
    }

    /// Lets every client finish what it is doing. `Err`: one of them broke.
    pub(super) async fn finish(mut self) -> Result<(), String> {
        self.shared.stopping.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.map_err(|error| format!("a client of the load broke: {error}"))?;
        }
        Ok(())
    }
}
