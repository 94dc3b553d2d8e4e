//! How much may wait in a region's queue of writes.
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

    /// Counts work in.
    ///
    /// # Errors
    /// Too much waits already.
    pub fn take(&self, ops: usize, bytes: usize) -> Result<Slots, Error> {
        let before = self.count.ops.fetch_add(ops, Ordering::AcqRel);
        let bytes_before = self.count.bytes.fetch_add(bytes, Ordering::AcqRel);
        let slots = Slots {
            ops,
            bytes,
            count: self.count.clone(),
        };
        if before > 0 && (before + ops > self.max_ops || bytes_before + bytes > QUEUE_BYTES) {
            return Err(Error::new(
                Reason::Overloaded,
                format!(
                    "{before} writes of {bytes_before} bytes wait in this region already; slow down, or raise limits.max_inflight ({})",
                    self.max_ops
                ),
            )
            .with("limit", self.max_ops)
            .outcome(Outcome::NotApplied));
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
    }
}
