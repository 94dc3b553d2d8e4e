//! Medians, ratios and their spread.
//!
//! Owns the arithmetic. Pure: samples in, summary out.
//!
//! A ratio is taken within a round, between neighbours in time, and the median of the rounds' ratios
//! is told with the smallest and the largest: where machines are noisy, that spread is the news.

use crate::plan::Workload;
use crate::run::Sample;
use crate::target::Kind;
use serde::Serialize;

/// The middle of some numbers, and their ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The median.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

/// One workload on one target, over all rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// Which workload.
    #[serde(flatten)]
    pub workload: Workload,
    /// On which target.
    pub kind: Kind,
    /// Operations a second.
    pub per_second: Spread,
    /// Median of the rounds' median latencies, in microseconds.
    pub p50_us: f64,
    /// Median of the rounds' 99th percentiles, in microseconds.
    pub p99_us: f64,
    /// Calls that failed, in all rounds.
    pub errors: u64,
}

/// One target over another, round by round.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// What is compared.
    pub of: Kind,
    /// With what.
    pub to: Kind,
    /// Which workload.
    #[serde(flatten)]
    pub workload: Workload,
    /// Operations a second: more is better.
    pub per_second: Spread,
    /// Median latency: less is better.
    pub p50: Spread,
    /// 99th percentile: less is better.
    pub p99: Spread,
}

impl Spread {
    /// Of at least one number; `None` of none.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut numbers: Vec<f64> = numbers
            .into_iter()
            .filter(|number| number.is_finite())
            .collect();
        numbers.sort_by(f64::total_cmp);
        let (first, last) = (*numbers.first()?, *numbers.last()?);
        let middle = numbers.len() / 2;
        let median = if numbers.len().is_multiple_of(2) {
            (numbers[middle - 1] + numbers[middle]) / 2.0
        } else {
            numbers[middle]
        };
        Some(Spread {
            min: first,
            median,
            max: last,
        })
    }
}

/// A line for each workload and target, in the order in which they were first measured.
pub fn lines(samples: &[Sample]) -> Vec<Line> {
    let mut order: Vec<(Workload, Kind)> = Vec::new();
    for sample in samples {
        if !order.contains(&(sample.workload, sample.kind)) {
            order.push((sample.workload, sample.kind));
        }
    }
    let line = |(workload, kind)| {
        let of: Vec<&Sample> = samples
            .iter()
            .filter(|sample| (sample.workload, sample.kind) == (workload, kind))
            .collect();
        Some(Line {
            workload,
            kind,
            per_second: Spread::of(of.iter().map(|sample| sample.per_second))?,
            p50_us: Spread::of(of.iter().map(|sample| sample.p50_us as f64))?.median,
            p99_us: Spread::of(of.iter().map(|sample| sample.p99_us as f64))?.median,
            errors: of.iter().map(|sample| sample.errors).sum(),
        })
    };
    order.into_iter().filter_map(line).collect()
}

/// A ratio for each workload that was measured on both targets.
pub fn ratios(samples: &[Sample], ours: Kind, theirs: Kind) -> Vec<Ratio> {
    let of = |kind| {
        samples
            .iter()
            .filter(move |sample: &&Sample| sample.kind == kind)
    };
    let mut ratios: Vec<Ratio> = Vec::new();
    for workload in of(ours).map(|sample| sample.workload) {
        if ratios.iter().any(|ratio| ratio.workload == workload) {
            continue;
        }
        let pairs: Vec<(&Sample, &Sample)> = of(ours)
            .filter(|ours| ours.workload == workload)
            .filter_map(|ours| {
                Some((
                    ours,
                    of(theirs)
                        .find(|theirs| (theirs.workload, theirs.round) == (workload, ours.round))?,
                ))
            })
            .collect();
        let spread = |number: fn(&Sample) -> f64| {
            Spread::of(
                pairs
                    .iter()
                    .map(|(ours, theirs)| number(ours) / number(theirs)),
            )
        };
        let (per_second, p50, p99) = (
            spread(|sample| sample.per_second),
            spread(|sample| sample.p50_us as f64),
            spread(|sample| sample.p99_us as f64),
        );
        if let (Some(per_second), Some(p50), Some(p99)) = (per_second, p50, p99) {
            ratios.push(Ratio {
                of: ours,
                to: theirs,
                workload,
                per_second,
                p50,
                p99,
            });
        }
    }
    ratios
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Op;

    fn sample(round: usize, kind: Kind, callers: usize, per_second: f64, p50_us: u64) -> Sample {
        let workload = Workload {
            op: Op::Put,
            callers,
        };
        Sample {
            round,
            kind,
            workload,
            operations: 1,
            errors: 0,
            error: None,
            per_second,
            p50_us,
            p99_us: p50_us * 3,
            max_us: 0,
        }
    }

    #[test]
    fn spreads() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([f64::NAN, f64::INFINITY]), None);
        assert_eq!(
            Spread::of([3.0]),
            Some(Spread {
                min: 3.0,
                median: 3.0,
                max: 3.0
            })
        );
        assert_eq!(
            Spread::of([9.0, 1.0, 2.0]),
            Some(Spread {
                min: 1.0,
                median: 2.0,
                max: 9.0
            })
        );
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine was ten times slower in round 2, for both: the ratio does not notice.
        let samples = [
            sample(1, Kind::FlareDb, 64, 30_000.0, 100),
            sample(1, Kind::Etcd, 64, 10_000.0, 400),
            sample(2, Kind::FlareDb, 64, 2_000.0, 1_000),
            sample(2, Kind::Etcd, 64, 1_000.0, 2_000),
            sample(1, Kind::FlareDb, 1, 1.0, 1),
        ];
        let ratios = ratios(&samples, Kind::FlareDb, Kind::Etcd);
        assert_eq!(ratios.len(), 1, "etcd was not measured with one caller");
        assert_eq!(
            ratios[0].per_second,
            Spread {
                min: 2.0,
                median: 2.5,
                max: 3.0
            }
        );
        assert_eq!(
            ratios[0].p50,
            Spread {
                min: 0.25,
                median: 0.375,
                max: 0.5
            }
        );
        let lines = lines(&samples);
        assert_eq!(lines.len(), 3);
        assert_eq!(
            (lines[0].kind, lines[0].per_second.median),
            (Kind::FlareDb, 16_000.0)
        );
        assert_eq!(lines[2].workload.callers, 1);
    }
}
