//! What was written comes back, and what cannot be read is an error.

use super::*;
use crate::raft::log_id as id;
use prost::Message;

/// Through bytes, so that what is compared is what another store reads.
fn again<M: Message + Default>(message: M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

fn some_membership() -> Membership {
    let node = |n: u64| StoreNode {
        store_uuid: format!("uuid {n}"),
        address: format!("host-{n}:1"),
    };
    let nodes: BTreeMap<u64, StoreNode> = (1..=4).map(|n| (n, node(n))).collect();
    Membership::new(
        vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])],
        nodes,
    )
    .unwrap()
}

fn entries() -> Vec<Entry> {
    vec![
        Entry {
            log_id: id(3, 8),
            payload: EntryPayload::Blank,
        },
        Entry {
            log_id: id(3, 9),
            payload: EntryPayload::Normal(Command("bytes".into())),
        },
        Entry {
            log_id: id(4, 10),
            payload: EntryPayload::Normal(Command("".into())),
        },
        Entry {
            log_id: id(4, 11),
            payload: EntryPayload::Membership(some_membership()),
        },
    ]
}

#[test]
fn ids_votes_entries_and_memberships_come_back_as_they_went() {
    assert_eq!(log_id(&again(log_id_to_wire(&id(7, 9)))), id(7, 9));
    for original in [Vote::new(0, 0), Vote::new(5, 2), Vote::new_committed(5, 2)] {
        assert_eq!(vote(&again(vote_to_wire(&original))), original);
    }
    for original in entries() {
        assert_eq!(entry(again(entry_to_wire(&original))).unwrap(), original);
    }
    for original in [
        StoredMembership::default(),
        StoredMembership::new(Some(id(4, 11)), some_membership()),
    ] {
        assert_eq!(
            stored_membership(&again(stored_membership_to_wire(&original))).unwrap(),
            original
        );
        let meta = crate::raft::SnapshotMeta {
            last_log_id: Some(id(4, 20)),
            last_membership: original,
        };
        let wire = again(snapshot_meta_to_wire(&meta, "s"));
        assert_eq!(
            (wire.snapshot_id.as_str(), snapshot_meta(&wire).unwrap()),
            ("s", meta)
        );
    }
}

#[test]
fn requests_come_back_as_they_went() {
    for prev_log_id in [None, Some(id(2, 7))] {
        let entries = match prev_log_id {
            None => vec![Entry {
                log_id: id(1, 0),
                payload: EntryPayload::Blank,
            }],
            Some(_) => entries(),
        };
        let request = AppendEntriesRequest {
            vote: Vote::new_committed(4, 1),
            prev_log_id,
            entries,
            leader_commit: Some(id(3, 9)),
        };
        let view = QuorumView::new();
        view.set(17);
        let wire = again(append_to_wire(&request, &view));
        assert_eq!((wire.quorum_age_ms, wire.growing), (17, true));
        let back = append(wire).unwrap();
        assert_eq!(
            (
                back.vote,
                back.prev_log_id,
                back.leader_commit,
                &back.entries
            ),
            (
                request.vote,
                request.prev_log_id,
                request.leader_commit,
                &request.entries
            )
        );
        assert_eq!(
            last_of(&back),
            request.entries.last().map(|entry| entry.log_id)
        );
    }
    for leadership_transfer in [false, true] {
        let (vote, last_log_id) = (Vote::new(9, 3), Some(id(8, 80)));
        let request = VoteRequest::<TypeConfig> {
            vote,
            last_log_id,
            leadership_transfer,
        };
        assert_eq!(
            vote_request(&again(vote_request_to_wire(&request))).unwrap(),
            request
        );
    }
    let reply = VoteResponse::<TypeConfig>::new(Vote::new(9, 3), Some(id(8, 80)), true);
    assert_eq!(
        vote_reply(&again(vote_reply_to_wire(&reply))).unwrap(),
        reply
    );
    let request = TransferLeaderRequest::<TypeConfig>::new(Vote::new_committed(9, 3), 2, None);
    assert_eq!(
        transfer(&again(transfer_to_wire(&request))).unwrap(),
        request
    );
}

#[test]
fn every_answer_to_an_append_comes_back_as_it_went() {
    let (prev, last) = (Some(id(1, 4)), Some(id(2, 9)));
    for result in [
        Ok(last),
        Ok(Some(id(2, 6))),
        Ok(prev),
        Err(StreamAppendError::Conflict(id(1, 4))),
        Err(StreamAppendError::HigherVote(Vote::new(3, 2))),
    ] {
        let wire = again(append_reply_to_wire(&result, last));
        assert_eq!(append_reply(&wire, prev, last).unwrap(), result);
    }
}

#[test]
fn what_cannot_be_is_refused_and_does_not_panic() {
    let wrong_reply = |wire: raft::AppendReply| {
        append_reply(&wire, None, Some(id(2, 9)))
            .unwrap_err()
            .to_string()
    };
    assert!(
        wrong_reply(raft::AppendReply {
            result: 77,
            ..Default::default()
        })
        .contains("77")
    );
    let conflict = AppendResult::Conflict as i32;
    assert!(
        wrong_reply(raft::AppendReply {
            result: conflict,
            ..Default::default()
        })
        .contains("conflict")
    );
    let higher = AppendResult::HigherVote as i32;
    assert!(
        wrong_reply(raft::AppendReply {
            result: higher,
            ..Default::default()
        })
        .contains("vote")
    );
    let matching = Some(log_id_to_wire(&id(2, 10)));
    let partial = AppendResult::Partial as i32;
    assert!(
        wrong_reply(raft::AppendReply {
            result: partial,
            matching,
            ..Default::default()
        })
        .contains("outside")
    );

    assert!(
        append(raft::AppendRequest::default())
            .unwrap_err()
            .to_string()
            .contains("vote")
    );
    let vote = Some(vote_to_wire(&Vote::new(4, 1)));
    let candidate = raft::AppendRequest {
        vote,
        ..Default::default()
    };
    assert!(
        append(candidate)
            .unwrap_err()
            .to_string()
            .contains("elected")
    );
    let vote = Some(vote_to_wire(&Vote::new_committed(4, 1)));
    let hole = vec![entry_to_wire(&entries()[0]), entry_to_wire(&entries()[2])];
    let wire = raft::AppendRequest {
        vote,
        prev: Some(log_id_to_wire(&id(2, 7))),
        entries: hole,
        ..Default::default()
    };
    assert!(
        append(wire.clone())
            .unwrap_err()
            .to_string()
            .contains("4.10")
    );
    assert!(append(raft::AppendRequest { prev: None, ..wire }).is_err());
    let end = Some(raft::LogId {
        term: 1,
        node: 0,
        index: u64::MAX,
    });
    let wire = raft::AppendRequest {
        vote,
        prev: end,
        entries: vec![entry_to_wire(&entries()[0])],
        ..Default::default()
    };
    assert!(append(wire).is_err());

    assert!(
        entry(raft::Entry::default())
            .unwrap_err()
            .to_string()
            .contains("log_id")
    );
    let stranger = raft::Membership {
        configs: vec![raft::Voters { store_ids: vec![1] }],
        members: vec![],
    };
    assert!(membership(&stranger).is_err());
    let nobody = raft::Membership {
        configs: vec![raft::Voters::default()],
        members: vec![],
    };
    assert!(membership(&nobody).is_err());
    assert!(vote_request(&raft::VoteRequest::default()).is_err());
    assert!(vote_reply(&raft::VoteReply::default()).is_err());
    assert!(transfer(&raft::TransferLeaderRequest::default()).is_err());
    assert!(Command("\u{8}".into()).decode().is_err());
}
