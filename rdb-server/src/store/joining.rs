//! How a store comes to belong to a cluster, and makes itself known in it.
//!
//! Owns the carrying out of what [`crate::cluster`] decides: asking the others, keeping promise and plan on
//! the disk before anybody hears of them, the first entries of the meta region. Decides nothing itself.
//!
//! Invariant: [`StoreCore::join`] alone writes promise and plan, one after the other. Ended at any of its
//! awaits, it has written the row or not; either is where the next start goes on.

use super::{StartError, StoreCore};
use crate::cluster::{Step, first_members, keeps_promise};
use crate::config::Config;
use crate::error::Error;
use crate::layout_store as layout;
use crate::transport::Lane;
use bytes::Bytes;
use prost::Message;
use rdb_proto::raft::{self, ClusterPlan, Member, RegionDescriptor, command, peer_request};
use rdb_proto::{WIRE_MINOR, convert};
use rdb_storage::{Durability, Engine, Family, StorageError, WriteBatch};
use rdb_types::{GlobalKey, NamespaceId, Reason, RegionId, StoreId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

pub(super) fn stored_plan(engine: &dyn Engine) -> Result<Option<ClusterPlan>, StorageError> {
    match engine.get(Family::Region, &layout::row("plan"))? {
        None => Ok(None),
        Some(stored) => ClusterPlan::decode(stored)
            .map(Some)
            .map_err(|error| StorageError::corruption("the cluster's plan", error.to_string())),
    }
}

/// The disk that this one has promised itself to. Without a plan, the list must leave that promise whole.
pub(super) fn stored_promise(
    engine: &dyn Engine,
    me: &Member,
    list: Option<&BTreeSet<u32>>,
) -> Result<Option<Member>, StartError> {
    let Some(stored) = engine.get(Family::Region, &layout::row("promise"))? else {
        return Ok(None);
    };
    let promised = Member::decode(stored)
        .map_err(|error| StorageError::corruption("the promise to a planner", error.to_string()))?;
    if let Some(list) = list {
        keeps_promise(me, list, &promised).map_err(StartError::Disk)?;
    }
    Ok(Some(promised))
}

/// A directory of another cluster under the same store id must not be served as if it were this one's:
/// where `--peer` names the members, they are the members of the plan.
pub(super) fn same_members(
    plan: &ClusterPlan,
    me: StoreId,
    peers: &BTreeMap<StoreId, String>,
) -> Result<(), StartError> {
    if peers.is_empty() {
        return Ok(());
    }
    let listed = first_members(me, peers);
    let members: BTreeSet<u32> = plan.members.iter().map(|member| member.store_id).collect();
    if listed == members {
        return Ok(());
    }
    Err(StartError::Disk(format!(
        "the data directory belongs to cluster {} with the members {members:?}, but --peer lists {listed:?}: use the directory of this cluster, or the --peer list of that one; a directory that began a cluster by mistake (a start without --peer) and holds no data can be removed",
        plan.cluster_id
    )))
}

/// The regions that a cluster starts with: the meta region, and the data regions between the splits.
fn first_regions(config: &Config) -> Vec<RegionDescriptor> {
    let data_start = GlobalKey::namespace_start(NamespaceId::DEFAULT);
    let mut bounds: Vec<Bytes> = config
        .cluster
        .bootstrap_split
        .iter()
        .map(|split| {
            GlobalKey::new(NamespaceId(split.namespace_id), &split.key)
                .as_bytes()
                .clone()
        })
        .filter(|bound| *bound > data_start)
        .collect();
    bounds.push(data_start.clone());
    bounds.sort();
    bounds.dedup();
    let meta = RegionDescriptor {
        id: RegionId::META.0,
        start: GlobalKey::namespace_start(NamespaceId::META),
        end: data_start,
        generation: 1,
    };
    let ends = bounds.iter().skip(1).cloned().chain([Bytes::new()]);
    let data = bounds.iter().zip(ends).enumerate();
    let data = data.map(|(at, (start, end))| RegionDescriptor {
        id: RegionId::META.0 + 1 + at as u64,
        start: start.clone(),
        end,
        generation: 1,
    });
    std::iter::once(meta).chain(data).collect()
}

impl StoreCore {
    /// Waits until this store belongs to a cluster: finds one, or begins one with the consent of all.
    pub(super) async fn join(&self) -> Result<ClusterPlan, Error> {
        let mut last_word = None;
        // Why no store could be talked to yet, as of the last time that all were asked.
        let mut heard = Vec::new();
        loop {
            match self.cluster.next_step()? {
                Step::Run(plan) => {
                    // The database knows; the directory's own note may be missing after a crash.
                    self.note_cluster(&plan)?;
                    return Ok(plan);
                }
                Step::Promise(planner) => {
                    let mut batch = WriteBatch::new();
                    batch.put(
                        Family::Region,
                        layout::row("promise"),
                        planner.encode_to_vec(),
                    );
                    self.committer.commit(batch, Durability::Synced).await?;
                    tracing::info!(planner = planner.store_id, disk = %planner.store_uuid, address = %planner.address, "waiting for this store to begin the cluster, and for no other");
                    self.cluster.promised(planner);
                }
                Step::Plan(members) => {
                    let plan = ClusterPlan {
                        cluster_id: uuid::Uuid::new_v4().to_string(),
                        members,
                        regions: first_regions(&self.config.load()),
                        namespaces: self.manager.declared(),
                        default_mode: convert::mode_to_wire(
                            self.config.load().consistency.default_mode,
                        ),
                    };
                    tracing::info!(cluster = %plan.cluster_id, "beginning a cluster");
                    self.keep_plan(plan, true).await?;
                }
                Step::Adopt(plan) => self.keep_plan(plan, false).await?,
                Step::Ask { missing, planner } => {
                    if last_word.is_none_or(|at: Instant| at.elapsed() > Duration::from_secs(5)) {
                        last_word = Some(Instant::now());
                        tracing::info!(
                            ?missing,
                            planner,
                            ?heard,
                            "waiting for the other first members: a cluster begins once all of them answer"
                        );
                    }
                    let others = self.cluster.others();
                    let asked = async {
                        let asked = others.into_iter().map(|store| self.ask(store));
                        let answers = futures::future::join_all(asked).await;
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        answers
                    };
                    tokio::select! {
                        biased;
                        () = self.cluster.changed() => {}
                        answers = asked => heard = answers.into_iter().flatten().collect(),
                    }
                }
            }
        }
    }

    /// Meets a store. What counts is the handshake, and that goes before any request; without a cluster
    /// there is nothing else to be said, so that the call itself fails. In words why.
    async fn ask(&self, store: StoreId) -> Option<String> {
        let request = peer_request::Body::Status(raft::StoreStatusRequest {});
        let limit = Duration::from_secs(1);
        self.transport
            .call(store, Lane::Control, RegionId(0), request, limit)
            .await
            .err()
            .map(|error| error.to_string())
    }

    async fn keep_plan(&self, plan: ClusterPlan, bootstraps: bool) -> Result<(), Error> {
        let mut batch = WriteBatch::new();
        batch.put(Family::Region, layout::row("plan"), plan.encode_to_vec());
        if bootstraps {
            batch.put(
                Family::Region,
                layout::row("bootstraps"),
                Bytes::from_static(b"1"),
            );
        }
        self.committer.commit(batch, Durability::Synced).await?;
        self.note_cluster(&plan)?;
        self.cluster.joined(plan);
        Ok(())
    }

    fn note_cluster(&self, plan: &ClusterPlan) -> Result<(), Error> {
        let Some(data_dir) = &self.data_dir else {
            return Ok(());
        };
        let id = uuid::Uuid::parse_str(&plan.cluster_id).map_err(|error| {
            Error::new(
                Reason::Corruption,
                format!("the cluster's id {:?} is no UUID: {error}", plan.cluster_id),
            )
        })?;
        data_dir
            .set_cluster_id(id)
            .map_err(|error| Error::new(Reason::Refused, error.to_string()))
    }

    /// Fills the cluster's tables if they are empty, and says in them where this store is.
    pub(super) async fn register(&self, plan: &ClusterPlan) -> Result<(), Error> {
        let init = command::Kind::InitCluster(raft::InitCluster {
            plan: Some(plan.clone()),
        });
        // Both change nothing where they were done before.
        for kind in [init, self.registration()] {
            loop {
                match self.meta_command(kind.clone()).await {
                    Ok(()) => break,
                    Err(error) if error.reason == Reason::Refused => return Err(error),
                    Err(error) => {
                        tracing::debug!(%error, "the cluster's tables cannot be written yet");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
        self.namespaces
            .reconcile(Instant::now() + Duration::from_secs(5))
            .await
            .or_else(|error| {
                tracing::debug!(%error, "regions do not know all namespaces yet");
                Ok(())
            })
    }

    /// Says in the cluster's tables what this store is and declares now.
    pub(super) async fn register_store(&self) -> Result<(), Error> {
        self.meta_command(self.registration()).await
    }

    fn registration(&self) -> command::Kind {
        let facts = self.manager.facts().clone();
        command::Kind::RegisterStore(raft::RegisterStore {
            member: Some(facts.member),
            declared: self.manager.declared(),
            wire_minor: WIRE_MINOR,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            http_address: facts.http_address,
        })
    }

    async fn meta_command(&self, kind: command::Kind) -> Result<(), Error> {
        let peer = self.manager.open(self.meta_descriptor()?).await?;
        let command = raft::Command { kind: Some(kind) };
        match peer
            .command(command, Instant::now() + Duration::from_secs(5))
            .await?
        {
            raft::command_outcome::Outcome::Error(error) => Err(Error::from_wire(error)),
            _ => Ok(()),
        }
    }

    fn meta_descriptor(&self) -> Result<RegionDescriptor, Error> {
        let plan = self.cluster.plan();
        plan.and_then(|plan| {
            plan.regions
                .into_iter()
                .find(|region| region.id == RegionId::META.0)
        })
        .ok_or_else(|| Error::new(Reason::NotReady, "this store belongs to no cluster yet"))
    }
}
