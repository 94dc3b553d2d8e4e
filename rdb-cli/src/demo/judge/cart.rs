//! What is promised of an eventual namespace.

use super::super::cart::{CONTESTED_PREFIX, Cart};
use super::super::screen::{grouped, spent};
use super::{Finding, finding};
use bytes::Bytes;
use rdb_check::convergence;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// After a heal all replicas are equal within this.
const CONVERGES: Duration = Duration::from_secs(10);

pub(super) fn judge(cart: &Cart) -> [Finding; 3] {
    [both_sides_write(cart), converges(cart), newest_wins(cart)]
}

fn both_sides_write(cart: &Cart) -> Finding {
    let counts: Vec<String> = cart
        .sides
        .iter()
        .map(|side| format!("{} at store {}", grouped(side.writes), side.store))
        .collect();
    let refused = cart.sides.iter().find_map(|side| {
        let why = side.refused.as_ref()?;
        Some(format!("store {} refused a write: {why}", side.store))
    });
    let idle = cart.sides.len() < 2 || cart.sides.iter().any(|side| side.writes == 0);
    let broken = match refused {
        Some(refused) => Some(refused),
        None if idle => Some("one side wrote nothing: this proves nothing".to_owned()),
        None => None,
    };
    let seen = format!("{}, none refused", counts.join(", "));
    finding("eventual: both sides of a cut take writes", seen, broken)
}

fn converges(cart: &Cart) -> Finding {
    const PROMISE: &str = "eventual: after healing, all stores hold the same";
    let equal = convergence::check(&cart.replicas).err().map(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        problems.join("; ")
    });
    let after = match &cart.converged {
        Ok(after) => *after,
        Err(why) => return finding(PROMISE, "not equal".to_owned(), Some(why.clone())),
    };
    let keys = held(cart).map_or(0, |held| held.len());
    let digest = cart
        .replicas
        .iter()
        .find_map(|replica| replica.digest.as_ref().ok()?.first())
        .map_or("none", |(_, _, digest)| &digest[..digest.len().min(16)]);
    let seen = format!(
        "{} keys on each, {} after the healing; digest {digest}",
        grouped(keys as u64),
        spent(after)
    );
    let late = (after > CONVERGES).then(|| {
        format!(
            "it took {}, and {} are promised",
            spent(after),
            spent(CONVERGES)
        )
    });
    finding(PROMISE, seen, equal.or(late))
}

fn newest_wins(cart: &Cart) -> Finding {
    const PROMISE: &str = "eventual: the newest write wins, the one that lost is kept";
    let Some(held) = held(cart) else {
        let why = "no store could be read".to_owned();
        return finding(PROMISE, why.clone(), Some(why));
    };
    let listed: BTreeSet<(&[u8], &[u8])> = cart
        .conflicts
        .iter()
        .map(|(key, value)| (&key[..], &value[..]))
        .collect();
    // Key -> what each side wrote last, the newest last.
    let mut written: BTreeMap<&str, Vec<(u64, &str)>> = BTreeMap::new();
    for (key, (value, version)) in cart.sides.iter().flat_map(|side| &side.acknowledged) {
        written.entry(key).or_default().push((*version, value));
    }
    let (mut contested, mut wrong) = (0u64, Vec::new());
    for (key, mut values) in written.clone() {
        values.sort_unstable();
        let Some((_, winner)) = values.pop() else {
            continue;
        };
        if held.get(key.as_bytes()) != Some(&winner.as_bytes()) {
            wrong.push(format!(
                "{key} does not hold {winner:?}, which is the newest"
            ));
        }
        for (_, loser) in values {
            contested += 1;
            if !listed.contains(&(key.as_bytes(), loser.as_bytes())) {
                wrong.push(format!("{key}: {loser:?} lost, and is not listed"));
            }
        }
    }
    let seen = format!(
        "{} keys written on one side are there, {contested} written on both have their newest value, {} lost writes are listed",
        grouped((written.len() as u64).saturating_sub(contested)),
        cart.conflicts.len()
    );
    let broken = if contested == 0 {
        Some(format!(
            "no key below {CONTESTED_PREFIX} was written on both sides: this proves nothing"
        ))
    } else if cart.conflicts.len() as u64 != contested {
        Some(format!(
            "{contested} writes lost to concurrent ones, {} are listed",
            cart.conflicts.len()
        ))
    } else {
        wrong.first().map(|first| {
            let count = wrong.len();
            format!("{first} ({count} such in all)")
        })
    };
    finding(PROMISE, seen, broken)
}

/// What the first store that could be read holds.
fn held(cart: &Cart) -> Option<BTreeMap<&[u8], &[u8]>> {
    let scan = cart
        .replicas
        .iter()
        .find_map(|replica| replica.scan.as_ref().ok())?;
    let pairs = scan
        .iter()
        .map(|(key, value): &(Bytes, Bytes)| (&key[..], &value[..]));
    Some(pairs.collect())
}
