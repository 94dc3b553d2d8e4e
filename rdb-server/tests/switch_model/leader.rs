//! What the leader does for the switch: the code that ships, [`rdb_server::peer::switch::Drive`], with the world
//! around it in place of its driver.
//!
//! As the driver does, it looks after everything that happens. Its question to itself is answered at once; the others'
//! are under way as long as they like.

use super::log::{Entry, taking_part};
use super::model::Switching;
use super::rules::Rule;
use super::world::{
    CANCELLED_CAME_BACK, Call, Driving, LOG, NAMESPACE, Proposal, Question, REPLICAS, Said, Set,
    Vector, World, Write, replica, small, store,
};
use rdb_proto::convert::vector;
use rdb_proto::raft::AskSealing;
use rdb_server::peer::switch::{Drive, Effect, Facts, Held};
use rdb_types::{Epoch, Stamp, StoreId};

impl World {
    /// Has the drive do something, does what it wants, and has it look again.
    pub fn drive(
        &mut self,
        model: &Switching,
        what: impl FnOnce(&mut Drive, Facts<'_>) -> Vec<Effect>,
    ) {
        let (Some(leader), Some(order)) = (self.leader, self.ordered) else {
            return;
        };
        let order = &model.orders[usize::from(order)];
        let mut drive = self.driving.take();
        let log = self.log.clone();
        let members = taking_part(&log.last().members, model.rules);
        let facts = Facts {
            namespace: NAMESPACE,
            state: &log.last().state,
            order,
            members: &members,
        };
        let mut effects = what(&mut drive, facts);
        loop {
            effects.extend(drive.look(facts));
            if effects.is_empty() {
                break;
            }
            let mut own = Vec::new();
            for effect in effects.drain(..) {
                match effect {
                    Effect::Propose(step) => self.proposals.push(Proposal {
                        entry: Entry::step(&step),
                        awaited: true,
                    }),
                    Effect::Ask { to, ask, round } => {
                        self.round = small(round);
                        let question = question(&ask);
                        if to == store(leader) {
                            own.push((round, question));
                            continue;
                        }
                        self.calls.push(Call {
                            leader,
                            to: replica(to),
                            round: self.round,
                            question,
                            answer: None,
                        });
                    }
                }
            }
            for (round, question) in own {
                let said = self.answer(model.rules, leader, question);
                let held = self.held(model, said);
                effects.extend(drive.heard(facts, store(leader), round, held));
            }
        }
        self.driving = Driving::of(drive);
    }

    pub fn look(&mut self, model: &Switching) {
        self.drive(model, |_, _| Vec::new());
    }

    /// An answer reaches the leader that asked; `None`: it hears that there is none.
    pub fn hear(&mut self, model: &Switching, call: Call, said: Option<Said>) {
        if self.leader != Some(call.leader) {
            return;
        }
        let held = self.held(model, said);
        self.drive(model, |drive, facts| {
            drive.heard(facts, store(call.to), u64::from(call.round), held)
        });
    }

    fn held(&self, model: &Switching, said: Option<Said>) -> Result<Held, String> {
        let said = said.ok_or("no answer")?;
        if said.refuses {
            return Err("it holds something else".to_owned());
        }
        let compared = match self.leader {
            Some(leader) if !model.rules.keep(Rule::DigestsCompared) => self.written(leader).data,
            _ => said.data,
        };
        Ok(Held {
            epoch: Epoch(u64::from(said.epoch)),
            vector: said.vector.to_real(),
            digest: self.digest(compared),
            last_stamp: Stamp(u64::from(said.last_stamp)),
            ..Held::default()
        })
    }

    /// Consensus agrees on a proposal. The leader applies it at once, the others when they do.
    pub fn append(&mut self, model: &Switching, proposal: Proposal) {
        let overtaken = self.log.append(proposal.entry, model.rules);
        if overtaken {
            self.broken = self.broken.with(Set::one(CANCELLED_CAME_BACK));
        }
        let (end, last) = (self.log.end(), self.log.last());
        if last.put {
            let write = Write {
                epoch: last.seen.epoch,
                origin: LOG,
                sequence: end,
                stamp: last.seen.last_stamp,
            };
            self.acknowledged(write);
        }
        if let Some(leader) = self.leader {
            self.apply_all(model.rules, leader);
            if self.written(leader).stuck {
                // It may not lead on.
                self.depose();
                return;
            }
        }
        if proposal.awaited {
            self.drive(model, |drive, _| {
                drive.proposed();
                Vec::new()
            });
        } else {
            self.look(model);
        }
    }

    /// Nobody leads, and what the leader waited for may come all the same.
    pub fn depose(&mut self) {
        self.leader = None;
        self.driving = Driving::default();
        self.round = 0;
        for proposal in &mut self.proposals {
            proposal.awaited = false;
        }
    }

    /// A replica is elected. It has all that was agreed on, and applies it before it drives anything.
    pub fn elect(&mut self, model: &Switching, me: u8) {
        self.depose();
        self.apply_all(model.rules, me);
        let waits = self.written(me).waits();
        if !waits || !model.rules.keep(Rule::StuckLeadsNobody) {
            self.leader = Some(me);
            self.look(model);
        }
    }

    /// The leader is told that a participant promised which did not, if that is what the others promised.
    pub fn forge(&mut self, model: &Switching, call: Call) {
        let Some((fence, _)) = call.question.promise else {
            return;
        };
        let leader = call.leader;
        let data = self.written(leader).data;
        let said = Said {
            epoch: call.question.epoch,
            vector: fence,
            data,
            last_stamp: self.newest(data),
            refuses: false,
        };
        self.hear(model, call, Some(said));
    }

    /// Whether [`Rule::EveryPromise`] may be broken here.
    pub fn forgeable(&self, model: &Switching, call: &Call) -> bool {
        let promise = call.question.promise;
        !model.rules.keep(Rule::EveryPromise)
            && self.leader == Some(call.leader)
            && promise.is_some_and(|(fence, _)| self.written(call.leader).vector == fence)
    }
}

fn question(ask: &AskSealing) -> Question {
    let mut holders = [0; REPLICAS as usize];
    for holder in &ask.holders {
        let origin = StoreId::new(u64::from(holder.origin)).unwrap();
        let store = StoreId::new(u64::from(holder.store_id)).unwrap();
        holders[usize::from(replica(origin))] = replica(store);
    }
    let fence = Vector::from_real(&vector(&ask.fence).unwrap());
    Question {
        epoch: small(ask.epoch),
        promise: ask.promise.then_some((fence, holders)),
    }
}
