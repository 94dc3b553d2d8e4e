//! Changes of mode between three replicas: the bounds that are tried, and each rule left out once.

use super::model::Switching;
use super::promises::Reach;
use super::rules::{Rule, Rules};
use super::world::{self, Budget};
use rdb_server::peer::orders::Order;
use rdb_types::Mode;

pub const STRONG: (Mode, &[u8]) = (Mode::Strong, &[]);
/// Strong without the third replica, if it does not answer.
pub const STRONG_WITHOUT: (Mode, &[u8]) = (Mode::Strong, &[2]);
pub const EVENTUAL: (Mode, &[u8]) = (Mode::Eventual, &[]);

/// Nothing happens but what is named.
pub const NONE: Budget = Budget {
    writes: 0,
    puts: 0,
    crashes: 0,
    elections: 0,
    losses: 0,
    late: 0,
    aborts: 0,
    joins: 0,
    damages: 0,
};

/// A namespace that begins in `mode` and is ordered about; a log of so many entries.
pub fn from(mode: Mode, orders: &[(Mode, &[u8])], entries: u8, left: Budget) -> Switching {
    let orders = (1..).zip(orders).map(|(attempt, (target, missing))| Order {
        target: *target,
        attempt,
        accept_missing: missing.iter().map(|who| world::store(*who)).collect(),
    });
    Switching::new(mode, orders.collect(), left, entries)
}

pub fn eventual(orders: &[(Mode, &[u8])], entries: u8, left: Budget) -> Switching {
    from(Mode::Eventual, orders, entries, left)
}

/// Every promise holds everywhere, and what is named is reached.
pub fn holds(mut model: Switching, reach: &[Reach]) {
    model.reach = reach.to_vec();
    super::holds(model);
}

/// Without one rule a promise breaks.
pub fn caught(rule: Rule, mut model: Switching) {
    model.rules = Rules::without(rule);
    super::caught(rule, model);
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

/// It is found by its digest before anything is strong, whoever it is.
#[test]
fn a_replica_that_lost_a_record() {
    let left = Budget {
        writes: 1,
        damages: 1,
        ..NONE
    };
    holds(
        eventual(&[STRONG], 3, left),
        &[Reach::GivenUp, Reach::Strong],
    );
}

#[test]
fn a_seal_of_replicas_that_differ_is_caught() {
    let left = Budget {
        writes: 1,
        damages: 1,
        ..NONE
    };
    caught(Rule::DigestsCompared, eventual(&[STRONG], 3, left));
}

#[test]
fn a_seal_of_a_minority_is_caught() {
    let left = Budget { losses: 2, ..NONE };
    let alone = (Mode::Strong, &[1, 2][..]);
    caught(Rule::QuorumTakesPart, eventual(&[alone], 2, left));
}

#[test]
fn an_eventual_write_below_a_strong_one_is_caught() {
    let left = Budget {
        writes: 1,
        puts: 1,
        ..NONE
    };
    caught(
        Rule::StampsBeyondStrong,
        from(Mode::Strong, &[EVENTUAL], 2, left),
    );
}

#[test]
fn a_leader_that_waits_for_a_copy_is_caught() {
    let left = Budget {
        losses: 1,
        elections: 1,
        ..NONE
    };
    caught(Rule::StuckLeadsNobody, eventual(&[STRONG_WITHOUT], 2, left));
}

#[test]
fn a_copy_from_before_the_seal_that_it_is_needed_for_is_caught() {
    let left = Budget { losses: 1, ..NONE };
    caught(Rule::CopyBeyondSeal, eventual(&[STRONG_WITHOUT], 2, left));
}
