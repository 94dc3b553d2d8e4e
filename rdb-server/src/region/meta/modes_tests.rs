//! Every rule of [`super`], told as what is asked and what the row is then.

use super::*;
use rdb_proto::raft::{
    ClusterPlan, DeclaredNamespace, Member, ModeVote, RegisterStore, SetTarget, SettleTarget,
};

const STRONG: i32 = 1;
const EVENTUAL: i32 = 2;

/// Three stores, which have spoken for themselves, and the namespace `logs`, which is strong.
fn three() -> MetaState {
    let mut state = MetaState::default();
    state.init_cluster(&ClusterPlan {
        cluster_id: "c".into(),
        members: (1..=3).map(member).collect(),
        namespaces: vec![declares(STRONG)],
        default_mode: STRONG,
        ..Default::default()
    });
    for store in 1..=3 {
        register(&mut state, store, Some(STRONG));
    }
    state
}

fn member(store_id: u32) -> Member {
    Member {
        store_id,
        store_uuid: format!("u{store_id}"),
        address: format!("a:{store_id}"),
    }
}

fn declares(mode: i32) -> DeclaredNamespace {
    DeclaredNamespace {
        name: "logs".into(),
        mode,
        policies: None,
    }
}

fn register(state: &mut MetaState, store: u32, mode: Option<i32>) -> NamespaceRow {
    let command = RegisterStore {
        member: Some(member(store)),
        declared: mode.map(declares).into_iter().collect(),
        ..Default::default()
    };
    state.register_store(&command).unwrap();
    row(state)
}

fn row(state: &MetaState) -> NamespaceRow {
    state.namespace("logs").cloned().unwrap()
}

fn ask(mode: i32, accept_missing: &[u32]) -> SetTarget {
    SetTarget {
        name: "logs".into(),
        mode,
        accept_missing: accept_missing.to_vec(),
        cancel: false,
    }
}

fn cancel() -> SetTarget {
    SetTarget {
        cancel: true,
        ..ask(0, &[])
    }
}

fn settle(state: &MetaState, attempt: u64, why: &str) -> SettleTarget {
    SettleTarget {
        namespace_id: row(state).id,
        attempt,
        why: why.into(),
        waiting_for: if why.is_empty() { vec![] } else { vec![3] },
    }
}

/// Mode, target, attempt, settled attempt.
fn where_it_is(row: &NamespaceRow) -> (i32, i32, u64, u64) {
    (row.mode, row.target, row.attempt, row.settled_attempt)
}

#[test]
fn a_new_namespace_is_settled_in_its_mode() {
    let state = three();
    assert_eq!(where_it_is(&row(&state)), (STRONG, STRONG, 0, 0));
    let mut state = state;
    let create = raft::CreateNamespaceCommand {
        name: "cart".into(),
        mode: EVENTUAL,
        ..Default::default()
    };
    let (made, _) = state.create_namespace(&create).unwrap();
    assert_eq!(where_it_is(&made), (EVENTUAL, EVENTUAL, 0, 0));
}

#[test]
fn a_switch_is_asked_for_and_ends() {
    let mut state = three();
    let (asked, rows) = state.set_target(&ask(EVENTUAL, &[])).unwrap();
    assert_eq!(where_it_is(&asked), (STRONG, EVENTUAL, 1, 0));
    assert_eq!((rows.len(), row(&state)), (1, asked));
    let command = settle(&state, 1, "");
    let (done, rows) = state.settle_target(&command).unwrap();
    assert_eq!(where_it_is(&done), (EVENTUAL, EVENTUAL, 1, 1));
    assert_eq!(rows.len(), 1);
    let end = done.last_switch.clone().unwrap();
    assert_eq!(
        (end.attempt, end.from, end.to, end.done),
        (1, STRONG, EVENTUAL, true)
    );
    // What is repeated, and what comes late, changes nothing.
    assert!(state.settle_target(&command).unwrap().1.is_empty());
    let late = settle(&state, 1, "too late");
    assert!(state.settle_target(&late).unwrap().1.is_empty());
    assert_eq!(row(&state), done);
}

#[test]
fn what_is_in_force_is_no_switch() {
    let mut state = three();
    let before = row(&state);
    for command in [ask(STRONG, &[]), ask(STRONG, &[3]), cancel()] {
        let (after, rows) = state.set_target(&command).unwrap();
        assert_eq!((after, rows.len()), (before.clone(), 0), "{command:?}");
    }
}

#[test]
fn what_is_no_mode_and_what_is_no_namespace_is_refused() {
    let mut state = three();
    for mode in [0, 3] {
        let error = state.set_target(&ask(mode, &[])).unwrap_err();
        assert_eq!(error.reason, Reason::InvalidArgument);
        assert_eq!(error.metadata["field"], "mode");
    }
    let nobody = SetTarget {
        name: "nobody".into(),
        ..ask(EVENTUAL, &[])
    };
    let error = state.set_target(&nobody).unwrap_err();
    assert_eq!(error.reason, Reason::NamespaceNotFound);
    let nobody = SettleTarget {
        namespace_id: 99,
        ..settle(&state, 1, "")
    };
    let error = state.settle_target(&nobody).unwrap_err();
    assert_eq!(error.reason, Reason::NamespaceNotFound);
}

#[test]
fn the_same_request_joins_and_the_opposite_one_is_refused() {
    let mut state = three();
    let (asked, _) = state.set_target(&ask(EVENTUAL, &[])).unwrap();
    let (again, rows) = state.set_target(&ask(EVENTUAL, &[])).unwrap();
    assert_eq!((again, rows.len()), (asked.clone(), 0));
    let error = state.set_target(&ask(STRONG, &[])).unwrap_err();
    assert_eq!(error.reason, Reason::SwitchInProgress);
    let from_to = (&error.metadata["from"], &error.metadata["to"]);
    assert_eq!(from_to, (&"strong".to_owned(), &"eventual".to_owned()));
    assert_eq!(error.metadata["outcome"], "not_applied");
    assert!(error.message.contains("--cancel"), "{error}");
    assert_eq!(row(&state), asked);
}

/// An eventual `logs`.
fn eventual() -> MetaState {
    let mut state = three();
    state.set_target(&ask(EVENTUAL, &[])).unwrap();
    let command = settle(&state, 1, "");
    state.settle_target(&command).unwrap();
    state
}

#[test]
fn a_larger_set_of_missing_stores_is_a_new_attempt_and_a_smaller_one_joins() {
    let mut state = eventual();
    let (asked, _) = state.set_target(&ask(STRONG, &[])).unwrap();
    assert_eq!(where_it_is(&asked), (EVENTUAL, STRONG, 2, 1));
    let (without, _) = state.set_target(&ask(STRONG, &[3, 3])).unwrap();
    assert_eq!(where_it_is(&without), (EVENTUAL, STRONG, 3, 1));
    assert_eq!(without.accept_missing, [3]);
    for missing in [&[][..], &[3]] {
        let (again, rows) = state.set_target(&ask(STRONG, missing)).unwrap();
        assert_eq!((again, rows.len()), (without.clone(), 0));
    }
    // Together with what is missing already it would leave no majority.
    let error = state.set_target(&ask(STRONG, &[2])).unwrap_err();
    assert_eq!(error.reason, Reason::InvalidArgument);
    // The end of an attempt that is not the present one is none.
    let command = settle(&state, 2, "");
    assert!(state.settle_target(&command).unwrap().1.is_empty());
    let command = settle(&state, 3, "");
    let (done, _) = state.settle_target(&command).unwrap();
    assert_eq!(where_it_is(&done), (STRONG, STRONG, 3, 3));
    assert!(done.accept_missing.is_empty());
}

#[test]
fn missing_stores_are_members_and_leave_a_majority_and_mean_nothing_on_the_way_to_eventual() {
    let mut state = eventual();
    let before = row(&state);
    for (mode, missing) in [
        (STRONG, &[9][..]),
        (STRONG, &[0]),
        (STRONG, &[5000]),
        (STRONG, &[1, 2]),
        (EVENTUAL, &[3]),
    ] {
        let error = state.set_target(&ask(mode, missing)).unwrap_err();
        assert_eq!(error.reason, Reason::InvalidArgument, "{missing:?}");
        assert_eq!(error.metadata["field"], "accept_missing");
        assert_eq!(error.metadata["outcome"], "not_applied");
    }
    assert_eq!(row(&state), before);
    assert!(state.set_target(&ask(STRONG, &[2])).is_ok());
}

#[test]
fn a_cancelled_switch_is_undone_by_an_attempt_of_its_own() {
    let mut state = eventual();
    state.set_target(&ask(STRONG, &[3])).unwrap();
    let (back, _) = state.set_target(&cancel()).unwrap();
    assert_eq!(where_it_is(&back), (EVENTUAL, EVENTUAL, 3, 1));
    assert!(back.accept_missing.is_empty());
    let end = back.last_switch.clone().unwrap();
    assert_eq!(
        (end.attempt, end.done, end.why.as_str()),
        (2, false, CANCELLED)
    );
    // Nothing more can be asked of it but to go where it goes.
    for command in [cancel(), ask(EVENTUAL, &[])] {
        let (again, rows) = state.set_target(&command).unwrap();
        assert_eq!((again, rows.len()), (back.clone(), 0));
    }
    let error = state.set_target(&ask(STRONG, &[])).unwrap_err();
    assert_eq!(error.reason, Reason::SwitchInProgress);
    assert!(error.message.contains("being undone"), "{error}");
    assert_eq!(error.metadata["to"], "strong");
    let command = settle(&state, 3, "");
    let (settled, _) = state.settle_target(&command).unwrap();
    assert_eq!(where_it_is(&settled), (EVENTUAL, EVENTUAL, 3, 3));
    assert_eq!(settled.last_switch, back.last_switch);
    // From here on it may be asked for again, under a number of its own.
    let (asked, _) = state.set_target(&ask(STRONG, &[])).unwrap();
    assert_eq!(where_it_is(&asked), (EVENTUAL, STRONG, 4, 3));
}

#[test]
fn what_is_given_up_is_undone_and_that_is_never_given_up() {
    let mut state = eventual();
    state.set_target(&ask(STRONG, &[])).unwrap();
    let command = settle(&state, 2, "store 3 does not answer");
    let (back, _) = state.settle_target(&command).unwrap();
    assert_eq!(where_it_is(&back), (EVENTUAL, EVENTUAL, 3, 1));
    let end = back.last_switch.clone().unwrap();
    assert_eq!((end.attempt, end.from, end.to), (2, EVENTUAL, STRONG));
    assert_eq!((end.done, end.waiting_for), (false, vec![3]));
    assert_eq!(end.why, "store 3 does not answer");
    for command in [settle(&state, 2, "again"), settle(&state, 3, "this, too")] {
        assert!(state.settle_target(&command).unwrap().1.is_empty());
    }
    assert_eq!(row(&state), back);
}

#[test]
fn what_turns_back_to_strong_may_leave_a_store_behind() {
    let mut state = three();
    state.set_target(&ask(EVENTUAL, &[])).unwrap();
    state.set_target(&cancel()).unwrap();
    let (without, _) = state.set_target(&ask(STRONG, &[3])).unwrap();
    assert_eq!(where_it_is(&without), (STRONG, STRONG, 3, 0));
    assert!(being_undone(&without));
}

fn vote(store_id: u32) -> ModeVote {
    ModeVote {
        store_id,
        mode: EVENTUAL,
    }
}

#[test]
fn what_a_store_declares_first_is_no_vote() {
    let mut state = MetaState::default();
    state.init_cluster(&ClusterPlan {
        members: (1..=3).map(member).collect(),
        namespaces: vec![declares(STRONG)],
        default_mode: STRONG,
        ..Default::default()
    });
    for store in 1..=3 {
        let after = register(&mut state, store, Some(EVENTUAL));
        assert_eq!(where_it_is(&after), (STRONG, STRONG, 0, 0));
        assert!(after.votes.is_empty());
    }
    // Nor is what it declares again, as every start does.
    assert!(register(&mut state, 1, Some(EVENTUAL)).votes.is_empty());
}

#[test]
fn the_last_vote_starts_the_switch() {
    let mut state = three();
    assert_eq!(register(&mut state, 1, Some(EVENTUAL)).votes, [vote(1)]);
    // Said twice is not voted twice.
    assert_eq!(register(&mut state, 1, Some(EVENTUAL)).votes, [vote(1)]);
    let two = register(&mut state, 3, Some(EVENTUAL));
    assert_eq!(two.votes, [vote(1), vote(3)]);
    assert!(!under_way(&two));
    let all = register(&mut state, 2, Some(EVENTUAL));
    assert_eq!(where_it_is(&all), (STRONG, EVENTUAL, 1, 0));
    assert!(all.votes.is_empty());
}

#[test]
fn a_declaration_that_is_added_counts_and_one_that_is_removed_or_agrees_takes_the_vote_back() {
    let mut state = three();
    register(&mut state, 1, None);
    assert_eq!(register(&mut state, 1, Some(EVENTUAL)).votes, [vote(1)]);
    assert!(register(&mut state, 1, None).votes.is_empty());
    assert_eq!(register(&mut state, 1, Some(EVENTUAL)).votes, [vote(1)]);
    assert!(register(&mut state, 1, Some(STRONG)).votes.is_empty());
    // So the other two are not all.
    register(&mut state, 2, Some(EVENTUAL));
    let after = register(&mut state, 3, Some(EVENTUAL));
    assert_eq!(after.votes, [vote(2), vote(3)]);
    assert!(!under_way(&after));
}

#[test]
fn every_switch_clears_the_votes_and_none_is_taken_while_one_is_under_way() {
    let mut state = three();
    register(&mut state, 1, Some(EVENTUAL));
    register(&mut state, 2, Some(EVENTUAL));
    let (asked, _) = state.set_target(&ask(EVENTUAL, &[])).unwrap();
    assert!(asked.votes.is_empty());
    // The last file to be edited agrees with what is being done.
    assert_eq!(register(&mut state, 3, Some(EVENTUAL)), asked);
    // One that does not changes nothing either: who comes last is not counted alone.
    assert_eq!(register(&mut state, 2, Some(STRONG)), asked);
    let command = settle(&state, 1, "");
    let (done, _) = state.settle_target(&command).unwrap();
    assert!(done.votes.is_empty());
    assert_eq!(done.mode, EVENTUAL);
}

#[test]
fn a_store_alone_switches_with_its_own_vote() {
    let mut state = MetaState::default();
    state.init_cluster(&ClusterPlan {
        members: vec![member(1)],
        namespaces: vec![declares(STRONG)],
        default_mode: STRONG,
        ..Default::default()
    });
    register(&mut state, 1, Some(STRONG));
    let after = register(&mut state, 1, Some(EVENTUAL));
    assert_eq!(where_it_is(&after), (STRONG, EVENTUAL, 1, 0));
}

/// What is written is what is held: the rows, read again, are the state.
#[test]
fn the_rows_written_are_the_state_held() {
    let mut state = three();
    let mut read = state.clone();
    let commands = [ask(EVENTUAL, &[]), cancel()];
    for command in &commands {
        let (_, rows) = state.set_target(command).unwrap();
        for (key, value) in rows {
            read.read_row(&key, value).unwrap();
        }
        assert_eq!(read, state);
    }
    let (_, rows) = state.settle_target(&settle(&state.clone(), 2, "")).unwrap();
    for (key, value) in rows {
        read.read_row(&key, value).unwrap();
    }
    let register = RegisterStore {
        member: Some(member(1)),
        declared: vec![declares(EVENTUAL)],
        ..Default::default()
    };
    for (key, value) in state.register_store(&register).unwrap() {
        read.read_row(&key, value).unwrap();
    }
    assert_eq!(row(&state).votes, [vote(1)]);
    assert_eq!(read, state);
}
