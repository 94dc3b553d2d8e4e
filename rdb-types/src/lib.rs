//! The nouns of FlareDB.
//!
//! Owns what every other crate agrees on: ids, stamps and the clock that hands them out, records
//! and their bytes on disk, namespaces and their names, digests. Does no IO, knows no wire format,
//! reads no clock and draws no random number: all of these come in as arguments.

pub mod digest;
pub mod ids;
pub mod key;
pub mod merge;
pub mod namespace;
pub mod reason;
pub mod record;
pub mod request_id;
pub mod session;
pub mod stamp;
pub mod vector;
pub mod watch_token;

pub use digest::Digest;
pub use ids::{Epoch, NamespaceId, RegionId, StoreId};
pub use key::GlobalKey;
pub use namespace::{Durability, Mode, NameError, NamespaceName, Policies};
pub use reason::Reason;
pub use record::Record;
pub use request_id::RequestId;
pub use session::SessionToken;
pub use stamp::{HybridClock, Stamp};
pub use vector::{Dot, VersionVector};
pub use watch_token::{WatchPlace, WatchToken};
