//! The executable model of a change of mode: one region, three replicas, and everything that can happen to them,
//! tried in every order up to stated bounds.
//!
//! What decides is the code that ships: [`rdb_server::peer::switch::Drive`] asks and proposes,
//! [`rdb_server::region::switching`] takes steps, judges replicas and tells eventual times apart. The world around
//! it is the model's: a log that all agree on, replicas that write and sync, messages that come late or never,
//! crashes that cost what was not synced, leaders that change.
//!
//! | read | for |
//! |---|---|
//! | `world.rs` | what there is at one moment, and what may still happen |
//! | `model.rs` | what can happen next |
//! | `leader.rs`, `replica.rs`, `log.rs` | what it does |
//! | `promises.rs` | what is true at every moment |
//! | `rules.rs` | the rules that can be left out, to see that each is needed |
//!
//! Not in it: time (patience may be over at any moment), quorums and elections as such (consensus agrees on one
//! log, and who leads has all of it), expiry and tombstones, joining stores (members do not change yet), damaged disks.
//! Stamps count what was seen; a key keeps all its writes, so that a lost one is seen even behind a newer one.
//!
//! Bounds, and how many distinct moments there are (a promise is looked at in each). On one core, as tests are compiled,
//! all of these take 80 s together, and the broken rules 45 s.
//!
//! | what may happen | moments |
//! |---|---|
//! | two writes, a crash | 666,507 |
//! | two writes, a new leader | 414,478 |
//! | two writes, writes or a copy that come late | 122,626 |
//! | two writes, a silent store that may be missing | 370,729 |
//! | a write, such a store, the way back to eventual | 315,743 |
//! | a write, such a store, a message that comes late | 105,304 |
//! | a write, patience that is over | 50,221 |
//! | a write, a question, answer or step that is lost | 24,974 |
//! | a write, a cancelled switch | 14,476 |
//! | from strong to eventual and back: a write in either mode | 144,431 |
//! | the same: a write, a crash | 1,420,048 |

#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]
#![allow(clippy::print_stdout, reason = "what was measured is worth reading")]
#![allow(
    unreachable_pub,
    reason = "the modules of a test are seen by the test alone"
)]

#[path = "switch_model/leader.rs"]
mod leader;
#[path = "switch_model/log.rs"]
mod log;
#[path = "switch_model/model.rs"]
mod model;
#[path = "switch_model/promises.rs"]
mod promises;
#[path = "switch_model/replica.rs"]
mod replica;
#[path = "switch_model/rules.rs"]
mod rules;
#[path = "switch_model/world.rs"]
mod world;

use model::{Action, Switching};
use promises::Reach;
use rdb_server::peer::orders::Order;
use rdb_types::Mode;
use rules::{Rule, Rules};
use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};
use std::time::Instant;
use world::{Budget, World};

const STRONG: (Mode, &[u8]) = (Mode::Strong, &[]);
/// Strong without the third replica, if it does not answer.
const STRONG_WITHOUT: (Mode, &[u8]) = (Mode::Strong, &[2]);
const EVENTUAL: (Mode, &[u8]) = (Mode::Eventual, &[]);

/// Nothing happens but what is named.
const NONE: Budget = Budget {
    writes: 0,
    puts: 0,
    crashes: 0,
    elections: 0,
    losses: 0,
    late: 0,
    aborts: 0,
};

/// A namespace that begins in `mode` and is ordered about; a log of so many entries.
fn from(mode: Mode, orders: &[(Mode, &[u8])], entries: u8, left: Budget) -> Switching {
    let orders = (1..).zip(orders).map(|(attempt, (target, missing))| Order {
        target: *target,
        attempt,
        accept_missing: missing.iter().map(|who| world::store(*who)).collect(),
    });
    Switching::new(mode, orders.collect(), left, entries)
}

fn eventual(orders: &[(Mode, &[u8])], entries: u8, left: Budget) -> Switching {
    from(Mode::Eventual, orders, entries, left)
}

/// Tries everything. Every promise holds everywhere, and what is named is reached.
fn holds(mut model: Switching, reach: &[Reach]) {
    model.reach = reach.to_vec();
    let began = Instant::now();
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    println!(
        "{} moments, at most {} steps from the first, in {:.1?}",
        checker.unique_state_count(),
        checker.max_depth(),
        began.elapsed()
    );
    for (name, path) in checker.discoveries() {
        let property = checker.model().property(name);
        if property.expectation == Expectation::Always {
            panic!("{name}: broken by\n{}", story(path));
        }
    }
    for reach in reach {
        let name = reach.name();
        assert!(checker.discovery(name).is_some(), "not reached: {name}");
    }
}

/// Without one rule a promise breaks.
fn caught(rule: Rule, mut model: Switching) {
    model.rules = Rules::without(rule);
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let found = checker.discoveries().into_iter();
    let shortest = found.min_by_key(|(name, path)| (path.clone().into_actions().len(), *name));
    let Some((name, path)) = shortest else {
        panic!("nobody noticed that {rule:?} is missing");
    };
    let steps = path.clone().into_actions().len();
    println!(
        "{rule:?}: {steps} steps until \"{name}\" breaks\n{}",
        story(path)
    );
}

/// What happened, and where it left the replicas.
fn story(path: Path<World, Action>) -> String {
    let mut told = String::new();
    for (world, action) in path.into_vec() {
        told += &format!("  {}\n", world.in_a_line());
        if let Some(action) = action {
            told += &format!("{action:?}\n");
        }
    }
    told
}

#[test]
fn a_crash_anywhere() {
    let left = Budget {
        writes: 2,
        crashes: 1,
        ..NONE
    };
    holds(
        eventual(&[STRONG], 4, left),
        &[Reach::StrongWithWritesOfTwo],
    );
}

#[test]
fn a_leader_that_changes_anywhere() {
    let left = Budget {
        writes: 2,
        elections: 1,
        ..NONE
    };
    holds(
        eventual(&[STRONG], 4, left),
        &[Reach::StrongWithWritesOfTwo],
    );
}

#[test]
fn writes_and_copies_that_come_late() {
    let left = Budget {
        writes: 2,
        late: 1,
        ..NONE
    };
    holds(
        eventual(&[STRONG], 4, left),
        &[Reach::StrongWithWritesOfTwo],
    );
}

#[test]
fn a_store_that_may_be_missing() {
    let left = Budget {
        writes: 2,
        losses: 1,
        ..NONE
    };
    holds(eventual(&[STRONG_WITHOUT], 4, left), &[Reach::SetAside]);
}

#[test]
fn a_missing_store_that_comes_back_into_the_next_time() {
    let left = Budget {
        writes: 1,
        losses: 1,
        ..NONE
    };
    holds(
        eventual(&[STRONG_WITHOUT, EVENTUAL], 3, left),
        &[Reach::SetAside, Reach::EventualAgain],
    );
}

#[test]
fn a_message_of_a_missing_store_that_comes_late() {
    let left = Budget {
        writes: 1,
        losses: 1,
        late: 1,
        ..NONE
    };
    holds(eventual(&[STRONG_WITHOUT], 2, left), &[Reach::SetAside]);
}

#[test]
fn a_seal_that_takes_too_long() {
    let left = Budget {
        writes: 1,
        aborts: 1,
        ..NONE
    };
    holds(
        eventual(&[STRONG], 4, left),
        &[Reach::GivenUp, Reach::Strong],
    );
}

#[test]
fn an_answer_or_a_step_that_is_lost() {
    let left = Budget {
        writes: 1,
        losses: 1,
        ..NONE
    };
    holds(eventual(&[STRONG], 3, left), &[Reach::Strong]);
}

#[test]
fn a_switch_that_is_cancelled_anywhere() {
    let left = Budget { writes: 1, ..NONE };
    holds(
        eventual(&[STRONG, EVENTUAL], 4, left),
        &[Reach::GivenUp, Reach::Strong, Reach::EventualAgain],
    );
}

#[test]
fn strong_and_eventual_and_strong() {
    let left = Budget {
        writes: 1,
        puts: 1,
        ..NONE
    };
    holds(
        from(Mode::Strong, &[EVENTUAL, STRONG], 3, left),
        &[Reach::StrongWrite, Reach::Strong],
    );
}

#[test]
fn a_crash_on_the_way_to_eventual_and_back() {
    let left = Budget {
        writes: 1,
        crashes: 1,
        ..NONE
    };
    holds(
        from(Mode::Strong, &[EVENTUAL, STRONG], 3, left),
        &[Reach::Strong],
    );
}

#[test]
fn an_answer_before_its_sync_is_caught() {
    let left = Budget {
        writes: 1,
        crashes: 1,
        ..NONE
    };
    caught(Rule::SyncBeforeAnswer, eventual(&[STRONG], 2, left));
}

#[test]
fn a_promise_that_does_not_bind_is_caught() {
    let left = Budget {
        writes: 1,
        losses: 1,
        late: 1,
        ..NONE
    };
    caught(Rule::PromiseBinds, eventual(&[STRONG_WITHOUT], 2, left));
}

#[test]
fn writes_while_it_is_sealed_are_caught() {
    let left = Budget { writes: 1, ..NONE };
    caught(Rule::ClosedWhileSealed, eventual(&[STRONG], 2, left));
}

#[test]
fn a_message_of_an_old_epoch_that_is_taken_is_caught() {
    let left = Budget {
        writes: 1,
        losses: 1,
        late: 1,
        ..NONE
    };
    let orders = [STRONG_WITHOUT, EVENTUAL];
    let mut model = eventual(&orders, 3, left);
    model.writers = vec![2];
    caught(Rule::EpochOnArrival, model);
}

#[test]
fn a_step_of_an_old_epoch_that_counts_is_caught() {
    let left = Budget {
        writes: 1,
        losses: 1,
        aborts: 1,
        ..NONE
    };
    caught(Rule::EpochInApply, eventual(&[STRONG], 4, left));
}

#[test]
fn a_step_of_a_cancelled_attempt_that_counts_is_caught() {
    caught(Rule::AttemptInApply, eventual(&[STRONG, EVENTUAL], 2, NONE));
}

#[test]
fn a_strong_write_of_an_old_epoch_that_counts_is_caught() {
    let left = Budget { puts: 1, ..NONE };
    caught(
        Rule::EpochOfWrites,
        from(Mode::Strong, &[EVENTUAL], 2, left),
    );
}

#[test]
fn a_seal_one_promise_short_is_caught() {
    let left = Budget { writes: 1, ..NONE };
    caught(Rule::EveryPromise, eventual(&[STRONG], 2, left));
}

#[test]
fn a_fence_that_nobody_looks_at_is_caught() {
    let left = Budget {
        writes: 1,
        losses: 1,
        ..NONE
    };
    caught(Rule::FenceChecked, eventual(&[STRONG_WITHOUT], 2, left));
}

#[test]
fn late_writes_that_are_not_set_aside_are_caught() {
    let left = Budget {
        writes: 1,
        losses: 1,
        ..NONE
    };
    caught(Rule::SetAside, eventual(&[STRONG_WITHOUT], 2, left));
}

#[test]
fn a_copy_that_is_merged_across_a_seal_is_caught() {
    let left = Budget {
        writes: 1,
        losses: 1,
        late: 1,
        ..NONE
    };
    let orders = [STRONG_WITHOUT, EVENTUAL];
    let mut model = eventual(&orders, 3, left);
    model.writers = vec![2];
    caught(Rule::SameTime, model);
}

#[test]
fn numbers_that_a_copy_begins_anew_are_caught() {
    let left = Budget {
        writes: 2,
        losses: 1,
        ..NONE
    };
    let orders = [STRONG_WITHOUT, EVENTUAL];
    let mut model = eventual(&orders, 3, left);
    model.writers = vec![2];
    caught(Rule::NumbersOnce, model);
}

#[test]
fn a_seal_that_does_not_lift_the_time_is_caught() {
    let left = Budget {
        writes: 2,
        puts: 1,
        ..NONE
    };
    caught(Rule::SealLiftsTime, eventual(&[STRONG], 3, left));
}
