//! What has to be true at every moment, and what has to happen somewhere.

use super::model::Forgetting;
use super::world::{Replica, World, Write};
use crate::Moment;
use crate::world::{REPLICAS, Vector, store};
use stateright::Property;

/// All of them.
pub fn all() -> Vec<Property<Forgetting>> {
    let always = Property::<Forgetting>::always;
    vec![
        always("the newest of what was seen is there", |_, world| {
            serving(world).all(|mine| shows_newest(world, mine))
        }),
        always("equal vectors, equal data", |_, world| {
            let visible = |mine: &Replica| mine.standing.filter(|write| !write.deletion);
            serving(world).all(|one| {
                serving(world).all(|other| {
                    let same = world.same_time(one, other) && one.vector == other.vector;
                    !same || visible(one) == visible(other)
                })
            })
        }),
        always("nothing acknowledged is lost", |model, world| {
            world
                .writes
                .iter()
                .all(|write| is_kept(model, world, *write))
        }),
        always("a number is given once", |_, world| {
            let number = |write: &Write| (write.origin, write.sequence);
            let mut numbers: Vec<_> = world.writes.iter().map(number).collect();
            numbers.sort_unstable();
            numbers.windows(2).all(|two| two[0] != two[1])
        }),
    ]
}

/// What has to happen somewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reach {
    /// Every replica has dropped a tombstone.
    Forgotten,
    /// Somebody has, and another one still has the tombstone.
    ForgottenHere,
    /// The store that joins has written.
    NewOneWrites,
    /// A store that a seal left out has its copy.
    CameBack,
}

impl Reach {
    pub fn property(self) -> Property<Forgetting> {
        match self {
            Reach::Forgotten => {
                Property::<Forgetting>::sometimes("a tombstone is gone everywhere", |_, world| {
                    serving(world).count() == usize::from(REPLICAS)
                        && serving(world).all(|mine| has_dropped(world, mine))
                })
            }
            Reach::ForgottenHere => {
                Property::<Forgetting>::sometimes("a tombstone is gone somewhere", |_, world| {
                    serving(world).any(|mine| has_dropped(world, mine))
                        && serving(world).any(|mine| mine.standing.is_some_and(|w| w.deletion))
                })
            }
            Reach::NewOneWrites => {
                Property::<Forgetting>::sometimes("the store that joined writes", |model, world| {
                    let new = |who: u8| !model.founders.all.contains(&store(who));
                    world.writes.iter().any(|write| new(write.origin))
                })
            }
            Reach::CameBack => Property::<Forgetting>::sometimes(
                "a store that was left out is back",
                |_, world| {
                    world.log.last().seen.last_seal > 0
                        && world.nodes.iter().all(|node| {
                            let mine = &node.written;
                            !mine.waits() && mine.applied == world.log.end()
                        })
                },
            ),
        }
    }
}

/// Replicas that answer.
fn serving(world: &World) -> impl Iterator<Item = &Replica> {
    let written = world.nodes.iter().map(|node| &node.written);
    written.filter(|written| !written.waits())
}

fn has_dropped(world: &World, mine: &Replica) -> bool {
    let covers = |write: &Write| write.deletion && write.within(mine.vector);
    mine.standing.is_none() && mine.floor != Vector::default() && world.writes.iter().any(covers)
}

/// The fence that ended the time of a write, if a replica knows of one.
fn fence_of(world: &World, write: Write, applied: u8) -> Option<Vector> {
    let fences = &world.log.at(applied).state.fences;
    let fence = fences
        .iter()
        .find(|fence| fence.epoch.0 > u64::from(write.time))?;
    Some(Vector::from_real(&fence.vector))
}

/// A replica shows the newest of all writes that its vector says it has seen: nothing that was deleted is back, and
/// nothing is lost but to a newer one. What a fence left out is not among them.
fn shows_newest(world: &World, mine: &Replica) -> bool {
    let counts = |write: &&Write| {
        let fence = fence_of(world, **write, mine.applied);
        write.within(mine.vector) && fence.is_none_or(|fence| write.within(fence))
    };
    let newest = world.writes.iter().filter(counts).max_by_key(|w| w.stamp);
    match newest {
        Some(write) if !write.deletion => mine.standing == Some(*write),
        Some(write) => mine.standing.is_none() || mine.standing == Some(*write),
        None => mine.standing.is_none(),
    }
}

/// It is on a disk, in a vector; or a seal left its store out, as it was allowed to.
fn is_kept(model: &Forgetting, world: &World, write: Write) -> bool {
    let end = world.log.end();
    if fence_of(world, write, end).is_some_and(|fence| !write.within(fence)) {
        return model.may_be_missing.has(write.origin);
    }
    let mut nodes = world.nodes.iter().map(|node| &node.durable);
    nodes.any(|mine| !mine.blank && write.within(mine.vector))
}

impl Moment for World {
    fn in_a_line(&self) -> String {
        let replicas = self.nodes.iter().map(|node| {
            let mine = node.written;
            let vector = mine.vector.0;
            let standing = match mine.standing {
                None => "-".to_owned(),
                Some(write) => {
                    let what = if write.deletion { "deleted" } else { "put" };
                    format!("{what} {}.{}", write.origin + 1, write.sequence)
                }
            };
            let waits = match (mine.blank, mine.stuck) {
                (true, _) => ", new",
                (_, true) => ", stuck",
                _ => "",
            };
            format!("@{} {vector:?} {standing}{waits}", mine.applied)
        });
        let replicas: Vec<_> = replicas.collect();
        format!("{} | log: {}", replicas.join(" | "), self.log.last())
    }
}
