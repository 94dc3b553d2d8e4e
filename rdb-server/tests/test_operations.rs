//! What an operator sees, held against real `rdb-server` processes and against the files of `deploy/`.
//!
//! The way in: `story.rs` (every metric moves, every event is in the log, and no key or value in either),
//! `log_level.rs` (what is logged changes while it runs), `log_reader.rs` (nobody waits for who reads the log), `service_manager.rs` (what systemd hears), `leaving.rs` (what a load balancer
//! sees of a store that ends), `deploy.rs` (dashboard,
//! alerts and runbooks name what there is).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may stop at what it did not expect"
)]
#![allow(clippy::print_stdout, reason = "what was measured is worth reading")]

#[path = "test_operations/deploy.rs"]
mod deploy;
#[path = "test_operations/leaving.rs"]
mod leaving;
#[path = "test_operations/log_level.rs"]
mod log_level;
#[path = "test_operations/log_reader.rs"]
mod log_reader;
#[path = "test_operations/scrape.rs"]
mod scrape;
#[path = "test_operations/service_manager.rs"]
mod service_manager;
#[path = "test_operations/story.rs"]
mod story;
mod support;
