//! `flaredb ns`: namespaces and their modes.
//!
//! Owns the printing. What a store does not do yet it says itself (UNIMPLEMENTED), and that is
//! reported as it stands.

mod set_mode;

use crate::args::{Shared, duration, show_duration};
use crate::exit::{self, Error};
use crate::output::{Item, Output};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use rdb_proto::raft;
use rdb_proto::{convert, kv};
use rdb_types::{Durability, Mode, Policies};
use serde_json::{Value, json};
use set_mode::SetMode;
use std::process::ExitCode;
use std::time::Duration;

/// A mode: one of a few words, which shells complete.
fn mode_parser() -> impl TypedValueParser<Value = Mode> {
    let words = [Mode::Strong, Mode::Eventual].map(|mode| mode.as_str());
    PossibleValuesParser::new(words).try_map(|word| word.parse())
}

/// As [`mode_parser`].
fn durability_parser() -> impl TypedValueParser<Value = Durability> {
    let words = [Durability::Sync, Durability::Relaxed].map(|durability| durability.as_str());
    PossibleValuesParser::new(words).try_map(|word| word.parse())
}

#[derive(Subcommand, Debug)]
pub(crate) enum Ns {
    /// All namespaces
    List,
    /// Create a namespace
    Create(Create),
    /// One namespace: mode, policies, size
    Describe { name: String },
    /// Modes on every store, and where they disagree
    Modes,
    /// Change a namespace's policies; one that is not named goes back to its default
    Update {
        name: String,
        #[command(flatten)]
        policies: PolicyArgs,
    },
    /// Delete a namespace and all that is in it
    Delete {
        name: String,
        /// Do not ask for this: the data is gone afterwards
        #[arg(long, required = true)]
        yes: bool,
    },
    /// Switch a namespace to another mode, while it is used
    ///
    /// Shows how far it is until every region is there. A switch to strong waits for every store, and is given
    /// up and undone when one does not come in time (exit code 1); a reader that goes away changes nothing.
    SetMode(SetMode),
}

#[derive(Args, Debug)]
pub(crate) struct Create {
    name: String,
    /// Its mode; the cluster's default otherwise
    #[arg(long, value_parser = mode_parser())]
    mode: Option<Mode>,
    #[command(flatten)]
    policies: PolicyArgs,
}

#[derive(Args, Debug)]
pub(crate) struct PolicyArgs {
    /// Time to live of writes that bring none: 30s, 7d
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    ttl: Option<Duration>,
    /// When an eventual write is acknowledged: once on this store's disk, or before
    #[arg(long, value_parser = durability_parser())]
    durability: Option<Durability>,
    /// Objective for the lag of an eventual namespace: a replica further behind is logged and counted
    #[arg(long, value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    max_lag: Option<Duration>,
    /// Bound of an eventual namespace's conflict log, in bytes, per region [default: 64 MiB]
    #[arg(long, value_name = "BYTES")]
    conflict_log: Option<u64>,
}

impl PolicyArgs {
    fn policies(&self) -> Policies {
        let ms = |duration: Option<Duration>| {
            duration.map_or(0, |duration| {
                u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
            })
        };
        Policies {
            durability: self.durability.unwrap_or_default(),
            max_lag_ms: ms(self.max_lag),
            ttl_ms: ms(self.ttl),
            conflict_log_bytes: self.conflict_log.unwrap_or(0),
        }
    }
}

impl Ns {
    pub(crate) async fn run(self, shared: &Shared) -> Result<ExitCode, Error> {
        let client = shared.client()?;
        match self {
            Ns::List => show_namespaces(shared, client.list_namespaces().await?)?,
            Ns::Create(create) => {
                let made = client
                    .create_namespace(&create.name, create.mode, Some(create.policies.policies()))
                    .await?;
                show_namespace(shared, &made)?;
            }
            Ns::Describe { name } => {
                show_namespace(shared, &client.describe_namespace(&name).await?)?
            }
            Ns::Modes => show_modes(shared, client.list_modes().await?)?,
            Ns::Update { name, policies } => {
                show_namespace(
                    shared,
                    &client.update_namespace(&name, policies.policies()).await?,
                )?;
            }
            Ns::Delete { name, .. } => {
                client.delete_namespace(&name).await?;
                exit::note(&format!("flaredb: namespace {name} is deleted"));
            }
            Ns::SetMode(set) => return set.run(shared, &client).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

const NAMESPACE: &[&str] = &[
    "NAME",
    "MODE",
    "STATE",
    "KEYS",
    "BYTES",
    "REGIONS",
    "TTL",
    "DURABILITY",
];

fn show_namespaces(shared: &Shared, namespaces: Vec<raft::Namespace>) -> Result<(), Error> {
    let mut out = Output::list(shared.output, NAMESPACE);
    for namespace in &namespaces {
        out.add(namespace_item(namespace))?;
    }
    out.end()
}

fn show_namespace(shared: &Shared, namespace: &raft::Namespace) -> Result<(), Error> {
    let mut out = Output::one(shared.output, NAMESPACE);
    out.add(namespace_item(namespace))?;
    out.end()
}

fn namespace_item(namespace: &raft::Namespace) -> Item {
    let policies = namespace.policies.clone().unwrap_or_default();
    let ttl = match u64::try_from(policies.ttl_ms) {
        Ok(ms @ 1..) => show_duration(ms),
        _ => "never expires".to_owned(),
    };
    Item {
        row: vec![
            namespace.name.clone(),
            mode(namespace.mode).to_owned(),
            state(namespace.state).to_owned(),
            namespace.keys.to_string(),
            namespace.bytes.to_string(),
            namespace.regions.to_string(),
            ttl,
            policies.durability.clone(),
        ],
        json: json!({
            "id": namespace.id,
            "name": namespace.name,
            "mode": mode(namespace.mode),
            "state": state(namespace.state),
            "keys": namespace.keys.to_string(),
            "bytes": namespace.bytes.to_string(),
            "regions": namespace.regions,
            "policies": {
                "durability": policies.durability,
                "max_lag_ms": policies.max_lag_ms.to_string(),
                "ttl_ms": policies.ttl_ms.to_string(),
                "conflict_log_bytes": policies.conflict_log_bytes.to_string(),
            },
        }),
        raw: namespace.name.clone().into_bytes(),
    }
}

fn show_modes(shared: &Shared, namespaces: Vec<raft::NamespaceMode>) -> Result<(), Error> {
    let mut out = Output::list(
        shared.output,
        &["NAME", "MODE", "TARGET", "EPOCH", "STATE", "MISMATCH"],
    );
    for namespace in &namespaces {
        let stores: Vec<Value> = namespace.stores.iter().map(store_mode).collect();
        out.add(Item {
            row: vec![
                namespace.namespace.clone(),
                mode(namespace.mode).to_owned(),
                mode(namespace.target).to_owned(),
                namespace.epoch.to_string(),
                state(namespace.state).to_owned(),
                if namespace.mismatched {
                    namespace.mismatch.clone()
                } else {
                    "none".to_owned()
                },
            ],
            json: json!({
                "namespace": namespace.namespace,
                "mode": mode(namespace.mode),
                "target": mode(namespace.target),
                "epoch": namespace.epoch.to_string(),
                "state": state(namespace.state),
                "from_default": namespace.from_default,
                "mismatched": namespace.mismatched,
                "mismatch": namespace.mismatch,
                "stores": stores,
            }),
            raw: format!("{}\t{}", namespace.namespace, mode(namespace.mode)).into_bytes(),
        })?;
    }
    out.end()
}

fn store_mode(store: &raft::StoreMode) -> Value {
    json!({
        "store_id": store.store_id,
        "declared": mode(store.declared),
        "applied": mode(store.applied),
        "epoch": store.epoch.to_string(),
        "reachable": store.reachable,
        "mismatched_since_ms": store.mismatched_since_ms.to_string(),
    })
}

/// As users write it; `unspecified` and a mode of a newer store as such.
pub(super) fn mode(wire: i32) -> &'static str {
    match (convert::mode(wire), kv::Mode::try_from(wire)) {
        (Some(mode), _) => mode.as_str(),
        (None, Ok(_)) => "unspecified",
        (None, Err(_)) => "unknown to this build",
    }
}

fn state(wire: i32) -> &'static str {
    match raft::State::try_from(wire) {
        Ok(raft::State::Stable) => "stable",
        Ok(raft::State::Switching) => "switching",
        Ok(raft::State::Sealing) => "sealing",
        Ok(raft::State::Unspecified) => "unspecified",
        Err(_) => "unknown to this build",
    }
}
