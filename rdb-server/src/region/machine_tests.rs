//! What readers see of a region changes with the entry that changed it.

use super::*;
use crate::raft::{Entry, Membership, MemorySpool, StoreNode, log_id};
use rdb_storage::MemoryEngine;
use rdb_types::GlobalKey;
use std::collections::BTreeMap;

fn store(id: u64) -> StoreId {
    StoreId::new(id).unwrap()
}

async fn open(engine: Arc<MemoryEngine>) -> RegionMachine {
    let descriptor = raft::RegionDescriptor {
        id: 2,
        start: GlobalKey::namespace_start(NamespaceId::DEFAULT),
        ..raft::RegionDescriptor::default()
    };
    let opened = RegionMachine::open(
        store(1),
        descriptor,
        engine.clone(),
        Committer::start(engine, Box::new(|_| {})),
        Arc::new(MemorySpool::default()),
        None,
    );
    opened.await.unwrap()
}

/// Regression: a store was killed in the middle of a seal and led the region after its start. What the seal needed was in no
/// log any more; the leader's patience with it had never begun, so it was not given up, and nobody could write again.
/// Found by seed 300116.
#[tokio::test]
async fn a_seal_that_is_under_way_at_a_start_is_waited_for_from_then_on() {
    let engine = Arc::new(MemoryEngine::new());
    use crate::region::state::{NamespaceState, Sealing};
    let state = |sealing: bool| NamespaceState {
        sealing: sealing.then(|| Sealing {
            participants: [store(1)].into(),
        }),
        ..NamespaceState::new(rdb_types::Mode::Eventual)
    };
    let mut batch = rdb_storage::WriteBatch::new();
    for (namespace, sealing) in [(3, true), (4, false)] {
        let key =
            crate::region::layout::region_namespace(rdb_types::RegionId(2), NamespaceId(namespace));
        let row = prost::Message::encode_to_vec(&state(sealing).to_row());
        batch.put(rdb_storage::Family::Region, key, row);
    }
    rdb_storage::Engine::write(engine.as_ref(), &batch).unwrap();
    let machine = open(engine).await;
    let since = |namespace| {
        machine.cell().with(|summary| {
            let pause = summary.pauses.get(&NamespaceId(namespace));
            pause.and_then(|pause| pause.since)
        })
    };
    assert!(since(3).is_some() && since(4).is_none());
}

/// Whoever forgets something asks who has to have seen it, as of the index that it has applied: who was a
/// member then, no earlier and no later. A list from elsewhere could be older than the index.
#[tokio::test]
async fn the_members_are_those_as_of_the_applied_index() {
    let mut machine = open(Arc::new(MemoryEngine::new())).await;
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
