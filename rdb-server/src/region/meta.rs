//! The meta region's rows: namespaces, stores, the region map.
//!
//! Owns what the meta region's commands do to them; what they do to modes is in [`modes`]. The rows are ordinary records of namespace 0, so
//! that snapshots, digests and reads need nothing special. Knows nothing of who asks.
//!
//! Invariants: namespace ids are never reused; a name stands for at most one namespace that is not
//! deleted; initialising twice changes nothing.

pub mod modes;

use crate::error::{Error, Outcome};
use bytes::Bytes;
use prost::Message;
use rdb_proto::{convert, raft};
use rdb_storage::{Family, KeyRange, StorageError, View};
use rdb_types::{GlobalKey, Mode, NamespaceId, NamespaceName, Reason, Record, StoreId};
use std::collections::BTreeMap;

const CLUSTER: &[u8] = b"cluster";
const NAMESPACE: &[u8] = b"namespace/";
const STORE: &[u8] = b"store/";

/// What the rows say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetaState {
    /// `None` until the cluster was initialised.
    pub cluster: Option<raft::ClusterRow>,
    /// By id, deleted ones too.
    pub namespaces: BTreeMap<NamespaceId, raft::NamespaceRow>,
    /// By name; deleted ones too.
    pub by_name: BTreeMap<String, NamespaceId>,
    /// Every store that ever was a member.
    pub stores: BTreeMap<StoreId, raft::StoreRow>,
}

/// Rows to write, by user key in namespace 0.
pub type Rows = Vec<(Bytes, Bytes)>;

impl MetaState {
    /// Reads the rows.
    pub fn load(view: &dyn View) -> Result<MetaState, StorageError> {
        let mut state = MetaState::default();
        let range = KeyRange {
            start: GlobalKey::namespace_start(NamespaceId::META),
            end: GlobalKey::namespace_end(NamespaceId::META),
        };
        for item in view.scan(Family::Data, &range, false) {
            let (key, value) = item?;
            let damaged = |why: String| StorageError::corruption(format!("meta row {key:?}"), why);
            let global = GlobalKey::from_bytes(key.clone())
                .ok_or_else(|| damaged("its key is too short".into()))?;
            let record = Record::decode(value).map_err(|error| damaged(error.to_string()))?;
            state
                .read_row(&global.user_key(), record.value)
                .map_err(|error| damaged(error.to_string()))?;
        }
        Ok(state)
    }

    fn read_row(&mut self, key: &[u8], value: Bytes) -> Result<(), prost::DecodeError> {
        if key == CLUSTER {
            self.cluster = Some(raft::ClusterRow::decode(value)?);
        } else if key.starts_with(NAMESPACE) {
            let row = raft::NamespaceRow::decode(value)?;
            self.by_name.insert(row.name.clone(), NamespaceId(row.id));
            self.namespaces.insert(NamespaceId(row.id), row);
        } else if key.starts_with(STORE) {
            let row = raft::StoreRow::decode(value)?;
            if let Some(id) = row
                .member
                .as_ref()
                .and_then(|member| StoreId::new(u64::from(member.store_id)))
            {
                self.stores.insert(id, row);
            }
        }
        Ok(())
    }

    /// The namespace of a name, unless it was deleted.
    pub fn namespace(&self, name: &str) -> Option<&raft::NamespaceRow> {
        self.by_name
            .get(name)
            .and_then(|id| self.namespaces.get(id))
            .filter(|row| !row.deleted)
    }

    fn put_namespace(&mut self, rows: &mut Rows, row: raft::NamespaceRow) {
        let key = [NAMESPACE, &row.id.to_be_bytes()].concat();
        rows.push((key.into(), row.encode_to_vec().into()));
        self.by_name.insert(row.name.clone(), NamespaceId(row.id));
        self.namespaces.insert(NamespaceId(row.id), row);
    }

    fn put_store(&mut self, rows: &mut Rows, id: StoreId, row: raft::StoreRow) {
        let key = [STORE, &id.get().to_be_bytes()].concat();
        rows.push((key.into(), row.encode_to_vec().into()));
        self.stores.insert(id, row);
    }

    fn put_cluster(&mut self, rows: &mut Rows, row: raft::ClusterRow) {
        rows.push((Bytes::from_static(CLUSTER), row.encode_to_vec().into()));
        self.cluster = Some(row);
    }

    /// Writes what the cluster starts from: stores, regions, `default`, declared namespaces. Does
    /// nothing when that was done before.
    pub fn init_cluster(&mut self, plan: &raft::ClusterPlan) -> Rows {
        let mut rows = Rows::new();
        if self.cluster.is_some() {
            return rows;
        }
        for member in &plan.members {
            if let Some(id) = StoreId::new(u64::from(member.store_id)) {
                self.put_store(
                    &mut rows,
                    id,
                    raft::StoreRow {
                        member: Some(member.clone()),
                        ..Default::default()
                    },
                );
            }
        }
        let default_mode = convert::mode(plan.default_mode).unwrap_or_default();
        let mut next = NamespaceId::DEFAULT.0;
        let mut add =
            |state: &mut Self, rows: &mut Rows, name: &str, mode: Mode, policies, from_default| {
                let mode = convert::mode_to_wire(mode);
                let row = raft::NamespaceRow {
                    id: next,
                    name: name.to_owned(),
                    mode,
                    target: mode,
                    policies,
                    from_default,
                    ..raft::NamespaceRow::default()
                };
                next += 1;
                state.put_namespace(rows, row);
            };
        let declared_default = plan
            .namespaces
            .iter()
            .find(|declared| declared.name == NamespaceName::DEFAULT);
        match declared_default {
            Some(declared) => {
                let mode = convert::mode(declared.mode).unwrap_or(default_mode);
                add(
                    self,
                    &mut rows,
                    NamespaceName::DEFAULT,
                    mode,
                    declared.policies.clone(),
                    false,
                );
            }
            None => add(
                self,
                &mut rows,
                NamespaceName::DEFAULT,
                default_mode,
                None,
                true,
            ),
        }
        for declared in plan
            .namespaces
            .iter()
            .filter(|declared| declared.name != NamespaceName::DEFAULT)
        {
            let mode = convert::mode(declared.mode).unwrap_or(default_mode);
            add(
                self,
                &mut rows,
                &declared.name,
                mode,
                declared.policies.clone(),
                false,
            );
        }
        let row = raft::ClusterRow {
            cluster_id: plan.cluster_id.clone(),
            next_namespace_id: next,
            regions: plan.regions.clone(),
            default_mode: plan.default_mode,
        };
        self.put_cluster(&mut rows, row);
        rows
    }

    /// Creates a namespace. A first write (`from_default`) finds one that is there already; a request
    /// to create it is refused, unless it asks for just what is there.
    pub fn create_namespace(
        &mut self,
        command: &raft::CreateNamespaceCommand,
    ) -> Result<(raft::NamespaceRow, Rows), Error> {
        let Some(cluster) = self.cluster.clone() else {
            return Err(not_initialised());
        };
        let name = NamespaceName::parse(&command.name).map_err(|error| {
            Error::invalid("namespace", error.to_string()).outcome(Outcome::NotApplied)
        })?;
        let known = self
            .by_name
            .get(name.as_str())
            .and_then(|id| self.namespaces.get(id));
        let mode = match convert::mode(command.mode) {
            Some(mode) => mode,
            None => convert::mode(cluster.default_mode).unwrap_or_default(),
        };
        match known {
            Some(row) if !row.deleted => {
                if command.from_default
                    || row.mode == convert::mode_to_wire(mode)
                        && same_policies(row.policies.as_ref(), command.policies.as_ref())
                {
                    return Ok((row.clone(), Rows::new()));
                }
                return Err(Error::new(
                    Reason::AlreadyExists,
                    format!("namespace {name} exists already, with other settings; describe it to see them"),
                )
                .with("namespace", &name)
                .outcome(Outcome::NotApplied));
            }
            Some(_) if command.from_default => return Err(not_found(name.as_str())),
            Some(row) if row.last_epoch == 0 => {
                return Err(Error::new(
                    Reason::NotReady,
                    format!("namespace {name} was deleted, and regions still have to let go of it; try again"),
                )
                .with("namespace", &name)
                .outcome(Outcome::NotApplied));
            }
            _ => {}
        }
        let first_epoch = known.map_or(0, |deleted| deleted.last_epoch + 1);
        let mut rows = Rows::new();
        let row = raft::NamespaceRow {
            id: cluster.next_namespace_id,
            name: name.as_str().to_owned(),
            mode: convert::mode_to_wire(mode),
            target: convert::mode_to_wire(mode),
            policies: command.policies.clone(),
            from_default: command.from_default,
            first_epoch,
            ..raft::NamespaceRow::default()
        };
        self.put_namespace(&mut rows, row.clone());
        self.put_cluster(
            &mut rows,
            raft::ClusterRow {
                next_namespace_id: cluster.next_namespace_id + 1,
                ..cluster
            },
        );
        Ok((row, rows))
    }

    /// Replaces the policies of a namespace.
    pub fn update_namespace(
        &mut self,
        command: &raft::UpdateNamespaceCommand,
    ) -> Result<(raft::NamespaceRow, Rows), Error> {
        let known = self.namespace(&command.name).cloned();
        let known = known.ok_or_else(|| not_found(&command.name))?;
        if same_policies(known.policies.as_ref(), command.policies.as_ref()) {
            return Ok((known, Rows::new()));
        }
        let row = raft::NamespaceRow {
            policies: command.policies.clone(),
            ..known
        };
        let mut rows = Rows::new();
        self.put_namespace(&mut rows, row.clone());
        Ok((row, rows))
    }

    /// Deletes a namespace: its name stands for nothing from here on, and regions let go of what they hold
    /// of it.
    pub fn delete_namespace(
        &mut self,
        command: &raft::DeleteNamespaceCommand,
    ) -> Result<(raft::NamespaceRow, Rows), Error> {
        let known = self.namespace(&command.name).cloned();
        let known = known.ok_or_else(|| not_found(&command.name))?;
        if known.name == NamespaceName::DEFAULT {
            return Err(Error::invalid(
                "name",
                "namespace \"default\" is where requests go that name none: it cannot be deleted"
                    .to_owned(),
            )
            .outcome(Outcome::NotApplied));
        }
        if modes::under_way(&known) {
            return Err(Error::new(
                Reason::SwitchInProgress,
                format!(
                    "namespace {:?} is being switched: wait, or cancel that with `flaredb ns set-mode {} --cancel`, then delete it",
                    known.name, known.name
                ),
            )
            .with("namespace", &known.name)
            .outcome(Outcome::NotApplied));
        }
        let row = raft::NamespaceRow {
            deleted: true,
            votes: Vec::new(),
            ..known
        };
        let mut rows = Rows::new();
        self.put_namespace(&mut rows, row.clone());
        Ok((row, rows))
    }

    /// Refuses what a store of this cluster would find in a log and not know. For whoever proposes it: once it
    /// stands in the log it is too late.
    pub fn all_know(&self, wire_minor: u32, what: &str) -> Result<(), Error> {
        let older: Vec<String> = self
            .stores
            .iter()
            .filter(|(_, row)| !row.registered || row.wire_minor < wire_minor)
            .map(|(id, _)| id.to_string())
            .collect();
        if older.is_empty() {
            return Ok(());
        }
        let stores = older.join(", ");
        Err(Error::new(
            Reason::Unimplemented,
            format!("to {what}, every store has to run a build that can, and has to have been up with it once; upgrade or start first: {stores}"),
        )
        .with("stores", stores)
        .outcome(Outcome::NotApplied))
    }

    /// Notes that all regions have let go of a deleted namespace. Its name can be used again.
    pub fn settle_deletion(
        &mut self,
        settle: &raft::SettleDeletion,
    ) -> Result<(raft::NamespaceRow, Rows), Error> {
        let known = self.namespaces.get(&NamespaceId(settle.namespace_id));
        let Some(known) = known.filter(|row| row.deleted).cloned() else {
            let why = format!("namespace {} is not deleted", settle.namespace_id);
            return Err(Error::invalid("namespace_id", why).outcome(Outcome::NotApplied));
        };
        if known.last_epoch != 0 {
            return Ok((known, Rows::new()));
        }
        let row = raft::NamespaceRow {
            last_epoch: settle.last_epoch.max(1),
            ..known
        };
        let mut rows = Rows::new();
        self.put_namespace(&mut rows, row.clone());
        Ok((row, rows))
    }

    /// Records what a store says of itself: where it is, what its configuration declares. Its UUID is
    /// never changed by this: another disk under the same id is refused. Once a store has spoken for
    /// itself, a change of what it declares is a vote.
    pub fn register_store(&mut self, command: &raft::RegisterStore) -> Result<Rows, Error> {
        let member = command.member.clone().unwrap_or_default();
        let id = StoreId::new(u64::from(member.store_id)).ok_or_else(|| {
            Error::invalid("store_id", format!("{} is not a store id", member.store_id))
        })?;
        let before = self.stores.get(&id).cloned().unwrap_or_default();
        let Some(known) = &before.member else {
            return Err(Error::new(
                Reason::Refused,
                format!("store {id} is not a member of this cluster"),
            ));
        };
        if known.store_uuid != member.store_uuid {
            return Err(Error::new(
                Reason::Refused,
                format!(
                    "store {id} is known by another data directory ({}); this one ({}) is new or was wiped",
                    known.store_uuid, member.store_uuid
                ),
            ));
        }
        let row = raft::StoreRow {
            member: Some(member),
            declared: command.declared.clone(),
            wire_minor: command.wire_minor,
            version: command.version.clone(),
            http_address: command.http_address.clone(),
            registered: true,
        };
        let mut rows = Rows::new();
        if before != row {
            self.put_store(&mut rows, id, row);
        }
        if before.registered {
            self.count_votes(&mut rows, id, &before.declared, &command.declared);
        }
        Ok(rows)
    }
}

/// Whether two sets of policies ask for the same; none at all asks for the defaults.
fn same_policies(a: Option<&raft::Policies>, b: Option<&raft::Policies>) -> bool {
    match (convert::policies(a), convert::policies(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// Nothing is in the tables yet.
pub fn not_initialised() -> Error {
    Error::new(
        Reason::NotReady,
        "the cluster is still being initialised; try again",
    )
    .outcome(Outcome::NotApplied)
}

/// There is no such namespace.
pub fn not_found(name: &str) -> Error {
    Error::new(
        Reason::NamespaceNotFound,
        format!("there is no namespace {name:?}; create it with `flaredb ns create {name}`"),
    )
    .with("namespace", name)
    .outcome(Outcome::NotApplied)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> raft::ClusterPlan {
        raft::ClusterPlan {
            cluster_id: "c".into(),
            members: vec![raft::Member {
                store_id: 1,
                store_uuid: "u1".into(),
                address: "a:1".into(),
            }],
            regions: vec![],
            namespaces: vec![raft::DeclaredNamespace {
                name: "logs".into(),
                mode: 2,
                policies: None,
            }],
            default_mode: 1,
        }
    }

    fn create(name: &str, from_default: bool) -> raft::CreateNamespaceCommand {
        raft::CreateNamespaceCommand {
            name: name.into(),
            mode: 0,
            policies: None,
            from_default,
        }
    }

    #[test]
    fn initialising_twice_changes_nothing() {
        let mut state = MetaState::default();
        assert!(!state.init_cluster(&plan()).is_empty());
        let before = state.clone();
        assert!(
            state
                .init_cluster(&raft::ClusterPlan {
                    cluster_id: "other".into(),
                    ..plan()
                })
                .is_empty()
        );
        assert_eq!(state, before);
        assert_eq!(
            state
                .namespace("default")
                .map(|row| (row.id, row.mode, row.from_default)),
            Some((1, 1, true))
        );
        assert_eq!(
            state
                .namespace("logs")
                .map(|row| (row.id, row.mode, row.from_default)),
            Some((2, 2, false))
        );
    }

    #[test]
    fn a_second_first_write_finds_what_the_first_made() {
        let mut state = MetaState::default();
        assert_eq!(
            state
                .create_namespace(&create("a", true))
                .unwrap_err()
                .reason,
            Reason::NotReady
        );
        state.init_cluster(&plan());
        let (first, rows) = state.create_namespace(&create("a", true)).unwrap();
        assert_eq!((first.id, rows.len()), (3, 2));
        let (again, rows) = state.create_namespace(&create("a", true)).unwrap();
        assert_eq!((again.id, rows.len()), (3, 0));
        let other = raft::CreateNamespaceCommand {
            mode: 2,
            ..create("a", false)
        };
        assert_eq!(
            state.create_namespace(&other).unwrap_err().reason,
            Reason::AlreadyExists
        );
        assert_eq!(
            state
                .create_namespace(&create("A", false))
                .unwrap_err()
                .reason,
            Reason::InvalidArgument
        );
    }

    #[test]
    fn an_update_replaces_the_policies_and_nothing_else() {
        let mut state = MetaState::default();
        state.init_cluster(&plan());
        let update = |name: &str, ttl_ms| raft::UpdateNamespaceCommand {
            name: name.into(),
            policies: Some(raft::Policies {
                ttl_ms,
                ..Default::default()
            }),
        };
        let before = state.namespace("logs").cloned().unwrap();
        let (row, rows) = state.update_namespace(&update("logs", 7)).unwrap();
        assert_eq!(rows.len(), 1);
        let policies = row.policies.clone().unwrap();
        assert_eq!(policies.ttl_ms, 7);
        let restored = raft::NamespaceRow {
            policies: None,
            ..row
        };
        assert_eq!(restored, before);
        assert_eq!(
            state.update_namespace(&update("logs", 7)).unwrap().1.len(),
            0
        );
        assert_eq!(
            state
                .update_namespace(&update("none", 7))
                .unwrap_err()
                .reason,
            Reason::NamespaceNotFound
        );
    }

    /// The store of the plan says what it is.
    fn runs(state: &mut MetaState, wire_minor: u32) {
        let register = raft::RegisterStore {
            member: plan().members.pop(),
            wire_minor,
            ..Default::default()
        };
        state.register_store(&register).unwrap();
    }

    #[test]
    fn what_came_with_a_minor_version_waits_until_all_stores_have_it() {
        let mut state = MetaState::default();
        state.init_cluster(&plan());
        let refused = |state: &MetaState| {
            let error = state.all_know(1, "delete a namespace").unwrap_err();
            assert_eq!(error.reason, Reason::Unimplemented);
            assert_eq!(error.metadata["stores"], "1");
            assert_eq!(error.metadata["outcome"], "not_applied");
        };
        refused(&state);
        runs(&mut state, 0);
        refused(&state);
        runs(&mut state, 1);
        assert!(state.all_know(1, "delete a namespace").is_ok());
    }

    #[test]
    fn a_deleted_name_comes_back_when_it_is_created_and_with_higher_epochs() {
        let mut state = MetaState::default();
        state.init_cluster(&plan());
        let delete = |name: &str| raft::DeleteNamespaceCommand { name: name.into() };
        let eventual = raft::CreateNamespaceCommand {
            mode: 2,
            ..create("logs", false)
        };
        let (deleted, rows) = state.delete_namespace(&delete("logs")).unwrap();
        assert_eq!((deleted.id, rows.len()), (2, 1));
        assert!(state.namespace("logs").is_none());
        for (command, reason) in [
            // A late writer does not bring it back; and it is not created while regions hold the old one.
            (create("logs", true), Reason::NamespaceNotFound),
            (eventual.clone(), Reason::NotReady),
        ] {
            let error = state.create_namespace(&command).unwrap_err();
            assert_eq!(error.reason, reason);
        }
        let error = state.delete_namespace(&delete("logs")).unwrap_err();
        assert_eq!(error.reason, Reason::NamespaceNotFound);

        let settle = |namespace_id, last_epoch| raft::SettleDeletion {
            namespace_id,
            last_epoch,
        };
        assert!(state.settle_deletion(&settle(1, 9)).is_err());
        assert_eq!(state.settle_deletion(&settle(2, 7)).unwrap().1.len(), 1);
        assert_eq!(state.settle_deletion(&settle(2, 9)).unwrap().1.len(), 0);
        let (again, _) = state.create_namespace(&eventual).unwrap();
        assert_eq!((again.id, again.first_epoch), (3, 8));
        assert_eq!(state.namespace("logs"), Some(&again));
        // A delayed word about the old one changes nothing of the new one.
        assert!(state.settle_deletion(&settle(3, 9)).is_err());
    }

    #[test]
    fn neither_the_default_namespace_nor_one_that_is_being_switched_is_deleted() {
        let mut state = MetaState::default();
        state.init_cluster(&plan());
        let set = raft::SetTarget {
            name: "logs".into(),
            mode: 1,
            ..Default::default()
        };
        state.set_target(&set).unwrap();
        let before = state.clone();
        for (name, reason) in [
            ("default", Reason::InvalidArgument),
            ("logs", Reason::SwitchInProgress),
        ] {
            let delete = raft::DeleteNamespaceCommand { name: name.into() };
            let error = state.delete_namespace(&delete).unwrap_err();
            assert_eq!(error.reason, reason);
            assert_eq!(error.metadata["outcome"], "not_applied");
        }
        assert_eq!(state, before);
    }

    #[test]
    fn a_wiped_disk_under_an_old_id_is_refused() {
        let mut state = MetaState::default();
        state.init_cluster(&plan());
        let register = |uuid: &str, id| raft::RegisterStore {
            member: Some(raft::Member {
                store_id: id,
                store_uuid: uuid.into(),
                address: "b:2".into(),
            }),
            ..Default::default()
        };
        assert_eq!(
            state.register_store(&register("u2", 1)).unwrap_err().reason,
            Reason::Refused
        );
        assert_eq!(
            state.register_store(&register("u1", 9)).unwrap_err().reason,
            Reason::Refused
        );
        assert_eq!(state.register_store(&register("u1", 1)).unwrap().len(), 1);
        assert_eq!(state.register_store(&register("u1", 1)).unwrap().len(), 0);
    }
}
