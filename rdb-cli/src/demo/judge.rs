//! Whether what was promised held.
//!
//! Owns the list of promises, and what breaks each. Pure: evidence in, findings out. Knows nothing of
//! how the evidence was gathered.
//!
//! Invariant: what could not be found out is a broken promise, and so is evidence that proves nothing
//! (no call recorded, no order acknowledged).

mod cart;
mod switching;
#[cfg(test)]
mod tests;

use super::cart::Cart;
use super::cut::{CutOff, StaleRead};
use super::load::orders::Orders;
use super::load::transfers::{ACCOUNTS, Bank, OPENING};
use super::screen::{grouped, spent};
use super::switching::Switched;
use bytes::Bytes;
use rdb_check::convergence::{self, Replica};
use rdb_check::{Call, Op, Outcome, Verdict, check_linearizable, set};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A digest of a namespace's data in each region: region, index, digest.
pub(super) type Digests = Vec<(u64, u64, String)>;

/// What was seen, from the first write to the last scan.
pub(super) struct Evidence {
    /// The history of the registers.
    pub(super) calls: Vec<Call>,
    pub(super) orders: Orders,
    /// Orders found by a linearizable scan at the end.
    pub(super) orders_found: BTreeSet<String>,
    /// Records loaded at the start, and found at the end.
    pub(super) records: u64,
    pub(super) records_found: u64,
    pub(super) bank: Bank,
    /// Accounts found at the end; `None`: it holds no number.
    pub(super) balances: Vec<Option<u64>>,
    pub(super) cut: CutOff,
    pub(super) cart: Cart,
    pub(super) switched: Switched,
    pub(super) quorum_timeout: Duration,
    /// How long no write was acknowledged when the leader was killed. `None`: none ever was again.
    pub(super) leader_lost: Option<Duration>,
    /// Each store's own copy of the namespace.
    pub(super) replicas: Vec<Replica<Digests, Bytes, Bytes>>,
}

/// A promise, and how it fared.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) promise: &'static str,
    /// In a few words, with numbers.
    pub(super) seen: String,
    /// Why it does not hold; `None`: it does.
    pub(super) broken: Option<String>,
}

/// Judges everything.
pub(super) fn judge(evidence: &Evidence) -> Vec<Finding> {
    let strong = [
        registers(&evidence.calls),
        orders(evidence),
        total(&evidence.bank, &evidence.balances),
        leader_lost(evidence.leader_lost),
        refused(&evidence.cut, evidence.quorum_timeout),
        fresh_reads(&evidence.cut),
        stale_reads(&evidence.cut),
        others_went_on(&evidence.cut),
        replicas(&evidence.replicas),
    ];
    let eventual = cart::judge(&evidence.cart);
    let switches = switching::judge(&evidence.switched);
    let findings = strong.into_iter().chain(eventual);
    findings.chain(switches).collect()
}

fn finding(promise: &'static str, seen: String, broken: Option<String>) -> Finding {
    Finding {
        promise,
        seen,
        broken,
    }
}

fn registers(calls: &[Call]) -> Finding {
    let began = Instant::now();
    let verdict = check_linearizable(calls);
    let took = began.elapsed();
    let count =
        |of: fn(&Call) -> bool| grouped(calls.iter().filter(|call| of(call)).count() as u64);
    let seen = format!(
        "{} reads, {} changes, {} lost swaps, {} changes of unknown outcome; checked in {}",
        count(|call| matches!(call.outcome, Outcome::Read(_))),
        count(|call| call.outcome == Outcome::Done),
        count(|call| call.outcome == Outcome::CasLost),
        count(|call| call.outcome == Outcome::Unknown && call.op != Op::Read),
        spent(took),
    );
    let read_something = calls
        .iter()
        .any(|call| matches!(call.outcome, Outcome::Read(Some(_))));
    let broken = match verdict {
        Verdict::Linearizable if read_something => None,
        Verdict::Linearizable => {
            Some("no read ever returned a value: the history proves nothing".to_owned())
        }
        verdict => Some(format!("the history of the registers is {verdict}")),
    };
    finding(
        "reads and writes are linearizable, on every store",
        seen,
        broken,
    )
}

fn orders(evidence: &Evidence) -> Finding {
    let Orders {
        acknowledged,
        unknown,
    } = &evidence.orders;
    let report = set::check(acknowledged, unknown, &evidence.orders_found);
    let (records, found) = (evidence.records, evidence.records_found);
    let seen = format!(
        "{} of {} records and {} of {} orders found",
        grouped(found),
        grouped(records),
        grouped((report.acknowledged - report.missing.len()) as u64),
        grouped(report.acknowledged as u64)
    );
    let broken = if report.acknowledged == 0 || records == 0 {
        Some("nothing was acknowledged: this proves nothing".to_owned())
    } else if !report.is_ok() {
        Some(format!("orders: {report}"))
    } else if found != records {
        Some(format!(
            "{records} records were acknowledged, {found} are there"
        ))
    } else {
        None
    };
    finding("nothing that was acknowledged is lost", seen, broken)
}

fn total(bank: &Bank, balances: &[Option<u64>]) -> Finding {
    let opened = ACCOUNTS * OPENING;
    let total: u64 = balances.iter().flatten().sum();
    let seen = format!(
        "{} transfers ({} swaps lost and repeated): {} before, {} after",
        grouped(bank.transfers),
        grouped(bank.lost_swaps),
        grouped(opened),
        grouped(total)
    );
    let broken = if let Some(absurd) = bank.absurd.first() {
        Some(absurd.clone())
    } else if balances.len() as u64 != ACCOUNTS || balances.contains(&None) {
        Some(format!(
            "{} accounts were opened, the balances found are {balances:?}",
            ACCOUNTS
        ))
    } else if bank.in_doubt > 0 {
        Some(format!(
            "the fate of {} was never learned, though every change was repeated under its request id",
            bank.in_doubt
        ))
    } else if total != opened {
        Some(format!("{opened} were paid in, {total} are there"))
    } else if bank.transfers == 0 {
        Some("no money was moved: this proves nothing".to_owned())
    } else {
        None
    };
    finding(
        "a swap is applied once, however often it is sent",
        seen,
        broken,
    )
}

fn leader_lost(pause: Option<Duration>) -> Finding {
    const PROMISE: &str = "a dead leader is replaced without help";
    match pause {
        Some(pause) => finding(
            PROMISE,
            format!("{} without an acknowledged write", spent(pause)),
            None,
        ),
        None => finding(
            PROMISE,
            "no write came back".to_owned(),
            Some("no write was acknowledged any more after the leader was killed".to_owned()),
        ),
    }
}

fn refused(cut: &CutOff, quorum_timeout: Duration) -> Finding {
    const PROMISE: &str = "a write without a quorum is refused, and says so";
    // The clients and all stores share one machine: a wake-up that comes late is not the store's fault.
    let limit = quorum_timeout * 2;
    let Some(refusal) = &cut.refusal else {
        return finding(
            PROMISE,
            "no NO_QUORUM".to_owned(),
            Some("the store that was cut off never said NO_QUORUM".to_owned()),
        );
    };
    let seen = format!(
        "NO_QUORUM {} after the cut (reached {} of {} needed; outcome {}), the call took {}",
        spent(refusal.after),
        refusal.reached,
        refusal.needed,
        if refusal.outcome == rdb_client::Outcome::NotApplied {
            "not applied"
        } else {
            "unknown"
        },
        spent(refusal.took)
    );
    let broken = if cut.wrote_alone > 0 {
        Some(format!(
            "the store acknowledged {} writes that it took while it was cut off",
            cut.wrote_alone
        ))
    } else if refusal.after > limit {
        Some(format!(
            "NO_QUORUM came {} after the cut, with a quorum_timeout of {}",
            spent(refusal.after),
            spent(quorum_timeout)
        ))
    } else {
        None
    };
    finding(PROMISE, seen, broken)
}

fn fresh_reads(cut: &CutOff) -> Finding {
    let broken = if cut.reads_outdated > 0 {
        Some(format!(
            "{} linearizable reads of the store that was cut off returned what had been overwritten",
            cut.reads_outdated
        ))
    } else if cut.reads_refused == 0 {
        Some(
            "no linearizable read was tried on the store that was cut off: this proves nothing"
                .to_owned(),
        )
    } else {
        None
    };
    let seen = format!(
        "{} refused, {} outdated",
        grouped(cut.reads_refused),
        grouped(cut.reads_outdated)
    );
    finding(
        "a store that is cut off never reads old data as new",
        seen,
        broken,
    )
}

fn stale_reads(cut: &CutOff) -> Finding {
    let oldest = cut
        .stale_reads
        .iter()
        .filter(|read| !read.age.is_zero())
        .max_by_key(|read| read.age);
    let understated = cut.stale_reads.iter().find(|read| read.bound < read.age);
    let broken = match (&cut.stale_failed, understated, oldest) {
        (Some(error), ..) => Some(format!("a stale read failed: {error}")),
        (_, Some(read), _) => {
            let StaleRead { age, bound } = *read;
            Some(format!(
                "a stale read said at most {}, and returned what had been overwritten {} before",
                spent(bound),
                spent(age)
            ))
        }
        (.., None) => Some("no stale read saw old data: this proves nothing".to_owned()),
        _ => None,
    };
    let seen = match oldest {
        Some(StaleRead { age, bound }) => {
            format!(
                "{} answered; the oldest was {} old and said \"at most {}\"",
                cut.stale_reads.len(),
                spent(*age),
                spent(*bound)
            )
        }
        None => format!("{} answered", cut.stale_reads.len()),
    };
    finding("its stale reads go on, and say how stale", seen, broken)
}

fn others_went_on(cut: &CutOff) -> Finding {
    const PROMISE: &str = "the majority serves on";
    match &cut.others_wrote_after {
        Ok(after) => finding(
            PROMISE,
            format!("writes again {} after the cut", spent(*after)),
            None,
        ),
        Err(error) => {
            let why =
                format!("the two stores that still reached each other took no write: {error}");
            finding(PROMISE, "no write".to_owned(), Some(why))
        }
    }
}

fn replicas(replicas: &[Replica<Digests, Bytes, Bytes>]) -> Finding {
    let broken = convergence::check(replicas).err().map(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        problems.join("; ")
    });
    let keys = replicas
        .iter()
        .filter_map(|replica| replica.scan.as_ref().ok())
        .map(Vec::len)
        .max()
        .unwrap_or(0);
    let seen = match replicas
        .iter()
        .find_map(|replica| replica.digest.as_ref().ok())
        .and_then(|digests| digests.first())
    {
        Some((region, index, digest)) => {
            format!(
                "{} keys on each; digest {} at index {index} of region {region}",
                grouped(keys as u64),
                &digest[..digest.len().min(16)]
            )
        }
        None => "no digest".to_owned(),
    };
    finding("after healing, all stores hold the same", seen, broken)
}
