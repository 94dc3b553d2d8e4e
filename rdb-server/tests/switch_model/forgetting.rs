//! Dropping tombstones, and what a store that joins begins with: the bounds that are tried, and each rule left out
//! once.
//!
//! One key, which has a value, is deleted, and is perhaps put; three replicas, or two and one that joins. When a
//! tombstone may go is a matter of what each of them knows of the others, so that is what this world has: reports,
//! floors, copies that come late. How a namespace is sealed the other world shows; here a seal is
//! one step, for what it does to epochs and to who was left out.
//!
//! | read | for |
//! |---|---|
//! | `forgetting/world.rs` | what there is at one moment, and what may still happen |
//! | `forgetting/model.rs` | what can happen next |
//! | `forgetting/replica.rs` | what it does |
//! | `forgetting/promises.rs` | what is true at every moment |
//!
//! Reports may be as old as they like: a replica acts upon the last that it heard, whenever. That is more than the
//! server can, which remembers complete rounds of them. And logs need not be gone for a copy to be taken, at any moment:
//! so it does not matter when they are cut, and they never are.

#[path = "forgetting/model.rs"]
mod model;
#[path = "forgetting/promises.rs"]
mod promises;
#[path = "forgetting/replica.rs"]
mod replica;
#[path = "forgetting/world.rs"]
mod world;

use crate::log::voters;
use crate::rules::{Rule, Rules};
use crate::world::Set;
use model::Forgetting;
use promises::Reach;
use world::Budget;

/// Nothing happens but what is named.
const NONE: Budget = Budget {
    puts: 0,
    deletions: 0,
    late: 0,
    crashes: 0,
    joins: 0,
    aborts: 0,
    turns: 0,
};

const DELETED: Budget = Budget {
    deletions: 1,
    ..NONE
};

const RACE: Budget = Budget { puts: 1, ..DELETED };

fn holds(mut model: Forgetting, reach: &[Reach]) {
    model.reach = reach.to_vec();
    super::holds(model);
}

fn caught(rule: Rule, mut model: Forgetting) {
    model.rules = Rules::without(rule);
    super::caught(rule, model);
}

/// Two begin, and `new` joins. Its id decides who wins where two have seen the same, so it matters which.
fn joined_by(new: u8, left: Budget) -> Forgetting {
    let mut model = Forgetting::new(Budget { joins: 1, ..left });
    model.founders = voters((0..3).filter(|who| *who != new));
    model
}

/// The epoch is another, the time the same.
fn given_up(left: Budget) -> Forgetting {
    let mut model = Forgetting::new(Budget { aborts: 1, ..left });
    model.deleters = vec![0];
    model.writers = vec![1];
    model
}

/// The last store may be missing when a seal ends the time, and writes.
fn left_out() -> Forgetting {
    let mut model = Forgetting::new(Budget { turns: 1, ..RACE });
    model.may_be_missing = Set::one(2);
    model
}

#[test]
fn a_deletion_and_a_write_that_race() {
    holds(
        Forgetting::new(RACE),
        &[Reach::Forgotten, Reach::ForgottenHere],
    );
}

#[test]
fn two_deletions_and_a_write() {
    let left = Budget {
        deletions: 2,
        ..RACE
    };
    let mut model = Forgetting::new(left);
    model.deleters = vec![0];
    model.writers = vec![1];
    holds(model, &[Reach::Forgotten, Reach::ForgottenHere]);
}

#[test]
fn a_copy_that_comes_late() {
    let left = Budget { late: 1, ..RACE };
    holds(
        Forgetting::new(left),
        &[Reach::Forgotten, Reach::ForgottenHere],
    );
}

#[test]
fn a_deletion_and_a_crash() {
    let left = Budget {
        crashes: 1,
        late: 1,
        ..RACE
    };
    let mut model = Forgetting::new(left);
    model.deleters = vec![0];
    model.writers = vec![1];
    holds(model, &[Reach::Forgotten, Reach::ForgottenHere]);
}

#[test]
fn a_store_with_the_lowest_id_joins() {
    holds(
        joined_by(0, RACE),
        &[Reach::Forgotten, Reach::ForgottenHere, Reach::NewOneWrites],
    );
}

#[test]
fn a_store_with_the_highest_id_joins() {
    holds(
        joined_by(2, RACE),
        &[Reach::Forgotten, Reach::ForgottenHere, Reach::NewOneWrites],
    );
}

#[test]
fn a_store_joins_and_a_copy_comes_late() {
    let model = joined_by(0, Budget { late: 1, ..RACE });
    holds(
        model,
        &[Reach::Forgotten, Reach::ForgottenHere, Reach::NewOneWrites],
    );
}

#[test]
fn a_store_joins_and_a_process_dies() {
    let mut model = joined_by(0, Budget { crashes: 1, ..RACE });
    model.deleters = vec![1];
    model.writers = vec![0];
    holds(
        model,
        &[Reach::Forgotten, Reach::ForgottenHere, Reach::NewOneWrites],
    );
}

#[test]
fn a_seal_that_is_given_up() {
    let left = Budget { late: 1, ..RACE };
    holds(given_up(left), &[Reach::Forgotten, Reach::ForgottenHere]);
}

#[test]
fn a_seal_that_leaves_a_store_out() {
    holds(
        left_out(),
        &[Reach::Forgotten, Reach::ForgottenHere, Reach::CameBack],
    );
}

#[test]
fn that_all_have_seen_it_is_not_enough() {
    caught(Rule::OwnCoversReports, Forgetting::new(RACE));
}

#[test]
fn a_learner_that_need_not_report_is_caught() {
    caught(Rule::LearnersReport, joined_by(0, RACE));
}

#[test]
fn a_report_of_a_newer_log_that_counts_is_caught() {
    caught(Rule::ReportOfLog, joined_by(0, RACE));
}

#[test]
fn a_report_that_is_newer_than_it_says_is_caught() {
    caught(Rule::IndexAfterVector, joined_by(0, RACE));
}

#[test]
fn replicas_of_an_older_index_are_caught() {
    caught(Rule::ReplicasOfIndex, joined_by(0, RACE));
}

#[test]
fn a_copy_from_before_a_drop_that_is_merged_is_caught() {
    let left = Budget { late: 1, ..DELETED };
    caught(Rule::FloorRefuses, Forgetting::new(left));
}

#[test]
fn a_floor_that_is_looked_at_too_early_is_caught() {
    let left = Budget { late: 1, ..DELETED };
    caught(Rule::FloorAtMerge, Forgetting::new(left));
}

#[test]
fn a_floor_that_a_crash_costs_is_caught() {
    let left = Budget {
        late: 1,
        crashes: 1,
        ..DELETED
    };
    caught(Rule::FloorWithDrop, Forgetting::new(left));
}

#[test]
fn a_copy_without_its_floor_is_caught() {
    let left = Budget { late: 1, ..DELETED };
    caught(Rule::FloorComesAlong, joined_by(2, left));
}

#[test]
fn a_copy_that_brings_no_stamps_is_caught() {
    caught(Rule::StampsGoOn, joined_by(0, RACE));
}

#[test]
fn what_leaves_unsynced_is_caught() {
    let left = Budget {
        crashes: 1,
        ..DELETED
    };
    caught(Rule::SyncBeforeSending, Forgetting::new(left));
}

#[test]
fn a_copy_from_before_the_store_was_named_is_caught() {
    caught(Rule::CopyAfterNamed, joined_by(2, DELETED));
}

#[test]
fn a_new_store_that_goes_by_the_log_is_caught() {
    caught(Rule::NewTakesCopy, joined_by(2, DELETED));
}

/// A rule that is not needed for what is tried here. An older epoch's report says less than its store has by now, or
/// tells of numbers that no later time gives out again; one of a newer epoch comes from a newer log. It stays a
/// rule: whoever counts what was said in another time has to think of all this.
#[test]
fn reports_of_other_epochs_would_do_no_harm() {
    for mut model in [left_out(), given_up(RACE)] {
        model.rules = Rules::without(Rule::ReportOfEpoch);
        holds(model, &[Reach::Forgotten]);
    }
}
