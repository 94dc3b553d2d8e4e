//! What can happen next, and what is true then: the model as the checker sees it.

use super::log::{Entry, Log, voters};
use super::promises::{self, Reach};
use super::rules::{Rule, Rules};
use super::world::{Budget, COPY_OF_NO_USE, Call, Late, Node, REPLICAS, Set, World, store};
use rdb_server::peer::orders::Order;
use rdb_server::region::switching::Members;
use rdb_types::Mode;
use stateright::{Model, Property};

/// One thing that happens. Replicas and places in the lists of [`World`] are numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Action {
    /// What the meta region wants changes.
    Order,
    Elect(u8),
    /// A client writes at an eventual replica, and has its acknowledgement.
    Write(u8),
    /// A client makes a strong write.
    Put,
    /// The leader wants the one store that is left to join.
    Join,
    /// A proposal gets into the log.
    Append(usize),
    /// The leader hears nothing of its proposal, which may get into the log later.
    Unknown(usize),
    Apply(u8),
    /// A replica answers a question.
    Answer(usize),
    /// An answer reaches who asked.
    Hear(usize),
    /// A question or its answer is lost.
    Lose(usize),
    /// The leader takes a promise for given.
    Forge(usize),
    /// A replica's patience with a seal is over.
    GiveUp,
    /// A replica passes on what it has, at once.
    Pass {
        from: u8,
        to: u8,
    },
    /// What it passes on is kept by the network.
    KeepWrites(u8),
    /// A copy of the region is kept by the network.
    KeepSnapshot(u8),
    /// What was kept arrives.
    Arrive {
        late: usize,
        at: u8,
    },
    /// A replica that may not go on, or is new, gets its copy.
    FreshCopy {
        from: u8,
        to: u8,
    },
    /// A process dies, without what it did not sync, and comes back.
    Crash(u8),
    /// A replica loses a record, and does not know.
    Damage(u8),
}

/// A switch, its bounds, and the rules that hold.
#[derive(Clone, Debug)]
pub struct Switching {
    pub rules: Rules,
    /// Whom the region begins with.
    pub founders: Members,
    /// Whether who joins votes.
    pub joins_as_voter: bool,
    pub mode: Mode,
    /// What the meta region wants, one after the other.
    pub orders: Vec<Order>,
    pub left: Budget,
    /// The log ends here.
    pub entries: u8,
    /// Clients write at these replicas.
    pub writers: Vec<u8>,
    /// What has to happen somewhere.
    pub reach: Vec<Reach>,
}

/// Rounds of questions of one leader; more are repetitions.
const ROUNDS: u8 = 6;

impl Switching {
    pub fn new(mode: Mode, orders: Vec<Order>, left: Budget, entries: u8) -> Switching {
        Switching {
            rules: Rules::default(),
            founders: voters(0..REPLICAS),
            joins_as_voter: false,
            mode,
            orders,
            left,
            entries,
            writers: (0..REPLICAS).collect(),
            reach: Vec::new(),
        }
    }

    fn messages(&self, world: &World, actions: &mut Vec<Action>) {
        for (at, call) in world.calls.iter().enumerate() {
            let current = world.leader == Some(call.leader);
            match call.answer {
                None => {
                    if world
                        .clone()
                        .answer(self.rules, call.to, call.question)
                        .is_some()
                    {
                        actions.push(Action::Answer(at));
                    }
                    if world.forgeable(self, call) {
                        actions.push(Action::Forge(at));
                    }
                }
                Some(_) if current => actions.push(Action::Hear(at)),
                Some(_) => {}
            }
            if current && world.left.losses > 0 {
                actions.push(Action::Lose(at));
            }
        }
        for (at, late) in world.late.iter().enumerate() {
            actions.extend((0..REPLICAS).filter_map(|to| {
                let arrives = match *late {
                    Late::Writes {
                        from,
                        epoch,
                        vector,
                        ..
                    } => {
                        from != to
                            && world.takes_of(self.rules, to, epoch)
                            && !world.written(to).vector.covers(vector)
                    }
                    Late::Snapshot { applied, .. } => {
                        applied > world.written(to).applied && world.named(to, applied)
                    }
                };
                arrives.then_some(Action::Arrive { late: at, at: to })
            }));
        }
    }

    fn at_replica(&self, world: &World, me: u8, actions: &mut Vec<Action>) {
        let (mine, seen, left) = (world.written(me), world.seen(me), &world.left);
        if mine.applied < world.log.end() && !mine.waits() && world.leader != Some(me) {
            actions.push(Action::Apply(me));
        }
        if left.writes > 0 && self.writers.contains(&me) && world.takes_writes(self.rules, me) {
            actions.push(Action::Write(me));
        }
        if left.crashes > 0 && (world.node(me).durable != *mine || world.leader == Some(me)) {
            actions.push(Action::Crash(me));
        }
        // What a disk loses behind a promise is that disk's damage, and found as such.
        if left.damages > 0 && seen.open() && !world.losable(me).is_empty() {
            actions.push(Action::Damage(me));
        }
        let may_lead = world.leader.is_none() || left.elections > 0;
        let votes = world.log.last().members.voters.contains(&store(me));
        let waits = mine.waits() && self.rules.keep(Rule::StuckLeadsNobody);
        if may_lead && votes && world.leader != Some(me) && !waits {
            actions.push(Action::Elect(me));
        }
        let passes = world.passes_on(me);
        for to in (0..REPLICAS).filter(|to| *to != me) {
            let theirs = world.written(to);
            if let Some((epoch, vector, _)) = passes
                && seen.epoch == world.seen(to).epoch
                && world.takes_of(self.rules, to, epoch)
                && !theirs.vector.covers(vector)
            {
                actions.push(Action::Pass { from: me, to });
            }
            let anybody = !self.rules.keep(Rule::CopyBeyondSeal);
            let gives = world.named(to, mine.applied)
                && (anybody || !mine.waits() && mine.applied > theirs.applied);
            if theirs.waits() && gives {
                actions.push(Action::FreshCopy { from: me, to });
            }
        }
        if left.late > 0 && !mine.waits() {
            if passes.is_some_and(|(_, vector, _)| vector != seen.fence) {
                actions.push(Action::KeepWrites(me));
            }
            if (0..REPLICAS).any(|to| world.written(to).applied < mine.applied) {
                actions.push(Action::KeepSnapshot(me));
            }
        }
    }

    fn by_leader(&self, world: &World, actions: &mut Vec<Action>) {
        let next = world.ordered.map_or(0, |order| order + 1);
        if usize::from(next) < self.orders.len() {
            actions.push(Action::Order);
        }
        for (at, proposal) in world.proposals.iter().enumerate() {
            if world.leader.is_some() && world.log.end() < self.entries {
                actions.push(Action::Append(at));
            }
            if proposal.awaited && world.left.losses > 0 {
                actions.push(Action::Unknown(at));
            }
        }
        let last = world.log.last().seen;
        if world.leader.is_some() && last.strong && world.left.puts > 0 {
            actions.push(Action::Put);
        }
        let joins = world.leader.is_some() && world.left.joins > 0;
        if joins && (last.sealing.is_none() || !self.rules.keep(Rule::NoJoinWhileSealed)) {
            actions.push(Action::Join);
        }
        let proposes = world.proposals.iter().any(|proposal| proposal.awaited);
        if world.leader.is_some()
            && last.sealing.is_some()
            && world.left.aborts > 0
            && !proposes
            && world.ordered.is_some()
        {
            actions.push(Action::GiveUp);
        }
    }
}

/// Takes out what nobody will ever look at again, so that worlds that go on alike are alike.
fn tidy(world: &mut World) {
    let World {
        calls,
        nodes,
        log,
        leader,
        left,
        late,
        ..
    } = world;
    calls.retain(|call| {
        let epoch = log
            .at(nodes[usize::from(call.to)].durable.applied)
            .seen
            .epoch;
        let may_lead = *leader == Some(call.leader) || left.elections > 0 || left.crashes > 0;
        may_lead && (call.answer.is_some() || epoch <= call.question.epoch)
    });
    late.retain(|late| match late {
        Late::Writes { .. } => true,
        Late::Snapshot { applied, .. } => nodes.iter().any(|node| node.durable.applied < *applied),
    });
}

impl Model for Switching {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut nodes = [Node::default(); REPLICAS as usize];
        for (me, node) in (0..REPLICAS).zip(&mut nodes) {
            node.written.blank = !self.founders.all.contains(&store(me));
            node.durable = node.written;
        }
        vec![World {
            log: Log::new(self.mode, self.founders.clone()),
            ordered: None,
            leader: Some(0),
            driving: Default::default(),
            round: 0,
            proposals: Vec::new(),
            calls: Vec::new(),
            late: Vec::new(),
            writes: Vec::new(),
            nodes,
            left: self.left,
            broken: Default::default(),
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.by_leader(world, actions);
        self.messages(world, actions);
        for me in 0..REPLICAS {
            self.at_replica(world, me, actions);
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        self.act(&mut world, action);
        tidy(&mut world);
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Switching>> {
        let reach = self.reach.iter().map(|reach| reach.property());
        promises::all().into_iter().chain(reach).collect()
    }

    fn within_boundary(&self, world: &World) -> bool {
        world.round <= ROUNDS
    }
}

impl Switching {
    fn act(&self, world: &mut World, action: Action) {
        let rules = self.rules;
        match action {
            Action::Order => {
                world.ordered = Some(world.ordered.map_or(0, |order| order + 1));
                world.look(self);
            }
            Action::Elect(me) => {
                if world.leader.is_some() {
                    world.left.elections -= 1;
                }
                world.elect(self, me);
            }
            Action::Write(me) => {
                world.left.writes -= 1;
                world.write(rules, me);
            }
            Action::Put => {
                world.left.puts -= 1;
                let epoch = world.log.last().seen.epoch;
                world.proposals.push(super::world::Proposal {
                    entry: Entry::Put { epoch },
                    awaited: false,
                });
            }
            Action::Join => {
                world.left.joins -= 1;
                let joining = (0..REPLICAS).find(|who| !self.founders.all.contains(&store(*who)));
                if let Some(replica) = joining {
                    let votes = self.joins_as_voter;
                    world.proposals.push(super::world::Proposal {
                        entry: Entry::Join { replica, votes },
                        awaited: false,
                    });
                }
            }
            Action::Append(at) => {
                let proposal = world.proposals.remove(at);
                world.append(self, proposal);
            }
            Action::Unknown(at) => {
                world.left.losses -= 1;
                world.proposals[at].awaited = false;
                world.drive(self, |drive, _| {
                    drive.proposed();
                    Vec::new()
                });
            }
            Action::Apply(me) => {
                world.apply(rules, me);
            }
            Action::Answer(at) => {
                let Call { to, question, .. } = world.calls[at];
                let said = world.answer(rules, to, question);
                world.calls[at].answer = said;
            }
            Action::Hear(at) => {
                let call = world.calls.remove(at);
                world.hear(self, call, call.answer);
            }
            Action::Lose(at) => {
                world.left.losses -= 1;
                let call = world.calls.remove(at);
                world.hear(self, call, None);
            }
            Action::Forge(at) => {
                let call = world.calls.remove(at);
                world.forge(self, call);
            }
            Action::GiveUp => {
                world.left.aborts -= 1;
                world.drive(self, |drive, facts| drive.patience_is_over(facts));
            }
            Action::Pass { from, to } => {
                if let Some((_, vector, data)) = world.passes_on(from) {
                    world.merge(to, vector, data);
                }
            }
            Action::KeepWrites(from) => {
                world.left.late -= 1;
                if let Some((epoch, vector, data)) = world.passes_on(from) {
                    world.late.push(Late::Writes {
                        from,
                        epoch,
                        vector,
                        data,
                    });
                }
            }
            Action::KeepSnapshot(from) => {
                world.left.late -= 1;
                let snapshot = world.freeze(from);
                world.late.push(snapshot);
            }
            Action::Arrive { late, at } => match world.late[late] {
                Late::Writes { vector, data, .. } => world.merge(at, vector, data),
                Late::Snapshot {
                    applied,
                    vector,
                    data,
                } => world.install(rules, at, applied, vector, data),
            },
            Action::FreshCopy { from, to } => {
                if let Late::Snapshot {
                    applied,
                    vector,
                    data,
                } = world.freeze(from)
                {
                    let was_stuck = world.written(to).stuck;
                    world.install(rules, to, applied, vector, data);
                    // It goes on beyond where it stood.
                    let mut next = world.clone();
                    let goes_on = next.apply(rules, to) || !next.written(to).stuck;
                    if was_stuck && !goes_on {
                        world.broken = world.broken.with(Set::one(COPY_OF_NO_USE));
                    }
                }
            }
            Action::Crash(me) => self.crash(world, me),
            Action::Damage(me) => {
                world.left.damages -= 1;
                world.damage(me);
            }
        }
    }

    fn crash(&self, world: &mut World, me: u8) {
        world.left.crashes -= 1;
        let node = world.node_mut(me);
        node.written = node.durable;
        if world.leader == Some(me) {
            world.depose();
        }
        world.calls.retain(|call| call.leader != me);
        // Who asked it hears that it has gone; what it has answered, and what it is asked from now on, is under way.
        let calls = std::mem::take(&mut world.calls).into_iter();
        let (gone, left): (Vec<Call>, Vec<Call>) =
            calls.partition(|call| call.to == me && call.answer.is_none());
        world.calls = left;
        for call in gone {
            world.hear(self, call, None);
        }
    }
}
