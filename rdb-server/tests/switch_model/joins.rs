//! A store joins a region whose namespace changes its mode: the bounds that are tried, and each rule left out once.
//!
//! It joins by an entry of the log, as a voter or as a learner, and begins with a copy of the region as it was
//! behind that entry. What is dropped meanwhile, and why the copy has to be that new, is the other world's to show
//! (`forgetting.rs`).

use super::log::voters;
use super::model::Switching;
use super::promises::Reach;
use super::rules::Rule;
use super::switches::{EVENTUAL, NONE, STRONG, caught, eventual, from, holds};
use super::world::{Budget, store};
use rdb_server::peer::orders::Order;
use rdb_types::Mode;

/// Two begin, and the third may join.
fn of_two(mut model: Switching, votes: bool) -> Switching {
    model.founders = voters([0, 1]);
    model.joins_as_voter = votes;
    model
}

#[test]
fn a_voter_that_joins_anywhere() {
    let left = Budget {
        writes: 2,
        joins: 1,
        ..NONE
    };
    let model = of_two(eventual(&[STRONG], 4, left), true);
    holds(
        model,
        &[Reach::StrongWithWritesOfTwo, Reach::StrongWithTheNewOne],
    );
}

#[test]
fn a_learner_that_joins_a_region_which_changes_its_leader() {
    let left = Budget {
        writes: 1,
        joins: 1,
        elections: 1,
        ..NONE
    };
    let mut model = of_two(eventual(&[STRONG], 4, left), false);
    model.writers = vec![2];
    holds(model, &[Reach::StrongWithTheNewOne]);
}

#[test]
fn a_store_that_joins_while_processes_die() {
    let left = Budget {
        writes: 1,
        joins: 1,
        crashes: 1,
        ..NONE
    };
    let mut model = of_two(eventual(&[STRONG], 4, left), true);
    model.writers = vec![2];
    holds(model, &[Reach::StrongWithTheNewOne]);
}

#[test]
fn a_store_that_joins_while_a_seal_is_given_up() {
    let left = Budget {
        writes: 1,
        joins: 1,
        aborts: 1,
        ..NONE
    };
    let mut model = of_two(eventual(&[STRONG], 5, left), true);
    model.writers = vec![2];
    holds(model, &[Reach::StrongWithTheNewOne, Reach::GivenUp]);
}

#[test]
fn a_store_that_joins_with_a_copy_that_comes_late() {
    let left = Budget {
        writes: 1,
        joins: 1,
        late: 1,
        ..NONE
    };
    let mut model = of_two(eventual(&[STRONG, EVENTUAL], 4, left), true);
    model.writers = vec![0, 2];
    holds(model, &[Reach::StrongWithTheNewOne, Reach::EventualAgain]);
}

#[test]
fn a_store_that_joins_between_strong_and_eventual() {
    let left = Budget {
        writes: 1,
        puts: 1,
        joins: 1,
        ..NONE
    };
    let mut model = of_two(from(Mode::Strong, &[EVENTUAL, STRONG], 5, left), true);
    model.writers = vec![2];
    holds(model, &[Reach::StrongWithTheNewOne, Reach::StrongWrite]);
}

#[test]
fn a_store_that_joins_while_it_is_sealed_is_caught() {
    let left = Budget { joins: 1, ..NONE };
    let mut model = of_two(eventual(&[STRONG], 3, left), true);
    // Of one voter, so that one more makes another quorum.
    model.founders = voters([0]);
    caught(Rule::NoJoinWhileSealed, model);
}

#[test]
fn a_learner_that_has_no_part_is_caught() {
    let left = Budget {
        writes: 1,
        joins: 1,
        ..NONE
    };
    let model = of_two(eventual(&[STRONG], 3, left), false);
    caught(Rule::LearnersTakePart, model);
}

#[test]
fn a_store_that_takes_writes_before_it_is_named_is_caught() {
    let left = Budget {
        writes: 1,
        joins: 1,
        ..NONE
    };
    let model = of_two(eventual(&[STRONG], 3, left), true);
    caught(Rule::WritesAfterNamed, model);
}

/// An order to go on without the store that joins, should it not answer.
#[test]
fn a_new_store_that_may_be_missing() {
    let left = Budget {
        writes: 1,
        joins: 1,
        losses: 1,
        ..NONE
    };
    let mut model = of_two(eventual(&[], 3, left), false);
    model.orders = vec![Order {
        target: Mode::Strong,
        attempt: 1,
        accept_missing: [store(2)].into(),
    }];
    model.writers = vec![2];
    holds(model, &[Reach::StrongWithTheNewOne, Reach::SetAside]);
}
