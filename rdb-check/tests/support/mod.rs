//! What several tests need: a source of numbers that a seed decides, and a register store simulated
//! in time, whose histories are linearizable because each call is applied at one instant, unless it
//! was told to misbehave.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use rdb_check::{Call, Op, Outcome, Value};

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }
}

/// What to simulate.
#[derive(Clone)]
pub(crate) struct Workload {
    pub(crate) seed: u64,
    pub(crate) calls: usize,
    pub(crate) keys: u64,
    pub(crate) processes: u64,
    /// Out of a thousand calls; each applies soon, much later, or never.
    pub(crate) unknown_permille: u64,
    pub(crate) cas_permille: u64,
    pub(crate) delete_permille: u64,
    pub(crate) read_permille: u64,
    /// Values are taken from 0 to this, or are all distinct.
    pub(crate) values: Option<u64>,
    /// Out of a thousand acknowledged writes, so many are not applied at all: a defect.
    pub(crate) lost_permille: u64,
}

impl Default for Workload {
    fn default() -> Self {
        Workload {
            seed: 1,
            calls: 1000,
            keys: 1,
            processes: 8,
            unknown_permille: 0,
            cas_permille: 150,
            delete_permille: 50,
            read_permille: 500,
            values: None,
            lost_permille: 0,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Apply(usize),
    Return { process: u64, call: usize },
    Invoke { process: u64 },
}

/// Runs the workload and returns what its clients saw.
pub(crate) fn simulate(workload: &Workload) -> Vec<Call> {
    let mut random = Random(workload.seed);
    let mut due: BinaryHeap<Reverse<(u64, Due)>> = BinaryHeap::new();
    for process in 0..workload.processes {
        due.push(Reverse((random.below(1000), Due::Invoke { process })));
    }
    let mut registers: BTreeMap<u64, Value> = BTreeMap::new();
    let mut next_value: Value = 1000;
    let mut calls: Vec<Call> = Vec::new();
    let mut unknown: Vec<bool> = Vec::new();
    while let Some(Reverse((now_ns, event))) = due.pop() {
        match event {
            Due::Invoke { process } if calls.len() < workload.calls => {
                let key = random.below(workload.keys);
                let mut value = || match workload.values {
                    Some(bound) => random.below(bound),
                    None => {
                        next_value += 1;
                        next_value
                    }
                };
                let (to, guess) = (value(), value());
                let held = registers.get(&key).copied();
                let kind = random.below(1000);
                let (reads, cases) = (workload.read_permille, workload.cas_permille);
                let op = if kind < reads {
                    Op::Read
                } else if kind < reads + cases {
                    let from = if random.chance(700) {
                        held
                    } else {
                        Some(guess)
                    };
                    Op::Cas { from, to }
                } else if kind < reads + cases + workload.delete_permille {
                    Op::Delete
                } else {
                    Op::Write(to)
                };
                let call = calls.len();
                let (outcome, returned_ns) = (Outcome::Unknown, None);
                calls.push(Call {
                    process,
                    key,
                    op,
                    invoked_ns: now_ns,
                    returned_ns,
                    outcome,
                });
                unknown.push(random.chance(workload.unknown_permille));
                let work_ns = 1 + random.below(500);
                if !unknown[call] {
                    due.push(Reverse((now_ns + work_ns, Due::Apply(call))));
                } else if random.chance(700) {
                    let late_ns = if random.chance(500) { 100_000 } else { 0 };
                    due.push(Reverse((now_ns + work_ns + late_ns, Due::Apply(call))));
                }
                let return_ns = now_ns + work_ns + random.below(500);
                due.push(Reverse((return_ns, Due::Return { process, call })));
            }
            Due::Invoke { .. } => {}
            Due::Apply(call) => {
                let lost = random.chance(workload.lost_permille);
                let outcome = apply(&mut registers, calls[call].key, calls[call].op, lost);
                if !unknown[call] {
                    calls[call].outcome = outcome;
                }
            }
            Due::Return { process, call } => {
                calls[call].returned_ns = Some(now_ns);
                due.push(Reverse((
                    now_ns + 1 + random.below(200),
                    Due::Invoke { process },
                )));
            }
        }
    }
    calls
}

fn apply(registers: &mut BTreeMap<u64, Value>, key: u64, op: Op, lost: bool) -> Outcome {
    let held = registers.get(&key).copied();
    match op {
        Op::Read => return Outcome::Read(held),
        Op::Cas { from, .. } if from != held => return Outcome::CasLost,
        Op::Write(_) | Op::Cas { .. } | Op::Delete if lost => {}
        Op::Write(to) | Op::Cas { to, .. } => {
            registers.insert(key, to);
        }
        Op::Delete => {
            registers.remove(&key);
        }
    }
    Outcome::Done
}

/// Decides by trying everything: which sets of calls can have been applied, leaving which content.
/// For up to some twenty calls of one key. Shares no idea with the checker but the definition.
pub(crate) fn linearizable_by_brute_force(calls: &[Call]) -> bool {
    let must: Vec<bool> = calls
        .iter()
        .map(|call| !matches!(call.outcome, Outcome::Unknown | Outcome::NotApplied))
        .collect();
    let end_ns = |index: usize| match must[index] {
        true => calls[index].returned_ns.unwrap_or(u64::MAX),
        false => u64::MAX,
    };
    let mut reached = vec![(0_u32, None)];
    let mut known: std::collections::BTreeSet<(u32, Option<Value>)> =
        reached.iter().copied().collect();
    while let Some((done, held)) = reached.pop() {
        if (0..calls.len()).all(|index| !must[index] || done & (1 << index) != 0) {
            return true;
        }
        for (index, call) in calls.iter().enumerate() {
            let waits_for = |other: usize| {
                other != index && done & (1 << other) == 0 && end_ns(other) < call.invoked_ns
            };
            if done & (1 << index) != 0
                || call.outcome == Outcome::NotApplied
                || (0..calls.len()).any(waits_for)
            {
                continue;
            }
            let leaves = match (call.op, call.outcome) {
                (Op::Read, Outcome::Read(saw)) if saw != held => continue,
                (Op::Cas { from, .. }, Outcome::Done) if from != held => continue,
                (Op::Cas { from, .. }, Outcome::CasLost) if from == held => continue,
                (Op::Cas { .. }, Outcome::CasLost) | (Op::Read, _) => held,
                (Op::Cas { from, .. }, Outcome::Unknown) if from != held => held,
                (Op::Write(to) | Op::Cas { to, .. }, _) => Some(to),
                (Op::Delete, _) => None,
            };
            let next = (done | 1 << index, leaves);
            if known.insert(next) {
                reached.push(next);
            }
        }
    }
    false
}
