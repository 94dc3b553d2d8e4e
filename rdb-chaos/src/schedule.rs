//! Which fault comes when: all of it from one seed.
//!
//! Owns the order. Every kind comes once before any comes again, so that a short run has seen as much as
//! it can; the order, and every choice of a fault, is drawn. Knows nothing of what can be done on this
//! machine: the same seed is the same schedule everywhere.

use crate::dice::Dice;
use crate::faults::{Fault, Kind};
use std::time::Duration;

/// Faults without end.
pub struct Schedule {
    dice: Dice,
    kinds: Vec<Kind>,
    deck: Vec<Kind>,
    longest: Duration,
}

impl Schedule {
    /// Of these kinds (at least one), each lasting no longer than `longest` where that is open.
    pub fn new(seed: u64, kinds: &[Kind], longest: Duration) -> Schedule {
        Schedule {
            dice: Dice::new(seed),
            kinds: kinds.to_vec(),
            deck: Vec::new(),
            longest,
        }
    }
}

impl Iterator for Schedule {
    type Item = (Kind, Box<dyn Fault>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            self.dice.shuffle(&mut self.deck);
        }
        let kind = self.deck.pop()?;
        // Dice of its own: how much a fault draws changes nothing for the next.
        let mut dice = Dice::new(self.dice.draw());
        Some((kind, kind.make(&mut dice, self.longest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans(seed: u64, count: usize) -> Vec<(Kind, String)> {
        Schedule::new(seed, &Kind::ALL, Duration::from_secs(60))
            .take(count)
            .map(|(kind, fault)| (kind, fault.plan()))
            .collect()
    }

    #[test]
    fn a_seed_is_a_schedule() {
        assert_eq!(plans(5, 40), plans(5, 40));
        assert_ne!(plans(5, 40), plans(6, 40));
    }

    #[test]
    fn every_kind_comes_before_any_comes_again() {
        let mut kinds: Vec<Kind> = plans(9, 13).into_iter().map(|(kind, _)| kind).collect();
        kinds.sort();
        assert_eq!(kinds, Kind::ALL);
    }

    #[test]
    fn nothing_lasts_longer_than_it_may() {
        let longest = Duration::from_secs(8);
        let open = [Kind::FreezeLeader, Kind::CutLeader, Kind::CutAll];
        let all = Schedule::new(3, &open, longest).take(60);
        assert!(all.into_iter().all(|(_, fault)| fault.lasts() <= longest));
        let frozen = Schedule::new(3, &[Kind::FreezeLeader], Duration::from_secs(60)).take(60);
        let longest = frozen.map(|(_, fault)| fault.lasts()).max();
        assert!(longest > Some(Duration::from_secs(30)), "{longest:?}");
    }
}
