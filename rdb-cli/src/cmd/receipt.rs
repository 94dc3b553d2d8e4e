//! A receipt, how an answer was served: as JSON, and what of it people are told.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rdb_client::Receipt;
use rdb_proto::convert;
use serde_json::{Value, json};

/// `null` where the store gave none.
pub(super) fn json(receipt: Option<&Receipt>) -> Value {
    receipt.map_or(Value::Null, |receipt| {
        json!({
            "mode": convert::mode(receipt.mode).map(|mode| mode.as_str()),
            "epoch": receipt.epoch.to_string(),
            "store_id": receipt.store_id,
            "region_id": receipt.region_id.to_string(),
            "revision": receipt.revision.to_string(),
            "staleness_bound_ms": receipt.staleness_bound_ms.to_string(),
            // As `watch --session` takes it.
            "session": STANDARD.encode(&receipt.session),
        })
    })
}

/// What a store answers that has not caught up with a leader since its start.
const UNKNOWN_MS: u64 = u64::MAX;

/// How old a local read may be, in words: of `store_id`, at most `bound_ms` behind.
pub(super) fn staleness(store_id: u32, bound_ms: u64) -> String {
    match bound_ms {
        0 => format!("as of now: store {store_id} leads"),
        UNKNOWN_MS => format!(
            "as of some time before store {store_id} started: it has not caught up with a leader since"
        ),
        bound_ms => format!("from store {store_id}, at most {bound_ms} ms old"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_catching_up_is_not_said_to_have_no_leader() {
        let text = staleness(3, UNKNOWN_MS);
        assert!(text.contains("has not caught up with a leader"), "{text}");
        assert!(!text.contains("heard of no leader"), "{text}");
    }
}
