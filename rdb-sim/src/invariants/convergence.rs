//! Replicas converge: equal vectors mean equal data, at any time; and once all is healed, the vectors are
//! equal soon, and digests, records on disk and what is told of them agree.

use rdb_types::{Digest, NamespaceId, RegionId, StoreId, VersionVector};
use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "eventual replicas converge";

/// How long that may take once everything is healed, in simulated milliseconds.
pub const WITHIN_MS: u64 = 10_000;

/// What a replica of a namespace says it holds.
pub type Moment = (RegionId, NamespaceId, u64, String, u64);

/// The digest that was told for each vector.
#[derive(Default)]
pub struct Told(BTreeMap<Moment, (Digest, StoreId)>);

impl Told {
    /// A replica reported this digest at this vector, with what expired until then taken out.
    ///
    /// # Errors
    /// Another one reported another digest.
    pub fn seen(
        &mut self,
        place: (RegionId, NamespaceId, u64),
        vector: &VersionVector,
        expired_through_ms: u64,
        digest: Digest,
        store: StoreId,
    ) -> Result<(), String> {
        let (region, namespace, epoch) = place;
        let moment = (
            region,
            namespace,
            epoch,
            vector.to_string(),
            expired_through_ms,
        );
        let (known, by) = *self.0.entry(moment).or_insert((digest, store));
        if known == digest {
            return Ok(());
        }
        Err(format!(
            "stores {by} and {store} differ in namespace {namespace} of region {region} at {vector}"
        ))
    }

    /// Digests that were told.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// How long it took until all replicas had seen the same; `None`: too long.
///
/// # Errors
/// It took too long.
pub fn in_time(took_ms: Option<u64>, why_not: &str) -> Result<(), String> {
    match took_ms {
        Some(took_ms) if took_ms <= WITHIN_MS => Ok(()),
        _ => Err(format!(
            "replicas differ {WITHIN_MS} ms after everything was healed: {why_not}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_data_at_one_vector_is_seen() {
        let (one, two) = (StoreId::new(1).unwrap(), StoreId::new(2).unwrap());
        let place = (RegionId(2), NamespaceId(1), 1);
        let vector: VersionVector = [(one, 4)].into_iter().collect();
        let mut told = Told::default();
        told.seen(place, &vector, 5, Digest(1), one).unwrap();
        told.seen(place, &vector, 6, Digest(2), two).unwrap();
        assert!(told.seen(place, &vector, 5, Digest(2), two).is_err());
        assert!(in_time(None, "").is_err() && in_time(Some(3), "").is_ok());
    }
}
