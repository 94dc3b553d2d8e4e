//! What the transport promises, over real TCP: order, timeouts, broken and silent connections, wrong
//! callers, garbage, limits; and the faults that can be put on top of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test and its helpers may stop at what they did not expect"
)]

mod abuse;
mod breaks;
mod calls;
mod faults;
mod harness;
