//! How clusters begin, without disk and network: stores that meet in memory.

use super::*;

fn member(id: u32, uuid: &str) -> Member {
    Member {
        store_id: id,
        store_uuid: uuid.into(),
        address: format!("host{id}:1"),
    }
}

/// A store of the list 1, 2, 3 with this disk.
fn store(id: u32, uuid: &str) -> Arc<Cluster> {
    let peers = (1..=3)
        .map(|id| (StoreId::new(id).unwrap(), format!("host{id}:1")))
        .collect();
    let kept = Kept {
        starts: starts::started(Starts::default(), 1),
        ..Kept::default()
    };
    Cluster::new(member(id, uuid), &peers, kept, Box::new(|_, _| ())).unwrap()
}

/// One dials the other, as on the wire. `Ok`: they talk.
fn dial(caller: &Cluster, called: &Cluster) -> Result<(), Error> {
    let greeting = called.accept(&caller.hello(called.me))?;
    let checked = caller.check_reply(called.me, &greeting.reply);
    if checked.is_ok() {
        assert!(greeting.served, "one end talks to a wall");
    }
    checked
}

/// Writes what is to be written next.
fn write(store: &Cluster) {
    match store.next_step() {
        Ok(Step::Promise(to)) => store.promised(to),
        Ok(Step::Adopt(plan)) => store.joined(plan),
        _ => {}
    }
}

fn dial_and_write(caller: &Cluster, called: &Cluster) {
    let _ = dial(caller, called);
    write(caller);
}

/// The same store with what it has on disk, or a copy of it.
fn started_again(store: &Cluster, incarnation: u64) -> Arc<Cluster> {
    let card = store.card_for(0);
    let kept = Kept {
        promised: card
            .promised
            .filter(|to| to.store_id != card.member.store_id),
        plan: card.plan,
        starts: starts::started(card.starts, incarnation),
        seen: store.state.lock().seen.clone(),
    };
    let note = Box::new(|_, _| ());
    Cluster::new(card.member, &store.addresses, kept, note).unwrap()
}

fn restarted(store: &Cluster) -> Arc<Cluster> {
    let count = store.card_for(0).starts.count;
    started_again(store, count + 1)
}

/// Stores 1, 2 and 3 of one cluster.
fn cluster() -> [Arc<Cluster>; 3] {
    let plan = ClusterPlan {
        cluster_id: "c".into(),
        members: (1..=3).map(|id| member(id, &format!("u{id}"))).collect(),
        ..ClusterPlan::default()
    };
    [1, 2, 3].map(|id| {
        let store = store(id, &format!("u{id}"));
        store.joined(plan.clone());
        store
    })
}

fn begins(planner: &Cluster, cluster_id: &str) -> Option<ClusterPlan> {
    let Ok(Step::Plan(members)) = planner.next_step() else {
        return None;
    };
    let plan = ClusterPlan {
        cluster_id: cluster_id.into(),
        members,
        ..ClusterPlan::default()
    };
    planner.joined(plan.clone());
    Some(plan)
}

#[test]
fn only_the_smallest_id_plans_and_only_when_all_have_promised() {
    let (one, two, three) = (store(1, "u1"), store(2, "u2"), store(3, "u3"));
    for other in [&two, &three] {
        let _ = dial(&one, other);
    }
    match one.next_step() {
        Ok(Step::Ask { missing, planner }) => assert_eq!((missing, planner), (vec![2, 3], 1)),
        other => panic!("nobody has promised anything: {other:?}"),
    }
    // Wanted is not promised: what is not on disk is not said.
    let _ = dial(&two, &one);
    assert!(matches!(two.next_step(), Ok(Step::Promise(to)) if to.store_uuid == "u1"));
    assert_eq!(two.hello(one.me).promised, None);
    let _ = dial(&one, &two);
    dial_and_write(&two, &one);
    dial_and_write(&three, &one);
    let _ = dial(&one, &two);
    match one.next_step() {
        Ok(Step::Ask { missing, .. }) => assert_eq!(missing, [3]),
        other => panic!("{other:?}"),
    }
    let _ = dial(&one, &three);
    let _ = dial(&two, &three);
    assert!(matches!(two.next_step(), Ok(Step::Ask { .. })));
    let plan = begins(&one, "c").unwrap();
    let disks: Vec<_> = plan
        .members
        .iter()
        .map(|it| it.store_uuid.as_str())
        .collect();
    assert_eq!(disks, ["u1", "u2", "u3"]);
    // Nobody is served before it has joined; store 3 hears of it from store 2.
    assert!(dial(&one, &two).is_err());
    dial_and_write(&two, &one);
    assert!(dial(&one, &two).is_ok() && dial(&two, &one).is_ok());
    dial_and_write(&three, &two);
    assert!(dial(&three, &one).is_ok());
}

#[test]
fn who_agreed_is_whoever_listens_there_now() {
    let (one, three) = (store(1, "u1"), store(3, "u3"));
    for uuid in ["old", "new"] {
        let two = store(2, uuid);
        let _ = dial(&one, &two);
        assert!(matches!(one.next_step(), Ok(Step::Ask { missing, .. }) if missing.contains(&2)));
        dial_and_write(&two, &one);
        let _ = dial(&one, &two);
        assert!(matches!(one.next_step(), Ok(Step::Ask { missing, .. }) if missing == [3]));
    }
    dial_and_write(&three, &one);
    let _ = dial(&one, &three);
    let plan = begins(&one, "c").unwrap();
    assert_eq!(plan.members[1].store_uuid, "new");
}

/// Two disks of the planner and two of store 2 meet store 3 and each other in any order, wherever
/// the name of a store leads at that moment, and are restarted at any.
#[test]
fn no_two_plans_have_a_disk_in_common() {
    let disks = [(1, "1a"), (1, "1b"), (2, "2a"), (2, "2b"), (3, "3")];
    let (mut begun, mut divided) = (0, 0);
    for seed in 0..600u64 {
        let mut all = disks.map(|(id, uuid)| store(id, uuid));
        let mut plans: Vec<ClusterPlan> = Vec::new();
        let mut chance = seed;
        let mut draw = |below: usize| {
            chance = chance
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (chance >> 33) as usize % below
        };
        for _ in 0..80 {
            let (a, b) = (draw(disks.len()), draw(disks.len()));
            let _ = dial(&all[a], &all[b]);
            // What is written goes on from here, or the process ends before, or after it.
            let ends = draw(4);
            if ends != 0 {
                write(&all[a]);
                plans.extend(begins(&all[a], &format!("of {}", disks[a].1)));
            }
            if ends <= 1 {
                all[a] = restarted(&all[a]);
            }
        }
        begun += usize::from(!plans.is_empty());
        divided += usize::from(plans.len() > 1);
    }
    assert!(begun > 100, "the walk begins clusters: {begun}");
    assert_eq!(divided, 0, "store 3 has one disk");
}

#[test]
fn a_wiped_store_finds_a_cluster_instead_of_planning_one() {
    let known = ClusterPlan {
        cluster_id: "c".into(),
        members: vec![member(1, "old"), member(2, "u2"), member(3, "u3")],
        ..ClusterPlan::default()
    };
    let (one, two) = (store(1, "u1"), store(2, "u2"));
    two.joined(known);
    assert!(dial(&one, &two).is_err());
    let error = one.next_step().unwrap_err();
    assert!(error.message.contains("wiped"), "{error}");
    // It hears it, too, when it is dialled.
    let one = store(1, "u1");
    assert!(dial(&two, &one).is_err());
    assert!(one.next_step().is_err());
}

#[test]
fn who_has_joined_does_not_end_by_what_it_heard_before() {
    let (two, stranger) = (store(2, "u2"), store(3, "u3"));
    let named = |cluster: &str, uuid: &str| ClusterPlan {
        cluster_id: cluster.into(),
        members: vec![member(1, "u1"), member(2, uuid), member(3, "u3")],
        ..ClusterPlan::default()
    };
    stranger.joined(named("other", "another disk"));
    assert!(dial(&two, &stranger).is_err());
    assert!(two.next_step().is_err());
    two.joined(named("c", "u2"));
    assert!(matches!(two.next_step(), Ok(Step::Run(_))));
    let error = dial(&two, &stranger).unwrap_err();
    assert!(error.message.contains("to cluster other"), "{error}");
}

#[test]
fn a_wrong_address_is_named() {
    let (one, two) = (store(1, "u1"), store(2, "u2"));
    let error = two
        .accept(&one.hello(StoreId::new(3).unwrap()))
        .map(|_| ())
        .unwrap_err();
    assert!(
        error
            .message
            .contains("you dialled store 3, but this is store 2"),
        "{}",
        error.message
    );
}

/// The story: store 2 was started again after the copy was made, and store 3 has met it since.
#[test]
fn an_older_copy_of_a_disk_is_refused_at_both_ends_and_its_store_ends() {
    for dials in [true, false] {
        let [one, two, three] = cluster();
        assert!(dial(&two, &three).is_ok() && dial(&three, &two).is_ok());
        let copied = started_again(&two, 77);
        let two = restarted(&two);
        assert!(dial(&two, &three).is_ok());
        // What store 3 has seen is on its disk.
        let three = restarted(&three);
        let heard = if dials {
            dial(&copied, &three).unwrap_err()
        } else {
            dial(&three, &copied).unwrap_err()
        };
        for part in [
            "data directory of store 2 (UUID u2, start 2) is an older copy",
            "store 3 has met start 2",
            "Never start it again",
        ] {
            assert!(heard.message.contains(part), "{part:?} in {heard}");
        }
        assert_eq!(copied.outdated(), Some(heard.clone()), "dials: {dials}");
        assert!(copied.next_step().is_err(), "it goes on");
        assert_eq!(three.outdated(), None);
        // The right one goes on, with everybody.
        let two = restarted(&two);
        assert!(dial(&three, &two).is_ok() && dial(&two, &one).is_ok());
    }
}

/// A copy from before the cluster began has no plan, and would adopt it a second time with an empty log.
#[test]
fn a_copy_from_before_the_cluster_began_is_an_older_copy_too() {
    let [_, two, three] = cluster();
    let two = restarted(&two);
    assert!(dial(&two, &three).is_ok());
    let copied = store(2, "u2");
    assert!(dial(&copied, &three).is_err());
    assert!(copied.outdated().is_some() && copied.next_step().is_err());
}

#[test]
fn a_store_that_does_not_count_its_starts_is_accepted() {
    let [_, two, three] = cluster();
    let two = restarted(&two);
    assert!(dial(&two, &three).is_ok());
    let mut hello = two.hello(three.me);
    (hello.starts, hello.seen) = (None, None);
    assert!(three.accept(&hello).unwrap().served);
}
