//! The only place where wire types and domain types meet.
//!
//! Owns small, total conversions; what can be wrong on the wire comes back as `None` or an error and
//! never panics. Knows nothing of requests or stores.

use crate::{kv, raft};
use rdb_types::{Mode, Policies, StoreId, VersionVector};

/// The mode of a wire number; `None` when it is unspecified or unknown.
pub fn mode(wire: i32) -> Option<Mode> {
    match kv::Mode::try_from(wire) {
        Ok(kv::Mode::Strong) => Some(Mode::Strong),
        Ok(kv::Mode::Eventual) => Some(Mode::Eventual),
        Ok(kv::Mode::Unspecified) | Err(_) => None,
    }
}

/// A mode's wire number.
pub fn mode_to_wire(mode: Mode) -> i32 {
    match mode {
        Mode::Strong => kv::Mode::Strong as i32,
        Mode::Eventual => kv::Mode::Eventual as i32,
    }
}

/// Reads policies. An empty durability is the default; a negative number or an unknown durability is
/// refused with the field's name.
pub fn policies(wire: Option<&raft::Policies>) -> Result<Policies, (&'static str, String)> {
    let Some(wire) = wire else {
        return Ok(Policies::default());
    };
    let durability = match wire.durability.as_str() {
        "" => Default::default(),
        text => text.parse().map_err(|why| ("policies.durability", why))?,
    };
    let natural = |field, number: i64| {
        u64::try_from(number).map_err(|_| (field, format!("{number} is negative")))
    };
    Ok(Policies {
        durability,
        max_lag_ms: natural("policies.max_lag_ms", wire.max_lag_ms)?,
        ttl_ms: natural("policies.ttl_ms", wire.ttl_ms)?,
        conflict_log_bytes: wire.conflict_log_bytes,
    })
}

/// Policies as they go out.
pub fn policies_to_wire(policies: &Policies) -> raft::Policies {
    raft::Policies {
        durability: policies.durability.as_str().to_owned(),
        max_lag_ms: i64::try_from(policies.max_lag_ms).unwrap_or(i64::MAX),
        ttl_ms: i64::try_from(policies.ttl_ms).unwrap_or(i64::MAX),
        conflict_log_bytes: policies.conflict_log_bytes,
    }
}

/// Reads a version vector; `None` when a part names no store.
pub fn vector(wire: &[raft::VectorPart]) -> Option<VersionVector> {
    wire.iter()
        .map(|part| Some((StoreId::new(u64::from(part.origin))?, part.sequence)))
        .collect()
}

/// A version vector as it goes out.
pub fn vector_to_wire(vector: &VersionVector) -> Vec<raft::VectorPart> {
    vector
        .iter()
        .map(|(origin, sequence)| raft::VectorPart {
            origin: u32::from(origin.get()),
            sequence,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_policies_survive_the_wire() {
        for value in [Mode::Strong, Mode::Eventual] {
            assert_eq!(mode(mode_to_wire(value)), Some(value));
        }
        assert_eq!(mode(0), None);
        assert_eq!(mode(77), None);
        let given = Policies {
            max_lag_ms: 5,
            ttl_ms: 7,
            ..Policies::default()
        };
        assert_eq!(policies(Some(&policies_to_wire(&given))), Ok(given));
        let bad = raft::Policies {
            ttl_ms: -1,
            ..Default::default()
        };
        assert_eq!(policies(Some(&bad)).unwrap_err().0, "policies.ttl_ms");
        let odd = raft::Policies {
            durability: "maybe".into(),
            ..Default::default()
        };
        assert_eq!(policies(Some(&odd)).unwrap_err().0, "policies.durability");
    }
}
