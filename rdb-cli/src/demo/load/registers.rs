//! Clients of a few registers, whose every call goes into one history.
//!
//! Owns the mapping between registers and keys: a register holds a number, its key holds that number
//! in digits. Every write has a number of its own, so that a version of the key stands for exactly one
//! number: a compare-and-swap by version is one by value, and losing it means that the register held
//! something else.

use super::{NAMESPACE, PACE, Shared};
use bytes::Bytes;
use rand::RngExt;
use rdb_check::{Op, Outcome};
use rdb_client::{Change, Client, ClientError, PutOptions, ReadOptions, WriteOptions};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How many registers there are: few, so that clients meet.
pub(in crate::demo) const REGISTERS: u64 = 16;

/// How long a client waits for the one store that it reads from before it goes on with another call.
const HOME_READ: Duration = Duration::from_millis(400);

/// What stands in the history for bytes that nobody wrote. No write has this number.
const GARBAGE: u64 = u64::MAX;

/// What a read saw.
#[derive(Clone, Copy)]
struct Held {
    value: Option<u64>,
    /// 0: nothing.
    version: u64,
}

/// One client, until the load stops.
pub(super) async fn work(shared: Arc<Shared>, process: u64) {
    // Half of its reads go to this store alone, leader or not, cut off or not.
    let homes: Vec<&Client> = shared.at_store.values().collect();
    let home = homes
        .get(process as usize % homes.len().max(1))
        .copied()
        .unwrap_or(&shared.client);
    while !shared.is_stopping() {
        let (register, kind) = {
            let mut random = rand::rng();
            (
                random.random_range(0..REGISTERS),
                random.random_range(0..100),
            )
        };
        let done = match kind {
            0..20 => read(&shared, home, process, register, Some(HOME_READ))
                .await
                .map(drop),
            20..40 => read(&shared, &shared.client, process, register, None)
                .await
                .map(drop),
            40..70 => write(&shared, process, register).await,
            70..95 => swap(&shared, process, register).await,
            _ => delete(&shared, process, register).await,
        };
        if let Err(error) = done {
            shared.failed(&error).await;
        }
        sleep(PACE).await;
    }
}

async fn read(
    shared: &Shared,
    client: &Client,
    process: u64,
    register: u64,
    timeout: Option<Duration>,
) -> Result<Held, ClientError> {
    let options = ReadOptions {
        timeout,
        ..ReadOptions::linearizable()
    };
    let token = shared.recorder.invoke(process, register, Op::Read);
    let answer = client.get(NAMESPACE, key(register), options).await?;
    let value = answer.found.then(|| number(&answer.value));
    shared.recorder.complete(token, Outcome::Read(value));
    Ok(Held {
        value,
        version: answer.version,
    })
}

async fn write(shared: &Shared, process: u64, register: u64) -> Result<(), ClientError> {
    let value = shared.fresh_value();
    let token = shared.recorder.invoke(process, register, Op::Write(value));
    let began = Instant::now();
    let answer = shared
        .client
        .put(
            NAMESPACE,
            key(register),
            digits(value),
            PutOptions::default(),
        )
        .await;
    let answer = answer.map(|_| Outcome::Done);
    complete(shared, token, began, answer)
}

async fn swap(shared: &Shared, process: u64, register: u64) -> Result<(), ClientError> {
    let held = read(shared, &shared.client, process, register, None).await?;
    let to = shared.fresh_value();
    let token = shared.recorder.invoke(
        process,
        register,
        Op::Cas {
            from: held.value,
            to,
        },
    );
    let began = Instant::now();
    let change = Change::Put(digits(to));
    let answer = shared
        .client
        .compare_and_swap(
            NAMESPACE,
            key(register),
            held.version,
            change,
            PutOptions::default(),
        )
        .await;
    let answer = answer.map(|answer| {
        if answer.success {
            Outcome::Done
        } else {
            Outcome::CasLost
        }
    });
    complete(shared, token, began, answer)
}

async fn delete(shared: &Shared, process: u64, register: u64) -> Result<(), ClientError> {
    let token = shared.recorder.invoke(process, register, Op::Delete);
    let began = Instant::now();
    let answer = shared
        .client
        .delete(NAMESPACE, key(register), WriteOptions::default())
        .await;
    complete(shared, token, began, answer.map(|_| Outcome::Done))
}

fn complete(
    shared: &Shared,
    token: rdb_check::Token,
    began: Instant,
    answer: Result<Outcome, ClientError>,
) -> Result<(), ClientError> {
    match answer {
        Ok(outcome) => {
            shared.recorder.complete(token, outcome);
            shared.acks.add(began);
            Ok(())
        }
        Err(error) => {
            // Without a word from the client crate the token is dropped: an unknown outcome.
            if error.outcome == rdb_client::Outcome::NotApplied {
                shared.recorder.complete(token, Outcome::NotApplied);
            }
            Err(error)
        }
    }
}

fn key(register: u64) -> String {
    format!("register/{register:02}")
}

fn digits(value: u64) -> Bytes {
    value.to_string().into()
}

fn number(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(GARBAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_holds_a_number_and_garbage_is_nobodys() {
        assert_eq!(number(&digits(42)), 42);
        for bytes in [&b""[..], b"4x", b"\xff", b"-1"] {
            assert_eq!(number(bytes), GARBAGE);
        }
    }
}
