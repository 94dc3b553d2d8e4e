//! One epoch has one mode: of a namespace in a region, on all replicas, on disk and in every receipt.

use rdb_types::{Mode, NamespaceId, RegionId, StoreId};
use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "one mode per epoch";

/// How a namespace is served in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The mode.
    pub mode: Mode,
    /// Whether it is being sealed: it takes no writes.
    pub sealing: bool,
}

/// A namespace in a region, and an epoch of it.
pub type Place = (RegionId, NamespaceId, u64);

/// What each epoch was, wherever it was seen first.
#[derive(Default)]
pub struct Modes(BTreeMap<Place, (Way, StoreId)>);

impl Modes {
    /// A replica has an epoch. Answers whether it is the first to have it.
    ///
    /// # Errors
    /// Another replica had it with another mode.
    pub fn seen(&mut self, place: Place, way: Way, store: StoreId) -> Result<bool, String> {
        let mut first = false;
        let (known, by) = *self.0.entry(place).or_insert_with(|| {
            first = true;
            (way, store)
        });
        if known == way {
            return Ok(first);
        }
        let (region, namespace, epoch) = place;
        Err(format!(
            "epoch {epoch} of namespace {namespace} in region {region} is {known:?} at store {by} and {way:?} at store {store}"
        ))
    }

    /// A receipt says that a call was served in this mode.
    ///
    /// # Errors
    /// The epoch was another one, or took no writes and acknowledged one all the same.
    pub fn served(
        &self,
        place: Place,
        mode: Mode,
        wrote: bool,
        store: StoreId,
    ) -> Result<(), String> {
        let (region, namespace, epoch) = place;
        match self.0.get(&place) {
            // A namespace that was never switched has no row before its first write.
            None => Ok(()),
            Some((way, _)) if way.mode != mode => Err(format!(
                "store {store} served epoch {epoch} of namespace {namespace} in region {region} as {mode}, and it is {}",
                way.mode
            )),
            Some((way, _)) if way.sealing && wrote => Err(format!(
                "store {store} acknowledged a write in epoch {epoch} of namespace {namespace} in region {region}, in which it was being sealed"
            )),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_modes_of_one_epoch_are_seen() {
        let (one, two) = (StoreId::new(1).unwrap(), StoreId::new(2).unwrap());
        let place = (RegionId(2), NamespaceId(5), 3);
        let way = |mode, sealing| Way { mode, sealing };
        let mut modes = Modes::default();
        assert_eq!(modes.seen(place, way(Mode::Eventual, true), one), Ok(true));
        assert_eq!(modes.seen(place, way(Mode::Eventual, true), two), Ok(false));
        assert!(modes.seen(place, way(Mode::Strong, false), two).is_err());
        modes.served(place, Mode::Eventual, false, one).unwrap();
        assert!(modes.served(place, Mode::Eventual, true, one).is_err());
        assert!(modes.served(place, Mode::Strong, false, one).is_err());
    }
}
