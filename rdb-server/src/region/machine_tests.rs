//! What readers see of a region changes with the entry that changed it.

use super::*;
use crate::raft::{Entry, Membership, MemorySpool, StoreNode, log_id};
use rdb_storage::MemoryEngine;
use rdb_types::GlobalKey;
use std::collections::BTreeMap;

fn store(id: u64) -> StoreId {
    StoreId::new(id).unwrap()
}

/// Whoever forgets something asks who has to have seen it, as of the index that it has applied: who was a
/// member then, no earlier and no later. A list from elsewhere could be older than the index.
#[tokio::test]
async fn the_members_are_those_as_of_the_applied_index() {
    let engine = Arc::new(MemoryEngine::new());
    let descriptor = raft::RegionDescriptor {
        id: 2,
        start: GlobalKey::namespace_start(NamespaceId::DEFAULT),
        ..raft::RegionDescriptor::default()
    };
    let mut machine = RegionMachine::open(
        store(1),
        descriptor,
        engine.clone(),
        Committer::start(engine, Box::new(|_| {})),
        Arc::new(MemorySpool::default()),
        None,
    )
    .await
    .unwrap();
    let cell = machine.cell();
    let seen = || cell.with(|summary| (summary.applied_index, summary.members().all));
    assert_eq!(seen(), (0, BTreeSet::new()));
    let mut all = BTreeSet::new();
    for (index, joins) in [(1, 1), (2, 3), (3, 2)] {
        all.insert(joins);
        let nodes = all.iter().map(|id| (*id, StoreNode::default()));
        // The first one votes, the others learn.
        let members = Membership::new(vec![[1].into()], nodes.collect::<BTreeMap<_, _>>());
        let entry = Entry {
            log_id: log_id(1, index),
            payload: EntryPayload::Membership(members.unwrap()),
        };
        let entries = futures::stream::iter([Ok((entry, None))]);
        machine.apply(entries).await.unwrap();
        assert_eq!(seen(), (index, all.iter().copied().map(store).collect()));
    }
}
