//! An entry of an origin's log never changes: one origin and one number, one content, on every disk and on
//! every wire; and a log has no gap up to its replica's vector.

use rdb_types::{NamespaceId, RegionId, StoreId};
use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "entries never change";
/// The name of its other half.
pub const GAPS: &str = "vectors have no gap";

/// The log of one origin, in one eventual time (the epoch of the seal before it): a number whose write was
/// set aside is an empty entry in the next.
pub type Log = (RegionId, NamespaceId, StoreId, u64);

/// What stood under which number, wherever it was seen first.
#[derive(Default)]
pub struct Entries(BTreeMap<(Log, u64), (u64, String)>);

impl Entries {
    /// An entry was seen. `content` is the hash of its bytes, `place` says where.
    ///
    /// # Errors
    /// Another content was seen under that number.
    pub fn seen(
        &mut self,
        log: Log,
        sequence: u64,
        content: u64,
        place: &str,
    ) -> Result<(), String> {
        let (known, first) = self
            .0
            .entry((log, sequence))
            .or_insert_with(|| (content, place.to_owned()));
        if *known == content {
            return Ok(());
        }
        let (region, namespace, origin, _) = log;
        Err(format!(
            "entry {sequence} of store {origin} in namespace {namespace} of region {region} is one thing {first} and another {place}"
        ))
    }

    /// Entries seen.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Judges the next entry of a log, which begins at `first`, where everything up to `have` stands before it.
///
/// # Errors
/// Something is missing in between.
pub fn follows(store: StoreId, log: Log, have: u64, first: u64) -> Result<(), String> {
    if first <= have + 1 {
        return Ok(());
    }
    let (region, namespace, origin, _) = log;
    Err(format!(
        "store {store} has entry {first} of store {origin} in namespace {namespace} of region {region}, and nothing after {have}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_entry_and_a_gap_are_seen() {
        let one = StoreId::new(1).unwrap();
        let log = (RegionId(2), NamespaceId(1), one, 0);
        let mut entries = Entries::default();
        entries.seen(log, 1, 7, "here").unwrap();
        entries.seen(log, 1, 7, "there").unwrap();
        assert!(entries.seen(log, 1, 8, "there").is_err());
        assert!(follows(one, log, 4, 5).is_ok());
        assert!(follows(one, log, 4, 6).is_err());
    }
}
