//! Golden scripts: what the leader of a region does, event by event. `<` is what happened, `>` what it does.

use super::*;
use crate::region::switching;
use rdb_types::Epoch;
use std::fmt::Write;

fn store(id: u64) -> StoreId {
    StoreId::new(id).unwrap()
}

fn vector(parts: &[(u64, u64)]) -> VersionVector {
    parts.iter().map(|(id, last)| (store(*id), *last)).collect()
}

fn held(parts: &[(u64, u64)], digest: u128) -> Result<Held, String> {
    Ok(Held {
        vector: vector(parts),
        digest: Digest(digest),
        ..Held::default()
    })
}

/// A region of three replicas, its log, and its leader.
struct Region {
    state: NamespaceState,
    order: Order,
    members: Members,
    drive: Drive,
    asked: Vec<(StoreId, u64)>,
    told: String,
}

impl Region {
    fn new(mode: Mode, target: Mode) -> Region {
        let three: BTreeSet<StoreId> = [1, 2, 3].map(store).into();
        Region {
            state: NamespaceState::new(mode),
            order: Order {
                target,
                attempt: 1,
                accept_missing: BTreeSet::new(),
            },
            members: Members {
                voters: three.clone(),
                all: three,
            },
            drive: Drive::default(),
            asked: Vec::new(),
            told: String::new(),
        }
    }

    fn run(&mut self, event: &str, what: impl FnOnce(&mut Drive, Facts<'_>) -> Vec<Effect>) {
        writeln!(self.told, "< {event}").unwrap();
        let facts = Facts {
            namespace: NamespaceId(7),
            state: &self.state,
            order: &self.order,
            members: &self.members,
        };
        let effects = what(&mut self.drive, facts);
        let mut asks = BTreeSet::new();
        for effect in effects {
            match effect {
                Effect::Ask { to, ask, round } => {
                    self.asked.push((to, round));
                    let fence = rdb_proto::convert::vector(&ask.fence).unwrap();
                    asks.insert(if ask.promise {
                        format!("promise {fence} in epoch {}", ask.epoch)
                    } else {
                        format!("what do you hold in epoch {}", ask.epoch)
                    });
                }
                Effect::Propose(step) => self.propose(step),
            }
        }
        for ask in asks {
            writeln!(self.told, "> ask all: {ask}").unwrap();
        }
    }

    /// The log takes a step at once.
    fn propose(&mut self, step: SwitchStep) {
        let name = match step.step.as_ref().unwrap() {
            Step::SetEventual(_) => "SetEventual".to_owned(),
            Step::BeginSeal(begin) => format!("BeginSeal without {:?}", begin.accept_missing),
            Step::Seal(seal) => format!("Seal by {:?}", seal.participants),
            Step::AbortSeal(abort) => format!("AbortSeal {:?}", abort.why),
        };
        switching::take(&mut self.state, &self.members, &step).unwrap();
        self.drive.proposed();
        let state = &self.state;
        writeln!(
            self.told,
            "> {name}: {}{} in epoch {}",
            if state.sealing.is_some() {
                "sealing "
            } else {
                ""
            },
            state.mode,
            state.epoch
        )
        .unwrap();
    }

    fn look(&mut self) {
        self.run("look", |drive, facts| drive.look(facts));
    }

    fn patience_is_over(&mut self) {
        self.run("patience is over", |drive, facts| {
            drive.patience_is_over(facts)
        });
    }

    fn answer(&mut self, from: u64, answer: Result<Held, String>) {
        let at = self.asked.iter().rposition(|(to, _)| *to == store(from));
        let (_, round) = self.asked[at.unwrap()];
        self.answer_of(from, round, answer);
    }

    /// Given in the present epoch, unless it says another.
    fn answer_of(&mut self, from: u64, round: u64, answer: Result<Held, String>) {
        let answer = answer.map(|held| match held.epoch {
            Epoch(0) => Held {
                epoch: self.state.epoch,
                ..held
            },
            _ => held,
        });
        let event = match &answer {
            Ok(held) => format!("{from} holds {}", held.vector),
            Err(why) => format!("{from}: {why}"),
        };
        self.run(&event, |drive, facts| {
            drive.heard(facts, store(from), round, answer)
        });
    }

    fn told(&self) -> Vec<&str> {
        self.told.lines().collect()
    }
}

#[test]
fn strong_to_eventual_is_one_step() {
    let mut region = Region::new(Mode::Strong, Mode::Eventual);
    region.look();
    region.look();
    assert_eq!(
        region.told(),
        ["< look", "> SetEventual: eventual in epoch 2", "< look"]
    );
}

#[test]
fn eventual_to_strong_drains_reports_promises_and_seals() {
    let mut region = Region::new(Mode::Eventual, Mode::Strong);
    region.look();
    for id in [1, 2, 3] {
        region.answer(id, held(&[(1, 9), (2, id)], 0));
    }
    region.look();
    for id in [1, 2, 3] {
        region.answer(id, held(&[(1, 10), (2, id + 1)], 0));
    }
    for id in [1, 2, 3] {
        region.answer(id, held(&[(1, 10), (2, 4)], 5));
    }
    region.look();
    assert_eq!(
        region.told(),
        [
            "< look",
            "> ask all: what do you hold in epoch 1",
            "< 1 holds {1: 9, 2: 1}",
            "< 2 holds {1: 9, 2: 2}",
            "< 3 holds {1: 9, 2: 3}",
            "> BeginSeal without []: sealing eventual in epoch 2",
            "< look",
            "> ask all: what do you hold in epoch 2",
            "< 1 holds {1: 10, 2: 2}",
            "< 2 holds {1: 10, 2: 3}",
            "< 3 holds {1: 10, 2: 4}",
            "> ask all: promise {1: 10, 2: 4} in epoch 2",
            "< 1 holds {1: 10, 2: 4}",
            "< 2 holds {1: 10, 2: 4}",
            "< 3 holds {1: 10, 2: 4}",
            "> Seal by [1, 2, 3]: strong in epoch 3",
            "< look",
        ]
    );
}

#[test]
fn writes_go_on_while_a_replica_is_missing_or_far_behind() {
    let mut region = Region::new(Mode::Eventual, Mode::Strong);
    region.look();
    region.answer(1, held(&[(1, 9000)], 0));
    region.answer(2, held(&[(1, 9000)], 0));
    region.answer(3, Err("no answer within 500 ms".into()));
    region.look();
    region.answer(1, held(&[(1, 9000)], 0));
    region.answer(2, held(&[(1, 9000)], 0));
    region.answer(3, held(&[(1, 10)], 0));
    assert!(region.state.sealing.is_none());
    let facts = Facts {
        namespace: NamespaceId(7),
        state: &region.state,
        order: &region.order,
        members: &region.members,
    };
    let progress = region.drive.progress(facts);
    assert_eq!(progress.step, "draining");
    assert_eq!(progress.why, "store 3: 8990 writes are missing there");
    assert_eq!(
        (progress.remaining_writes, progress.waiting_for),
        (8990, vec![3])
    );
}

#[test]
fn a_store_that_may_be_missing_takes_part_if_it_can() {
    for (answer, without) in [(held(&[(1, 9)], 0), "[]"), (Err("no answer".into()), "[3]")] {
        let mut region = Region::new(Mode::Eventual, Mode::Strong);
        region.order.accept_missing = [store(3)].into();
        region.look();
        region.answer(1, held(&[(1, 9)], 0));
        region.answer(2, held(&[(1, 9)], 0));
        region.answer(3, answer);
        let last = region.told().pop().unwrap().to_owned();
        assert_eq!(
            last,
            format!("> BeginSeal without {without}: sealing eventual in epoch 2")
        );
    }
}

/// A region that is being sealed, whose participants have been asked.
fn sealing() -> Region {
    let mut region = Region::new(Mode::Eventual, Mode::Strong);
    region.look();
    for id in [1, 2, 3] {
        region.answer(id, held(&[(1, 9)], 0));
    }
    region.look();
    region.told.clear();
    region
}

#[test]
fn a_participant_that_dies_ends_the_seal_and_is_named() {
    let mut region = sealing();
    region.answer(1, held(&[(1, 9)], 0));
    region.patience_is_over();
    assert_eq!(
        region.told(),
        [
            "< 1 holds {1: 9}",
            "< patience is over",
            "> AbortSeal \"store 2: it does not answer; store 3: it does not answer\": eventual in epoch 3",
        ]
    );
}

#[test]
fn answers_that_come_late_do_not_count() {
    let mut region = sealing();
    let (_, old) = region.asked[0];
    for id in [1, 2, 3] {
        region.answer_of(id, old, held(&[(1, 9)], 0));
    }
    assert!(
        region.told().iter().all(|line| line.starts_with('<')),
        "of an earlier round"
    );
    region.state.epoch = Epoch(9);
    region.state.sealing = None;
    region.answer(1, held(&[(1, 9)], 0));
    assert_eq!(
        region.told().pop().unwrap(),
        "> ask all: what do you hold in epoch 9",
        "the log went on: it begins anew"
    );
}

/// A store led, asked, lost the lead and has it again: its rounds begin anew, and what it was told before the
/// seal came as the answer to a question of it. Twice, and a write that was acknowledged in between was left
/// out of the fence.
#[test]
fn answers_of_an_earlier_epoch_do_not_count_whatever_round_they_name() {
    let mut region = sealing();
    region.drive = Drive::default();
    region.look();
    region.told.clear();
    let before_the_seal = || {
        let held = held(&[(1, 9)], 0).unwrap();
        Ok(Held {
            epoch: Epoch(1),
            ..held
        })
    };
    region.answer(1, held(&[(1, 9)], 0));
    region.answer(2, before_the_seal());
    region.answer(3, held(&[(1, 9)], 0));
    region.answer(2, held(&[(1, 9), (2, 1)], 0));
    assert_eq!(
        region.told(),
        [
            "< 1 holds {1: 9}",
            "< 2 holds {1: 9}",
            "< 3 holds {1: 9}",
            "< 2 holds {1: 9, 2: 1}",
            "> ask all: promise {1: 9, 2: 1} in epoch 2",
        ]
    );
}

#[test]
fn replicas_that_differ_are_not_sealed() {
    let mut region = sealing();
    for id in [1, 2, 3] {
        region.answer(id, held(&[(1, 9)], 0));
    }
    for id in [1, 2, 3] {
        region.answer(id, held(&[(1, 9)], u128::from(id / 3)));
    }
    assert!(
        region
            .told()
            .pop()
            .unwrap()
            .starts_with("> AbortSeal \"stores 1, 2, 3 have seen the same")
    );
}

#[test]
fn a_replica_that_holds_more_than_the_fence_is_not_sealed() {
    let mut region = sealing();
    for id in [1, 2, 3] {
        region.answer(id, held(&[(1, 9)], 0));
    }
    for id in [1, 2, 3] {
        region.answer(id, held(&[(1, 8 + id)], 0));
    }
    assert!(region.told().pop().unwrap().starts_with("> AbortSeal"));
}

#[test]
fn a_new_leader_goes_on_from_what_the_log_says() {
    let mut region = sealing();
    for id in [1, 2, 3] {
        region.answer(id, held(&[(1, 9)], 0));
    }
    region.drive = Drive::default();
    region.told.clear();
    region.look();
    assert_eq!(
        region.told(),
        ["< look", "> ask all: what do you hold in epoch 2"]
    );
}

#[test]
fn a_cancelled_switch_ends_the_seal_and_tells_every_region() {
    let mut region = sealing();
    region.order = Order {
        target: Mode::Eventual,
        attempt: 2,
        accept_missing: BTreeSet::new(),
    };
    region.look();
    region.look();
    assert_eq!(
        region.told(),
        [
            "< look",
            "> AbortSeal \"the switch was cancelled, or asked for anew\": eventual in epoch 3",
            "< look",
        ]
    );
    assert_eq!(region.state.attempt, 2);
    // One that was not being sealed is told, too, so that nothing older comes back.
    let mut region = Region::new(Mode::Eventual, Mode::Eventual);
    region.look();
    assert_eq!(
        region.told().pop().unwrap(),
        "> AbortSeal \"\": eventual in epoch 1"
    );
    assert_eq!(region.state.attempt, 1);
}

#[test]
fn an_order_that_is_older_than_what_the_region_was_told_is_followed_by_nobody() {
    let mut region = Region::new(Mode::Eventual, Mode::Strong);
    region.state.attempt = 5;
    region.look();
    assert_eq!(region.told(), ["< look"]);
}
