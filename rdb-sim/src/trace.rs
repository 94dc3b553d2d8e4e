//! What happened in a run, as one number.
//!
//! Owns the running hash of every event and, on request, their text. Two runs of one seed have equal
//! hashes, or the simulator has lost hold of something that decides.

use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

/// The events of one run; clones write to the same.
#[derive(Clone)]
pub struct Trace(Arc<Shared>);

struct Shared {
    began: Instant,
    print: bool,
    state: Mutex<State>,
}

struct State {
    hash: Xxh3,
    events: u64,
}

impl Trace {
    /// Nothing happened yet. `print`: events go to standard error as they come.
    pub fn new(print: bool) -> Trace {
        Trace(Arc::new(Shared {
            began: Instant::now(),
            print,
            state: Mutex::new(State {
                hash: Xxh3::new(),
                events: 0,
            }),
        }))
    }

    /// Simulated milliseconds since the beginning.
    pub fn now_ms(&self) -> u64 {
        self.0.began.elapsed().as_millis() as u64
    }

    /// Something happened now.
    #[allow(
        clippy::print_stderr,
        reason = "printing the events is what was asked for"
    )]
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>8} {what}", self.now_ms());
        if self.0.print {
            eprintln!("{line}");
        }
        let mut state = self.0.state.lock();
        state.hash.update(line.as_bytes());
        state.hash.update(b"\n");
        state.events += 1;
    }

    /// The hash of all events so far.
    pub fn hash(&self) -> u64 {
        self.0.state.lock().hash.digest()
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.0.state.lock().events
    }
}
