//! Checks a counter that clients incremented: acknowledged increments count, and those of unknown
//! outcome count at most once.
//!
//! Owns one inequality: `acknowledged <= final <= acknowledged + unknown`, each the sum of its
//! increments. Counters go up only.

use std::fmt;

/// How far a counter is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// The sum of the increments that were acknowledged: the least it may be.
    pub acknowledged: u64,
    /// The sum of those of unknown outcome: so much more it may be.
    pub unknown: u64,
    /// What it was found at.
    pub found: u64,
}

/// Judges the value `found` after all increments ended.
///
/// # Errors
///
/// Acknowledged increments are missing, or some counted twice.
pub fn check(acknowledged: u64, unknown: u64, found: u64) -> Result<(), Violation> {
    // Saturated, the upper bound is beyond what can be found anyway.
    let most = acknowledged.saturating_add(unknown);
    if (acknowledged..=most).contains(&found) {
        Ok(())
    } else {
        Err(Violation {
            acknowledged,
            unknown,
            found,
        })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation {
            acknowledged,
            unknown,
            found,
        } = *self;
        write!(
            f,
            "the counter is at {found}, with {acknowledged} acknowledged and {unknown} of "
        )?;
        match acknowledged.checked_sub(found) {
            Some(lost) => write!(
                f,
                "unknown outcome: {lost} acknowledged increments are lost"
            ),
            None => {
                let extra = found - acknowledged - unknown;
                write!(
                    f,
                    "unknown outcome: {extra} increments counted that nobody made"
                )
            }
        }
    }
}

impl std::error::Error for Violation {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_sharp() {
        let table = [
            ((0, 0, 0), true),
            ((0, 0, 1), false),
            ((5, 0, 4), false),
            ((5, 0, 5), true),
            ((5, 2, 4), false),
            ((5, 2, 5), true),
            ((5, 2, 7), true),
            ((5, 2, 8), false),
            ((u64::MAX, u64::MAX, u64::MAX), true),
            ((u64::MAX, u64::MAX, u64::MAX - 1), false),
        ];
        for ((acknowledged, unknown, found), ok) in table {
            let verdict = check(acknowledged, unknown, found);
            assert_eq!(verdict.is_ok(), ok, "{acknowledged} {unknown} {found}");
        }
    }

    #[test]
    fn a_violation_says_which_way() {
        let lost = check(5, 2, 3).expect_err("two are missing").to_string();
        assert!(
            lost.contains("2 acknowledged increments are lost"),
            "{lost}"
        );
        let extra = check(5, 2, 10).expect_err("three too many").to_string();
        assert!(
            extra.contains("3 increments counted that nobody made"),
            "{extra}"
        );
    }
}
