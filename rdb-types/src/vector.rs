//! Version vectors: how far each origin's writes have been seen.
//!
//! A store numbers the writes that it accepts for a namespace in a region 1, 2, 3, ... without gaps. A
//! vector says, for each such store (an *origin*), the highest number below which nothing is missing
//! (Parker et al., "Detection of Mutual Inconsistency in Distributed Systems", 1983). Knows nothing of
//! what the writes are.
//!
//! Invariant: an origin of which nothing was seen has no entry, so equal vectors compare equal.

use crate::StoreId;
use std::collections::BTreeMap;
use std::fmt;

/// One write: the store that accepted it, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// Who accepted it.
    pub origin: StoreId,
    /// Its number, from 1.
    pub sequence: u64,
}

/// Origin -> highest sequence seen without a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VersionVector(BTreeMap<StoreId, u64>);

impl VersionVector {
    /// Nothing seen.
    pub fn new() -> VersionVector {
        VersionVector::default()
    }

    /// The highest sequence seen of an origin; 0: none.
    pub fn get(&self, origin: StoreId) -> u64 {
        self.0.get(&origin).copied().unwrap_or(0)
    }

    /// Raises an origin's sequence; a lower one changes nothing.
    pub fn raise(&mut self, origin: StoreId, sequence: u64) {
        if sequence > self.get(origin) {
            self.0.insert(origin, sequence);
        }
    }

    /// Whether a write was seen.
    pub fn has(&self, dot: Dot) -> bool {
        self.get(dot.origin) >= dot.sequence
    }

    /// Whether everything that `other` has seen was seen here.
    pub fn covers(&self, other: &VersionVector) -> bool {
        other
            .0
            .iter()
            .all(|(origin, sequence)| self.get(*origin) >= *sequence)
    }

    /// What either has seen: the least vector that covers both.
    pub fn join(&mut self, other: &VersionVector) {
        for (origin, sequence) in &other.0 {
            self.raise(*origin, *sequence);
        }
    }

    /// What both have seen: the greatest vector that both cover.
    #[must_use]
    pub fn meet(&self, other: &VersionVector) -> VersionVector {
        self.0
            .iter()
            .map(|(origin, sequence)| (*origin, (*sequence).min(other.get(*origin))))
            .collect()
    }

    /// How many of the writes that `other` has seen were not seen here.
    pub fn missing(&self, other: &VersionVector) -> u64 {
        other
            .0
            .iter()
            .map(|(origin, sequence)| sequence.saturating_sub(self.get(*origin)))
            .sum()
    }

    /// Origins with their sequences, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (StoreId, u64)> + '_ {
        self.0.iter().map(|(origin, sequence)| (*origin, *sequence))
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(StoreId, u64)> for VersionVector {
    fn from_iter<T: IntoIterator<Item = (StoreId, u64)>>(parts: T) -> VersionVector {
        let mut vector = VersionVector::new();
        for (origin, sequence) in parts {
            vector.raise(origin, sequence);
        }
        vector
    }
}

impl fmt::Display for VersionVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (at, (origin, sequence)) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{origin}: {sequence}")?;
        }
        f.write_str("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vectors() -> impl Strategy<Value = VersionVector> {
        prop::collection::vec((1u64..5, 0u64..6), 0..6).prop_map(|parts| {
            parts
                .into_iter()
                .map(|(origin, sequence)| (StoreId::new(origin).unwrap(), sequence))
                .collect()
        })
    }

    fn joined(a: &VersionVector, b: &VersionVector) -> VersionVector {
        let mut joined = a.clone();
        joined.join(b);
        joined
    }

    proptest! {
        #[test]
        fn join_is_the_least_upper_bound(a in vectors(), b in vectors(), c in vectors()) {
            let both = joined(&a, &b);
            prop_assert!(both.covers(&a) && both.covers(&b));
            prop_assert_eq!(&both, &joined(&b, &a));
            prop_assert_eq!(joined(&both, &c), joined(&a, &joined(&b, &c)));
            prop_assert_eq!(joined(&a, &a), a.clone());
            prop_assert_eq!(c.covers(&a) && c.covers(&b), c.covers(&both));
        }

        #[test]
        fn meet_is_the_greatest_lower_bound(a in vectors(), b in vectors(), c in vectors()) {
            let low = a.meet(&b);
            prop_assert!(a.covers(&low) && b.covers(&low));
            prop_assert_eq!(&low, &b.meet(&a));
            prop_assert_eq!(a.covers(&c) && b.covers(&c), low.covers(&c));
        }

        #[test]
        fn nothing_is_missing_exactly_where_all_is_covered(a in vectors(), b in vectors()) {
            prop_assert_eq!(a.missing(&b) == 0, a.covers(&b));
        }
    }
}
