//! A receipt as JSON: how an answer was served.

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
        })
    })
}
