//! No answer is older than it says: a linearizable read sees every write that was acknowledged before it
//! was asked, a stale read every write that was acknowledged before its bound, a session its own writes.
//!
//! Works on revisions: a region numbers its writes, and a receipt says up to which one it was answered.

use rdb_types::RegionId;
use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "no answer is older than it says";

/// What was acknowledged, and when.
#[derive(Default)]
pub struct Freshness {
    /// For each region: time of an acknowledgement in milliseconds, and the highest revision until then.
    acknowledged: BTreeMap<RegionId, BTreeMap<u64, u64>>,
}

impl Freshness {
    /// A write came back with this revision.
    pub fn acknowledged(&mut self, region: RegionId, revision: u64, now_ms: u64) {
        let times = self.acknowledged.entry(region).or_default();
        let before = times.last_key_value().map_or(0, |(_, revision)| *revision);
        times.insert(now_ms, before.max(revision));
    }

    /// The highest revision of a region that was acknowledged before a moment.
    fn before(&self, region: RegionId, moment_ms: u64) -> u64 {
        self.acknowledged
            .get(&region)
            .and_then(|times| times.range(..moment_ms).next_back())
            .map_or(0, |(_, revision)| *revision)
    }

    /// An answer to a read that was asked at `asked_ms` and says that it is at most `bound_ms` old, and to
    /// whose session the revision `session` was known.
    ///
    /// # Errors
    /// It is older.
    pub fn answered(
        &self,
        region: RegionId,
        revision: u64,
        asked_ms: u64,
        bound_ms: u64,
        session: u64,
    ) -> Result<(), String> {
        let newest = self.before(region, asked_ms.saturating_sub(bound_ms));
        if revision < newest {
            return Err(format!(
                "a read asked at {asked_ms} ms with a bound of {bound_ms} ms was answered at revision {revision} of region {region}; {newest} was acknowledged before"
            ));
        }
        if revision < session {
            return Err(format!(
                "a session that had seen revision {session} of region {region} was answered at {revision}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_answer_is_seen() {
        let region = RegionId(2);
        let mut freshness = Freshness::default();
        freshness.acknowledged(region, 5, 100);
        freshness.acknowledged(region, 9, 200);
        freshness.acknowledged(region, 7, 210);
        freshness.answered(region, 9, 201, 0, 0).unwrap();
        freshness.answered(region, 5, 150, 0, 0).unwrap();
        assert!(freshness.answered(region, 7, 250, 0, 0).is_err());
        freshness.answered(region, 5, 250, 100, 0).unwrap();
        assert!(freshness.answered(region, 5, 250, 100, 6).is_err());
    }
}
