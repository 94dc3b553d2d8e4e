//! At most one leader in a term (Ongaro and Ousterhout, section 5.2, Election Safety).

use rdb_types::{RegionId, StoreId};
use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "one leader per term";

/// Who was seen to lead which term.
#[derive(Default)]
pub struct Leaders(BTreeMap<(RegionId, u64), StoreId>);

impl Leaders {
    /// `store` acted as the leader of `term`.
    ///
    /// # Errors
    /// Another store did, too.
    pub fn seen(&mut self, region: RegionId, term: u64, store: StoreId) -> Result<(), String> {
        let known = *self.0.entry((region, term)).or_insert(store);
        if known == store {
            return Ok(());
        }
        Err(format!(
            "stores {known} and {store} both lead term {term} of region {region}"
        ))
    }

    /// Leaders seen so far, in all terms of all regions.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_leader_is_seen() {
        let (one, two) = (StoreId::new(1).unwrap(), StoreId::new(2).unwrap());
        let mut leaders = Leaders::default();
        leaders.seen(RegionId(1), 5, one).unwrap();
        leaders.seen(RegionId(1), 5, one).unwrap();
        leaders.seen(RegionId(2), 5, two).unwrap();
        leaders.seen(RegionId(1), 6, two).unwrap();
        assert!(leaders.seen(RegionId(1), 5, two).is_err());
    }
}
