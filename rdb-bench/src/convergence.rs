//! How soon a write that one store accepted is applied at the others, as the stores themselves count.
//!
//! Owns reading their histograms. Pure: the text of `/metrics` in, a bound out.

use std::collections::BTreeMap;

/// Counts of a histogram, by the upper bound of their bucket, in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buckets(BTreeMap<u64, u64>);

impl Buckets {
    /// Those of `flaredb_convergence_seconds` of a namespace, of all stores together.
    pub fn of(texts: &[String], namespace: &str) -> Buckets {
        let mut all: BTreeMap<u64, u64> = BTreeMap::new();
        let label = format!("namespace=\"{namespace}\"");
        for text in texts {
            let lines = text.lines().filter(|line| {
                line.starts_with("flaredb_convergence_seconds_bucket{") && line.contains(&label)
            });
            for line in lines {
                let bound = line
                    .split("le=\"")
                    .nth(1)
                    .and_then(|rest| rest.split('"').next());
                let count = line
                    .rsplit(' ')
                    .next()
                    .and_then(|count| count.parse::<u64>().ok());
                let bound: Option<f64> =
                    bound.and_then(|bound| bound.replace("+Inf", "inf").parse().ok());
                if let (Some(bound), Some(count)) = (bound, count) {
                    // Not negative, so ordered as its bits are.
                    *all.entry(bound.to_bits()).or_default() += count;
                }
            }
        }
        Buckets(all)
    }

    /// What was counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Buckets) -> Buckets {
        let earlier = |bound| before.0.get(bound).copied().unwrap_or(0);
        Buckets(
            self.0
                .iter()
                .map(|(bound, count)| (*bound, count.saturating_sub(earlier(bound))))
                .collect(),
        )
    }

    /// How many writes were counted.
    pub fn count(&self) -> u64 {
        self.0.values().next_back().copied().unwrap_or(0)
    }

    /// The upper bound, in seconds, of the bucket that holds this part of them; `None`: none were.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let wanted = (self.count() as f64 * part).ceil() as u64;
        let found = self.0.iter().find(|(_, count)| **count >= wanted);
        (wanted > 0)
            .then(|| found.map(|(bound, _)| f64::from_bits(*bound)))
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_of_all_stores_are_added_and_told_by_their_bounds() {
        let text = |counts: [u64; 3]| {
            let mut text = String::from("# TYPE flaredb_convergence_seconds histogram\n");
            for (bound, count) in ["0.0125", "0.05", "+Inf"].iter().zip(counts) {
                text += &format!(
                    "flaredb_convergence_seconds_bucket{{le=\"{bound}\",namespace=\"cart\"}} {count}\n"
                );
            }
            text + "flaredb_convergence_seconds_bucket{le=\"0.05\",namespace=\"other\"} 9\n"
        };
        let before = Buckets::of(&[text([1, 1, 1])], "cart");
        let after = Buckets::of(&[text([90, 100, 100]), text([1, 10, 11])], "cart");
        let counted = after.since(&before);
        assert_eq!(counted.count(), 110);
        assert_eq!(counted.quantile(0.5), Some(0.0125));
        assert_eq!(counted.quantile(0.99), Some(0.05));
        assert_eq!(counted.quantile(1.0), Some(f64::INFINITY));
        assert_eq!(Buckets::of(&[], "cart").quantile(0.5), None);
    }
}
