//! What is promised of a namespace that is switched while it is written.

use super::super::screen::{grouped, spent};
use super::super::switching::{Switched, Way};
use super::{Finding, finding};
use rdb_check::{Op, Outcome, Verdict, check_linearizable, set};

pub(super) fn judge(switched: &Switched) -> [Finding; 3] {
    [
        there_and_back(switched),
        linearizable(switched),
        nothing_lost(switched),
    ]
}

fn there_and_back(switched: &Switched) -> Finding {
    let way = |way: &Result<Way, String>| match way {
        Ok(way) => format!(
            "{} (writes refused for {}, none acknowledged for {})",
            spent(way.took),
            spent(way.refused),
            spent(way.longest_pause)
        ),
        Err(_) => "not reached".to_owned(),
    };
    let [to_strong, back] = &switched.ways;
    let seen = format!("strong after {}, back after {}", way(to_strong), way(back));
    let names = ["strong", "eventual"].iter().zip(&switched.ways);
    let mut broken = names.filter_map(|(name, way)| match way {
        Err(why) => Some(format!("it did not become {name}: {why}")),
        Ok(way) if way.writes == 0 => Some(format!(
            "no write was acknowledged on the way to {name} or behind it"
        )),
        Ok(_) => None,
    });
    finding(
        "a namespace goes strong and back under load",
        seen,
        broken.next(),
    )
}

fn linearizable(switched: &Switched) -> Finding {
    let calls = &switched.calls;
    let read = calls
        .iter()
        .filter(|call| matches!(call.outcome, Outcome::Read(Some(_))));
    let read = read.count() as u64;
    let writes = calls
        .iter()
        .filter(|call| call.op != Op::Read && call.outcome == Outcome::Done);
    let broken = match check_linearizable(calls) {
        Verdict::Linearizable if read > 0 => None,
        Verdict::Linearizable => {
            Some("no read ever returned a value: the history proves nothing".to_owned())
        }
        verdict => Some(format!("the history from the seal on is {verdict}")),
    };
    let seen = format!(
        "{} reads of something, {} writes",
        grouped(read),
        grouped(writes.count() as u64)
    );
    finding("from the seal on it is linearizable", seen, broken)
}

fn nothing_lost(switched: &Switched) -> Finding {
    let items = &switched.items;
    let when_strong = switched.missing_when_strong.first().map(|first| {
        format!(
            "{} acknowledged writes were gone when it was strong, {first} for one",
            switched.missing_when_strong.len()
        )
    });
    let at_the_end = switched.found.iter().find_map(|(store, found)| {
        let found = match found {
            Ok(found) => found,
            Err(why) => return Some(format!("store {store} could not be read: {why}")),
        };
        let report = set::check(&items.acknowledged, &items.unknown, found);
        (!report.is_ok()).then(|| format!("store {store}: {report}"))
    });
    let idle = (items.acknowledged.is_empty() || switched.found.is_empty())
        .then(|| "nothing was acknowledged, or read back: this proves nothing".to_owned());
    let seen = format!(
        "{} acknowledged on the way, all of them on each of {} stores",
        grouped(items.acknowledged.len() as u64),
        switched.found.len()
    );
    finding(
        "a switch loses nothing that was acknowledged",
        seen,
        when_strong.or(at_the_end).or(idle),
    )
}
