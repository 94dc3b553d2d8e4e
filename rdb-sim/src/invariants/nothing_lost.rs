//! What was acknowledged is there; what was refused is not (an honest `NO_QUORUM`: refused means not
//! applied).
//!
//! Looks at keys that are put once and never again, so that each has one fate.

use rdb_check::set;
use std::collections::BTreeSet;

/// Its name.
pub const NAME: &str = "nothing lost, nothing from nowhere";

/// The fate of keys that are put once.
#[derive(Default)]
pub struct Puts {
    /// Certainly there.
    pub acknowledged: BTreeSet<u64>,
    /// There or not.
    pub unknown: BTreeSet<u64>,
    /// Certainly not there: the store said so.
    pub refused: BTreeSet<u64>,
}

impl Puts {
    /// Judges what a linearizable scan found.
    ///
    /// # Errors
    /// Something is missing, or is there that cannot be.
    pub fn check(&self, found: &BTreeSet<u64>) -> Result<(), String> {
        if let Some(key) = self.refused.intersection(found).next() {
            return Err(format!(
                "key {key} is there, and its put was refused as not applied"
            ));
        }
        let report = set::check(&self.acknowledged, &self.unknown, found);
        if let Some(key) = report.missing.first() {
            return Err(format!(
                "{} of {} acknowledged keys are missing, key {key} for one",
                report.missing.len(),
                self.acknowledged.len()
            ));
        }
        if let Some(key) = report.unexpected.first() {
            return Err(format!("key {key} is there, and nobody put it"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_and_refused_keys_are_seen() {
        let puts = Puts {
            acknowledged: [1, 2].into(),
            unknown: [3].into(),
            refused: [4].into(),
        };
        puts.check(&[1, 2].into()).unwrap();
        puts.check(&[1, 2, 3].into()).unwrap();
        assert!(puts.check(&[1].into()).is_err());
        assert!(puts.check(&[1, 2, 4].into()).is_err());
        assert!(puts.check(&[1, 2, 5].into()).is_err());
    }
}
