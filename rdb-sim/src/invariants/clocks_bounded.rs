//! A wild clock stays where it is: no stamp of another store gets onto a disk that is further ahead of the
//! simulated time than drift and skew explain, however wrong one store's clock is.

use rdb_types::{Stamp, StoreId};

/// Its name.
pub const NAME: &str = "clocks bounded";

/// What drift, skew and bounds of restarts explain, in milliseconds. A clock that jumps goes an hour at
/// least, or half a second.
const SANE_MS: u64 = 60_000;

/// A stamp of `origin` is on the disk of `store`; it is `now_ms` in the simulated world.
///
/// # Errors
/// It is too far ahead.
pub fn check(store: StoreId, origin: StoreId, stamp: Stamp, now_ms: u64) -> Result<(), String> {
    let ahead_ms = stamp.unix_ms().saturating_sub(now_ms);
    // What a store with a wild clock accepted while it was alone is its own, and held by all others.
    if store == origin || ahead_ms <= SANE_MS {
        return Ok(());
    }
    Err(format!(
        "store {store} holds a write of store {origin} that is stamped {ahead_ms} ms ahead"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_far_future_stamp_is_seen() {
        let (one, two) = (StoreId::new(1).unwrap(), StoreId::new(2).unwrap());
        let now_ms = 2_000_000_000_000;
        let wild = Stamp::pack(now_ms + 3_600_000, 0, two);
        assert!(check(one, two, wild, now_ms).is_err());
        assert!(check(two, two, wild, now_ms).is_ok());
        assert!(check(one, two, Stamp::pack(now_ms + 900, 0, two), now_ms).is_ok());
    }
}
