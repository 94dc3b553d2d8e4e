//! What searches found, told with the fewest faults: each was a defect once, and is mended.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]

use rdb_sim::plan::{Fault, Keep, Planned, Shape};
use rdb_sim::world::{RunOptions, run};
use rdb_types::StoreId;
use std::collections::BTreeSet;

fn store(id: u64) -> StoreId {
    StoreId::new(id).unwrap()
}

fn tell(name: &str, seconds: u64, faults: Vec<(u64, Fault)>) {
    let planned = faults
        .into_iter()
        .map(|(at_ms, fault)| Planned { at_ms, fault });
    let options = RunOptions {
        plan: Some(planned.collect()),
        fault_s: seconds,
        ..RunOptions::new(1391)
    };
    let report = run(&options).unwrap();
    let found: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
    assert!(found.is_empty(), "{name}: {found:#?}");
}

/// The only piece of a snapshot was sent into a cut, and its sender waited for the answer as long as an
/// installation may take: minutes, in which the replica stood still. Found by seeds 1213 and 1391.
#[test]
fn a_snapshot_that_was_lost_in_a_cut_is_sent_again_after_the_heal() {
    let alone = [1, 3].into_iter();
    let cut: BTreeSet<_> = alone
        .flat_map(|other| [(store(2), store(other)), (store(other), store(2))])
        .collect();
    let down = Fault::Crash {
        stores: vec![store(2)],
        down_ms: 5_000,
        keep: Keep::Some,
    };
    tell(
        "a snapshot lost in a cut",
        25,
        vec![
            (13_000, down),
            (15_400, Fault::Cuts(Shape::Alone, cut)),
            (27_000, Fault::Cuts(Shape::Whole, BTreeSet::new())),
        ],
    );
}
