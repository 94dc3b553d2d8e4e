//! etcd as registers: the same load, the same judge, another store.
//!
//! Owns the translation; processes and calls are `rdb-bench`'s.

use crate::registers::{Failed, Registers, number};
use bytes::Bytes;
use rdb_bench::etcd::EtcdCaller;
use rdb_bench::target::Caller;
use std::collections::BTreeSet;

/// A client of one node.
#[derive(Clone)]
pub struct EtcdRegisters(pub EtcdCaller);

fn failed(text: String) -> Failed {
    Failed {
        reason: "ETCD".to_owned(),
        text,
        // It does not say.
        not_applied: false,
    }
}

impl Registers for EtcdRegisters {
    async fn read(&self, key: String) -> Result<(u64, Option<u64>), Failed> {
        match self.0.read(key.into()).await.map_err(failed)? {
            Some((revision, value)) => Ok((revision.unsigned_abs(), Some(number(&value)?))),
            None => Ok((0, None)),
        }
    }

    async fn write(&self, key: String, value: u64) -> Result<(), Failed> {
        let put = self.0.put(key.into(), value.to_string().into());
        put.await.map_err(failed)
    }

    async fn delete(&self, key: String) -> Result<(), Failed> {
        self.0.delete(key.into()).await.map_err(failed)
    }

    async fn swap(&self, key: String, version: u64, value: u64) -> Result<bool, Failed> {
        let revision = i64::try_from(version).map_err(|error| failed(error.to_string()))?;
        let swap = self.0.swap(key.into(), revision, value.to_string().into());
        swap.await.map_err(failed)
    }

    async fn keys(&self, prefix: &'static str) -> Result<BTreeSet<String>, Failed> {
        // The prefix ends in `/`; `0` follows it.
        let end = format!("{}0", prefix.trim_end_matches('/'));
        let keys = self
            .0
            .keys(Bytes::from_static(prefix.as_bytes()), end.into());
        let keys = keys.await.map_err(failed)?;
        Ok(keys
            .iter()
            .map(|key| String::from_utf8_lossy(key).into_owned())
            .collect())
    }
}
