//! Clients that move money between accounts, by a compare-and-swap on each: the total has to hold.
//!
//! Owns the accounts. A transfer is two changes, and there is no transaction around them: it is whole
//! because each change is repeated under its request id until its outcome is known, and because a
//! transfer that began is finished also when the load stops. A write that was lost, applied twice or
//! built on an old read shows in the total.

use super::{AFTER_ERROR, NAMESPACE, PACE, Shared};
use bytes::Bytes;
use rand::RngExt;
use rdb_client::{Change, Client, ClientError, PutOptions, ReadOptions};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// What their keys begin with.
pub(in crate::demo) const PREFIX: &str = "account/";
/// How many accounts there are.
pub(in crate::demo) const ACCOUNTS: u64 = 12;
/// What each holds at first.
pub(in crate::demo) const OPENING: u64 = 1_000;

/// How long a change is repeated before it is given up as one whose outcome nobody learned.
const SETTLE: Duration = Duration::from_secs(30);

/// What the tellers did.
#[derive(Default)]
pub(in crate::demo) struct Bank {
    pub(in crate::demo) transfers: u64,
    /// Swaps that somebody else was quicker at.
    pub(in crate::demo) lost_swaps: u64,
    /// Money in changes whose outcome nobody learned.
    pub(in crate::demo) in_doubt: u64,
    /// Things that cannot be: an account that is gone, or holds no number.
    pub(in crate::demo) absurd: Vec<String>,
}

/// Fills the accounts.
pub(in crate::demo) async fn open_accounts(client: &Client) -> Result<(), ClientError> {
    for account in 0..ACCOUNTS {
        client
            .put(
                NAMESPACE,
                key(account),
                OPENING.to_string(),
                PutOptions::default(),
            )
            .await?;
    }
    Ok(())
}

/// One teller, until the load stops.
pub(super) async fn work(shared: Arc<Shared>) {
    while !shared.is_stopping() {
        let (from, to, amount) = {
            let mut random = rand::rng();
            let from = random.random_range(0..ACCOUNTS);
            let to = (from + random.random_range(1..ACCOUNTS)) % ACCOUNTS;
            (from, to, random.random_range(1..=50))
        };
        transfer(&shared, from, to, amount).await;
        sleep(PACE).await;
    }
}

async fn transfer(shared: &Shared, from: u64, to: u64, amount: u64) {
    match change(shared, from, |balance| balance.checked_sub(amount)).await {
        Changed::Yes => {}
        Changed::No => return,
        Changed::NobodyKnows => {
            shared.bank.lock().in_doubt += amount;
            return;
        }
    }
    match change(shared, to, |balance| balance.checked_add(amount)).await {
        Changed::Yes => shared.bank.lock().transfers += 1,
        // The money was taken, and did not arrive for certain.
        Changed::No | Changed::NobodyKnows => shared.bank.lock().in_doubt += amount,
    }
}

enum Changed {
    Yes,
    /// It makes no sense for this balance; nothing was done.
    No,
    NobodyKnows,
}

/// Changes a balance, however many others do so too.
async fn change(shared: &Shared, account: u64, new: impl Fn(u64) -> Option<u64>) -> Changed {
    let give_up = Instant::now() + SETTLE;
    while Instant::now() < give_up {
        let answer = match shared
            .client
            .get(NAMESPACE, key(account), ReadOptions::linearizable())
            .await
        {
            Ok(answer) => answer,
            Err(error) => {
                shared.failed(&error).await;
                continue;
            }
        };
        let Some(balance) = answer.found.then(|| balance(&answer.value)).flatten() else {
            let what = format!(
                "account {account} holds {:?}, which is no balance",
                answer.value
            );
            shared.bank.lock().absurd.push(what);
            return Changed::NobodyKnows;
        };
        let Some(balance) = new(balance) else {
            return Changed::No;
        };
        match swap(shared, account, answer.version, balance, give_up).await {
            Some(true) => return Changed::Yes,
            Some(false) => shared.bank.lock().lost_swaps += 1,
            None => return Changed::NobodyKnows,
        }
    }
    Changed::NobodyKnows
}

/// Whether the swap won. Repeats it, always under the same request id, until that is known.
async fn swap(
    shared: &Shared,
    account: u64,
    version: u64,
    balance: u64,
    give_up: Instant,
) -> Option<bool> {
    let mut request_id: Option<Bytes> = None;
    loop {
        let began = Instant::now();
        let options = PutOptions {
            request_id: request_id.clone(),
            ..PutOptions::default()
        };
        let change = Change::Put(balance.to_string().into());
        match shared
            .client
            .compare_and_swap(NAMESPACE, key(account), version, change, options)
            .await
        {
            Ok(answer) => {
                shared.acks.add(began);
                return Some(answer.success);
            }
            Err(error) if Instant::now() < give_up && error.request_id.is_some() => {
                shared.failed(&error).await;
                request_id = error.request_id;
                sleep(AFTER_ERROR).await;
            }
            Err(_) => return None,
        }
    }
}

fn key(account: u64) -> String {
    format!("{PREFIX}{account:02}")
}

/// A balance as it is stored.
pub(in crate::demo) fn balance(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}
