//! One region's replicated state: what its log entries do to its data.
//!
//! Owns the layout of a region's rows ([`layout`]), the state that describes its data ([`state`]),
//! the pure function from (state, entry) to (batch, answer) ([`apply`]), and filling a region from a
//! snapshot ([`install`]); [`machine`] is the thin edge to the consensus library. Knows nothing of requests, leaders or the network.
//!
//! Invariants:
//! - the applied index, the digest, the modes and the table of request ids change in the same atomic
//!   batch as the data that they describe;
//! - apply is deterministic: no clock, no randomness, no order of a hash map. What it needs is in the
//!   entry.

pub mod apply;
mod dropping;
pub mod expiring;
pub mod fresh_copy;
mod install;
pub mod layout;
pub mod machine;
pub mod meta;
pub mod request_ids;
mod set_aside;
pub mod state;
pub mod switching;

pub use machine::RegionMachine;
pub use state::{NamespaceState, RegionState, Summary};
