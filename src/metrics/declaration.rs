//! How a row of the table becomes a metric.

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

/// Upper bounds in seconds, dense where KMS's 250 ms and our 200 and 145 ms lie.
pub(super) const LATENCY_BUCKETS: [f64; 14] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.145, 0.2, 0.25, 1.0];

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name, in Prometheus's form.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// What it counts or measures in.
    pub unit: &'static str,
    /// Its labels.
    pub labels: &'static [Label],
    /// The metric of KMS in CloudWatch (namespace AWS/KMS) that says the same from KMS's side.
    pub cloudwatch: Option<&'static str>,
    /// What it says.
    pub help: &'static str,
}

/// A label of a metric.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub values: Values,
}

/// What a label may be.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// One of these words.
    Known(&'static [&'static str]),
    /// What the configuration or the moment gives; the text describes it.
    Open(&'static str),
}

impl Row {
    /// Every combination of the labels' values, where all are known but that of `given`, which has the one value. Empty where
    /// another label is open, or `given` is none of them.
    fn combinations<'v>(&self, given: Option<(&str, &'v str)>) -> Vec<Vec<&'v str>> {
        if given.is_some_and(|(name, _)| !self.labels.iter().any(|label| label.name == name)) {
            return Vec::new();
        }
        let mut combinations: Vec<Vec<&str>> = vec![Vec::new()];
        for label in self.labels {
            let values = match (given, label.values) {
                (Some((name, value)), _) if name == label.name => vec![value],
                (_, Values::Known(words)) => words.to_vec(),
                (_, Values::Open(_)) => return Vec::new(),
            };
            let longer = |before: Vec<&'v str>| {
                values.iter().map(|value| [before.as_slice(), &[*value]].concat()).collect::<Vec<_>>()
            };
            combinations = combinations.into_iter().flat_map(longer).collect();
        }
        combinations
    }

    fn options(&self) -> Opts {
        Opts::new(self.name, self.help)
    }

    fn label_names(&self) -> Vec<&'static str> {
        self.labels.iter().map(|label| label.name).collect()
    }
}

/// A type of metric.
pub(super) trait Declared: Sized {
    /// `counter`, `gauge` or `histogram`.
    const KIND: &'static str;

    /// Makes the metric of a row, in the registry.
    fn declare(row: &Row, registry: &Registry) -> Self;

    /// Has each series of a counter that can be known beforehand begin at 0: a series that comes to be with its first event
    /// shows Prometheus no increase.
    fn begin(&self, _row: &Row, _given: Option<(&str, &str)>) {}

    /// What a gauge says of something that is gone.
    fn forget(&self, _row: &Row, _given: (&str, &str)) {}
}

// INVARIANT for the `expect`s below: names and labels are constants of the table, valid and unique; a test makes every
// one of them.
const VALID: &str = "a metric of the table has a valid name that no other has";

fn register<C: Collector + Clone + 'static>(metric: prometheus::Result<C>, registry: &Registry) -> C {
    let metric = metric.expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

/// Metrics without labels.
macro_rules! single {
    ($($kind:literal: $($type:ident),+;)+) => {$($(
        impl Declared for $type {
            const KIND: &'static str = $kind;

            fn declare(row: &Row, registry: &Registry) -> Self {
                register(Self::with_opts(row.options()), registry)
            }
        }
    )+)+};
}

single! {
    "counter": IntCounter, Counter;
    "gauge": IntGauge, Gauge;
}

impl Declared for IntCounterVec {
    const KIND: &'static str = "counter";

    fn declare(row: &Row, registry: &Registry) -> Self {
        register(Self::new(row.options(), &row.label_names()), registry)
    }

    fn begin(&self, row: &Row, given: Option<(&str, &str)>) {
        for values in row.combinations(given) {
            let _ = self.with_label_values(&values);
        }
    }
}

/// Gauges with labels.
macro_rules! gauges {
    ($($type:ident),+) => {$(
        impl Declared for $type {
            const KIND: &'static str = "gauge";

            fn declare(row: &Row, registry: &Registry) -> Self {
                register(Self::new(row.options(), &row.label_names()), registry)
            }

            fn forget(&self, row: &Row, given: (&str, &str)) {
                for values in row.combinations(Some(given)) {
                    // Fails where there is none, which is as good.
                    let _ = self.remove_label_values(&values);
                }
            }
        }
    )+};
}

gauges!(IntGaugeVec, GaugeVec);

impl Declared for HistogramVec {
    const KIND: &'static str = "histogram";

    fn declare(row: &Row, registry: &Registry) -> Self {
        let options = HistogramOpts::new(row.name, row.help).buckets(LATENCY_BUCKETS.to_vec());
        register(Self::new(options, &row.label_names()), registry)
    }
}

/// Makes [`Metrics`](super::Metrics), a field for each row, and the table of the rows.
macro_rules! metrics {
    ($($field:ident: $type:ty = $name:literal, $unit:literal, [$($label:expr),*], $cloudwatch:expr, $help:literal;)+) => {
        /// The proxy's metrics and the registry that they are in.
        #[derive(Debug)]
        pub struct Metrics {
            pub(super) registry: Registry,
            $(#[doc = $help] pub $field: $type,)+
        }

        /// Every metric.
        pub const TABLE: &[Row] = &[$(Row {
            name: $name,
            kind: <$type as Declared>::KIND,
            unit: $unit,
            labels: &[$($label),*],
            cloudwatch: $cloudwatch,
            help: $help,
        }),+];

        impl Metrics {
            /// All of them, in a registry of their own.
            pub(super) fn declare() -> Self {
                let registry = Registry::new();
                let mut rows = TABLE.iter();
                // The rows stand in the order of the fields.
                let mut next = || rows.next().expect("each field has its row");
                Self { $($field: <$type as Declared>::declare(next(), &registry),)+ registry }
            }

            /// See [`Declared::begin`].
            pub(super) fn begin(&self, given: Option<(&str, &str)>) {
                let mut rows = TABLE.iter();
                $(rows.next().into_iter().for_each(|row| self.$field.begin(row, given));)+
            }

            /// See [`Declared::forget`].
            pub(super) fn forget(&self, given: (&str, &str)) {
                let mut rows = TABLE.iter();
                $(rows.next().into_iter().for_each(|row| self.$field.forget(row, given));)+
            }
        }
    };
}
pub(super) use metrics;
