//! No database is opened or closed while the process ends.
//!
//! Owns one lock and one exit handler. Does not know databases.
//!
//! RocksDB needs what is static in C++ whenever it opens or closes: locks, tables. When `main` returns
//! (or `exit` is called) that is destroyed, though other threads go on: a thread that lets go of the
//! last handle of a database then (the committer's, one of a runtime that was shut down in the
//! background) found a lock that was none any more, and took the process down with SIGABRT in place
//! of its exit code.
//!
//! # Invariants
//!
//! - The process ends only after every opening and closing that had begun.
//! - None begins later. A database that is open then is left as a crash leaves it, which is no loss:
//!   what was promised to be on the disk was synced before.

#![allow(
    unsafe_code,
    reason = "the C library alone can run something at exit, before what is static in C++ is destroyed"
)]

use std::{ffi::c_int, mem::ManuallyDrop, ops::Deref};

// parking_lot: neither poisoned by a panic nor destroyed at exit.
use parking_lot::RwLock;

/// Whether the process is ending. Held for reading while a database is opened or closed.
static ENDING: RwLock<bool> = RwLock::new(false);

unsafe extern "C" {
    safe fn atexit(callback: extern "C" fn()) -> c_int;
}

/// Waits for those who open or close, and keeps it so.
extern "C" fn end() {
    *ENDING.write() = true;
}

/// Does `action` and lets the process end only afterwards. None if it is ending already: then
/// nothing was done.
pub(super) fn before_the_end<T>(action: impl FnOnce() -> T) -> Option<T> {
    let ending = ENDING.read();
    let done = (!*ending).then(action);
    // Handlers and destructors run in reverse order of registration, and some of what is static in
    // RocksDB is made by the first who needs it: so once more each time. A C library that has no
    // room for it leaves things as they would be without.
    atexit(end);
    done
}

/// A value that is dropped before the process ends, or not at all.
pub(super) struct ClosedBeforeTheEnd<T>(ManuallyDrop<T>);

impl<T> ClosedBeforeTheEnd<T> {
    pub(super) fn new(value: T) -> Self {
        Self(ManuallyDrop::new(value))
    }
}

impl<T> Deref for ClosedBeforeTheEnd<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Drop for ClosedBeforeTheEnd<T> {
    fn drop(&mut self) {
        // SAFETY: `self` is being dropped, so nobody uses the value afterwards, and this happens
        // once.
        before_the_end(|| unsafe { ManuallyDrop::drop(&mut self.0) });
    }
}
