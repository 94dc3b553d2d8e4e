//! openraft behind our own names.
//!
//! Owns the choice of openraft's types and settings, and one region's log, network and inbound
//! requests. Knows nothing of what a command does: that is the state machine's, which the rest of
//! this module takes as a parameter.
//!
//! | Read | for |
//! |---|---|
//! | [`settings`] | every knob of openraft that is set, and why |
//! | [`runtime`] | the one place that names the async runtime |
//! | [`wire`] | openraft's types as protobuf and back: on the wire and on the disk |
//! | [`log_store`], [`log_state`], [`log_tail`], [`log_disk`], [`log_keys`] | a region's log: on the disk through the store's committer, its newest part in memory |
//! | [`network`], [`append_stream`], [`snapshot_sender`] | what a replica sends to the others |
//! | [`inbound`], [`snapshot_receiver`] | what it does with what they send |
//! | [`snapshot`] | what a snapshot is: sorted records of a frozen view, read piece by piece |
//!
//! # Invariants
//!
//! - A vote is on the disk before anybody hears of it; an entry before its replica counts for a
//!   quorum. An entry may be read and sent before that.
//! - Nothing here reads a clock or draws a random number except through [`runtime`].

pub mod append_stream;
pub mod inbound;
pub mod log_disk;
pub mod log_keys;
pub mod log_state;
pub mod log_store;
pub mod log_tail;
pub mod network;
pub mod runtime;
pub mod settings;
pub mod snapshot;
pub mod snapshot_receiver;
pub mod snapshot_sender;
pub mod wire;

pub use inbound::Inbound;
pub use log_store::{LogStoreOptions, RaftLogStore};
pub use network::{NetworkSettings, QuorumView, RegionNetwork};
pub use settings::{RaftSettings, SettingsError, raft_config};
pub use snapshot::{FrozenSnapshot, ReceivedSnapshot, SnapshotData, SnapshotItem, SnapshotReader};
pub use snapshot_receiver::{
    FileSpool, MemorySpool, SnapshotReceiver, SnapshotSpool, SnapshotStream, Spooled,
};
pub use wire::WireError;

use bytes::Bytes;
use prost::Message;
use std::fmt;

openraft::declare_raft_types!(
    /// What openraft works with here.
    ///
    /// The leader id is Raft's own: one leader per term. openraft's default allows two leaders in
    /// one term, told apart by their ids, which every reader of a log would have to know.
    pub TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = u64,
        Node = StoreNode,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = runtime::Runtime,
);

/// What a log entry holds: an encoded [`rdb_proto::raft::Command`]. It stays encoded on its way
/// through logs and networks and is decoded once, where it is applied.
#[derive(Clone, PartialEq, Eq)]
pub struct Command(pub Bytes);

impl Command {
    /// Encodes a command.
    pub fn encode(command: &rdb_proto::raft::Command) -> Command {
        Command(command.encode_to_vec().into())
    }

    /// Decodes it.
    ///
    /// # Errors
    /// The bytes are no command.
    pub fn decode(&self) -> Result<rdb_proto::raft::Command, WireError> {
        rdb_proto::raft::Command::decode(self.0.clone())
            .map_err(|error| WireError::undecodable("command", &error))
    }
}

/// Short: commands go into logs of openraft, users' data must not.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What applying a command answers. It never leaves the process, so it is never encoded. Empty for
/// entries that hold no command.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome(pub rdb_proto::raft::CommandOutcome);

/// What a region's membership says of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreNode {
    /// The identity of its data directory.
    pub store_uuid: String,
    /// host:port that other stores dial.
    pub address: String,
}

/// A replica of one region.
pub type RaftOf<SM> = openraft::Raft<TypeConfig, SM>;
/// Term and index of an entry.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// Whom a replica voted for, and whether it was elected.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// An entry of the log.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// What an entry holds.
pub type EntryPayload = openraft::alias::PayloadOf<TypeConfig>;
/// The voters and learners of a region.
pub type Membership = openraft::Membership<u64, StoreNode>;
/// A membership with the entry that set it.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// The first and last entry that a log holds.
pub type LogState = openraft::storage::LogState<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot.
pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotData>;
/// An entry to apply, with whoever waits for it.
pub type EntryResponder = openraft::storage::EntryResponder<TypeConfig>;
/// What a replica knows of itself.
pub type Metrics = openraft::RaftMetrics<TypeConfig>;

/// A log id.
pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(term.into(), index)
}
