//! A FlareDB store.
//!
//! | Read | for |
//! |---|---|
//! | [`store`] | what a store is made of, without its ports |
//! | [`server`] | its ports, and the order in which it starts and stops |
//! | [`config`] | every key of the configuration |
//! | [`kv_service`], [`raft_service`], [`admin_service`], [`http`] | the edges: decode, validate, decide nothing |
//! | [`grpc_edge`] | what gRPC would answer by itself, in our words and in time |
//! | [`modes`] | how far a switch of modes is, when it is over, and which stores disagree |
//! | [`router`], [`namespace`], [`session`] | from names and keys to regions, and back to one answer |
//! | [`peer_manager`], [`peer`] | the replicas of this store; a region's writes, reads and quorum |
//! | [`region`] | what a log entry does to a region's data |
//! | [`eventual`] | what a write does to a namespace where every replica accepts |
//! | [`history`] | the last changes of a region, for watches |
//! | [`raft`] | consensus behind our own names |
//! | [`transport`], [`contacts`] | how stores reach each other, and when they last did |
//! | [`cluster`] | who belongs to the cluster, and how it begins |
//! | [`clock`] | wall time and stamps |
//! | [`tasks`], [`watch`] | what a store runs, its chance, and channels that wake in order |
//! | [`error`], [`metrics`], [`logging`] | refusals, numbers, logs |
//! | [`service_manager`] | what systemd is told |

pub mod admin_service;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod contacts;
pub mod error;
pub mod eventual;
pub mod grpc_edge;
pub mod history;
pub mod host;
pub mod http;
pub mod kv_service;
pub mod layout_store;
pub mod logging;
pub mod metrics;
pub mod modes;
pub mod namespace;
pub mod peer;
pub mod peer_manager;
pub mod raft;
pub mod raft_service;
pub mod region;
pub mod room;
pub mod router;
pub mod server;
pub mod service_manager;
pub mod session;
pub mod store;
pub mod stores;
pub mod tasks;
pub mod transport;
pub mod watch;
