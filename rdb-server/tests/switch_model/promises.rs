//! What has to be true at every moment, and what has to happen somewhere, or the bounds are too tight to say
//! anything.

use super::Moment;
use super::model::Switching;
use super::world::{
    ACKNOWLEDGED_BEHIND_SEAL, CANCELLED_CAME_BACK, COPY_OF_NO_USE, PARTICIPANT_LEFT_BEHIND,
    REPLICAS, Replica, Set, Vector, World, Write, small, store,
};
use rdb_server::region::switching::Change;
use stateright::Property;

/// All of them.
pub fn all() -> Vec<Property<Switching>> {
    let always = Property::<Switching>::always;
    vec![
        always("an epoch has one mode", |_, world| one_mode(world)),
        always("a strong replica holds the fence", |_, world| {
            clean(world).all(|mine| holds_fence(world, mine))
        }),
        always("equal index, equal data", |_, world| equal(world)),
        always("nothing acknowledged is lost", |model, world| {
            (0..small(world.writes.len())).all(|at| is_kept(model, world, at))
        }),
        always("nothing old sneaks in", |_, world| {
            clean(world).all(|mine| nothing_old(world, mine))
        }),
        always("a number is given once", |_, world| {
            let number = |write: &Write| (write.origin, write.sequence);
            let mut numbers: Vec<_> = world.writes.iter().map(number).collect();
            numbers.sort_unstable();
            numbers.windows(2).all(|two| two[0] != two[1])
        }),
        always("a strong write is the newest", |_, world| {
            clean(world).all(|mine| newest(world, mine))
        }),
        always(
            "an eventual write is newer than strong ones before",
            |_, world| {
                let strong = || world.writes.iter().filter(|write| write.is_strong());
                let mut eventual = world.writes.iter().filter(|write| !write.is_strong());
                eventual
                    .all(|new| strong().all(|old| old.epoch > new.epoch || old.stamp < new.stamp))
            },
        ),
        always("nothing is acknowledged behind a seal", |_, world| {
            !world.broken.has(ACKNOWLEDGED_BEHIND_SEAL)
        }),
        always("a participant goes on with what it promised", |_, world| {
            !world.broken.has(PARTICIPANT_LEFT_BEHIND)
        }),
        always("a seal is that of a quorum", |_, world| {
            world
                .log
                .places()
                .all(|(index, _)| has_quorum(world, index))
        }),
        always("who leads has applied what was agreed on", |_, world| {
            let leader = world.leader.map(|leader| world.written(leader));
            leader.is_none_or(|leader| leader.applied == world.log.end())
        }),
        always("a fresh copy lets its replica go on", |_, world| {
            !world.broken.has(COPY_OF_NO_USE)
        }),
        always("nothing cancelled comes back", |_, world| {
            !world.broken.has(CANCELLED_CAME_BACK)
        }),
    ]
}

/// What has to happen somewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reach {
    Strong,
    StrongWithWritesOfTwo,
    EventualAgain,
    GivenUp,
    SetAside,
    StrongWrite,
    /// With a write of the last replica, which joined.
    StrongWithTheNewOne,
}

impl Reach {
    pub fn name(self) -> &'static str {
        match self {
            Reach::Strong => "it becomes strong",
            Reach::StrongWithWritesOfTwo => "it becomes strong, with writes of two replicas",
            Reach::EventualAgain => "it is strong, then eventual",
            Reach::GivenUp => "a seal is given up",
            Reach::SetAside => "a write is set aside",
            Reach::StrongWithTheNewOne => {
                "it becomes strong, with a write of the store that joined"
            }
            Reach::StrongWrite => "a strong write is acknowledged",
        }
    }

    pub fn property(self) -> Property<Switching> {
        let is_there: fn(&Switching, &World) -> bool = match self {
            Reach::Strong => |_, world| changes(world, Change::Sealed) > 0,
            Reach::StrongWithWritesOfTwo => |_, world| {
                let fence = world.log.last().seen.fence;
                (0..REPLICAS).filter(|at| fence.get(*at) > 0).count() > 1
            },
            Reach::StrongWithTheNewOne => {
                |_, world| world.log.last().seen.fence.get(REPLICAS - 1) > 0
            }
            Reach::EventualAgain => {
                |_, world| changes(world, Change::Sealed) > 0 && changes(world, Change::Opened) > 0
            }
            Reach::GivenUp => |_, world| changes(world, Change::Aborted) > 0,
            Reach::SetAside => |_, world| {
                let mut nodes = world.nodes.iter();
                nodes.any(|node| !node.durable.aside.is_empty())
            },
            Reach::StrongWrite => |_, world| world.writes.iter().any(|write| write.is_strong()),
        };
        Property::<Switching>::sometimes(self.name(), is_there)
    }
}

fn changes(world: &World, change: Change) -> usize {
    let made = world.log.places();
    made.filter(|(_, place)| matches!(&place.change, Some((c, _)) if *c == change))
        .count()
}

/// Replicas that serve.
fn clean(world: &World) -> impl Iterator<Item = &Replica> {
    let written = world.nodes.iter().map(|node| &node.written);
    written.filter(|written| !written.waits())
}

fn one_mode(world: &World) -> bool {
    world.log.places().all(|(_, one)| {
        let mut others = world.log.places();
        others.all(|(_, other)| {
            let (one, other) = (one.seen, other.seen);
            one.epoch != other.epoch || (one.strong, one.sealing) == (other.strong, other.sealing)
        })
    })
}

/// Whoever is lost from a seal on, as long as it is a minority: what was sealed is held by another.
fn has_quorum(world: &World, index: u8) -> bool {
    let place = world.log.at(index);
    let Some((Change::Sealed, _)) = place.change else {
        return true;
    };
    let participants = world.log.at(index - 1).state.sealing.as_ref();
    participants.is_some_and(|sealing| place.members.is_quorum(&sealing.participants))
}

fn holds_fence(world: &World, mine: &Replica) -> bool {
    let seen = world.log.at(mine.applied).seen;
    let beyond = world.filter(mine.data, |write| !write.within(seen.fence));
    !seen.strong || (mine.vector == seen.fence && beyond.is_empty())
}

/// Strong replicas at one index, and eventual ones of one time that have seen the same and lost nothing of it.
fn equal(world: &World) -> bool {
    let differ = |one: &Replica, other: &Replica| {
        let (here, there) = (
            world.log.at(one.applied).seen,
            world.log.at(other.applied).seen,
        );
        let same = match here.strong {
            true => one.applied == other.applied,
            false => {
                !there.strong
                    && here.last_seal == there.last_seal
                    && one.vector == other.vector
                    && one.lost == other.lost
            }
        };
        same && one.data != other.data
    };
    clean(world).all(|one| clean(world).all(|other| !differ(one, other)))
}

/// A write that was acknowledged is on a disk; every replica beyond the seal that ended its time, or beyond its
/// own place in the log, holds it; or the seal was allowed to leave a store behind, and there it is.
fn is_kept(model: &Switching, world: &World, at: u8) -> bool {
    let write = world.writes[usize::from(at)];
    let nodes = || world.nodes.iter().map(|node| &node.durable);
    if write.is_strong() {
        return clean(world).all(|mine| mine.applied < write.sequence || mine.data.has(at));
    }
    if !nodes().any(|mine| mine.data.has(at) || mine.aside.has(at)) {
        return false;
    }
    let mut seals = world
        .log
        .places()
        .filter(|(_, place)| matches!(&place.change, Some((Change::Sealed, _))));
    let Some((index, seal)) = seals.find(|(_, place)| place.seen.epoch > write.epoch) else {
        return true;
    };
    if clean(world).all(|mine| mine.applied < index || mine.data.has(at)) {
        return true;
    }
    let participants = world.log.at(index - 1).seen.sealing.unwrap_or_default();
    let may_be_missing = |who: u8| {
        let mut orders = model.orders.iter();
        orders.any(|order| order.accept_missing.contains(&store(who)))
    };
    let left_behind = |who: u8| !participants.has(who) && may_be_missing(who);
    let mut stores = (0..REPLICAS).filter(|who| left_behind(*who));
    !write.within(seal.seen.fence)
        && stores.any(|who| {
            let mine = &world.node(who).durable;
            mine.aside.has(at) || mine.applied < index && mine.data.has(at)
        })
}

/// What a fence left out is in no later time.
fn nothing_old(world: &World, mine: &Replica) -> bool {
    let fences = &world.log.at(mine.applied).state.fences;
    let old = world.filter(mine.data, |write| {
        let fence = fences
            .iter()
            .find(|fence| fence.epoch.0 > u64::from(write.epoch));
        fence.is_some_and(|fence| !write.within(Vector::from_real(&fence.vector)))
    });
    old.is_empty()
}

/// Of what a strong replica holds the last strong write is the newest.
fn newest(world: &World, mine: &Replica) -> bool {
    let seen = world.log.at(mine.applied).seen;
    let puts = world.filter(mine.data, |write| {
        write.is_strong() && write.epoch == seen.epoch
    });
    puts.is_empty() || !seen.strong || world.newest(puts) == world.newest(mine.data)
}

impl Moment for World {
    fn in_a_line(&self) -> String {
        let name = |set: Set| {
            let places = (0..small(self.writes.len())).filter(|at| set.has(*at));
            let names = places.map(|at| {
                let write = self.writes[usize::from(at)];
                match write.is_strong() {
                    true => format!("put@{}", write.sequence),
                    false => format!("{}.{}", write.origin + 1, write.sequence),
                }
            });
            names.collect::<Vec<_>>().join(" ")
        };
        let replicas = self.nodes.iter().map(|node| {
            let mine = node.written;
            let aside = match mine.aside.is_empty() {
                true => String::new(),
                false => format!(", aside {{{}}}", name(mine.aside)),
            };
            let stuck = match (mine.stuck, mine.blank) {
                (true, _) => ", stuck",
                (_, true) => ", new",
                _ => "",
            };
            format!("@{} {{{}}}{aside}{stuck}", mine.applied, name(mine.data))
        });
        let replicas: Vec<_> = replicas.collect();
        format!("{} | log: {}", replicas.join(" | "), self.log.last())
    }
}
