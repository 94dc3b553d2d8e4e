//! A `redis-server` and two replicas of it on loopback, with the append-only file synced every second:
//! what Redis is when it is asked to keep data and be quick. A write is acknowledged before any sync and
//! before any replica has it.
//!
//! Owns how they are started and when they are ready.

use crate::BenchError;
use crate::process::{Cluster, NODES, Port};
use crate::target::{Caller, Kind, Target};
use bytes::Bytes;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long the nodes may take to be ready.
const START: Duration = Duration::from_secs(30);

/// The servers.
pub struct Redis {
    cluster: Cluster,
    connection: MultiplexedConnection,
    version: String,
}

/// A caller. All share a connection, on which their commands follow each other without waiting, as those
/// of FlareDB's callers do.
#[derive(Clone)]
pub struct RedisCaller(MultiplexedConnection);

impl Redis {
    /// Starts it, and waits until both replicas follow.
    ///
    /// # Errors
    /// They do not.
    pub async fn start(program: &Path) -> Result<Redis, BenchError> {
        let ports = (0..NODES)
            .map(|_| Port::reserve())
            .collect::<Result<Vec<_>, _>>()?;
        let addrs: Vec<_> = ports.iter().map(Port::addr).collect();
        let mut cluster = Cluster::new("Redis", ports)?;
        for (node, addr) in addrs.iter().enumerate() {
            let dir = cluster.next_dir();
            std::fs::create_dir_all(&dir)
                .map_err(|error| BenchError::because("no directory for Redis", error))?;
            let mut args = vec![
                ("--port", addr.port().to_string()),
                ("--bind", "127.0.0.1".to_owned()),
                ("--dir", dir.display().to_string()),
                ("--appendonly", "yes".to_owned()),
                ("--appendfsync", "everysec".to_owned()),
                ("--save", String::new()),
                ("--repl-diskless-sync-delay", "0".to_owned()),
            ];
            if node > 0 {
                args.push(("--replicaof", format!("127.0.0.1 {}", addrs[0].port())));
            }
            let args: Vec<String> = args
                .into_iter()
                .flat_map(|(name, value)| [name.to_owned(), value])
                .collect();
            cluster.start(program, &args)?;
        }
        let failed = |error| BenchError::because("no client for Redis", error);
        let client = redis::Client::open(format!("redis://{}", addrs[0])).map_err(failed)?;
        let give_up = Instant::now() + START;
        loop {
            cluster.check()?;
            let info = info(&client).await;
            if let Ok((connection, info)) = &info
                && info.contains("connected_slaves:2")
                && info.matches("state=online").count() == 2
            {
                let version = info
                    .lines()
                    .find_map(|line| line.strip_prefix("redis_version:"));
                return Ok(Redis {
                    cluster,
                    connection: connection.clone(),
                    version: version.unwrap_or_default().trim().to_owned(),
                });
            }
            if Instant::now() > give_up {
                let what = format!("Redis has no two replicas within {} s", START.as_secs());
                let why = info
                    .err()
                    .map_or_else(String::new, |error| error.to_string());
                return Err(BenchError::because(what, why));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn info(
    client: &redis::Client,
) -> Result<(MultiplexedConnection, String), redis::RedisError> {
    let mut connection = client.get_multiplexed_async_connection().await?;
    let info = redis::cmd("INFO").query_async(&mut connection).await?;
    Ok((connection, info))
}

/// Where `redis-server` is, if it is installed.
pub fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join("redis-server"))
        .find(|program| program.is_file())
}

impl Target for Redis {
    type Caller = RedisCaller;

    fn kind(&self) -> Kind {
        Kind::Redis
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    async fn callers(&self, count: usize) -> Result<Vec<RedisCaller>, BenchError> {
        Ok(vec![RedisCaller(self.connection.clone()); count])
    }

    fn resident_bytes(&self) -> Vec<u64> {
        self.cluster.resident_bytes()
    }
}

impl Caller for RedisCaller {
    async fn put(&self, key: Bytes, value: Bytes) -> Result<(), String> {
        let mut connection = self.0.clone();
        let put: Result<(), _> = connection.set(&key[..], &value[..]).await;
        put.map_err(|error| error.to_string())
    }

    async fn get(&self, key: Bytes) -> Result<usize, String> {
        let mut connection = self.0.clone();
        let got: Result<Option<Vec<u8>>, _> = connection.get(&key[..]).await;
        match got {
            Ok(Some(value)) => Ok(value.len()),
            Ok(None) => Err("a loaded key is not there".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}
