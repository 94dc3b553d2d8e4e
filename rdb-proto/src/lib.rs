//! The messages of FlareDB: clients ([`kv`]), stores and mode endpoints ([`raft`]), operators
//! ([`admin`]).
//!
//! Owns the generated code and, in [`convert`], the only place where wire types and domain types
//! meet. Knows nothing of what a message means to a store.

/// The generated modules, nested as the packages are: generated code refers to its neighbours that way.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    reason = "generated; documented in the proto files"
)]
mod flaredb {
    pub mod kv {
        pub mod v1 {
            tonic::include_proto!("flaredb.kv.v1");
        }
    }
    pub mod raft {
        pub mod v1 {
            tonic::include_proto!("flaredb.raft.v1");
        }
    }
    pub mod admin {
        pub mod v1 {
            tonic::include_proto!("flaredb.admin.v1");
        }
    }
}

/// `flaredb.admin.v1`: what operators call.
pub use flaredb::admin::v1 as admin;
/// `flaredb.kv.v1`: what application developers call.
pub use flaredb::kv::v1 as kv;
/// `flaredb.raft.v1`: mode endpoints, and what stores say to each other and keep in their logs.
pub use flaredb::raft::v1 as raft;

pub mod convert;

/// The encoded file descriptors of all three files, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Wire version of the messages between stores. A peer with another major version is refused; a
/// differing minor one is served.
pub const WIRE_MAJOR: u32 = 1;
/// See [`WIRE_MAJOR`]. What a minor version brought is used once all stores of the cluster have it, as
/// they say when they register: a store cannot leave out what it finds in a log.
///
/// | Minor | Brought |
/// |---|---|
/// | 0 | the beginning |
/// | 1 | namespaces are deleted |
pub const WIRE_MINOR: u32 = 1;
/// The first minor version whose stores know what to do with a deleted namespace.
pub const WIRE_MINOR_DELETES: u32 = 1;
