//! Which endpoint a call goes to.
//!
//! Owns the list of endpoints and, for each namespace, the one that is preferred: where its leader is,
//! the nearest where it is eventual, or where the last call was answered after another endpoint failed.
//! Any store serves any call (followers forward), so a wrong preference costs a hop and nothing else.
//!
//! Invariants: the list only grows, and the configured endpoints come first, in their order; a
//! position stays valid.

use crate::error::ClientError;
use crate::node::Node;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Endpoints beyond the configured ones that are learned at most.
const MAX_ENDPOINTS: usize = 128;
/// Namespaces whose preference is remembered; more begin anew, at the first endpoint.
const MAX_NAMESPACES: usize = 4096;

pub(crate) struct Endpoints {
    state: RwLock<State>,
}

struct State {
    nodes: Vec<Arc<Node>>,
    preferred: BTreeMap<String, usize>,
}

impl Endpoints {
    pub(crate) fn new(nodes: Vec<Arc<Node>>) -> Endpoints {
        Endpoints {
            state: RwLock::new(State {
                nodes,
                preferred: BTreeMap::new(),
            }),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.state.read().nodes.len()
    }

    pub(crate) fn node(&self, position: usize) -> Option<Arc<Node>> {
        self.state.read().nodes.get(position).cloned()
    }

    /// The endpoint for the next attempt, given those that this call tried already. `nearest`: behind the
    /// preferred one the quickest to answer comes first.
    pub(crate) fn pick(
        &self,
        namespace: &str,
        nearest: bool,
        tried: &[usize],
        now: Instant,
    ) -> (usize, Arc<Node>) {
        let state = self.state.read();
        let preferred = state.preferred.get(namespace).copied();
        let distance = |at: usize| match nearest {
            true => state.nodes[at].answer_time().unwrap_or(Duration::MAX),
            false => Duration::ZERO,
        };
        let avoided_until = |at: usize| state.nodes[at].avoided_until(now);
        let count = state.nodes.len();
        let position = pick(count, preferred, tried, avoided_until, distance);
        (position, state.nodes[position].clone())
    }

    /// Whether a healthy endpoint is left that this call has not tried.
    pub(crate) fn other_than(&self, tried: &[usize], now: Instant) -> bool {
        let state = self.state.read();
        (0..state.nodes.len())
            .any(|at| !tried.contains(&at) && state.nodes[at].avoided_until(now).is_none())
    }

    /// From now on calls for `namespace` begin at this position.
    pub(crate) fn prefer(&self, namespace: &str, position: usize) {
        if self.state.read().preferred.get(namespace) == Some(&position) {
            return;
        }
        let mut state = self.state.write();
        if state.preferred.len() >= MAX_NAMESPACES {
            state.preferred.clear();
        }
        state.preferred.insert(namespace.to_owned(), position);
    }

    /// Calls for an eventual namespace go to the endpoint that answers quickest, if that is quicker by
    /// enough to leave the one where they go now.
    pub(crate) fn prefer_nearest(&self, namespace: &str, now: Instant) {
        let nearest = {
            let state = self.state.read();
            let healthy = (0..state.nodes.len())
                .filter(|&at| state.nodes[at].avoided_until(now).is_none())
                .filter_map(|at| Some((state.nodes[at].answer_time()?, at)));
            let current = state.preferred.get(namespace).copied();
            nearest(healthy.collect(), current)
        };
        if let Some(nearest) = nearest {
            self.prefer(namespace, nearest);
        }
    }

    /// Every endpoint.
    pub(crate) fn all(&self) -> Vec<Arc<Node>> {
        self.state.read().nodes.clone()
    }

    /// The position of `host:port`, if it is known.
    pub(crate) fn position_of(&self, address: &str) -> Option<usize> {
        self.state
            .read()
            .nodes
            .iter()
            .position(|node| node.address() == address)
    }

    /// Adds an endpoint that was learned; gives its position, or `None` when there are too many.
    pub(crate) fn learn(&self, node: Arc<Node>) -> Option<usize> {
        let mut state = self.state.write();
        if let Some(at) = state
            .nodes
            .iter()
            .position(|known| known.address() == node.address())
        {
            return Some(at);
        }
        if state.nodes.len() >= MAX_ENDPOINTS {
            return None;
        }
        state.nodes.push(node);
        Some(state.nodes.len() - 1)
    }
}

/// The quickest of these, unless the current one takes less than half as long again: a store is not left
/// for the noise of a measurement.
fn nearest(measured: Vec<(Duration, usize)>, current: Option<usize>) -> Option<usize> {
    let (quickest, at) = measured.iter().min().copied()?;
    let current = measured.iter().find(|(_, at)| Some(*at) == current);
    match current {
        Some((time, current)) if *time <= quickest + quickest / 2 => Some(*current),
        _ => Some(at),
    }
}

/// Untried before tried, healthy before avoided, preferred before near before the order of the list.
/// Among avoided ones the soonest to be trusted again; when all were tried, not the last one again.
fn pick(
    count: usize,
    preferred: Option<usize>,
    tried: &[usize],
    avoided_until: impl Fn(usize) -> Option<Instant>,
    distance: impl Fn(usize) -> Duration,
) -> usize {
    (0..count)
        .min_by_key(|&at| {
            let last = count > 1 && tried.last() == Some(&at);
            (
                last,
                tried.contains(&at),
                avoided_until(at),
                preferred != Some(at),
                distance(at),
                at,
            )
        })
        .unwrap_or_default()
}

/// `host:port` of an endpoint as users write it: `host:port` or `http://host:port`.
pub(crate) fn parse(endpoint: &str) -> Result<String, ClientError> {
    let refuse = |why: &str| {
        let message =
            format!("{endpoint:?} is not an endpoint: {why}; write host:port or http://host:port");
        Err(ClientError::usage("connecting", message))
    };
    let text = endpoint.trim();
    if text.is_empty() {
        return refuse("it is empty");
    }
    if text.starts_with("https://") {
        return refuse("TLS is not supported yet");
    }
    let text = text.strip_prefix("http://").unwrap_or(text);
    let text = text.strip_suffix('/').unwrap_or(text);
    let Some((host, port)) = text.rsplit_once(':') else {
        return refuse("the port is missing");
    };
    match port.parse::<u16>() {
        Ok(0) => return refuse("port 0 cannot be connected to"),
        Ok(_) if port.bytes().all(|byte| byte.is_ascii_digit()) => {}
        _ => return refuse("the port is not a number up to 65535"),
    }
    if host.is_empty() {
        return refuse("the host is missing");
    }
    match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        Some(None) => return refuse("the bracket is not closed"),
        Some(Some(inner)) if inner.parse::<std::net::Ipv6Addr>().is_err() => {
            return refuse("there is no IPv6 address between the brackets");
        }
        None if host.contains(':') => return refuse("an IPv6 address needs brackets: [::1]:50051"),
        None if !host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) =>
        {
            return refuse("the host has a character that is not allowed");
        }
        _ => {}
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_endpoint() {
        let now = Instant::now();
        let later = |ms| Some(now + Duration::from_millis(ms));
        let healthy = |_: usize| None;
        let pick =
            |count, preferred, tried: &[usize], avoided: &dyn Fn(usize) -> Option<Instant>| {
                pick(count, preferred, tried, avoided, |_| Duration::ZERO)
            };
        let down = |which: &'static [usize]| move |at: usize| which.contains(&at).then_some(now);
        // (preferred, tried) -> chosen, of three healthy ones.
        for (preferred, tried, chosen) in [
            (None, &[][..], 0),
            (Some(2), &[][..], 2),
            (Some(2), &[2][..], 0),
            (Some(2), &[2, 0][..], 1),
            (None, &[0, 1, 2][..], 0),
            (Some(2), &[0, 1, 2][..], 0),
            (Some(1), &[1, 0, 2][..], 1),
        ] {
            assert_eq!(
                pick(3, preferred, tried, &healthy),
                chosen,
                "{preferred:?} {tried:?}"
            );
        }
        assert_eq!(pick(3, Some(2), &[], &down(&[2])), 0);
        assert_eq!(pick(3, None, &[], &down(&[0, 1])), 2);
        let all_down = |at: usize| later([30, 10, 20][at]);
        assert_eq!(
            pick(3, Some(0), &[], &all_down),
            1,
            "the soonest to be trusted again"
        );
        assert_eq!(
            pick(1, None, &[0], &healthy),
            0,
            "a single endpoint is never left"
        );
    }

    #[test]
    fn the_nearest_is_asked_and_not_left_for_noise() {
        let ms = Duration::from_millis;
        let healthy = |_: usize| None;
        let distance = |at: usize| [ms(9), ms(1), ms(4)][at];
        // Preferred, then by distance.
        for (preferred, tried, chosen) in [
            (None, &[][..], 1),
            (None, &[1][..], 2),
            (Some(0), &[][..], 0),
            (Some(0), &[0][..], 1),
        ] {
            assert_eq!(
                pick(3, preferred, tried, healthy, distance),
                chosen,
                "{preferred:?} {tried:?}"
            );
        }
        let measured = |times: [u64; 3]| times.into_iter().map(ms).zip(0..).collect();
        assert_eq!(nearest(measured([10, 12, 30]), None), Some(0));
        assert_eq!(nearest(measured([10, 12, 30]), Some(1)), Some(1));
        assert_eq!(nearest(measured([10, 12, 30]), Some(2)), Some(0));
        assert_eq!(nearest(Vec::new(), Some(2)), None);
    }

    #[test]
    fn endpoints_as_users_write_them() {
        for (good, address) in [
            ("127.0.0.1:50051", "127.0.0.1:50051"),
            ("http://store-1.local:1/", "store-1.local:1"),
            (" localhost:65535 ", "localhost:65535"),
            ("[::1]:50051", "[::1]:50051"),
        ] {
            assert_eq!(parse(good).unwrap(), address);
        }
        for (bad, why) in [
            ("", "it is empty"),
            ("localhost", "port is missing"),
            (":50051", "host is missing"),
            ("a:0", "port 0"),
            ("a:65536", "not a number"),
            ("a:+5", "not a number"),
            ("a:b", "not a number"),
            ("::1:50051", "brackets"),
            ("[::1:50051", "bracket"),
            ("[x]:50051", "IPv6"),
            ("a b:1", "character"),
            ("user@a:1", "character"),
            ("https://a:1", "TLS"),
            ("ftp://a:1", "brackets"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.to_string().contains(why), "{bad:?}: {error}");
        }
    }
}
