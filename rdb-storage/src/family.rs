//! The keyspaces of a store.
//!
//! Owns their names, which are column family names on disk and therefore never change.
//! Does not know how keys inside a family are built: that belongs to whoever writes them.

use std::fmt;

/// One keyspace of a store: an ordered map of its own inside the same engine. A
/// [`WriteBatch`](crate::WriteBatch) may span any number of them and stays atomic.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Users' records.
    Data,
    /// Entries of the replicated log: appended at the end, removed in ranges at the front.
    RaftLog,
    /// Votes, applied state and membership of each region: few, small, often rewritten.
    RaftState,
    /// Writes that were accepted here or learnt from other stores in eventual mode.
    OriginLog,
    /// What describes a region and the namespaces within it.
    Region,
    /// Writes that lost to a concurrent one.
    Conflicts,
    /// Index of records by the time they expire.
    Expiry,
    /// Request ids that were answered, so that a repeated request is recognised.
    RequestIds,
}

impl Family {
    /// Every family, in the order of the enum.
    pub const ALL: [Family; 8] = [
        Family::Data,
        Family::RaftLog,
        Family::RaftState,
        Family::OriginLog,
        Family::Region,
        Family::Conflicts,
        Family::Expiry,
        Family::RequestIds,
    ];

    /// The name on disk and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Data => "data",
            Family::RaftLog => "raft_log",
            Family::RaftState => "raft_state",
            Family::OriginLog => "origin_log",
            Family::Region => "region",
            Family::Conflicts => "conflicts",
            Family::Expiry => "expiry",
            Family::RequestIds => "request_ids",
        }
    }

    /// The position in [`Family::ALL`], for tables with one slot per family.
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_in_index_order_and_names_differ() {
        for (position, family) in Family::ALL.into_iter().enumerate() {
            assert_eq!(family.index(), position);
        }
        let names: std::collections::BTreeSet<_> =
            Family::ALL.into_iter().map(Family::name).collect();
        assert_eq!(names.len(), Family::ALL.len());
    }
}
