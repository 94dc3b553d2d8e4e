//! A switch that nobody asked for is wanted by the files of all stores.

use rdb_types::{Mode, StoreId};
use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "a switch by votes has all of them";

/// An attempt began that nobody asked for. `files`: what each store's file declared, and since when.
///
/// # Errors
/// One of them declared something else all the time from `from_ms` on.
pub fn check(
    attempt: u64,
    target: Mode,
    files: &BTreeMap<StoreId, Vec<(u64, Mode)>>,
    from_ms: u64,
) -> Result<(), String> {
    for (store, declared) in files {
        let ends = declared.iter().skip(1).map(|(at_ms, _)| *at_ms);
        let ends = ends.chain([u64::MAX]);
        let mut times = declared.iter().zip(ends);
        if !times.any(|((_, mode), ends_ms)| *mode == target && ends_ms > from_ms) {
            return Err(format!(
                "attempt {attempt} to {target} began without being asked for, and the file of store {store} has not declared that since {from_ms} ms: {declared:?}"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vote_that_is_missing_is_seen() {
        let files = |last: &[(u64, Mode)]| {
            let one = StoreId::new(1).unwrap();
            let two = StoreId::new(2).unwrap();
            let voted = vec![(0, Mode::Strong), (900, Mode::Eventual)];
            [(one, voted), (two, last.to_vec())].into()
        };
        let check = |last: &[(u64, Mode)]| check(7, Mode::Eventual, &files(last), 500);
        check(&[(0, Mode::Strong), (800, Mode::Eventual)]).unwrap();
        assert!(check(&[(0, Mode::Strong)]).is_err());
        // What it took back meanwhile may have been counted before that; what it took back long ago may not.
        let taken_back = |at_ms| [(0, Mode::Eventual), (at_ms, Mode::Strong)];
        check(&taken_back(600)).unwrap();
        assert!(check(&taken_back(400)).is_err());
    }
}
