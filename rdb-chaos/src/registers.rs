//! The stores that a load can run against, as one client sees them: registers with versions.
//!
//! Owns the trait and its implementation over `rdb-client`; etcd's is [`crate::etcd`]. A value is a
//! number; a version is 0 for an absent key, and otherwise stands for one value.

use crate::load::LoadOptions;
use bytes::Bytes;
use futures::StreamExt;
use rdb_client::{
    Change, Client, ClientError, ClientOptions, Consistency, PutOptions, ReadOptions, ScanOptions,
    WriteOptions,
};
use std::collections::BTreeSet;
use std::fmt;

use crate::ChaosError;

/// The reason of an answer that no store may give.
pub const NOT_A_NUMBER: &str = "NOT_A_NUMBER";

/// A call that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// A word for the statistics.
    pub reason: String,
    /// The whole story.
    pub text: String,
    /// A write: it certainly did nothing.
    pub not_applied: bool,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One client of a store.
pub trait Registers: Send + Sync + 'static {
    /// Whether its writes bring a request id.
    fn names_writes(&self) -> bool {
        true
    }
    /// Version and value of a key.
    fn read(&self, key: String) -> impl Future<Output = Result<(u64, Option<u64>), Failed>> + Send;
    /// Makes a key hold a value.
    fn write(&self, key: String, value: u64) -> impl Future<Output = Result<(), Failed>> + Send;
    /// Makes a key hold nothing.
    fn delete(&self, key: String) -> impl Future<Output = Result<(), Failed>> + Send;
    /// Makes a key hold a value if it is at this version; whether it was.
    fn swap(
        &self,
        key: String,
        version: u64,
        value: u64,
    ) -> impl Future<Output = Result<bool, Failed>> + Send;
    /// All keys with a prefix.
    fn keys(
        &self,
        prefix: &'static str,
    ) -> impl Future<Output = Result<BTreeSet<String>, Failed>> + Send;
}

/// FlareDB through `rdb-client`.
#[derive(Clone)]
pub struct FlareDb {
    client: Client,
    namespace: String,
    /// Names no write. Its writes are repeated only while they are certainly not applied: a store that
    /// says so wrongly applies one twice, or one that was given up.
    anonymous: bool,
    reads: Consistency,
}

impl FlareDb {
    /// A client of these stores that reads linearizably and names its writes.
    ///
    /// # Errors
    ///
    /// When the options are wrong.
    pub fn new(endpoints: Vec<String>, options: &LoadOptions) -> Result<FlareDb, ChaosError> {
        FlareDb::with(
            ClientOptions {
                request_timeout: options.timeout,
                ..ClientOptions::new(endpoints)
            },
            options,
        )
    }

    fn with(client: ClientOptions, options: &LoadOptions) -> Result<FlareDb, ChaosError> {
        let client =
            Client::new(client).map_err(|error| ChaosError::because("no client", error))?;
        Ok(FlareDb {
            client,
            namespace: options.namespace.clone(),
            anonymous: false,
            reads: Consistency::Default,
        })
    }

    /// The clients of a load: each prefers another store and goes to the next when that is gone; half of
    /// them ask nobody who leads, so that forwarding is under load, too; every third one names no write;
    /// and [`LoadOptions::pinned`] more know one store each and never leave it.
    ///
    /// # Errors
    ///
    /// When the options are wrong.
    pub fn clients(
        endpoints: &[String],
        options: &LoadOptions,
    ) -> Result<Vec<FlareDb>, ChaosError> {
        let mut clients = Vec::new();
        for number in 0..options.clients {
            let mut own = endpoints.to_vec();
            own.rotate_left(number % endpoints.len());
            let client = ClientOptions {
                request_timeout: options.timeout,
                discover: number.is_multiple_of(2),
                ..ClientOptions::new(own)
            };
            clients.push(FlareDb {
                anonymous: number % 3 == 2,
                ..FlareDb::with(client, options)?
            });
        }
        for number in 0..options.pinned {
            let only = endpoints[number % endpoints.len()].clone();
            clients.push(FlareDb::new(vec![only], options)?);
        }
        Ok(clients)
    }

    /// The same client, broken on purpose: takes what the asked store happens to have for the newest.
    #[must_use]
    pub fn taking_stale_for_linearizable(self) -> FlareDb {
        FlareDb {
            reads: Consistency::Stale,
            ..self
        }
    }

    fn put_options(&self) -> PutOptions {
        PutOptions {
            no_request_id: self.anonymous,
            ..PutOptions::default()
        }
    }
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Failed {
        Failed {
            reason: error
                .reason
                .map_or_else(|| format!("{:?}", error.kind), |reason| reason.to_string()),
            text: error.to_string(),
            not_applied: error.outcome == rdb_client::Outcome::NotApplied,
        }
    }
}

/// What a register holds, from its text.
///
/// # Errors
///
/// When it is not a number: nobody wrote that.
pub fn number(text: &[u8]) -> Result<u64, Failed> {
    let parsed = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| Failed {
        reason: NOT_A_NUMBER.to_owned(),
        text: format!(
            "a register holds what nobody wrote: {:?}",
            String::from_utf8_lossy(text)
        ),
        not_applied: false,
    })
}

impl Registers for FlareDb {
    fn names_writes(&self) -> bool {
        !self.anonymous
    }

    async fn read(&self, key: String) -> Result<(u64, Option<u64>), Failed> {
        let read = ReadOptions {
            consistency: self.reads,
            ..ReadOptions::default()
        };
        let answer = self.client.get(&self.namespace, key, read).await?;
        let value = if answer.found {
            Some(number(&answer.value)?)
        } else {
            None
        };
        Ok((answer.version, value))
    }

    async fn write(&self, key: String, value: u64) -> Result<(), Failed> {
        let (value, options) = (value.to_string(), self.put_options());
        let put = self.client.put(&self.namespace, key, value, options);
        Ok(put.await.map(drop)?)
    }

    async fn delete(&self, key: String) -> Result<(), Failed> {
        let options = WriteOptions {
            no_request_id: self.anonymous,
            ..WriteOptions::default()
        };
        let delete = self.client.delete(&self.namespace, key, options);
        Ok(delete.await.map(drop)?)
    }

    async fn swap(&self, key: String, version: u64, value: u64) -> Result<bool, Failed> {
        let change = Change::Put(Bytes::from(value.to_string()));
        let options = self.put_options();
        let swap = self
            .client
            .compare_and_swap(&self.namespace, key, version, change, options);
        Ok(swap.await?.success)
    }

    async fn keys(&self, prefix: &'static str) -> Result<BTreeSet<String>, Failed> {
        let options = ScanOptions {
            prefix: prefix.into(),
            keys_only: true,
            read: ReadOptions::linearizable(),
            ..ScanOptions::default()
        };
        let mut entries = self.client.scan(&self.namespace, options);
        let mut keys = BTreeSet::new();
        while let Some(entry) = entries.next().await {
            keys.insert(String::from_utf8_lossy(&entry?.key).into_owned());
        }
        Ok(keys)
    }
}
