//! Chance from a seed: the same seed gives the same choices, on every machine and in every version.
//!
//! Owns the generator (xorshift, seeded through splitmix). `rand` promises the same numbers for no
//! longer than a major version, and a printed seed is to be worth something a year later.

/// A source of choices.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that always fall the same for a seed.
    pub fn new(seed: u64) -> Dice {
        // splitmix: neighbouring seeds begin far from each other.
        let mut mixed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        // A state of 0 would never leave it.
        Dice((mixed ^ (mixed >> 31)) | 1)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The upper half: the lower bits of xorshift are weak.
        (self.draw() >> 32) % bound.max(1)
    }

    /// A number of `range`, both ends included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// One of several, of which there is at least one.
    pub fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// Puts them into another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_the_same_for_ever() {
        let mut dice = Dice::new(7);
        let drawn: Vec<u64> = (0..6).map(|_| dice.below(100)).collect();
        let mut again = Dice::new(7);
        assert_eq!(drawn, (0..6).map(|_| again.below(100)).collect::<Vec<_>>());
        let mut other = Dice::new(8);
        assert_ne!(drawn, (0..6).map(|_| other.below(100)).collect::<Vec<_>>());
    }

    #[test]
    fn every_choice_is_made_and_none_beyond() {
        let mut dice = Dice::new(1);
        let mut seen = [0u32; 5];
        for _ in 0..1000 {
            seen[dice.between(10, 14) as usize - 10] += 1;
        }
        assert!(seen.iter().all(|count| *count > 100), "{seen:?}");
        let mut items = [1, 2, 3, 4];
        dice.shuffle(&mut items);
        items.sort_unstable();
        assert_eq!(items, [1, 2, 3, 4]);
    }
}
