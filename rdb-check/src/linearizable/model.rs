//! Reduces the calls on one key to what the search has to know.
//!
//! Owns the translation of operations and outcomes into actions on an abstract register, and the
//! order of events. Does not search.
//!
//! What is left out, and why that changes no verdict:
//! - Calls that were not applied, and reads with unknown outcome: they neither changed the register
//!   nor told anything about it.
//! - An unknown compare-and-swap from a value to the same value: whether it took effect makes no
//!   difference.
//! - Values that no call compares with. Calls look at the register only to compare it with a value:
//!   what a read returned, or the `from` of a compare-and-swap. Two values that are never compared
//!   with answer all comparisons alike and are set aside alike, so they are one: [`OTHER`]. Writes
//!   that nobody read thus become one and the same action, and the search has less to tell apart.
//! - Which of several unknown calls with the same action it was. None of them has to have happened
//!   by any time, so in any order the ones invoked first can stand for the others: an action and
//!   the number of times it was used say it all.

use std::collections::BTreeMap;

use crate::history::{Call, Op, Outcome, Value};

/// The content of the abstract register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Content(pub(super) u32);

/// Every content that no call compares with.
pub(super) const OTHER: Content = Content(0);

/// What a call that certainly took effect did, or saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// The register held this, and was not changed: a read, or a swap of a value for itself.
    Saw(Content),
    /// The register did not hold this, and was not changed: a lost compare-and-swap.
    SawOther(Content),
    /// The register holds this afterwards, whatever it held.
    Set(Content),
    /// The register held `from` and holds `to`, which differs.
    Swap { from: Content, to: Content },
}

impl Action {
    /// What the register has to hold for it.
    pub(super) fn sees(self) -> Option<Content> {
        match self {
            Action::Saw(content) | Action::Swap { from: content, .. } => Some(content),
            Action::SawOther(_) | Action::Set(_) => None,
        }
    }

    /// What it changes the register to.
    pub(super) fn leaves(self) -> Option<Content> {
        match self {
            Action::Set(to) | Action::Swap { to, .. } => Some(to),
            Action::Saw(_) | Action::SawOther(_) => None,
        }
    }
}

/// What a call may have done whose outcome is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Maybe {
    /// See [`Action::Set`].
    Set(Content),
    /// See [`Action::Swap`]; where the register does not hold `from`, nothing happens.
    Swap { from: Content, to: Content },
}

impl Maybe {
    /// What the register holds after it took effect.
    pub(super) fn leaves(self) -> Content {
        match self {
            Maybe::Set(to) | Maybe::Swap { to, .. } => to,
        }
    }
}

/// A call that took effect between its invocation and its return. Times are positions in the order
/// of all events of the key.
#[derive(Debug)]
pub(super) struct Certain {
    pub(super) action: Action,
    pub(super) returned_at: u32,
    /// How many certain calls were invoked before this one returned. In the numbering of
    /// [`Model::certain`] these are the first ones.
    pub(super) invoked_before_return: u32,
    /// Which of the key's calls it is.
    pub(super) origin: usize,
}

/// All unknown calls with one and the same effect.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) effect: Maybe,
    /// When each was invoked, ascending, and which of the key's calls it is.
    pub(super) invoked: Vec<(u32, usize)>,
}

/// One event in the order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Invoked(u32),
    Returned(u32),
}

/// The calls on one key as the search sees them.
#[derive(Debug)]
pub(super) struct Model {
    /// In the order of invocation.
    pub(super) certain: Vec<Certain>,
    /// Invocations and returns of `certain`, in the order of time.
    pub(super) events: Vec<Event>,
    pub(super) classes: Vec<Class>,
    /// By content: the classes that leave the register at it, those that always do first.
    pub(super) producers: Vec<Vec<u32>>,
    pub(super) start: Content,
}

impl Model {
    /// Translates the calls of one key, all of them valid.
    pub(super) fn of(calls: &[&Call]) -> Self {
        Self::with_contents(Contents::compared_in(calls), calls)
    }

    /// [`Self::of`] without merging values that are never compared: slower to search, but every
    /// content can be told.
    pub(super) fn with_all_values(calls: &[&Call]) -> Self {
        let mut contents = Contents::compared_in(calls);
        contents.number(None);
        for call in calls {
            if let Op::Write(to) | Op::Cas { to, .. } = call.op {
                contents.number(Some(to));
            }
        }
        Self::with_contents(contents, calls)
    }

    fn with_contents(contents: Contents, calls: &[&Call]) -> Self {
        let mut kept: Vec<(Kept, usize)> = Vec::new();
        for (origin, call) in calls.iter().enumerate() {
            if let Some(what) = contents.translate(call) {
                kept.push((what, origin));
            }
        }

        // At equal times invocations come first: such calls count as concurrent, so that a coarse
        // clock cannot produce a violation.
        const INVOKED: u8 = 0;
        const RETURNED: u8 = 1;
        let mut order: Vec<(u64, u8, usize)> = Vec::with_capacity(2 * kept.len());
        for (index, (what, origin)) in kept.iter().enumerate() {
            let call = calls[*origin];
            order.push((call.invoked_ns, INVOKED, index));
            if matches!(what, Kept::Certain(_)) {
                order.push((call.returned_ns.unwrap_or(u64::MAX), RETURNED, index));
            }
        }
        order.sort_unstable();

        let mut certain: Vec<Certain> = Vec::new();
        let mut number_of = vec![0_u32; kept.len()];
        let mut classes: BTreeMap<Maybe, Vec<(u32, usize)>> = BTreeMap::new();
        let mut events = Vec::with_capacity(order.len());
        for (at, (_, kind, index)) in (0_u32..).zip(order) {
            let (what, origin) = kept[index];
            match what {
                Kept::Maybe(effect) => classes.entry(effect).or_default().push((at, origin)),
                Kept::Certain(action) if kind == INVOKED => {
                    number_of[index] = certain.len() as u32;
                    events.push(Event::Invoked(number_of[index]));
                    let (returned_at, invoked_before_return) = (u32::MAX, 0);
                    certain.push(Certain {
                        action,
                        returned_at,
                        invoked_before_return,
                        origin,
                    });
                }
                Kept::Certain(_) => {
                    events.push(Event::Returned(number_of[index]));
                    let invoked = certain.len() as u32;
                    let call = &mut certain[number_of[index] as usize];
                    call.returned_at = at;
                    call.invoked_before_return = invoked;
                }
            }
        }

        // `Maybe::Set` sorts before `Maybe::Swap`, hence so do the producers.
        let classes: Vec<Class> = classes
            .into_iter()
            .map(|(effect, invoked)| Class { effect, invoked })
            .collect();
        let mut producers = vec![Vec::new(); contents.known.len() + 1];
        for (number, class) in (0_u32..).zip(&classes) {
            producers[class.effect.leaves().0 as usize].push(number);
        }
        Model {
            certain,
            events,
            classes,
            producers,
            start: contents.of(None),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kept {
    Certain(Action),
    Maybe(Maybe),
}

/// The contents that calls compare with, numbered from 1.
struct Contents {
    known: BTreeMap<Option<Value>, Content>,
}

impl Contents {
    fn compared_in(calls: &[&Call]) -> Self {
        let mut contents = Self {
            known: BTreeMap::new(),
        };
        for call in calls {
            match (call.op, call.outcome) {
                (_, Outcome::Read(held)) => contents.number(held),
                (_, Outcome::NotApplied) => {}
                (Op::Cas { from, .. }, _) => contents.number(from),
                _ => {}
            }
        }
        contents
    }

    fn number(&mut self, content: Option<Value>) {
        let next = Content(self.known.len() as u32 + 1);
        self.known.entry(content).or_insert(next);
    }

    fn of(&self, content: Option<Value>) -> Content {
        self.known.get(&content).copied().unwrap_or(OTHER)
    }

    fn translate(&self, call: &Call) -> Option<Kept> {
        let certain = |action| Some(Kept::Certain(action));
        match (call.op, call.outcome) {
            (_, Outcome::NotApplied) | (Op::Read, Outcome::Unknown) => None,
            (_, Outcome::Read(held)) => certain(Action::Saw(self.of(held))),
            (Op::Cas { from, .. }, Outcome::CasLost) => certain(Action::SawOther(self.of(from))),
            (Op::Cas { from, to }, Outcome::Unknown) => (from != Some(to)).then(|| {
                Kept::Maybe(Maybe::Swap {
                    from: self.of(from),
                    to: self.of(Some(to)),
                })
            }),
            (Op::Cas { from, to }, _) if from == Some(to) => certain(Action::Saw(self.of(from))),
            (Op::Cas { from, to }, _) => certain(Action::Swap {
                from: self.of(from),
                to: self.of(Some(to)),
            }),
            (Op::Write(to), Outcome::Unknown) => Some(Kept::Maybe(Maybe::Set(self.of(Some(to))))),
            (Op::Delete, Outcome::Unknown) => Some(Kept::Maybe(Maybe::Set(self.of(None)))),
            (Op::Write(to), _) => certain(Action::Set(self.of(Some(to)))),
            // A read has no other outcome: calls are validated first.
            (Op::Delete | Op::Read, _) => certain(Action::Set(self.of(None))),
        }
    }
}
