//! An eventual write is always accepted: also by a store that reaches nobody, which has served the
//! namespace once. But for one whose disk is full: what it took before that waits for room.

use rdb_types::StoreId;

/// Its name.
pub const NAME: &str = "eventual writes are accepted alone";

/// A store refused an eventual write for this reason. `full`: its disk was full at that time.
///
/// # Errors
/// The reason is that it reaches no others.
pub fn check(store: StoreId, reason: &str, served_before: bool, full: bool) -> Result<(), String> {
    let needs_others = ["NO_QUORUM", "NOT_LEADER", "DEADLINE_EXCEEDED"].contains(&reason);
    if served_before && needs_others && !(full && reason == "DEADLINE_EXCEEDED") {
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
        assert!(check(one, "NO_QUORUM", true, true).is_err());
        assert!(check(one, "NO_QUORUM", false, false).is_ok());
        assert!(check(one, "CLOCK_SKEW", true, false).is_ok());
        assert!(check(one, "DEADLINE_EXCEEDED", true, false).is_err());
        assert!(check(one, "DEADLINE_EXCEEDED", true, true).is_ok());
    }
}
