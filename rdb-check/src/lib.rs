//! Judges what a cluster did by what its clients saw.
//!
//! Tests, the demo and the simulator record the calls of their clients and hand them over; this
//! crate says whether the promises held. It owns the history types ([`Call`], [`Recorder`]) and one
//! module per promise:
//!
//! | promise | where |
//! |---|---|
//! | reads and writes of a key are linearizable | [`check_linearizable`] |
//! | nothing acknowledged is missing, nothing appears from nowhere | [`set`] |
//! | acknowledged increments count, unknown ones at most once | [`counter`] |
//! | replicas end up equal | [`convergence`] |
//! | a session never goes back in time | [`session`] |
//!
//! [`jepsen`] reads histories that others recorded; the checker is itself checked with them.
//!
//! It does not know FlareDB: no crate of the workspace is a dependency, so that a defect in one
//! cannot hide itself here, and the same checker can judge another store.
//!
//! Invariants:
//! - A verdict depends on the history alone: no clock, no randomness, no thread decides.
//! - "Don't know" is never "fine": an exhausted search, a malformed history and a comparison that
//!   could not be made are reported as such, and count as failures.

pub mod convergence;
pub mod counter;
mod history;
pub mod jepsen;
mod linearizable;
mod recorder;
pub mod session;
pub mod set;

pub use history::{Call, Op, Outcome, Value};
pub use linearizable::{
    Budget, Explanation, Verdict, check_linearizable, check_linearizable_within,
};
pub use recorder::{Recorder, Token};
