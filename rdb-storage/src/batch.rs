//! What is written together.
//!
//! Owns the list of operations of one atomic write. Does not know an engine: each engine
//! translates the list itself.
//!
//! Invariant: the operations take effect in the order in which they were added, so within
//! one batch a later operation on a key wins over an earlier one.

use bytes::Bytes;

use crate::Family;

/// What an operation costs beside its keys and values, in bytes: roughly its header in a
/// write-ahead log. It keeps a batch of a million empty deletes from counting as nothing.
const OP_OVERHEAD_BYTES: usize = 16;

/// One operation of a [`WriteBatch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a key, whether or not it was there.
    Put {
        /// The keyspace.
        family: Family,
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Removes a key; no error if it was not there.
    Delete {
        /// The keyspace.
        family: Family,
        /// The key.
        key: Bytes,
    },
    /// Removes every key in `[start, end)`; never empty, see [`WriteBatch::delete_range`].
    DeleteRange {
        /// The keyspace.
        family: Family,
        /// The first key that goes.
        start: Bytes,
        /// The first key that stays.
        end: Bytes,
    },
}

impl Op {
    fn size_bytes(&self) -> usize {
        OP_OVERHEAD_BYTES
            + match self {
                Op::Put { key, value, .. } => key.len() + value.len(),
                Op::Delete { key, .. } => key.len(),
                Op::DeleteRange { start, end, .. } => start.len() + end.len(),
            }
    }
}

/// Operations that take effect together, in order, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    ops: Vec<Op>,
    size_bytes: usize,
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key` to `value`.
    pub fn put(&mut self, family: Family, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.push(Op::Put {
            family,
            key: key.into(),
            value: value.into(),
        });
    }

    /// Removes `key`; no error if it is not there.
    pub fn delete(&mut self, family: Family, key: impl Into<Bytes>) {
        self.push(Op::Delete {
            family,
            key: key.into(),
        });
    }

    /// Removes every key in `[start, end_exclusive)`. An empty or inverted range removes
    /// nothing and adds no operation.
    pub fn delete_range(
        &mut self,
        family: Family,
        start: impl Into<Bytes>,
        end_exclusive: impl Into<Bytes>,
    ) {
        let (start, end) = (start.into(), end_exclusive.into());
        // RocksDB's behaviour for an inverted range is undefined in a batch, so none is ever
        // handed to an engine.
        if start < end {
            self.push(Op::DeleteRange { family, start, end });
        }
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is no operation.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes of all keys and values plus a fixed amount per operation: about what the batch
    /// takes in the write-ahead log.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Moves all operations of `other` behind those of `self`; `other` is empty afterwards.
    pub fn append(&mut self, other: &mut WriteBatch) {
        if self.ops.is_empty() {
            std::mem::swap(&mut self.ops, &mut other.ops);
        } else {
            self.ops.append(&mut other.ops);
        }
        self.size_bytes += std::mem::take(&mut other.size_bytes);
    }

    /// The operations, in the order in which they take effect.
    pub fn ops(&self) -> impl ExactSizeIterator<Item = &Op> {
        self.ops.iter()
    }

    fn push(&mut self, op: Op) {
        self.size_bytes += op.size_bytes();
        self.ops.push(op);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn append_moves_everything_and_keeps_the_order() {
        let mut first = WriteBatch::new();
        first.put(Family::Data, "a", "1");
        let mut second = WriteBatch::new();
        second.delete(Family::Data, "a");
        second.put(Family::Region, "b", "2");
        let total = first.size_bytes() + second.size_bytes();

        first.append(&mut second);

        assert!(second.is_empty());
        assert_eq!(second.size_bytes(), 0);
        assert_eq!(first.size_bytes(), total);
        let kinds: Vec<_> = first
            .ops()
            .map(|op| matches!(op, Op::Delete { .. }))
            .collect();
        assert_eq!(kinds, [false, true, false]);

        let mut empty = WriteBatch::new();
        empty.append(&mut first);
        assert_eq!((empty.len(), empty.size_bytes()), (3, total));
        assert_eq!((first.len(), first.size_bytes()), (0, 0));
    }

    #[test]
    fn an_empty_or_inverted_range_adds_nothing() {
        let mut batch = WriteBatch::new();
        batch.delete_range(Family::Data, "b", "b");
        batch.delete_range(Family::Data, "c", "b");
        assert!(batch.is_empty());
        assert_eq!(batch.size_bytes(), 0);
        batch.delete_range(Family::Data, "b", "c");
        assert_eq!(batch.len(), 1);
        assert_eq!(batch.size_bytes(), OP_OVERHEAD_BYTES + 2);
    }
}
