//! Clients that write each key once: whatever was acknowledged has to be there at the end.
//!
//! Owns the names of these keys, and the lists of what was acknowledged and what is unknown.

use super::{NAMESPACE, PACE, Shared};
use rdb_client::{Client, ClientError, PutOptions};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use tokio::time::sleep;

/// What their keys begin with.
pub(in crate::demo) const PREFIX: &str = "order/";

/// What became of the writes.
#[derive(Default)]
pub(in crate::demo) struct Orders {
    pub(in crate::demo) acknowledged: BTreeSet<String>,
    pub(in crate::demo) unknown: BTreeSet<String>,
}

/// One client, until the load stops.
pub(super) async fn work(shared: Arc<Shared>, client: u64) {
    for number in 0u64.. {
        if shared.is_stopping() {
            break;
        }
        if let Err(error) = place(
            &shared,
            &shared.client,
            format!("{PREFIX}{client}/{number:06}"),
        )
        .await
        {
            shared.failed(&error).await;
        }
        sleep(PACE).await;
    }
}

/// Writes one, and notes what became of it.
pub(in crate::demo) async fn place(
    shared: &Shared,
    through: &Client,
    key: String,
) -> Result<(), ClientError> {
    let began = Instant::now();
    let answer = through
        .put(NAMESPACE, key.clone(), "one order", PutOptions::default())
        .await;
    match answer {
        Ok(_) => {
            shared.acks.add(began);
            shared.orders.lock().acknowledged.insert(key);
            Ok(())
        }
        Err(error) => {
            if error.outcome == rdb_client::Outcome::Unknown {
                shared.orders.lock().unknown.insert(key);
            }
            Err(error)
        }
    }
}
