//! Numbers that name things. Newtypes, so that a region's id is never taken for a store's.

use std::fmt;

/// A store: one server process with one data directory. 1 to 1023, because it is packed into the
/// low ten bits of every stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(u16);

impl StoreId {
    /// The largest id that fits a stamp.
    pub const MAX: u16 = 1023;

    /// `None` unless `id` is in 1..=1023.
    pub fn new(id: u64) -> Option<StoreId> {
        u16::try_from(id)
            .ok()
            .filter(|id| (1..=Self::MAX).contains(id))
            .map(StoreId)
    }

    /// The bare number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A region: a contiguous range of the global key space, replicated by one Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub u64);

impl RegionId {
    /// The region that holds the namespace table, the store table and the region map.
    pub const META: RegionId = RegionId(1);
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A namespace. Never reused. 0 is the meta region's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId(pub u32);

impl NamespaceId {
    /// Where the meta region keeps its rows; no user's namespace.
    pub const META: NamespaceId = NamespaceId(0);
    /// The namespace `default`, which exists from the start.
    pub const DEFAULT: NamespaceId = NamespaceId(1);
}

impl fmt::Display for NamespaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Grows with each step of a mode change of a namespace in a region; fences everything stale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of a namespace that was just created.
    pub const FIRST: Epoch = Epoch(1);
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_ids_fit_a_stamp() {
        assert_eq!(StoreId::new(0), None);
        assert_eq!(StoreId::new(1).map(StoreId::get), Some(1));
        assert_eq!(StoreId::new(1023).map(StoreId::get), Some(1023));
        assert_eq!(StoreId::new(1024), None);
        assert_eq!(StoreId::new(u64::from(u16::MAX) + 2), None);
    }
}
