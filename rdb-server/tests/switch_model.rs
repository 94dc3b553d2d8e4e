//! The executable model of a region with three replicas: everything that can happen to them, tried in every order up to
//! stated bounds.
//!
//! Two worlds, so that each stays small. What decides in them is the code that ships; the world around it is the
//! model's: a log that all agree on, replicas that write and sync, messages that come late or never, crashes that cost
//! what was not synced, leaders that change, a store that joins.
//!
//! | read | for |
//! |---|---|
//! | `world.rs`, `model.rs` | a change of mode: what there is at one moment; what can happen next |
//! | `leader.rs`, `replica.rs`, `log.rs` | what it does |
//! | `promises.rs` | what is true at every moment |
//! | `switches.rs`, `joins.rs` | the bounds that are tried |
//! | `forgetting.rs`, `forgetting/` | the other world: when a tombstone may go, and what a store that joins begins with |
//! | `rules.rs` | the rules that can be left out, to see that each is needed |
//!
//! Driven from the server's code:
//! - [`rdb_server::peer::switch::Drive`] asks and proposes;
//! - [`rdb_server::region::switching`] takes steps, judges replicas and tells eventual times apart;
//! - [`rdb_server::eventual::Reports`] concludes what may be forgotten;
//! - [`rdb_server::eventual::EventualState`] says what may be merged here, what a drop does to the floor, and what a
//!   replica goes on with that was given a copy;
//! - [`rdb_types::merge`] says which of two records stays.
//!
//! The model's own, since the server has no membership that changes yet: how a store is named a member, when it may
//! be, that it begins with a copy and with nothing else, and as of when that copy may be. `docs/testing.md` lists these.
//!
//! In neither: time (patience may be over at any moment), quorums and elections as such (consensus agrees on one
//! log, and who leads has all of it), expiry, damaged disks, stores that leave.
//!
//! How many distinct moments there are (a promise is looked at in each) each test prints; `docs/testing.md` has them.

#![allow(
    clippy::unwrap_used,
    reason = "a test may stop at what it did not expect"
)]
#![allow(clippy::print_stdout, reason = "what was measured is worth reading")]
#![allow(
    unreachable_pub,
    reason = "the modules of a test are seen by the test alone"
)]

#[path = "switch_model/forgetting.rs"]
mod forgetting;
#[path = "switch_model/joins.rs"]
mod joins;
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
#[path = "switch_model/switches.rs"]
mod switches;
#[path = "switch_model/world.rs"]
mod world;

use rules::Rule;
use stateright::{Checker, Expectation, HasDiscoveries, Model};
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Instant;

/// A moment that can be told.
trait Moment: Clone + Debug + PartialEq + Hash + Send + Sync + 'static {
    /// For whoever reads how it came to this.
    fn in_a_line(&self) -> String;
}

/// Tries everything. Every promise holds everywhere, and whatever has to happen somewhere does.
fn holds<M>(model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Moment,
    M::Action: Clone + Debug + PartialEq,
{
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
    let mut discoveries = checker.discoveries();
    for property in checker.model().properties() {
        let (name, found) = (property.name, discoveries.remove(property.name));
        match (property.expectation, found) {
            (Expectation::Sometimes, None) => panic!("not reached: {name}"),
            (Expectation::Sometimes, Some(_)) | (_, None) => {}
            (_, Some(path)) => panic!("{name}: broken by\n{}", story(path.into_vec())),
        }
    }
}

/// Without one rule a promise breaks.
fn caught<M>(rule: Rule, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Moment,
    M::Action: Clone + Debug + PartialEq,
{
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let found = checker.discoveries().into_iter();
    let broken = found.filter_map(|(name, path)| {
        let property = checker.model().property(name);
        let mut told: Vec<_> = path.into_vec();
        // The checker looks at a block of moments before it stops, and tells of the last that it found.
        let breaks = |(moment, _): &(M::State, _)| !(property.condition)(checker.model(), moment);
        told.truncate(told.iter().position(breaks)? + 1);
        (property.expectation == Expectation::Always).then_some((name, told))
    });
    let Some((name, told)) = broken.min_by_key(|(name, told)| (told.len(), *name)) else {
        panic!("nobody noticed that {rule:?} is missing");
    };
    println!(
        "{rule:?}: {} steps until \"{name}\" breaks\n{}",
        told.len() - 1,
        story(told)
    );
}

/// What happened, and where it left the replicas.
fn story<A: Debug>(path: Vec<(impl Moment, Option<A>)>) -> String {
    let mut told = String::new();
    for (moment, action) in path {
        told += &format!("  {}\n", moment.in_a_line());
        if let Some(action) = action {
            told += &format!("{action:?}\n");
        }
    }
    told
}
