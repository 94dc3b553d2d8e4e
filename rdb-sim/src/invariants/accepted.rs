//! An eventual write is always accepted: also by a store that reaches nobody, which has served the
//! namespace once.

use rdb_types::StoreId;

/// Its name.
pub const NAME: &str = "eventual writes are accepted alone";

/// A store refused an eventual write for this reason.
///
/// # Errors
/// The reason is that it reaches no others.
pub fn check(store: StoreId, reason: &str, served_before: bool) -> Result<(), String> {
    let needs_others = ["NO_QUORUM", "NOT_LEADER", "DEADLINE_EXCEEDED"].contains(&reason);
    if served_before && needs_others {
        return Err(format!("store {store} refused an eventual write: {reason}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needing_a_quorum_is_seen() {
        let one = StoreId::new(1).unwrap();
        assert!(check(one, "NO_QUORUM", true).is_err());
        assert!(check(one, "NO_QUORUM", false).is_ok());
        assert!(check(one, "CLOCK_SKEW", true).is_ok());
    }
}
