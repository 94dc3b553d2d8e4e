//! How simulated clients reach stores: one call of one operation, with a network of its own in between.
//!
//! Owns which stores are running as clients see it, and what becomes of a call whose store dies or whose
//! answer is lost. Calls the very service that gRPC calls in a real store; decides nothing about repeats.

use crate::store::Process;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use rdb_server::kv_service::KvService;
use rdb_types::StoreId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;
use tonic_types::StatusExt;

/// A call of the service, which is given it when the call arrives.
pub type Operation<T> = Box<dyn FnOnce(KvService) -> BoxFuture<'static, Result<T, Status>> + Send>;

/// Why an operation brought no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In a word, as ErrorInfo has it.
    pub reason: String,
    /// In words; empty: nobody said any.
    pub message: String,
    /// A write may have been applied.
    pub maybe_applied: bool,
    /// The store itself said so, and did not merely fall silent.
    pub said: bool,
}

/// The way to all stores; clones are the same.
#[derive(Clone)]
pub struct Door(Arc<Shared>);

struct Shared {
    running: Mutex<BTreeMap<StoreId, Process>>,
    chance: Mutex<Xoshiro256PlusPlus>,
}

impl Door {
    /// Nobody runs.
    pub fn new(seed: u64) -> Door {
        Door(Arc::new(Shared {
            running: Mutex::default(),
            chance: Mutex::new(Xoshiro256PlusPlus::seed_from_u64(seed)),
        }))
    }

    /// A store can be reached.
    pub fn open(&self, store: StoreId, process: Process) {
        self.0.running.lock().insert(store, process);
    }

    /// A store cannot be reached any more.
    pub fn close(&self, store: StoreId) {
        self.0.running.lock().remove(&store);
    }

    /// The running stores.
    pub fn running(&self) -> Vec<(StoreId, Process)> {
        let running = self.0.running.lock();
        running.iter().map(|(id, p)| (*id, p.clone())).collect()
    }

    /// Calls a store, and waits at most `patience`.
    ///
    /// # Errors
    /// Nobody is there, it refused, or no answer came.
    pub async fn call<T: Send + 'static>(
        &self,
        store: StoreId,
        patience: Duration,
        operation: Operation<T>,
    ) -> Result<T, Refusal> {
        let deadline = Instant::now() + patience;
        let (there_us, back_us, lost) = {
            let mut chance = self.0.chance.lock();
            (
                chance.random_range(100..2_000),
                chance.random_range(100..2_000),
                chance.random_range(0..1000) < 5,
            )
        };
        sleep(Duration::from_micros(there_us)).await;
        let process = self.0.running.lock().get(&store).cloned();
        let Some(process) = process else {
            return Err(Refusal {
                reason: "nobody is there".to_owned(),
                message: String::new(),
                maybe_applied: false,
                said: false,
            });
        };
        let call = process.tasks.spawn(operation(process.kv));
        let silence = |why: &str| Refusal {
            reason: why.to_owned(),
            message: String::new(),
            maybe_applied: true,
            said: false,
        };
        match timeout_at(deadline, call).await {
            Err(_) => Err(silence("no answer in time")),
            Ok(Err(_)) => Err(silence("the store died")),
            Ok(Ok(answer)) => {
                sleep(Duration::from_micros(back_us)).await;
                if lost {
                    return Err(silence("the answer was lost"));
                }
                answer.map_err(|status| refusal(&status))
            }
        }
    }
}

fn refusal(status: &Status) -> Refusal {
    let details = status.get_error_details();
    let info = details.error_info();
    let outcome = info.and_then(|info| info.metadata.get("outcome"));
    Refusal {
        reason: info.map_or_else(|| format!("{status:?}"), |info| info.reason.clone()),
        message: status.message().to_owned(),
        maybe_applied: outcome.is_none_or(|outcome| outcome != "not_applied"),
        said: true,
    }
}
