//! Which values go together.
//!
//! Owns: the rules that look at more than one key. Does not know: how values are written.
//!
//! Invariants: a rule is asked only where each of its values is what its author wrote, so that
//! one slip makes one error; the error stands at the place that was set last, never at a default.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::error::{ConfigError, Origin, Problem};
use super::layer::{Assembly, is_peer_path, peer_path};
use super::units::{ByteSize, show_duration};

/// Adds what is wrong, and what is legal but odd, to `assembly`.
pub(crate) fn check(assembly: &mut Assembly) {
    // Nothing is known of a file that cannot be read: half a configuration proves nothing.
    let blind =
        |error: &ConfigError| matches!(error.problem, Problem::Syntax(_) | Problem::Unreadable(_));
    if assembly.errors.iter().any(blind) {
        return;
    }
    timing(assembly);
    sizes(assembly);
    listening(assembly);
    if !assembly.errors.iter().any(|error| is_peer_path(&error.key)) {
        membership(assembly);
    }
}

fn timing(assembly: &mut Assembly) {
    let raft = assembly.config.raft.clone();
    let consistency = assembly.config.consistency.clone();
    let (heartbeat, min, max) = (
        ("raft.heartbeat", raft.heartbeat),
        ("raft.election_min", raft.election_min),
        ("raft.election_max", raft.election_max),
    );
    less(
        assembly,
        heartbeat,
        min,
        "a follower would campaign against a live leader",
    );
    if heartbeat.1 < min.1 && min.1 < heartbeat.1 * 2 && sound(assembly, &[heartbeat.0, min.0]) {
        let (place, other) = blame(assembly, min.0, heartbeat.0);
        let (beat, election) = (show_duration(heartbeat.1), show_duration(min.1));
        let text = if place == min.0 {
            format!(
                "{election} must be at least twice {other} ({beat}): one late heartbeat must not call an election"
            )
        } else {
            format!(
                "{beat} must be at most half of {other} ({election}): one late heartbeat must not call an election"
            )
        };
        add(assembly, place, text);
    }
    less(
        assembly,
        min,
        max,
        "elections need a range to draw from, or candidates tie",
    );

    let quorum = ("consistency.quorum_timeout", consistency.quorum_timeout);
    let request = ("consistency.request_timeout", consistency.request_timeout);
    odd_unless_less(
        assembly,
        quorum,
        request,
        "calls run into their deadline before NO_QUORUM can be said",
    );
    odd_unless_less(
        assembly,
        max,
        quorum,
        "an ordinary election will be answered with NO_QUORUM",
    );
    let seal = ("consistency.seal_timeout", consistency.seal_timeout);
    let switch = ("consistency.switch_timeout", consistency.switch_timeout);
    odd_unless_less(
        assembly,
        seal,
        switch,
        "writes may be refused for longer than a switch may wait",
    );
}

fn sizes(assembly: &mut Assembly) {
    let limits = assembly.config.limits.clone();
    let request = ("limits.max_request", limits.max_request);
    let key = ("limits.max_key", limits.max_key);
    let value = ("limits.max_value", limits.max_value);
    for part in [key, value] {
        if part.1 > request.1 && sound(assembly, &[part.0, request.0]) {
            let (place, other) = blame(assembly, part.0, request.0);
            let text = if place == part.0 {
                format!("{} must not be more than {} ({})", part.1, other, request.1)
            } else {
                format!("{} must not be less than {} ({})", request.1, other, part.1)
            };
            add(assembly, place, text);
        }
    }
    let together = limits
        .max_key
        .as_bytes()
        .saturating_add(limits.max_value.as_bytes());
    let fits_alone = value.1 <= request.1 && key.1 <= request.1;
    if fits_alone && together > limits.max_request.as_bytes() {
        assembly.warnings.push(format!(
            "limits.max_request ({}) is less than max_key and max_value together ({}): the largest record cannot be written",
            limits.max_request,
            ByteSize::from_bytes(together)
        ));
    }
}

fn listening(assembly: &mut Assembly) {
    let (addr, http) = (assembly.config.store.addr, assembly.config.store.http_addr);
    let (place, other) = blame(assembly, "store.http_addr", "store.addr");
    if overlap(addr, http) && sound(assembly, &[place, other]) {
        let (mine, theirs) = if place == "store.addr" {
            (addr, http)
        } else {
            (http, addr)
        };
        add(
            assembly,
            place,
            format!("{mine} is taken by {other} ({theirs}): give each its own port"),
        );
    }
}

/// Whether two listeners cannot both be opened. Port 0 is another port each time.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_ip = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && same_ip
}

fn membership(assembly: &mut Assembly) {
    let config = assembly.config.clone();
    let (id, peers) = (config.store.id, &config.cluster.peers);
    let others = peers.keys().any(|peer| *peer != id);
    let advertised = config.advertised_addr();

    let mut owners: BTreeMap<&str, u16> = BTreeMap::new();
    for (peer, addr) in peers {
        match owners.get(addr.as_str()) {
            Some(owner) => {
                let text =
                    format!("{addr} is the address of store {owner} too: each store has its own");
                add(assembly, &peer_path(*peer), text);
            }
            None => {
                owners.insert(addr, *peer);
            }
        }
    }
    if !sound(
        assembly,
        &["store.id", "store.addr", "store.advertise_addr"],
    ) {
        return;
    }
    if let Some(first) = peers.keys().next()
        && assembly.origin("store.id") == Origin::Default
    {
        let text =
            "store.id (--store-id) is not set: with peers, a store must be told which one it is";
        add(assembly, &peer_path(*first), text.to_owned());
        return;
    }
    match peers.get(&id) {
        Some(own) if *own != advertised => {
            let (key, written) = match &config.store.advertise_addr {
                Some(addr) => ("store.advertise_addr", addr.clone()),
                None => ("store.addr", config.store.addr.to_string()),
            };
            let text = format!(
                "{own} differs from {key} ({written}), and store {id} is this store: \
                 make them equal, or set store.advertise_addr to {own}"
            );
            add(assembly, &peer_path(id), text);
        }
        Some(_) => {}
        None => {
            if let Some(owner) = owners.get(advertised.as_str()) {
                let text = format!(
                    "{advertised} is the address of this store, which is store {id} and not {owner}"
                );
                add(assembly, &peer_path(*owner), text);
            }
        }
    }
    let nowhere = advertised
        .parse::<SocketAddr>()
        .is_ok_and(|addr| addr.ip().is_unspecified());
    if nowhere && others {
        let place = if config.store.advertise_addr.is_some() {
            "store.advertise_addr"
        } else {
            "store.addr"
        };
        let text = format!(
            "other stores cannot reach {advertised}: set store.advertise_addr (--advertise-addr) to a host and port that they can"
        );
        add(assembly, place, text);
    }
}

/// An error unless `small` is less than `large`.
fn less(assembly: &mut Assembly, small: (&str, Duration), large: (&str, Duration), why: &str) {
    if small.1 < large.1 || !sound(assembly, &[small.0, large.0]) {
        return;
    }
    let (place, other) = blame(assembly, large.0, small.0);
    let (low, high) = (show_duration(small.1), show_duration(large.1));
    let text = if place == large.0 {
        format!("{high} must be more than {other} ({low}): {why}")
    } else {
        format!("{low} must be less than {other} ({high}): {why}")
    };
    add(assembly, place, text);
}

/// A warning unless `small` is less than `large`.
fn odd_unless_less(
    assembly: &mut Assembly,
    small: (&str, Duration),
    large: (&str, Duration),
    what: &str,
) {
    if small.1 >= large.1 && sound(assembly, &[small.0, large.0]) {
        let (low, high) = (show_duration(small.1), show_duration(large.1));
        assembly.warnings.push(format!(
            "{} ({low}) is not less than {} ({high}): {what}",
            small.0, large.0
        ));
    }
}

fn sound(assembly: &Assembly, paths: &[&str]) -> bool {
    paths.iter().all(|path| assembly.is_sound(path))
}

/// Of two keys at odds: the one that was set last, then the other. The first of the arguments
/// where neither was set later.
fn blame<'a>(assembly: &Assembly, first: &'a str, second: &'a str) -> (&'a str, &'a str) {
    if assembly.origin(second) > assembly.origin(first) {
        (second, first)
    } else {
        (first, second)
    }
}

fn add(assembly: &mut Assembly, path: &str, text: String) {
    let origin = assembly.origin(path);
    assembly.errors.push(ConfigError {
        origin,
        key: path.to_owned(),
        problem: Problem::Inconsistent(text),
    });
}
