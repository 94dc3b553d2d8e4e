//! The status of small clusters, well and not so well.

use super::verdict::Verdict;
use super::view::Region;
use super::{document, screen};
use rdb_proto::admin::{ClusterStatusResponse, StoreSummary};
use rdb_proto::raft::{
    ClockStatus, DeclaredNamespace, DiskStatus, HeldStream, Member, ModeMismatch, NamespaceReport,
    NamespaceRow, Policies, RegionDescriptor, RegionReport, ReplicaLag, StoreStatus,
    SwitchProgress, SwitchUnderWay, VectorPart,
};
use std::process::ExitCode;

fn store(id: u32, reports: &[(u32, u64, u64, bool)]) -> StoreSummary {
    let regions = reports
        .iter()
        .map(|&(leader, term, applied_index, quorum)| RegionReport {
            region_id: 2,
            leader,
            term,
            applied_index,
            quorum,
            namespaces: vec![NamespaceReport {
                namespace_id: 1,
                keys: applied_index,
                ..Default::default()
            }],
            ..Default::default()
        })
        .collect();
    StoreSummary {
        member: Some(Member {
            store_id: id,
            address: format!("s{id}:1"),
            ..Default::default()
        }),
        reachable: true,
        status: Some(StoreStatus {
            regions,
            version: "0.1.0".into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn gone(id: u32) -> StoreSummary {
    let member = Some(Member {
        store_id: id,
        address: format!("s{id}:1"),
        ..Default::default()
    });
    StoreSummary {
        member,
        error: "connection refused".into(),
        ..Default::default()
    }
}

fn cluster(stores: Vec<StoreSummary>) -> ClusterStatusResponse {
    ClusterStatusResponse {
        cluster_id: "c1".into(),
        stores,
        regions: vec![RegionDescriptor {
            id: 2,
            ..Default::default()
        }],
        namespaces: vec![NamespaceRow {
            id: 1,
            name: "default".into(),
            mode: 1,
            target: 1,
            ..Default::default()
        }],
        answered_by: 1,
    }
}

#[test]
fn healthy() {
    let answer = cluster(vec![
        store(1, &[(2, 7, 40, true)]),
        store(2, &[(2, 7, 42, true)]),
        store(3, &[(1, 6, 30, false)]),
    ]);
    let verdict = Verdict::of(&answer);
    assert_eq!(
        (verdict.word(), verdict.exit_code()),
        ("healthy", ExitCode::SUCCESS)
    );
    let region = Region::of(&answer, 2);
    assert_eq!(
        (region.leader, region.term, region.applied),
        (2, 7, 42),
        "the newest term's word"
    );
    let screen = screen(&answer, &verdict, false);
    for part in ["s3:1", "store 2", "default", "strong", "42", "healthy"] {
        assert!(screen.contains(part), "no {part:?} in:\n{screen}");
    }
    assert!(!screen.contains('\x1b'));
}

#[test]
fn a_store_away_is_told_but_serves() {
    let answer = cluster(vec![
        store(1, &[(1, 7, 40, true)]),
        store(2, &[(1, 7, 40, true)]),
        gone(3),
    ]);
    let verdict = Verdict::of(&answer);
    assert_eq!(
        (verdict.word(), verdict.exit_code()),
        ("degraded", ExitCode::SUCCESS)
    );
    assert!(verdict.degraded[0].contains("store 3 at s3:1 is unreachable (connection refused)"));
}

#[test]
fn no_quorum_is_exit_code_4_and_says_what_to_do() {
    let answer = cluster(vec![store(1, &[(0, 9, 40, false)]), gone(2), gone(3)]);
    let verdict = Verdict::of(&answer);
    assert_eq!(
        (verdict.word(), verdict.exit_code()),
        ("no quorum", ExitCode::from(4))
    );
    assert!(
        verdict.lost[0].contains("region 2 has no quorum (1 of 3"),
        "{verdict:?}"
    );
    assert_eq!(document(&answer, &verdict)["verdict"], "no quorum");
    assert_eq!(
        Verdict::of(&ClusterStatusResponse::default()).word(),
        "no quorum",
        "nothing formed yet"
    );
}

#[test]
fn a_cluster_that_has_not_formed_waits_for_all_first_members() {
    let answer = ClusterStatusResponse {
        answered_by: 1,
        ..Default::default()
    };
    let screen = screen(&answer, &Verdict::of(&answer), false);
    for part in ["no cluster yet, as store 1 sees it", "all first members"] {
        assert!(screen.contains(part), "no {part:?} in:\n{screen}");
    }
    assert!(!screen.contains("majority"), "{screen}");
}

#[test]
fn a_store_that_is_behind_its_leader_is_named() {
    let mut behind = store(3, &[(1, 7, 40, true)]);
    if let Some(status) = &mut behind.status {
        status.regions[0].behind = "a snapshot is being installed here".into();
    }
    let answer = cluster(vec![
        store(1, &[(1, 7, 80_000, true)]),
        store(2, &[(1, 7, 80_000, true)]),
        behind,
    ]);
    let verdict = Verdict::of(&answer);
    assert_eq!(verdict.word(), "degraded");
    let finding = &verdict.degraded[0];
    for part in ["store 3 at s3:1 is behind in region 2", "snapshot"] {
        assert!(finding.contains(part), "{finding}");
    }
}

#[test]
fn a_store_that_is_configured_otherwise_is_named() {
    let mut odd = store(2, &[(1, 7, 40, true)]);
    if let Some(status) = &mut odd.status {
        status.declared = vec![DeclaredNamespace {
            name: "default".into(),
            mode: 2,
            policies: None,
        }];
    }
    let verdict = Verdict::of(&cluster(vec![store(1, &[(1, 7, 40, true)]), odd]));
    assert!(
        verdict.degraded[0].contains("namespace default is strong, but store 2"),
        "{verdict:?}"
    );
}

#[test]
fn a_clock_that_is_off_is_told() {
    let mut odd = store(2, &[(1, 7, 40, true)]);
    if let Some(status) = &mut odd.status {
        status.clock = Some(ClockStatus {
            off: true,
            skew_ms: Some(-3_600_000),
            ..Default::default()
        });
    }
    let answer = cluster(vec![store(1, &[(1, 7, 40, true)]), odd]);
    let verdict = Verdict::of(&answer);
    assert_eq!(verdict.word(), "degraded");
    let part = "the clock of store 2 at s2:1 is 3600.0 s behind the others";
    assert!(verdict.degraded[0].contains(part), "{verdict:?}");
    let stores = &document(&answer, &verdict)["stores"];
    assert_eq!(stores[1]["clock_skew_ms"], -3_600_000);
}

#[test]
fn a_leader_that_only_some_know_is_known() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let reports = [
            store(1, &[(0, 7, 40, true)]),
            store(2, &[(2, 7, 40, true)]),
            store(3, &[(3, 6, 40, true)]),
        ];
        let answer = cluster(order.map(|at| reports[at].clone()).to_vec());
        assert_eq!(Region::of(&answer, 2).leader, 2, "{order:?}");
    }
}

#[test]
fn an_eventual_namespace_shows_its_lag_and_whose_writes_are_held() {
    let eventual = |id, sequence: u64, held: &[u32]| {
        let mut store = store(id, &[(1, 7, 40, true)]);
        for report in store.status.iter_mut().flat_map(|it| &mut it.regions) {
            report.namespaces = vec![NamespaceReport {
                namespace_id: 1,
                mode: 2,
                vector: vec![VectorPart {
                    origin: 1,
                    sequence,
                }],
                conflicts: 4,
                conflicts_dropped: 3,
                lags: vec![ReplicaLag {
                    store_id: 2,
                    writes: 6,
                    oldest_ms: 30_000,
                    ..Default::default()
                }],
                held: held
                    .iter()
                    .map(|origin| HeldStream {
                        origin: *origin,
                        held_ms: 9_000,
                        ahead_ms: 3_600_000,
                    })
                    .collect(),
                ..Default::default()
            }];
        }
        store
    };
    let mut answer = cluster(vec![eventual(1, 12, &[]), eventual(2, 5, &[3])]);
    answer.namespaces[0].mode = 2;
    answer.namespaces[0].target = 2;
    let verdict = Verdict::of(&answer);
    assert_eq!(verdict.word(), "degraded");
    assert!(
        verdict.degraded[0].contains("the writes of store 3 to namespace default wait at store 2"),
        "{verdict:?}"
    );
    let screen = screen(&answer, &verdict, false);
    for part in ["7 writes", "30s", "4 (+3 dropped)", "store 3"] {
        assert!(screen.contains(part), "no {part:?} in:\n{screen}");
    }
    let replicas = &document(&answer, &verdict)["namespaces"][0]["replicas"];
    assert_eq!(replicas[1]["lag_writes"], "7");
    assert_eq!(replicas[1]["held"][0]["origin"], 3);

    // Only a lag beyond the namespace's objective is worth a word.
    let lags = |objective: i64| {
        let mut answer = cluster(vec![eventual(1, 12, &[]), eventual(2, 5, &[])]);
        answer.namespaces[0].mode = 2;
        answer.namespaces[0].policies = Some(Policies {
            max_lag_ms: objective,
            ..Default::default()
        });
        Verdict::of(&answer).degraded
    };
    assert!(lags(0).is_empty() && lags(60_000).is_empty());
    assert!(
        lags(5_000)[0].contains("store 2 is 30s behind in namespace default (7 writes)"),
        "{:?}",
        lags(5_000)
    );
}

#[test]
fn the_verdict_comes_first_and_each_finding_says_what_to_do() {
    let answer = cluster(vec![store(1, &[(1, 7, 40, true)]), gone(2)]);
    let verdict = Verdict::of(&answer);
    let screen = screen(&answer, &verdict, false);
    let mut lines = screen.lines();
    assert_eq!(lines.next(), Some("degraded"));
    let finding = lines.next().unwrap();
    assert!(
        finding.starts_with("- store 2 at s2:1 is unreachable"),
        "{screen}"
    );
    assert!(finding.contains("start it again"), "{screen}");
    assert!(
        screen.contains("cluster c1, as store 1 sees it"),
        "{screen}"
    );
}

fn with(id: u32, change: impl FnOnce(&mut StoreStatus)) -> StoreSummary {
    let mut store = store(id, &[(1, 7, 40, true)]);
    change(store.status.as_mut().unwrap());
    store
}

#[test]
fn a_disk_that_fills_is_told_by_how_much_is_left() {
    let found = |free_bytes| {
        let answer = cluster(vec![with(1, |status| {
            status.disk = Some(DiskStatus {
                free_bytes,
                total_bytes: 100 << 30,
                used_bytes: 7 << 30,
                ..DiskStatus::default()
            });
        })]);
        Verdict::of(&answer).degraded
    };
    assert!(found(10 << 30).is_empty());
    let filling = &found(9 << 30)[0];
    assert!(
        filling.contains("is filling (9.0 GiB of 100 GiB free, 7.0 GiB are the database's)"),
        "{filling}"
    );
    let full = &found(2 << 30)[0];
    assert!(
        full.contains("is nearly full") && full.contains("make room at once"),
        "{full}"
    );
}

#[test]
fn a_full_disk_is_told_with_what_goes_on_and_what_to_do() {
    for (room, stalled, goes_on) in [
        (1, false, "takes no more data (NO_SPACE), deletes"),
        (2, false, "falls behind the other stores"),
        (2, true, "not even deletes"),
    ] {
        let full = with(1, |status| {
            status.disk = Some(DiskStatus {
                free_bytes: 100 << 20,
                total_bytes: 100 << 30,
                used_bytes: 99 << 30,
                reserve_bytes: 256 << 20,
                held_bytes: 64 << 20,
                room,
                stalled,
            });
        });
        let found = Verdict::of(&cluster(vec![full])).degraded;
        let [told] = &found[..] else {
            panic!("one finding: {found:?}");
        };
        assert!(
            told.contains("is full (100 MiB of 100 GiB free, 256 MiB are kept"),
            "{told}"
        );
        assert!(told.contains(goes_on), "{told}");
        assert!(told.contains("goes on by itself"), "{told}");
        assert_eq!(
            told.contains("delete what is not needed"),
            !stalled,
            "{told}"
        );
    }
}

#[test]
fn damage_and_a_fresh_copy_are_told() {
    let damaged = with(1, |status| {
        status.regions[0].damage = "bad checksum in 12.sst".into();
    });
    let copying = with(2, |status| {
        status.regions[0].namespaces[0].fresh_copy_needed = true;
    });
    let found = Verdict::of(&cluster(vec![damaged, copying])).degraded;
    assert!(
        found[0].contains("region 2 on store 1 at s1:1 is damaged (bad checksum in 12.sst)"),
        "{found:?}"
    );
    assert!(
        found[1].contains("store 2 at s2:1 waits for a fresh copy of region 2"),
        "{found:?}"
    );
}

#[test]
fn who_does_not_follow_is_named_once() {
    let told = |id| {
        with(id, |status| {
            status.mismatches = vec![ModeMismatch {
                namespace_id: 1,
                store_id: 2,
                since_ms: 1,
                ..Default::default()
            }];
        })
    };
    let found = Verdict::of(&cluster(vec![told(1), told(2)])).degraded;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("store 2 has not followed namespace default, which is strong"),
        "{found:?}"
    );
}

#[test]
fn a_switch_is_a_note_until_it_takes_long() {
    let switching = |for_ms, target, waiting_for: Vec<u32>| {
        let mut answer = cluster(vec![with(1, |status| {
            status.switches = vec![SwitchUnderWay {
                namespace_id: 1,
                for_ms,
            }];
            status.regions[0].namespaces[0].progress = Some(SwitchProgress {
                attempt: 4,
                step: "draining".into(),
                waiting_for,
                ..Default::default()
            });
        })]);
        let row = &mut answer.namespaces[0];
        (row.target, row.attempt, row.settled_attempt) = (target, 4, 3);
        answer
    };
    let young = switching(4_000, 2, vec![3]);
    let verdict = Verdict::of(&young);
    assert_eq!(verdict.word(), "healthy");
    let note =
        "namespace default switches from strong to eventual, since 4000ms (it waits for store 3)";
    assert_eq!(verdict.notes, [note]);
    assert!(screen(&young, &verdict, false).contains(&format!("note: {note}")));
    assert_eq!(
        document(&young, &verdict)["switches"][0]["waiting_for"][0],
        3
    );

    let stuck = Verdict::of(&switching(70_000, 2, vec![3]));
    assert!(
        stuck.degraded[0].contains("--accept-missing ID"),
        "{stuck:?}"
    );
    assert!(
        stuck.degraded[0].contains("set-mode default --cancel"),
        "{stuck:?}"
    );
    let undone = Verdict::of(&switching(70_000, 1, vec![]));
    assert!(
        undone.degraded[0].contains("goes back to strong"),
        "{undone:?}"
    );
}

#[test]
fn conflicts_are_a_note_with_the_command() {
    let answer = cluster(vec![with(1, |status| {
        let report = &mut status.regions[0].namespaces[0];
        (report.conflicts, report.conflicts_dropped) = (4, 2);
    })]);
    let verdict = Verdict::of(&answer);
    assert_eq!(verdict.word(), "healthy");
    assert!(
        verdict.notes[0].contains("lists 4 writes that lost to concurrent ones or were set aside"),
        "{verdict:?}"
    );
    assert!(
        verdict.notes[0].contains("2 more were pushed out"),
        "{verdict:?}"
    );
    assert!(
        verdict.notes[0].contains("`flaredb conflicts default`"),
        "{verdict:?}"
    );
}

#[test]
fn a_thousand_namespaces_fit_on_a_screen() {
    let mut answer = cluster(vec![store(1, &[(1, 7, 40, true)])]);
    answer.namespaces = (1..=1000)
        .map(|id| NamespaceRow {
            id,
            name: format!("n{id}"),
            mode: 1,
            target: if id == 777 { 2 } else { 1 },
            attempt: u64::from(id == 777),
            ..Default::default()
        })
        .collect();
    let verdict = Verdict::of(&answer);
    let screen = screen(&answer, &verdict, false);
    assert!(screen.lines().count() < 40, "{screen}");
    assert!(
        screen.contains("and 990 more: `flaredb ns list`"),
        "{screen}"
    );
    assert!(
        screen.contains("n777"),
        "what switches is shown first: {screen}"
    );
    let document = document(&answer, &verdict);
    assert_eq!(document["namespaces"].as_array().map(Vec::len), Some(1000));
}

#[test]
fn findings_of_one_kind_are_folded() {
    let declared = |number: u32| DeclaredNamespace {
        name: format!("n{number}"),
        mode: 2,
        policies: None,
    };
    let odd = |id| {
        with(id, |status| {
            status.declared = (1..=100).map(declared).collect()
        })
    };
    let mut answer = cluster(vec![odd(1), odd(2)]);
    answer.namespaces = (1..=100)
        .map(|id| NamespaceRow {
            id,
            name: format!("n{id}"),
            mode: 1,
            target: 1,
            ..Default::default()
        })
        .collect();
    let found = Verdict::of(&answer).degraded;
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(
        found[0].contains("namespace n1 is strong, but stores 1, 2 are configured otherwise"),
        "{found:?}"
    );
    assert!(
        found[3].starts_with("and 97 more namespaces") && found[3].contains("flaredb ns modes"),
        "{found:?}"
    );
}

#[test]
fn many_eventual_namespaces_fit_on_a_screen_and_those_that_lag_come_first() {
    let reports = |id: u32| NamespaceReport {
        namespace_id: id,
        mode: 2,
        conflicts: u64::from(id == 777),
        ..Default::default()
    };
    let mut answer = cluster(
        (1..=3)
            .map(|id| {
                with(id, |status| {
                    status.regions[0].namespaces = (1..=1000).map(reports).collect();
                })
            })
            .collect(),
    );
    answer.namespaces = (1..=1000)
        .map(|id| NamespaceRow {
            id,
            name: format!("n{id}"),
            mode: 2,
            target: 2,
            ..Default::default()
        })
        .collect();
    let screen = screen(&answer, &Verdict::of(&answer), false);
    assert!(screen.lines().count() < 50, "{screen}");
    assert!(
        screen.contains("\nn777") && screen.contains("and 995 more eventual"),
        "{screen}"
    );
}

#[test]
fn what_stores_declare_while_a_namespace_switches_is_a_note() {
    let declares = |id| {
        with(id, |status| {
            status.declared = vec![DeclaredNamespace {
                name: "default".into(),
                mode: 1,
                policies: None,
            }];
            status.mismatches = vec![ModeMismatch {
                namespace_id: 1,
                store_id: id,
                since_ms: 1,
                ..Default::default()
            }];
        })
    };
    let mut answer = cluster(vec![
        declares(1),
        declares(2),
        store(3, &[(1, 7, 40, true)]),
    ]);
    let row = &mut answer.namespaces[0];
    (row.mode, row.target, row.attempt, row.settled_attempt) = (1, 2, 4, 3);
    let verdict = Verdict::of(&answer);
    assert_eq!(verdict.word(), "healthy", "{verdict:?}");
    assert!(
        verdict.notes[0].contains("on its way to eventual, and stores 1, 2 are configured"),
        "{verdict:?}"
    );
    // To what they declare: they wait for the switch, as everybody does.
    let row = &mut answer.namespaces[0];
    (row.mode, row.target) = (2, 1);
    let verdict = Verdict::of(&answer);
    assert_eq!(
        (verdict.word(), verdict.notes.len()),
        ("healthy", 1),
        "{verdict:?}"
    );
}

#[test]
fn without_a_quorum_it_is_told_who_is_missing_and_what_else_waits() {
    let alone = |id, sealing| {
        let mut store = store(id, &[(0, 9, 40, false)]);
        for report in store.status.iter_mut().flat_map(|it| &mut it.regions) {
            report.namespaces[0].sealing = sealing;
        }
        store
    };
    let missing = Verdict::of(&cluster(vec![alone(1, false), gone(2), gone(3)]));
    assert!(
        missing.lost[0].contains("start the missing stores again"),
        "{missing:?}"
    );
    let mut answer = cluster(vec![alone(1, true), alone(2, true), alone(3, false)]);
    answer.namespaces[0].mode = 2;
    let lost = &Verdict::of(&answer).lost[0];
    assert!(!lost.contains("missing"), "{lost}");
    for part in [
        "all stores are there",
        "network",
        "load",
        "nor to default, whose writes wait",
    ] {
        assert!(lost.contains(part), "no {part} in: {lost}");
    }
}
