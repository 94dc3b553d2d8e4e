//! A store applies only what is committed, and never goes back while it runs.

use rdb_types::{RegionId, StoreId};
use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "applied <= committed";

/// What each running process had applied when it was looked at last.
#[derive(Default)]
pub struct Applied(BTreeMap<(StoreId, RegionId), u64>);

impl Applied {
    /// A look at one region of one store.
    ///
    /// # Errors
    /// It is ahead of what is committed, or behind what it was.
    pub fn seen(
        &mut self,
        store: StoreId,
        region: RegionId,
        applied: u64,
        committed: u64,
    ) -> Result<(), String> {
        let before = self.0.insert((store, region), applied).unwrap_or(0);
        if applied > committed {
            return Err(format!(
                "store {store} applied entry {applied} of region {region}, and only {committed} are committed"
            ));
        }
        if applied < before {
            return Err(format!(
                "store {store} had applied {before} entries of region {region}, and now {applied}"
            ));
        }
        Ok(())
    }

    /// A store begins anew: what was applied but not synced is applied again.
    pub fn restarted(&mut self, store: StoreId) {
        self.0.retain(|(of, _), _| *of != store);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_much_and_too_little_are_seen() {
        let (store, region) = (StoreId::new(1).unwrap(), RegionId(2));
        let mut applied = Applied::default();
        applied.seen(store, region, 5, 5).unwrap();
        assert!(applied.seen(store, region, 7, 6).is_err());
        assert!(applied.seen(store, region, 6, 9).is_err());
        applied.restarted(store);
        applied.seen(store, region, 3, 9).unwrap();
    }
}
