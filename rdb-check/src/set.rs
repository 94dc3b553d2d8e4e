//! Checks a set of elements that clients added: all that was acknowledged is there, and nothing
//! that nobody added.
//!
//! Owns the comparison. Does not know how elements were added or found; a read of the whole set
//! must be complete before it is judged (a failed scan is a failure of its own).

use std::collections::BTreeSet;
use std::fmt;

/// How many elements of a kind are printed.
const SHOWN: usize = 10;

/// What became of the elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report<T> {
    /// How many additions were acknowledged. A check with none of them proves nothing.
    pub acknowledged: usize,
    /// Acknowledged but not found: lost.
    pub missing: BTreeSet<T>,
    /// Found though nobody tried to add them.
    pub unexpected: BTreeSet<T>,
    /// Of unknown outcome, and found.
    pub recovered: BTreeSet<T>,
}

/// Compares what clients added with what was found at the end.
///
/// An element that is acknowledged and unknown (repeated after a time-out, say) is acknowledged.
pub fn check<T: Ord + Clone>(
    acknowledged: &BTreeSet<T>,
    unknown: &BTreeSet<T>,
    found: &BTreeSet<T>,
) -> Report<T> {
    let unacknowledged = || found.difference(acknowledged).cloned();
    Report {
        acknowledged: acknowledged.len(),
        missing: acknowledged.difference(found).cloned().collect(),
        unexpected: unacknowledged()
            .filter(|element| !unknown.contains(element))
            .collect(),
        recovered: unacknowledged()
            .filter(|element| unknown.contains(element))
            .collect(),
    }
}

impl<T> Report<T> {
    /// Whether nothing is missing and nothing unexpected.
    pub fn is_ok(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty()
    }
}

impl<T: fmt::Debug> fmt::Display for Report<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report {
            acknowledged,
            missing,
            unexpected,
            recovered,
        } = self;
        write!(
            f,
            "{acknowledged} acknowledged, {} of them missing",
            missing.len()
        )?;
        some_of(f, missing)?;
        write!(f, "; {} found that nobody added", unexpected.len())?;
        some_of(f, unexpected)?;
        write!(f, "; {} of unknown outcome found", recovered.len())
    }
}

fn some_of<T: fmt::Debug>(f: &mut fmt::Formatter<'_>, elements: &BTreeSet<T>) -> fmt::Result {
    if elements.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = elements.iter().take(SHOWN).collect();
    let more = if elements.len() > SHOWN {
        ", the first ones"
    } else {
        ""
    };
    write!(f, " ({shown:?}{more})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(acknowledged: &[u64], unknown: &[u64], found: &[u64]) -> Report<u64> {
        let set = |elements: &[u64]| elements.iter().copied().collect();
        check(&set(acknowledged), &set(unknown), &set(found))
    }

    #[test]
    fn each_kind_of_element_is_told_apart() {
        //                 acknowledged, unknown, found -> missing, unexpected, recovered
        type Three = [&'static [u64]; 3];
        let table: [(Three, Three); 8] = [
            ([&[], &[], &[]], [&[], &[], &[]]),
            ([&[1, 2], &[], &[1, 2]], [&[], &[], &[]]),
            ([&[1, 2], &[], &[1]], [&[2], &[], &[]]),
            ([&[1], &[2, 3], &[1, 3]], [&[], &[], &[3]]),
            ([&[1], &[2], &[1, 4]], [&[], &[4], &[]]),
            ([&[1], &[1], &[]], [&[1], &[], &[]]),
            ([&[1], &[1], &[1]], [&[], &[], &[]]),
            ([&[1, 2], &[3], &[3, 4]], [&[1, 2], &[4], &[3]]),
        ];
        for ([acknowledged, unknown, found], expected) in table {
            let report = judge(acknowledged, unknown, found);
            let kinds = [&report.missing, &report.unexpected, &report.recovered];
            let kinds = kinds.map(|kind| kind.iter().copied().collect::<Vec<_>>());
            assert_eq!(kinds, expected, "{acknowledged:?} {unknown:?} {found:?}");
            assert_eq!(report.is_ok(), kinds[0].is_empty() && kinds[1].is_empty());
            assert_eq!(report.acknowledged, acknowledged.len());
        }
    }

    #[test]
    fn a_long_loss_is_cut_short() {
        let all: Vec<u64> = (0..50).collect();
        let text = judge(&all, &[], &[77]).to_string();
        assert!(text.contains("50 of them missing ([0, 1, 2"), "{text}");
        assert!(
            !text.contains("10,") && text.contains("the first ones"),
            "{text}"
        );
        assert!(text.contains("1 found that nobody added ([77])"), "{text}");
    }
}
