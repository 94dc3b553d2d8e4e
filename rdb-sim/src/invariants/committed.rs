//! An entry that was committed never changes (Ongaro and Ousterhout, section 5.4, Leader Completeness and
//! State Machine Safety).

use rdb_types::{RegionId, StoreId};
use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "committed entries never change";

/// Term and content of each entry that some store knows to be committed.
#[derive(Default)]
pub struct Committed(BTreeMap<(RegionId, u64), (u64, u64, StoreId)>);

impl Committed {
    /// `store` holds this entry, and knows that it is committed. `content`: a hash of what it holds.
    ///
    /// # Errors
    /// Another one stood at its place.
    pub fn seen(
        &mut self,
        region: RegionId,
        index: u64,
        term: u64,
        content: u64,
        store: StoreId,
    ) -> Result<(), String> {
        let (known_term, known_content, by) = *self
            .0
            .entry((region, index))
            .or_insert((term, content, store));
        if (known_term, known_content) == (term, content) {
            return Ok(());
        }
        Err(format!(
            "entry {index} of region {region} was committed in term {known_term} (seen at store {by}); store {store} has another one, of term {term}, as committed"
        ))
    }

    /// The highest index of a region that was seen.
    pub fn last(&self, region: RegionId) -> Option<u64> {
        let of_region = self.0.range((region, 0)..=(region, u64::MAX));
        of_region.last().map(|((_, index), _)| *index)
    }

    /// Entries seen.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_entry_is_seen() {
        let (one, two) = (StoreId::new(1).unwrap(), StoreId::new(2).unwrap());
        let mut committed = Committed::default();
        committed.seen(RegionId(1), 7, 2, 99, one).unwrap();
        committed.seen(RegionId(1), 7, 2, 99, two).unwrap();
        assert!(committed.seen(RegionId(1), 7, 3, 99, two).is_err());
        assert!(committed.seen(RegionId(1), 7, 2, 98, two).is_err());
        assert_eq!(committed.last(RegionId(1)), Some(7));
        assert_eq!(committed.last(RegionId(2)), None);
    }
}
