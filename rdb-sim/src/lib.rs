//! FlareDB's simulator: whole stores on one thread and simulated time, every fault from one seed.
//!
//! | Read | for |
//! |---|---|
//! | [`world`] | a run from its beginning to its verdict |
//! | [`plan`] | what goes wrong, and when |
//! | [`store`], [`disk`], [`network`], [`clock`], [`door`], [`aim`] | the simulated edges of a store |
//! | [`workload`], [`eventual_clients`], [`switched_clients`] | what clients do |
//! | [`observer`], [`eventual_watch`], [`switch_watch`], [`invariants`] | what must hold |
//! | [`bugs`] | rules that are broken on purpose, to see whether that is caught |
//! | [`tcp`] | the other mode: gRPC and the client over simulated TCP |
//! | [`search`] | many seeds, and a failing one made smaller |
//!
//! The stores are those of `rdb-server`, unchanged: they are given another network, disk, clock and
//! source of chance, and never learn of it.

pub mod aim;
pub mod ballot;
pub mod bugs;
pub mod clock;
pub mod disk;
pub mod door;
pub mod eventual_clients;
pub mod eventual_watch;
pub mod invariants;
pub mod network;
pub mod observer;
pub mod plan;
pub mod search;
pub mod store;
pub mod switch_watch;
pub mod switched_clients;
pub mod tcp;
pub mod trace;
pub mod workload;
pub mod world;
