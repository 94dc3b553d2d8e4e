//! How much may wait in a region's queue of writes, or be read at a store.
//!
//! Owns the counting of operations and bytes. Knows nothing of what they are.
//!
//! Invariant: one more than the bound is refused with `OVERLOADED`, but one large request is let in when
//! nothing else waits.

use crate::error::{Error, Outcome};
use rdb_types::Reason;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of operations that may wait in one queue.
const QUEUE_BYTES: usize = 64 << 20;

/// What waits in a queue; clones count together.
#[derive(Clone)]
pub struct Load {
    max_ops: usize,
    count: Arc<Count>,
}

#[derive(Default)]
struct Count {
    ops: AtomicUsize,
    bytes: AtomicUsize,
}

/// The operations and bytes that a piece of work counts for, given back when it is gone.
pub struct Slots {
    ops: usize,
    bytes: usize,
    count: Arc<Count>,
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.count.ops.fetch_sub(self.ops, Ordering::AcqRel);
        self.count.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Load {
    /// Of a queue in which so many operations may wait.
    pub fn new(max_ops: usize) -> Load {
        Load {
            max_ops,
            count: Arc::default(),
        }
    }

    /// Counts writes in.
    ///
    /// # Errors
    /// Too much waits already.
    pub fn take(&self, ops: usize, bytes: usize) -> Result<Slots, Error> {
        self.count_in(ops, bytes).map_err(|(before, bytes_before)| {
            let message = format!(
                "{before} writes of {bytes_before} bytes wait in this region already; slow down, or raise limits.max_inflight ({})",
                self.max_ops
            );
            self.refusal(message).outcome(Outcome::NotApplied)
        })
    }

    /// Counts reads in, by their keys: what they find is bounded where it is answered.
    ///
    /// # Errors
    /// Too many are under way already.
    pub fn take_reads(&self, reads: usize, key_bytes: usize) -> Result<Slots, Error> {
        self.count_in(reads, key_bytes).map_err(|(before, _)| {
            self.refusal(format!(
                "{before} reads are under way at this store already; slow down, or raise limits.max_inflight ({})",
                self.max_ops
            ))
        })
    }

    fn refusal(&self, message: String) -> Error {
        Error::new(Reason::Overloaded, message).with("limit", self.max_ops)
    }

    /// `Err`: how many there are, and of how many bytes, which leaves no place.
    fn count_in(&self, ops: usize, bytes: usize) -> Result<Slots, (usize, usize)> {
        let before = self.count.ops.fetch_add(ops, Ordering::AcqRel);
        let bytes_before = self.count.bytes.fetch_add(bytes, Ordering::AcqRel);
        let slots = Slots {
            ops,
            bytes,
            count: self.count.clone(),
        };
        if before > 0 && (before + ops > self.max_ops || bytes_before + bytes > QUEUE_BYTES) {
            return Err((before, bytes_before));
        }
        Ok(slots)
    }

    /// Operations that wait now.
    pub fn waiting(&self) -> usize {
        self.count.ops.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_the_bound_is_refused_and_room_comes_back() {
        let load = Load::new(3);
        let first = load.take(2, 10).unwrap();
        assert_eq!(load.take(2, 10).err().unwrap().reason, Reason::Overloaded);
        assert!(load.take(1, QUEUE_BYTES).is_err());
        assert_eq!(load.waiting(), 2);
        drop(first);
        assert!(load.take(9, 2 * QUEUE_BYTES).is_ok(), "alone, it is let in");
        assert_eq!(load.waiting(), 0);
        let _reads = load.take_reads(3, 10).unwrap();
        let refused = load.take_reads(1, 10).err().unwrap();
        assert_eq!(refused.reason, Reason::Overloaded);
        assert!(
            !refused.metadata.contains_key("outcome"),
            "nothing was to be applied"
        );
    }
}
