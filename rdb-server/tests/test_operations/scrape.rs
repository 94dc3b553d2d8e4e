//! A page of `/metrics`, taken apart, and what many of them showed.
//!
//! Owns the reading of the format, as strictly as a scraper reads it. Knows nothing of what a number should be.

use rdb_server::metrics::catalog::{CATALOG, Exported, Kind};
use std::collections::{BTreeMap, BTreeSet};

/// One sample: the name, its labels in their order, and its value as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) value: String,
}

impl Sample {
    fn parse(line: &str) -> Option<Sample> {
        let (series, value) = line.rsplit_once(' ')?;
        value.parse::<f64>().ok()?;
        let Some((name, rest)) = series.split_once('{') else {
            return Some(Sample {
                name: series.to_owned(),
                labels: Vec::new(),
                value: value.to_owned(),
            });
        };
        let rest = rest.strip_suffix('}')?;
        // Nothing between the brackets is legal, too.
        let labels = rest.split("\",").filter(|label| !label.is_empty());
        let labels = labels.map(|label| {
            let (name, value) = label.split_once("=\"")?;
            Some((name.to_owned(), value.trim_end_matches('"').to_owned()))
        });
        Some(Sample {
            name: name.to_owned(),
            labels: labels.collect::<Option<_>>()?,
            value: value.to_owned(),
        })
    }

    pub(crate) fn number(&self) -> f64 {
        self.value.parse().unwrap()
    }

    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        let mut labels = self.labels.iter();
        labels
            .find(|(label, _)| label == name)
            .map(|(_, value)| value.as_str())
    }
}

/// All samples of a page; panics at a line that no scraper would take.
pub(crate) fn samples(page: &str) -> Vec<Sample> {
    assert!(page.ends_with("# EOF\n"), "{page}");
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| Sample::parse(line).unwrap_or_else(|| panic!("not a sample: {line:?}")))
        .collect()
}

/// The metric that a sample is of.
pub(crate) fn metric_of(sample: &str) -> Option<&'static Exported> {
    CATALOG
        .iter()
        .find(|it| it.series().iter().any(|name| name == sample))
}

/// What many pages of many stores showed.
#[derive(Default)]
pub(crate) struct Seen {
    /// Of each series of each store: every value that it had.
    values: BTreeMap<(usize, String, String), BTreeSet<String>>,
    /// Of each metric: the sets of labels that it came with.
    labels: BTreeMap<&'static str, BTreeSet<Vec<String>>>,
}

impl Seen {
    /// Takes up a page.
    pub(crate) fn add(&mut self, store: usize, page: &str) {
        for sample in samples(page) {
            let metric = metric_of(&sample.name);
            let metric = metric.unwrap_or_else(|| panic!("not in the catalogue: {sample:?}"));
            let mut names: Vec<String> = sample.labels.iter().map(|it| it.0.clone()).collect();
            if metric.kind == Kind::Histogram {
                names.retain(|name| name != "le");
            }
            self.labels.entry(metric.name).or_default().insert(names);
            // Of a histogram what was counted says whether it moved.
            if metric.kind != Kind::Histogram || sample.name.ends_with("_count") {
                let series = format!("{:?}", sample.labels);
                let key = (store, metric.name.to_owned(), series);
                self.values.entry(key).or_default().insert(sample.value);
            }
        }
    }

    /// With which labels a metric came.
    pub(crate) fn labels(&self, metric: &str) -> BTreeSet<Vec<String>> {
        self.labels.get(metric).cloned().unwrap_or_default()
    }

    /// Whether some series of a metric had two values.
    pub(crate) fn moved(&self, metric: &str) -> bool {
        let mut of = self
            .values
            .iter()
            .filter(|((_, name, _), _)| name == metric);
        of.any(|(_, values)| values.len() > 1)
    }

    /// Whether some store showed a metric with these labels, among others.
    pub(crate) fn came(&self, metric: &str, labels: &[(&str, &str)]) -> bool {
        let mut of = self.values.keys().filter(|(_, name, _)| name == metric);
        of.any(|(_, _, series)| {
            let has =
                |(label, value): &(&str, &str)| series.contains(&format!("({label:?}, {value:?})"));
            labels.iter().all(has)
        })
    }

    /// Every value that a metric had.
    pub(crate) fn values(&self, metric: &str) -> BTreeSet<&str> {
        let of = self
            .values
            .iter()
            .filter(|((_, name, _), _)| name == metric);
        of.flat_map(|(_, values)| values.iter().map(String::as_str))
            .collect()
    }
}
