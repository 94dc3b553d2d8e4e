//! Eventual namespaces, decided without doing: every replica accepts writes, the newest stamp wins.
//!
//! Owns the rules by which a replica accepts, merges, expires and forgets ([`fold`]), what it keeps of a
//! namespace ([`state`], [`layout`], [`conflicts`]), what it concludes from the vectors of the others
//! ([`reports`]), and what it sends to whom ([`outbox`]). All of it is pure: rows come in through a view,
//! time and stamps as arguments, and a batch goes out. Doing it (the loop, the network, the disk) is
//! [`crate::peer::eventual`]'s. Who wins between two records is [`rdb_types::merge`]'s alone.
//!
//! Invariants, of one namespace in one region:
//! - only the store that accepts a write stamps and numbers it; nobody changes either;
//! - a replica applies an origin's writes in the order of their numbers, without a gap: its vector says
//!   up to which number it has all;
//! - vector, digest, records and logs change in one atomic batch;
//! - nothing leaves a store before it is synced: no entry, no vector, no range.

pub mod conflicts;
pub mod fold;
pub mod layout;
pub mod outbox;
pub mod reports;
pub mod state;

#[cfg(test)]
mod fold_tests;
#[cfg(test)]
mod model_tests;

pub use fold::{Fold, Merged};
pub use reports::{Lag, Report, Reports};
pub use state::EventualState;
