//! Keys of the rows that belong to the store itself and not to a region.
//!
//! They stand in the `region` family under region 0, which no region has.

use bytes::{BufMut, Bytes, BytesMut};

/// The key of a store's row: `clock` (the bound above every stamp given out), `plan` (what the
/// cluster started from), `promise` (the one disk that may name this one in a plan), `starts` (how often the
/// directory was started) and `seen/STORE` (the last start of that store that was met).
pub fn row(name: &str) -> Bytes {
    let mut key = BytesMut::with_capacity(8 + name.len());
    key.put_u64(0);
    key.put_slice(name.as_bytes());
    key.freeze()
}

/// Where stands which snapshot a region is being filled from. It is there exactly while the region's own
/// rows are neither the old ones nor the new ones.
pub fn installing(region: rdb_types::RegionId) -> Bytes {
    row(&format!("installing/{region}"))
}
