//! Records the calls of many clients into one history.
//!
//! Owns the list of calls and the order of their times. Does not know what the calls mean, and
//! takes its clock as an argument, so that a simulation can bring its own.
//!
//! Invariants:
//! - `invoked_ns` is taken before the caller sends anything and `returned_ns` after it has the
//!   answer: a recorded call is never shorter than the real one, so no false violation arises.
//! - No two times are equal, also when the clock stands still (a paused simulation): what happened
//!   before in the recorder is before in the history.
//! - A call whose token was dropped (a cancelled future, a killed client) stays
//!   [`Outcome::Unknown`].

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::history::{Call, Op, Outcome};

/// Records calls from any number of threads or tasks; clones write into the same history.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    clock_ns: Box<dyn Fn() -> u64 + Send + Sync>,
    // One lock: a call holds it for a push, while the call itself takes a network round trip.
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    calls: Vec<Call>,
    last_ns: u64,
}

/// Stands for one call under way. Give it back to [`Recorder::complete`]; dropping it means that
/// nobody knows how the call ended.
#[derive(Debug)]
#[must_use = "a token that is dropped records the call's outcome as unknown"]
pub struct Token {
    index: usize,
}

impl Recorder {
    /// A recorder whose times are nanoseconds since now.
    pub fn new() -> Self {
        let start = Instant::now();
        Self::with_clock(move || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// A recorder on another clock, which must be monotonic and in nanoseconds.
    pub fn with_clock(clock_ns: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let shared = Shared {
            clock_ns: Box::new(clock_ns),
            log: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Records that `process` is about to call. Call it before anything is sent.
    pub fn invoke(&self, process: u64, key: u64, op: Op) -> Token {
        self.with_log(|log, invoked_ns| {
            let outcome = Outcome::Unknown;
            log.calls.push(Call {
                process,
                key,
                op,
                invoked_ns,
                returned_ns: None,
                outcome,
            });
            Token {
                index: log.calls.len() - 1,
            }
        })
    }

    /// Records how a call ended. Call it after the answer arrived.
    ///
    /// The token must come from this recorder or a clone of it; one of another recorder completes
    /// the wrong call, or none.
    pub fn complete(&self, token: Token, outcome: Outcome) {
        self.with_log(|log, returned_ns| {
            if let Some(call) = log.calls.get_mut(token.index) {
                call.returned_ns = Some(returned_ns);
                call.outcome = outcome;
            }
        });
    }

    /// The history so far, in the order of invocation. Calls still under way are
    /// [`Outcome::Unknown`].
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// [`Self::calls`] for one who is done recording; without a copy if this is the last clone.
    pub fn into_calls(self) -> Vec<Call> {
        match Arc::try_unwrap(self.shared) {
            Ok(shared) => {
                shared
                    .log
                    .into_inner()
                    .unwrap_or_else(PoisonError::into_inner)
                    .calls
            }
            Err(shared) => Self { shared }.calls(),
        }
    }

    /// How many calls were invoked.
    pub fn len(&self) -> usize {
        self.lock().calls.len()
    }

    /// Whether nothing was invoked yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn with_log<T>(&self, change: impl FnOnce(&mut Log, u64) -> T) -> T {
        let mut log = self.lock();
        // Read the clock under the lock: times then go up in the order of the list.
        log.last_ns = (self.shared.clock_ns)().max(log.last_ns.saturating_add(1));
        let now_ns = log.last_ns;
        change(&mut log, now_ns)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Log> {
        // A panic can only come from the clock, before anything was changed: the log is whole.
        self.shared
            .log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("calls", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check_linearizable;

    #[test]
    fn times_go_up_though_the_clock_stands_still() {
        let recorder = Recorder::with_clock(|| 7);
        let write = recorder.invoke(1, 0, Op::Write(4));
        recorder.complete(write, Outcome::Done);
        let read = recorder.invoke(2, 0, Op::Read);
        recorder.complete(read, Outcome::Read(None));
        let calls = recorder.into_calls();
        let times: Vec<_> = calls
            .iter()
            .map(|c| (c.invoked_ns, c.returned_ns))
            .collect();
        assert_eq!(times, [(7, Some(8)), (9, Some(10))]);
        assert!(
            !check_linearizable(&calls).is_linearizable(),
            "the read came after the write"
        );
    }

    #[test]
    fn a_dropped_token_is_an_unknown_outcome() {
        let recorder = Recorder::new();
        drop(recorder.invoke(1, 0, Op::Write(4)));
        let call = &recorder.calls()[0];
        assert_eq!((call.returned_ns, call.outcome), (None, Outcome::Unknown));
    }

    #[test]
    fn threads_share_one_history() {
        let recorder = Recorder::new();
        std::thread::scope(|scope| {
            for process in 0..4 {
                let recorder = recorder.clone();
                scope.spawn(move || {
                    for value in 0..250 {
                        let token = recorder.invoke(process, process, Op::Write(value));
                        recorder.complete(token, Outcome::Done);
                    }
                });
            }
        });
        assert_eq!(recorder.len(), 1000);
        let calls = recorder.into_calls();
        for (a, b) in calls.iter().zip(&calls[1..]) {
            assert!(a.invoked_ns < b.invoked_ns);
        }
        for process in 0..4 {
            let own: Vec<_> = calls.iter().filter(|c| c.process == process).collect();
            assert_eq!(own.len(), 250);
            for (value, call) in own.iter().enumerate() {
                assert_eq!(
                    call.op,
                    Op::Write(value as u64),
                    "each token completes its own call"
                );
                assert_eq!(call.outcome, Outcome::Done);
                assert!(call.returned_ns > Some(call.invoked_ns));
            }
        }
    }
}
