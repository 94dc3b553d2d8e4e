//! Which states need not be explored: those that were, and those that are hopeless.
//!
//! Owns the memory of states reached (rule 3 of the search) and the count of what calls still have
//! to see (rule 4). Does not know the order of calls, nor how to get from one state to the next.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;

use super::model::{Content, Model};

/// Which contents calls still have to see, and which could still come to be: rule 4.
pub(super) struct Scarcity {
    /// By content: how many calls without a place have to see it, and how many calls not used yet,
    /// certain or unknown, would leave the register at it.
    wanted_and_left: Vec<(u32, u32)>,
    /// How many contents are wanted while no call is left that gives them.
    ended: u32,
}

impl Scarcity {
    pub(super) fn of(model: &Model, wanted: Option<u32>) -> Self {
        let contents = model.producers.len();
        let mut scarcity = Scarcity {
            wanted_and_left: vec![(0, 0); contents],
            ended: 0,
        };
        for (number, call) in (0_u32..).zip(&model.certain) {
            call.action
                .leaves()
                .into_iter()
                .for_each(|content| scarcity.restock(content));
            let sees = call.action.sees().filter(|_| wanted != Some(number));
            sees.into_iter()
                .for_each(|content| scarcity.demand(content));
        }
        for class in &model.classes {
            for _ in &class.invoked {
                scarcity.restock(class.effect.leaves());
            }
        }
        scarcity
    }

    /// Whether some call can never see what it has to see.
    pub(super) fn is_hopeless(&self, held: Content) -> bool {
        let held_ended = self.has_ended(held);
        self.ended > u32::from(held_ended)
    }

    fn has_ended(&self, content: Content) -> bool {
        matches!(self.wanted_and_left[content.0 as usize], (1.., 0))
    }

    pub(super) fn demand(&mut self, content: Content) {
        self.change(content, |(wanted, _)| *wanted += 1);
    }

    pub(super) fn satisfy(&mut self, content: Content) {
        self.change(content, |(wanted, _)| *wanted -= 1);
    }

    pub(super) fn restock(&mut self, content: Content) {
        self.change(content, |(_, left)| *left += 1);
    }

    pub(super) fn consume(&mut self, content: Content) {
        self.change(content, |(_, left)| *left -= 1);
    }

    fn change(&mut self, content: Content, change: impl FnOnce(&mut (u32, u32))) {
        self.ended -= u32::from(self.has_ended(content));
        change(&mut self.wanted_and_left[content.0 as usize]);
        self.ended += u32::from(self.has_ended(content));
    }
}

/// The states that were reached.
#[derive(Default)]
pub(super) struct Known {
    /// Set of calls placed and content -> the usages it was reached with, none of which is at most
    /// another. The hasher is the standard one with fixed keys: same history, same run.
    states: HashMap<Box<[u64]>, Vec<u32>, BuildHasherDefault<DefaultHasher>>,
    /// Number of each distinct usage: there are few, so states refer to them.
    usages: HashMap<Box<[u32]>, u32, BuildHasherDefault<DefaultHasher>>,
    by_number: Vec<Box<[u32]>>,
    key: Vec<u64>,
    bytes: u64,
}

/// What a state costs besides its key, roughly: table slot, the two allocations' headers, and the
/// list of usages.
const STATE_OVERHEAD_BYTES: u64 = 96;

impl Known {
    /// Remembers a state; false if it need not be explored, by rule 3.
    ///
    /// All calls before `first` are placed, `first` is not, and none from `bound` on is (they were
    /// invoked after the first return): the words in between are the whole set.
    pub(super) fn insert(
        &mut self,
        first: u32,
        bound: u32,
        content: Content,
        placed: &[u64],
        used: &[u32],
    ) -> bool {
        self.key.clear();
        self.key.push(u64::from(first) << 32 | u64::from(content.0));
        self.key
            .extend(&placed[first as usize / 64..(bound as usize).div_ceil(64)]);
        let usage = self.number_of(used);
        let Some(usages) = self.states.get_mut(&self.key[..]) else {
            self.bytes += STATE_OVERHEAD_BYTES + 8 * self.key.len() as u64;
            self.states.insert(self.key.as_slice().into(), vec![usage]);
            return true;
        };
        let at_most = |a: u32, b: u32| {
            let (a, b) = (&self.by_number[a as usize], &self.by_number[b as usize]);
            a.iter().zip(b).all(|(a, b)| a <= b)
        };
        if usages.iter().any(|known| at_most(*known, usage)) {
            return false;
        }
        usages.retain(|known| !at_most(usage, *known));
        usages.push(usage);
        self.bytes += 4;
        true
    }

    /// What is remembered takes up so much memory, roughly.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn number_of(&mut self, used: &[u32]) -> u32 {
        if let Some(number) = self.usages.get(used) {
            return *number;
        }
        let number = self.by_number.len() as u32;
        self.usages.insert(used.into(), number);
        self.by_number.push(used.into());
        self.bytes += STATE_OVERHEAD_BYTES + 8 * used.len() as u64;
        number
    }
}
