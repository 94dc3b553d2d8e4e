//! Nothing old sneaks in: what a replica takes into its logs was accepted behind the last seal. What a seal
//! left out is set aside, and never becomes part of a later time by itself.
//!
//! Looks at what is written, not at what is left in the end: a later write would hide it.

use rdb_types::{Dot, Epoch, NamespaceId, RegionId, StoreId};

/// Its name.
pub const NAME: &str = "nothing old sneaks in";

/// A replica, whose last seal began the epoch `sealed`, writes an entry that was accepted in `epoch`.
///
/// # Errors
/// The entry is of a time that had ended.
pub fn check(
    store: StoreId,
    (region, namespace): (RegionId, NamespaceId),
    dot: Dot,
    epoch: Epoch,
    sealed: Epoch,
) -> Result<(), String> {
    if epoch > sealed {
        return Ok(());
    }
    Err(format!(
        "store {store} takes entry {} of store {}, namespace {namespace}, region {region}, accepted in epoch {epoch}, and a seal began epoch {sealed}",
        dot.sequence, dot.origin
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_an_earlier_time_is_seen() {
        let one = StoreId::new(1).unwrap();
        let dot = Dot {
            origin: one,
            sequence: 7,
        };
        let judge = |epoch| {
            check(
                one,
                (RegionId(2), NamespaceId(5)),
                dot,
                Epoch(epoch),
                Epoch(4),
            )
        };
        judge(5).unwrap();
        assert!(judge(4).is_err());
        assert!(judge(2).is_err());
    }
}
