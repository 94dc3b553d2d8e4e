//! The judge on planted evidence: a cluster that kept its promises passes, and each way to break one is
//! found and named.

use super::super::cart::Side;
use super::super::cut::Refusal;
use super::super::switching::Way;
use super::*;

const MS: Duration = Duration::from_millis(1);

fn call(op: Op, outcome: Outcome, from_ns: u64, to_ns: u64) -> Call {
    Call {
        process: 1,
        key: 3,
        op,
        invoked_ns: from_ns,
        returned_ns: Some(to_ns),
        outcome,
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn replica(store: u64, digest: &str) -> Replica<Digests, Bytes, Bytes> {
    let scan = vec![(Bytes::from_static(b"k"), Bytes::from_static(b"v"))];
    Replica {
        name: format!("store {store}"),
        digest: Ok(vec![(2, 77, digest.to_owned())]),
        scan: Ok(scan),
    }
}

/// Both sides wrote `shared/00`; the second one was later.
fn good_cart() -> Cart {
    let side = |id, value: &str, version| {
        let written =
            |key: &str, value: &str, version| (key.to_owned(), (value.to_owned(), version));
        let own = format!("store-{id}/000001");
        Side {
            store: rdb_types::StoreId::new(id).unwrap(),
            acknowledged: [
                written("shared/00", value, version),
                written(&own, "own", version + 1),
            ]
            .into(),
            writes: 2,
            refused: None,
        }
    };
    let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
    let replica = |store: u64| Replica {
        name: format!("store {store}"),
        digest: Ok(vec![(2, "{1:2}".to_owned(), "ee".to_owned())]),
        scan: Ok(vec![
            (bytes("shared/00"), bytes("second")),
            (bytes("store-1/000001"), bytes("own")),
            (bytes("store-2/000001"), bytes("own")),
        ]),
    };
    Cart {
        sides: vec![side(1, "first", 10), side(2, "second", 20)],
        converged: Ok(MS * 300),
        conflicts: vec![(bytes("shared/00"), bytes("first"))],
        replicas: vec![replica(1), replica(2), replica(3)],
    }
}

#[test]
fn each_way_to_break_an_eventual_promise_is_found() {
    type Break = fn(&mut Cart);
    let ways: [(&str, Break); 9] = [
        ("took no part", |cart| cart.sides[0].writes = 0),
        ("refused", |cart| {
            cart.sides[1].refused = Some("NO_QUORUM".into());
        }),
        ("no agreement", |cart| {
            cart.converged = Err("3 writes are missing".into());
        }),
        ("late", |cart| cart.converged = Ok(MS * 10_001)),
        ("other digest", |cart| {
            cart.replicas[2].digest = Ok(vec![(2, "{1:2}".into(), "ff".into())]);
        }),
        ("the older one won", |cart| {
            for replica in &mut cart.replicas {
                replica.scan.as_mut().unwrap()[0].1 = Bytes::from_static(b"first");
            }
        }),
        ("a write of one side is gone", |cart| {
            for replica in &mut cart.replicas {
                replica.scan.as_mut().unwrap().pop();
            }
        }),
        ("what lost is not listed", |cart| cart.conflicts.clear()),
        ("another value is listed", |cart| {
            cart.conflicts[0].1 = Bytes::from_static(b"other");
        }),
    ];
    assert!(broken(&good()).is_empty());
    for (way, change) in ways {
        let mut evidence = good();
        change(&mut evidence.cart);
        assert_eq!(broken(&evidence).len(), 1, "{way}");
    }
}

/// Strong, and back; a register and two keys on the way.
fn good_switches() -> Switched {
    let way = Way {
        took: MS * 120,
        refused: MS * 4,
        longest_pause: MS * 9,
        writes: 50,
    };
    let found = || Ok(names(&["item/1", "item/2"]));
    let store = |id| rdb_types::StoreId::new(id).unwrap();
    Switched {
        ways: [Ok(way), Ok(way)],
        calls: vec![
            call(Op::Write(4), Outcome::Done, 1, 2),
            call(Op::Read, Outcome::Read(Some(4)), 3, 4),
        ],
        items: Orders {
            acknowledged: names(&["item/1"]),
            unknown: names(&["item/2"]),
        },
        missing_when_strong: BTreeSet::new(),
        found: [1, 2, 3].map(|id| (store(id), found())).into(),
    }
}

#[test]
fn every_promise_of_a_switch_can_break() {
    type Break = fn(&mut Switched);
    let ways: [(&str, Break); 7] = [
        ("given up", |it| it.ways[0] = Err("store 2 is gone".into())),
        ("no way back", |it| it.ways[1] = Err("too long".into())),
        ("no write", |it| {
            it.ways[1] = it.ways[1].clone().map(|way| Way { writes: 0, ..way });
        }),
        ("stale", |it| it.calls[1].outcome = Outcome::Read(None)),
        ("lost in the seal", |it| {
            it.missing_when_strong = names(&["item/1"]);
        }),
        ("lost on one store", |it| it.found[2].1 = Ok(names(&[]))),
        ("not read back", |it| {
            it.found[0].1 = Err("NOT_READY".into())
        }),
    ];
    for (way, change) in ways {
        let mut evidence = good();
        change(&mut evidence.switched);
        assert_eq!(broken(&evidence).len(), 1, "{way}");
    }
}

/// What a cluster that keeps its promises leaves behind.
fn good() -> Evidence {
    let refusal = Refusal {
        after: MS * 2100,
        took: MS * 2000,
        reached: "1".into(),
        needed: "2".into(),
        outcome: rdb_client::Outcome::Unknown,
    };
    Evidence {
        calls: vec![
            call(Op::Write(4), Outcome::Done, 1, 2),
            call(Op::Read, Outcome::Read(Some(4)), 3, 4),
        ],
        orders: Orders {
            acknowledged: names(&["order/1", "order/2"]),
            unknown: names(&["order/3"]),
        },
        orders_found: names(&["order/1", "order/2", "order/3"]),
        records: 10,
        records_found: 10,
        bank: Bank {
            transfers: 5,
            ..Bank::default()
        },
        balances: vec![Some(OPENING); ACCOUNTS as usize],
        cut: CutOff {
            refusal: Some(refusal),
            wrote_alone: 0,
            others_wrote_after: Ok(MS * 500),
            reads_refused: 3,
            reads_outdated: 0,
            stale_reads: vec![StaleRead {
                age: MS * 900,
                bound: MS * 1400,
            }],
            stale_failed: None,
        },
        cart: good_cart(),
        switched: good_switches(),
        quorum_timeout: MS * 2000,
        leader_lost: Some(MS * 400),
        replicas: vec![replica(1, "aa"), replica(2, "aa"), replica(3, "aa")],
    }
}

fn broken(evidence: &Evidence) -> Vec<String> {
    judge(evidence)
        .into_iter()
        .filter_map(|finding| finding.broken)
        .collect()
}

#[test]
fn a_cluster_that_keeps_its_promises_passes() {
    assert_eq!(broken(&good()), Vec::<String>::new());
}

/// Each breaks one promise, and is found and named.
#[test]
fn every_promise_can_break() {
    type Break = fn(&mut Evidence);
    let table: &[(Break, &str)] = &[
        (
            |e| e.calls[1].outcome = Outcome::Read(None),
            "not linearizable",
        ),
        (
            |e| e.calls[1].outcome = Outcome::Read(Some(u64::MAX)),
            "not linearizable",
        ),
        (|e| e.calls.truncate(1), "proves nothing"),
        (|e| assert!(e.orders_found.remove("order/2")), "order/2"),
        (
            |e| assert!(e.orders_found.insert("order/9".into())),
            "order/9",
        ),
        (
            |e| e.orders.acknowledged.clear(),
            "nothing was acknowledged",
        ),
        (
            |e| e.records_found = 9,
            "10 records were acknowledged, 9 are there",
        ),
        (
            |e| e.balances[0] = Some(OPENING - 7),
            "12000 were paid in, 11993 are there",
        ),
        (|e| e.balances[0] = None, "accounts"),
        (|e| assert!(e.balances.pop().is_some()), "accounts"),
        (|e| e.bank.in_doubt = 7, "7 was never learned"),
        (
            |e| e.bank.absurd.push("account 3 holds x".into()),
            "account 3",
        ),
        (|e| e.bank.transfers = 0, "no money was moved"),
        (
            |e| e.leader_lost = None,
            "no write was acknowledged any more",
        ),
        (|e| e.cut.refusal = None, "never said NO_QUORUM"),
        (
            |e| e.cut.refusal.as_mut().unwrap().after = MS * 4001,
            "NO_QUORUM came 4.0 s",
        ),
        (|e| e.cut.wrote_alone = 2, "acknowledged 2 writes"),
        (
            |e| e.cut.reads_outdated = 1,
            "returned what had been overwritten",
        ),
        (|e| e.cut.reads_refused = 0, "proves nothing"),
        (
            |e| e.cut.stale_reads[0].bound = MS * 899,
            "said at most 899 ms",
        ),
        (
            |e| e.cut.stale_reads[0].age = Duration::ZERO,
            "proves nothing",
        ),
        (|e| e.cut.stale_failed = Some("gone".into()), "gone"),
        (
            |e| e.cut.others_wrote_after = Err("late".into()),
            "took no write: late",
        ),
        (|e| e.replicas[2] = replica(3, "ab"), "ab"),
        (|e| e.replicas[1].scan = Err("gone".into()), "gone"),
        (|e| e.replicas[1].scan.as_mut().unwrap().clear(), "store 2"),
        (|e| e.replicas.truncate(1), "1"),
    ];
    for (number, (spoil, word)) in table.iter().enumerate() {
        let mut evidence = good();
        spoil(&mut evidence);
        let broken = broken(&evidence);
        assert_eq!(broken.len(), 1, "case {number}: {broken:?}");
        assert!(
            broken[0].contains(word),
            "case {number} ({word}): {broken:?}"
        );
    }
}
