//! Whether what was promised held.
//!
//! Owns the list of promises, and what breaks each. Pure: evidence in, findings out. Knows nothing of
//! how the evidence was gathered.
//!
//! Invariant: what could not be found out is a broken promise, and so is evidence that proves nothing
//! (no call recorded, no order acknowledged).

use super::cut::{CutOff, StaleRead};
use super::load::orders::Orders;
use super::load::transfers::{ACCOUNTS, Bank, OPENING};
use super::screen::{grouped, spent};
use bytes::Bytes;
use rdb_check::convergence::{self, Replica};
use rdb_check::{Call, Outcome, Verdict, check_linearizable, set};
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
    vec![
        registers(&evidence.calls),
        orders(evidence),
        total(&evidence.bank, &evidence.balances),
        leader_lost(evidence.leader_lost),
        refused(&evidence.cut, evidence.quorum_timeout),
        fresh_reads(&evidence.cut),
        stale_reads(&evidence.cut),
        others_went_on(&evidence.cut),
        replicas(&evidence.replicas),
    ]
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
    let count = |of: fn(&Outcome) -> bool| {
        grouped(calls.iter().filter(|call| of(&call.outcome)).count() as u64)
    };
    let seen = format!(
        "{} reads, {} changes, {} lost swaps, {} unknown; checked in {}",
        count(|outcome| matches!(outcome, Outcome::Read(_))),
        count(|outcome| matches!(outcome, Outcome::Done)),
        count(|outcome| matches!(outcome, Outcome::CasLost)),
        count(|outcome| matches!(outcome, Outcome::Unknown)),
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

#[cfg(test)]
mod tests {
    use super::super::cut::Refusal;
    use super::*;
    use rdb_check::Op;

    const MS: Duration = Duration::from_millis(1);

    fn call(op: Op, outcome: Outcome, from_ns: u64, to_ns: u64) -> Call {
        Call {
            process: 1,
            key: 3,
            op,
            invoked_ns: from_ns,
            returned_ns: Some(to_ns),
            outcome,
        }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn replica(store: u64, digest: &str) -> Replica<Digests, Bytes, Bytes> {
        let scan = vec![(Bytes::from_static(b"k"), Bytes::from_static(b"v"))];
        Replica {
            name: format!("store {store}"),
            digest: Ok(vec![(2, 77, digest.to_owned())]),
            scan: Ok(scan),
        }
    }

    /// What a cluster that keeps its promises leaves behind.
    fn good() -> Evidence {
        let refusal = Refusal {
            after: MS * 2100,
            took: MS * 2000,
            reached: "1".into(),
            needed: "2".into(),
            outcome: rdb_client::Outcome::Unknown,
        };
        Evidence {
            calls: vec![
                call(Op::Write(4), Outcome::Done, 1, 2),
                call(Op::Read, Outcome::Read(Some(4)), 3, 4),
            ],
            orders: Orders {
                acknowledged: names(&["order/1", "order/2"]),
                unknown: names(&["order/3"]),
            },
            orders_found: names(&["order/1", "order/2", "order/3"]),
            records: 10,
            records_found: 10,
            bank: Bank {
                transfers: 5,
                ..Bank::default()
            },
            balances: vec![Some(OPENING); ACCOUNTS as usize],
            cut: CutOff {
                refusal: Some(refusal),
                wrote_alone: 0,
                others_wrote_after: Ok(MS * 500),
                reads_refused: 3,
                reads_outdated: 0,
                stale_reads: vec![StaleRead {
                    age: MS * 900,
                    bound: MS * 1400,
                }],
                stale_failed: None,
            },
            quorum_timeout: MS * 2000,
            leader_lost: Some(MS * 400),
            replicas: vec![replica(1, "aa"), replica(2, "aa"), replica(3, "aa")],
        }
    }

    fn broken(evidence: &Evidence) -> Vec<String> {
        judge(evidence)
            .into_iter()
            .filter_map(|finding| finding.broken)
            .collect()
    }

    #[test]
    fn a_cluster_that_keeps_its_promises_passes() {
        assert_eq!(broken(&good()), Vec::<String>::new());
    }

    /// Each breaks one promise, and is found and named.
    #[test]
    fn every_promise_can_break() {
        type Break = fn(&mut Evidence);
        let table: &[(Break, &str)] = &[
            (
                |e| e.calls[1].outcome = Outcome::Read(None),
                "not linearizable",
            ),
            (
                |e| e.calls[1].outcome = Outcome::Read(Some(u64::MAX)),
                "not linearizable",
            ),
            (|e| e.calls.truncate(1), "proves nothing"),
            (|e| assert!(e.orders_found.remove("order/2")), "order/2"),
            (
                |e| assert!(e.orders_found.insert("order/9".into())),
                "order/9",
            ),
            (
                |e| e.orders.acknowledged.clear(),
                "nothing was acknowledged",
            ),
            (
                |e| e.records_found = 9,
                "10 records were acknowledged, 9 are there",
            ),
            (
                |e| e.balances[0] = Some(OPENING - 7),
                "12000 were paid in, 11993 are there",
            ),
            (|e| e.balances[0] = None, "accounts"),
            (|e| assert!(e.balances.pop().is_some()), "accounts"),
            (|e| e.bank.in_doubt = 7, "7 was never learned"),
            (
                |e| e.bank.absurd.push("account 3 holds x".into()),
                "account 3",
            ),
            (|e| e.bank.transfers = 0, "no money was moved"),
            (
                |e| e.leader_lost = None,
                "no write was acknowledged any more",
            ),
            (|e| e.cut.refusal = None, "never said NO_QUORUM"),
            (
                |e| e.cut.refusal.as_mut().unwrap().after = MS * 4001,
                "NO_QUORUM came 4.0 s",
            ),
            (|e| e.cut.wrote_alone = 2, "acknowledged 2 writes"),
            (
                |e| e.cut.reads_outdated = 1,
                "returned what had been overwritten",
            ),
            (|e| e.cut.reads_refused = 0, "proves nothing"),
            (
                |e| e.cut.stale_reads[0].bound = MS * 899,
                "said at most 899 ms",
            ),
            (
                |e| e.cut.stale_reads[0].age = Duration::ZERO,
                "proves nothing",
            ),
            (|e| e.cut.stale_failed = Some("gone".into()), "gone"),
            (
                |e| e.cut.others_wrote_after = Err("late".into()),
                "took no write: late",
            ),
            (|e| e.replicas[2] = replica(3, "ab"), "ab"),
            (|e| e.replicas[1].scan = Err("gone".into()), "gone"),
            (|e| e.replicas[1].scan.as_mut().unwrap().clear(), "store 2"),
            (|e| e.replicas.truncate(1), "1"),
        ];
        for (number, (spoil, word)) in table.iter().enumerate() {
            let mut evidence = good();
            spoil(&mut evidence);
            let broken = broken(&evidence);
            assert_eq!(broken.len(), 1, "case {number}: {broken:?}");
            assert!(
                broken[0].contains(word),
                "case {number} ({word}): {broken:?}"
            );
        }
    }
}
