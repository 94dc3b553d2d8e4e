//! The loop around the attempts of one call.
//!
//! Owns the deadline of a call, its attempts, and what its caller is told at the end. What an attempt
//! does is a closure; whether there is another is decided in `retry.rs`, where in `endpoints.rs`.

use crate::client::Client;
use crate::endpoints::Endpoints;
use crate::error::{ClientError, ErrorKind, MODE, Outcome};
use crate::failure::Failure;
use crate::node::Node;
use crate::retry::{self, Bound, Next, Safety, Situation};
use bytes::Bytes;
use rdb_types::reason::NOT_APPLIED;
use rdb_types::{Mode, Reason};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::Instrument;
use uuid::Uuid;

/// No deadline is further away; so no sum of times overflows.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// An attempt that ran out of time counts against its endpoint only after this long: a caller in a
/// hurry says nothing about the store.
const PATIENCE: Duration = Duration::from_millis(250);

/// What the loop needs to know of a call.
pub(crate) struct Call<'a> {
    pub(crate) operation: &'static str,
    /// Empty where the call is about no single namespace.
    pub(crate) namespace: &'a str,
    pub(crate) safety: Safety,
    pub(crate) request_id: Option<Bytes>,
    pub(crate) timeout: Option<Duration>,
}

/// What an attempt has to know that depends on those before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sending {
    /// Not 0: a write that may have been applied, under the rule of strong namespaces. In another epoch
    /// it may not be taken anew: an eventual namespace may have taken it where no other store knows.
    pub(crate) only_epoch: u64,
}

impl<'a> Call<'a> {
    pub(crate) fn read(
        operation: &'static str,
        namespace: &'a str,
        timeout: Option<Duration>,
    ) -> Call<'a> {
        Call {
            operation,
            namespace,
            safety: Safety::Read,
            request_id: None,
            timeout,
        }
    }

    /// A write that has no request id.
    pub(crate) fn anonymous(operation: &'static str, namespace: &'a str) -> Call<'a> {
        Call {
            operation,
            namespace,
            safety: Safety::Anonymous,
            request_id: None,
            timeout: None,
        }
    }
}

impl Client {
    /// Makes attempts until one succeeds, none is left, or the time is up.
    pub(crate) async fn run<T, F, Fut>(&self, call: Call<'_>, attempt: F) -> Result<T, ClientError>
    where
        F: Fn(Arc<Node>, Instant, Sending) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let span = tracing::debug_span!(
            "flaredb.call",
            operation = call.operation,
            namespace = call.namespace,
            attempts = tracing::field::Empty,
        );
        self.attempts(call, attempt).instrument(span).await
    }

    async fn attempts<T, F, Fut>(&self, call: Call<'_>, attempt: F) -> Result<T, ClientError>
    where
        F: Fn(Arc<Node>, Instant, Sending) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let options = self.options();
        let timeout = call
            .timeout
            .unwrap_or(options.request_timeout)
            .min(LONGEST_TIMEOUT);
        let deadline = Instant::now() + timeout;
        let mut so_far = SoFar::default();
        loop {
            let began = Instant::now();
            let (position, node) = match so_far.bound_to.take() {
                Some(there) => there,
                None => self.route(call.namespace, &so_far.tried, began),
            };
            so_far.attempts += 1;
            let sending = Sending {
                only_epoch: self.only_epoch(call.namespace, &so_far),
            };
            let failure = match attempt(node.clone(), deadline, sending).await {
                Ok(answer) => {
                    node.answered();
                    if so_far.attempts > 1 {
                        tracing::Span::current().record("attempts", so_far.attempts);
                        self.endpoints().prefer(call.namespace, position);
                    }
                    self.discover_if_due(&node);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            let now = Instant::now();
            tracing::debug!(
                endpoint = node.address(),
                attempt = so_far.attempts,
                reason = failure.reason.map(Reason::as_str),
                error = failure.message,
                "attempt failed"
            );
            self.learned().note_refusal(call.namespace, &failure);
            so_far.tried.push(position);
            if failure.may_be_applied {
                so_far.maybe_applied_at(position, &node);
            }
            let eventual = self.learned().is_eventual(call.namespace);
            so_far.eventual = self.learned().may_be_eventual(call.namespace);
            let bound = match so_far.eventual && call.safety.is_write() {
                true => so_far.bound(position),
                false => Bound::No,
            };
            // A store that hangs is not waited for by every caller in turn.
            let hangs =
                failure.kind == ErrorKind::Deadline && now.duration_since(began) >= PATIENCE;
            if failure.is_network() || hangs {
                node.failed(now);
            } else if !eventual {
                follow_leader(
                    self.endpoints(),
                    call.namespace,
                    &failure,
                    &mut so_far.tried,
                );
            }
            let situation = Situation {
                safety: call.safety,
                attempts: so_far.attempts,
                other_endpoint: self.has_other_than(&so_far.tried, now),
                wait_for_ready: options.wait_for_ready,
                eventual,
                bound,
                heard: so_far.last_answer.as_ref(),
                policy: &options.retry,
                draw: draw(),
            };
            let Next::Again { wait, elsewhere } = retry::next(&failure, &situation) else {
                return Err(so_far.error(&call, failure));
            };
            // An attempt that begins at the deadline would only hide this failure behind another.
            if now + wait >= deadline {
                return Err(so_far.error(&call, failure));
            }
            if !elsewhere {
                so_far.bound_to = match bound {
                    Bound::No => None,
                    _ => so_far.maybe_applied.first().cloned(),
                };
                so_far.tried.pop();
            } else if !situation.other_endpoint {
                // A new round: everyone is asked again, the last one last.
                so_far.tried.drain(..so_far.tried.len() - 1);
            }
            if failure.kind == ErrorKind::Refused {
                so_far.last_answer = Some(failure);
            } else {
                so_far.last_silence = Some(failure);
            }
            if !wait.is_zero() {
                sleep(wait).await;
            }
        }
    }
}

impl Client {
    fn only_epoch(&self, namespace: &str, so_far: &SoFar) -> u64 {
        match so_far.maybe_applied.is_empty() || self.learned().may_be_eventual(namespace) {
            true => 0,
            false => self.learned().common_epoch(namespace),
        }
    }
}

/// What became of the call up to now.
#[derive(Default)]
struct SoFar {
    attempts: u32,
    /// Where attempts may have been applied.
    maybe_applied: Vec<(usize, Arc<Node>)>,
    /// The namespace is known to be eventual, in some region at least.
    eventual: bool,
    /// The endpoint of the next attempt, where no other will do.
    bound_to: Option<(usize, Arc<Node>)>,
    /// Positions that failed in this round.
    tried: Vec<usize>,
    /// The last attempt that a store answered, and the last that none did.
    last_answer: Option<Failure>,
    last_silence: Option<Failure>,
}

impl SoFar {
    fn maybe_applied_at(&mut self, position: usize, node: &Arc<Node>) {
        if self.maybe_applied.iter().all(|(at, _)| *at != position) {
            self.maybe_applied.push((position, node.clone()));
        }
    }

    /// Where an eventual namespace may be asked again, after an attempt at `position`. Also where it was sent
    /// under another mode: the store may have taken it in the new one by then.
    fn bound(&self, position: usize) -> Bound {
        match &self.maybe_applied[..] {
            [] => Bound::No,
            [(at, _)] if *at == position => Bound::Here,
            [_] => Bound::There,
            _ => Bound::Nowhere,
        }
    }

    /// What the caller is told, when `failure` was the last of its attempts.
    fn error(&self, call: &Call<'_>, failure: Failure) -> ClientError {
        let Failure {
            kind,
            code,
            reason,
            mut message,
            mut metadata,
            ..
        } = self.most_telling(failure);
        let outcome = match (call.safety.is_write(), self.maybe_applied.is_empty()) {
            (false, _) => Outcome::NotAWrite,
            (true, true) => Outcome::NotApplied,
            (true, false) => Outcome::Unknown,
        };
        // One attempt's word is not the call's, neither in the metadata nor in the text: another one may
        // have been applied.
        match outcome {
            Outcome::NotAWrite => {}
            Outcome::NotApplied => drop(metadata.insert("outcome".into(), "not_applied".into())),
            Outcome::Unknown => {
                message = without_verdict(&message);
                metadata.insert("outcome".into(), "unknown".into());
                if self.eventual {
                    metadata.insert(MODE.into(), Mode::Eventual.as_str().into());
                }
            }
        }
        ClientError {
            reason,
            code,
            message,
            metadata,
            outcome,
            attempts: self.attempts,
            kind,
            operation: call.operation,
            request_id: call.request_id.clone(),
        }
    }
}

impl SoFar {
    /// What a store said tells more than that another could not be reached, or that the time is up.
    fn most_telling(&self, failure: Failure) -> Failure {
        let why = |failure: &Failure| match failure.reason {
            Some(reason) => format!("{reason}: {}", failure.message),
            None => failure.message.clone(),
        };
        match (failure.kind, &self.last_answer, &self.last_silence) {
            (ErrorKind::Connect | ErrorKind::Broken | ErrorKind::Deadline, Some(answer), _) => {
                Failure {
                    message: format!("{}; and {}", answer.message, failure.message),
                    ..answer.clone()
                }
            }
            (ErrorKind::Deadline, None, Some(before)) => {
                let mut metadata = before.metadata.clone();
                metadata.extend(failure.metadata);
                let message = format!("{}; before that: {}", failure.message, why(before));
                Failure {
                    message,
                    metadata,
                    ..failure
                }
            }
            _ => failure,
        }
    }
}

/// What a store said, without the clauses in which it says that its own attempt was not applied.
fn without_verdict(message: &str) -> String {
    ["; ", " and ", ". "]
        .iter()
        .fold(message.to_owned(), |text, joint| {
            text.replace(&format!("{joint}{NOT_APPLIED}"), "")
        })
}

/// Where the refusal names the leader and it is one of ours, the next attempt goes there.
fn follow_leader(
    endpoints: &Endpoints,
    namespace: &str,
    failure: &Failure,
    tried: &mut Vec<usize>,
) {
    let leader = failure
        .leader_address()
        .and_then(|address| endpoints.position_of(address));
    if let Some(leader) = leader
        && tried.last() != Some(&leader)
    {
        endpoints.prefer(namespace, leader);
        tried.retain(|position| *position != leader);
    }
}

/// Evenly from [0, 1]. Uuid is what brings randomness into this crate anyway.
fn draw() -> f64 {
    let bits = Uuid::new_v4().as_u128() & u128::from(u32::MAX);
    u32::try_from(bits).map_or(0.5, |bits| f64::from(bits) / f64::from(u32::MAX))
}
