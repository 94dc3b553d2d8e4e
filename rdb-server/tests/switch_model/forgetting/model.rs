//! What can happen next: the model as the checker sees it.

use super::promises::{self, Reach};
use super::world::{Budget, Heard, Node, Replica, World, Write};
use crate::log::{Entry, Log, voters};
use crate::rules::{Rule, Rules};
use crate::world::{LOG, NAMESPACE, REPLICAS, Set, Vector, store};
use rdb_proto::convert::vector_to_wire;
use rdb_proto::raft::switch_step::Step;
use rdb_proto::raft::{AbortSeal, BeginSeal, Seal, SetEventual, SwitchStep};
use rdb_server::region::state::stores_to_wire;
use rdb_server::region::switching::Members;
use rdb_types::{Digest, Mode};
use stateright::{Model, Property};

/// One thing that happens. Replicas and places in the lists of [`World`] are numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    Put(u8),
    Delete(u8),
    /// Entries of an origin's log go from one replica to another.
    Pass {
        from: u8,
        to: u8,
        origin: u8,
    },
    /// A replica hears what another holds. It may act upon that at any later time.
    Report {
        from: u8,
        to: u8,
    },
    /// A replica drops its tombstone.
    Forget(u8),
    /// A replica merges another one's data as it is now.
    Copy {
        from: u8,
        to: u8,
    },
    /// The network keeps a copy.
    Keep(u8),
    /// It arrives, as the repair of a range or as a copy of the region.
    Arrive {
        late: usize,
        at: u8,
    },
    /// What has arrived is merged, where that is not the same moment.
    Merge(u8),
    /// A replica that waits takes a copy of the region.
    FreshCopy {
        from: u8,
        to: u8,
    },
    Apply(u8),
    Sync(u8),
    /// A process dies, without what it did not sync, and comes back.
    Crash(u8),
    /// The store that is left is named a member.
    Join,
    /// A seal is begun, and given up.
    GiveUp,
    /// The time ends with a seal, without a store perhaps, and another begins. Meanwhile these replicas
    /// swept their tombstone away.
    Turn {
        without: Set,
        swept: Set,
    },
}

/// A key, what may happen to it, and the rules that hold.
#[derive(Clone, Debug)]
pub struct Forgetting {
    pub rules: Rules,
    /// Whom the region begins with.
    pub founders: Members,
    pub joins_as_voter: bool,
    /// A seal may go on without these.
    pub may_be_missing: Set,
    pub left: Budget,
    /// Clients delete at these replicas, and put at these.
    pub deleters: Vec<u8>,
    pub writers: Vec<u8>,
    /// What has to happen somewhere.
    pub reach: Vec<Reach>,
}

impl Forgetting {
    pub fn new(left: Budget) -> Forgetting {
        Forgetting {
            rules: Rules::default(),
            founders: voters(0..REPLICAS),
            joins_as_voter: false,
            may_be_missing: Set::default(),
            left,
            deleters: (0..REPLICAS).collect(),
            writers: (0..REPLICAS).collect(),
            reach: Vec::new(),
        }
    }

    /// What one replica does by itself.
    fn at_replica(&self, world: &World, me: u8, actions: &mut Vec<Action>) {
        let (node, mine, left) = (world.node(me), world.written(me), &world.left);
        let open = world.open(me);
        if open && left.puts > 0 && self.writers.contains(&me) {
            actions.push(Action::Put(me));
        }
        if open && left.deletions > 0 && self.deleters.contains(&me) {
            actions.push(Action::Delete(me));
        }
        if open && world.may_forget(self.rules, me) {
            actions.push(Action::Forget(me));
        }
        if left.late > 0 && open && !world.late.contains(world.leaves(self.rules, me)) {
            actions.push(Action::Keep(me));
        }
        if node.arrived.is_some() {
            actions.push(Action::Merge(me));
        }
        if !mine.waits() && mine.applied < world.log.end() {
            actions.push(Action::Apply(me));
        }
        if left.crashes > 0 && node.durable != *mine {
            actions.push(Action::Sync(me));
        }
        if left.crashes > 0 && (node.durable != *mine || node.heard != [None; 3]) {
            actions.push(Action::Crash(me));
        }
    }

    fn between(&self, world: &World, from: u8, to: u8, actions: &mut Vec<Action>) {
        let rules = self.rules;
        for origin in 0..REPLICAS {
            if world.passes(rules, from, to, origin) {
                actions.push(Action::Pass { from, to, origin });
            }
        }
        // Of a deletion, or it says nothing about any.
        let tells = |vector: Vector| {
            let mut writes = world.writes.iter();
            writes.any(|write| write.deletion && write.within(vector))
        };
        let report = world.report(rules, from);
        let knows = &world.node(to).heard[usize::from(from)];
        if !world.written(to).waits()
            && report.is_some_and(|report| tells(report.vector))
            && report != *knows
        {
            actions.push(Action::Report { from, to });
        }
        let copy = world.leaves(rules, from);
        if world.open(from) {
            if !world.written(to).vector.covers(copy.vector) && world.may_merge(rules, to, copy) {
                actions.push(Action::Copy { from, to });
            }
            if world.may_take(rules, to, copy) {
                actions.push(Action::FreshCopy { from, to });
            }
        }
    }

    fn by_log(&self, world: &World, actions: &mut Vec<Action>) {
        let left = &world.left;
        if left.joins > 0 {
            actions.push(Action::Join);
        }
        if left.aborts > 0 {
            actions.push(Action::GiveUp);
        }
        if left.turns == 0 {
            return;
        }
        let one = (0..REPLICAS).map(Set::one);
        let one = one.filter(|who| self.may_be_missing.with(*who) == self.may_be_missing);
        for without in one.chain([Set::default()]) {
            if !world.can_turn(without) {
                continue;
            }
            let dead = (0..REPLICAS).filter(|who| {
                let standing = world.written(*who).standing;
                !without.has(*who) && standing.is_some_and(|write| write.deletion)
            });
            let dead = dead.map(Set::one).fold(Set::default(), Set::with);
            let all = (0..1 << REPLICAS).map(Set);
            for swept in all.filter(|swept| swept.without(dead).is_empty()) {
                actions.push(Action::Turn { without, swept });
            }
        }
    }
}

impl Model for Forgetting {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let first = Write {
            time: 0,
            origin: LOG,
            sequence: 0,
            stamp: 0,
            deletion: false,
        };
        let mut nodes = [Node::default(); REPLICAS as usize];
        for (me, node) in (0..REPLICAS).zip(&mut nodes) {
            // All who go by the log begin with what it brought while it was strong.
            let founds = self.founders.all.contains(&store(me));
            node.written.blank = !founds && self.rules.keep(Rule::NewTakesCopy);
            if !node.written.blank {
                node.written.standing = Some(first);
            }
            node.durable = node.written;
        }
        vec![World {
            log: Log::new(Mode::Eventual, self.founders.clone()),
            writes: vec![first],
            nodes,
            late: Vec::new(),
            left: self.left,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.by_log(world, actions);
        for me in 0..REPLICAS {
            self.at_replica(world, me, actions);
            for other in (0..REPLICAS).filter(|other| *other != me) {
                self.between(world, other, me, actions);
            }
            for (late, copy) in world.late.iter().enumerate() {
                if world.may_take(self.rules, me, copy) || world.may_merge(self.rules, me, copy) {
                    actions.push(Action::Arrive { late, at: me });
                }
            }
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        self.act(&mut world, action);
        self.tidy(&mut world);
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Forgetting>> {
        let reach = self.reach.iter().map(|reach| reach.property());
        promises::all().into_iter().chain(reach).collect()
    }
}

impl Forgetting {
    /// Takes out what makes no difference any more, so that worlds that go on alike are alike.
    fn tidy(&self, world: &mut World) {
        if world.left.crashes == 0 {
            // What is synced later is only told later.
            for node in &mut world.nodes {
                node.durable = Replica {
                    stuck: false,
                    ..node.written
                };
            }
        }
        for me in 0..REPLICAS {
            let mine = *world.written(me);
            let (durable, epoch) = (world.node(me).durable.applied, world.epoch(&mine));
            let mut deletions = world.writes.iter().filter(|write| write.deletion);
            // What it heard is for the tombstone: it goes with it.
            let over = world.left.deletions == 0
                && mine.standing.is_none_or(|write| !write.deletion)
                && deletions.all(|write| write.within(mine.vector));
            let epochs_count = self.rules.keep(Rule::ReportOfEpoch);
            for heard in &mut world.node_mut(me).heard {
                let late = |heard: &Heard| epochs_count && heard.epoch < epoch;
                if over || heard.as_ref().is_some_and(late) {
                    *heard = None;
                }
                if let Some(heard) = heard
                    && heard.applied <= durable
                {
                    heard.applied = 0;
                }
            }
        }
    }

    fn act(&self, world: &mut World, action: Action) {
        let rules = self.rules;
        match action {
            Action::Put(me) => {
                world.left.puts -= 1;
                world.write(rules, me, false);
            }
            Action::Delete(me) => {
                world.left.deletions -= 1;
                world.write(rules, me, true);
            }
            Action::Pass { from, to, origin } => world.pass(rules, from, to, origin),
            Action::Report { from, to } => {
                let report = world.report(rules, from);
                world.node_mut(to).heard[usize::from(from)] = report;
            }
            Action::Forget(me) => world.forget(me),
            Action::Copy { from, to } => {
                let copy = *world.leaves(rules, from);
                world.merge_copy(to, &copy);
            }
            Action::Keep(me) => {
                world.left.late -= 1;
                let copy = *world.leaves(rules, me);
                world.late.push(copy);
            }
            Action::Arrive { late, at } => {
                let copy = world.late[late];
                if world.may_take(rules, at, &copy) {
                    world.take_copy(rules, at, &copy);
                } else if rules.keep(Rule::FloorAtMerge) {
                    world.merge_copy(at, &copy);
                } else {
                    world.node_mut(at).arrived = Some(copy);
                }
            }
            Action::Merge(me) => {
                if let Some(copy) = world.node_mut(me).arrived.take() {
                    world.merge_copy(me, &copy);
                }
            }
            Action::FreshCopy { from, to } => {
                let copy = *world.leaves(rules, from);
                world.take_copy(rules, to, &copy);
            }
            Action::Apply(me) => world.apply(me),
            Action::Sync(me) => world.sync(rules, me),
            Action::Crash(me) => {
                world.left.crashes -= 1;
                let node = world.node_mut(me);
                *node = Node {
                    written: node.durable,
                    durable: node.durable,
                    ..Node::default()
                };
            }
            Action::Join => {
                world.left.joins -= 1;
                let new = (0..REPLICAS).find(|who| !self.founders.all.contains(&store(*who)));
                let votes = self.joins_as_voter;
                if let Some(replica) = new {
                    world.log.append(Entry::Join { replica, votes }, rules);
                }
            }
            Action::GiveUp => {
                world.left.aborts -= 1;
                self.step(world, Step::BeginSeal(BeginSeal::default()));
                self.step(world, Step::AbortSeal(AbortSeal::default()));
            }
            Action::Turn { without, swept } => self.turn(world, without, swept),
        }
    }

    fn step(&self, world: &mut World, step: Step) {
        let step = SwitchStep {
            namespace_id: NAMESPACE.0,
            attempt: 0,
            expected_epoch: world.log.last().state.epoch.0,
            step: Some(step),
        };
        world.log.append(Entry::step(&step), self.rules);
        assert!(world.log.last().change.is_some(), "it has to count");
    }

    /// How a seal comes about is the other world's to show: here all that take part hold the fence, and go on
    /// together.
    fn turn(&self, world: &mut World, without: Set, swept: Set) {
        world.left.turns -= 1;
        let missing = (0..REPLICAS).filter(|who| without.has(*who)).map(store);
        let missing = stores_to_wire(&missing.collect());
        self.step(
            world,
            Step::BeginSeal(BeginSeal {
                accept_missing: missing,
            }),
        );
        let sealing = world.log.last().state.sealing.clone().unwrap();
        let takes_part = |who: &u8| sealing.participants.contains(&store(*who));
        let participants: Vec<u8> = (0..REPLICAS).filter(takes_part).collect();
        let fence = world.written(participants[0]).vector.to_real();
        let seal = Seal {
            fence: vector_to_wire(&fence),
            digest: Digest::default().to_bytes().to_vec().into(),
            participants: stores_to_wire(&sealing.participants),
            ..Seal::default()
        };
        self.step(world, Step::Seal(seal));
        self.step(world, Step::SetEventual(SetEventual::default()));
        for me in participants {
            if swept.has(me) {
                world.node_mut(me).written.standing = None;
            }
            while world.written(me).applied < world.log.end() {
                world.apply(me);
            }
            world.sync(self.rules, me);
        }
    }
}
