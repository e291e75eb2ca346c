//! Writes metrics as text: Prometheus 0.0.4, or OpenMetrics 1.0.
//!
//! Both say the same. They differ in the name that a counter's description has (OpenMetrics leaves
//! `_total` out), in units and the end, which OpenMetrics writes. All names and label values are
//! ours, so nothing has to be escaped.

use std::fmt::{Display, Write};

use axum::http::HeaderMap;
use hdrhistogram::Histogram;

use super::accept;

/// The bounds of a histogram in nanoseconds, and as labels in seconds.
pub(super) const BOUNDS: [(u64, &str); 19] = [
    (10_000, "1e-05"),
    (20_000, "2e-05"),
    (50_000, "5e-05"),
    (100_000, "0.0001"),
    (200_000, "0.0002"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_000_000, "0.002"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (20_000_000, "0.02"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (200_000_000, "0.2"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1.0"),
    (2_000_000_000, "2.0"),
    (5_000_000_000, "5.0"),
    (10_000_000_000, "10.0"),
];

/// Which text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exposition {
    /// Prometheus text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Exposition {
    /// OpenMetrics where it is asked for by name, and not less than the other.
    pub(super) fn asked(headers: &HeaderMap) -> Exposition {
        match accept::rather(headers, "application/openmetrics-text", "text/plain") {
            true => Exposition::OpenMetrics,
            false => Exposition::Prometheus,
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Exposition::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What a family of samples is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only rises. Its name ends with `_total`.
    Counter,
    /// Of now.
    Gauge,
    /// Counts of durations by their bounds. Its name ends with `_seconds`.
    Histogram,
    /// Says something with its labels. Its name ends with `_info`.
    Info,
}

/// Name and value of each label.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

/// The text, as far as it is written.
#[derive(Debug)]
pub(super) struct Page {
    exposition: Exposition,
    /// Of the family that is being written.
    name: &'static str,
    text: String,
}

impl Page {
    pub(super) fn new(exposition: Exposition) -> Page {
        Page { exposition, name: "", text: String::new() }
    }

    /// Begins a family: what follows are its samples.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let ending = match kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Histogram => "_seconds",
            Kind::Gauge => "",
        };
        assert!(name.ends_with(ending), "{name} ends with its kind");
        self.name = name;
        let open = self.exposition == Exposition::OpenMetrics;
        let (described, word) = match kind {
            Kind::Counter if open => (name.trim_end_matches("_total"), "counter"),
            Kind::Counter => (name, "counter"),
            Kind::Info if open => (name.trim_end_matches("_info"), "info"),
            Kind::Info | Kind::Gauge => (name, "gauge"),
            Kind::Histogram => (name, "histogram"),
        };
        self.line(format_args!("# HELP {described} {help}"));
        self.line(format_args!("# TYPE {described} {word}"));
        let unit = ["seconds", "bytes"].into_iter().find(|unit| described.ends_with(&format!("_{unit}")));
        if let Some(unit) = unit.filter(|_| open) {
            self.line(format_args!("# UNIT {described} {unit}"));
        }
    }

    /// One sample of the family.
    pub(super) fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        self.write("", labels, None, value);
    }

    /// A family of one sample without labels.
    pub(super) fn single(&mut self, name: &'static str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(&[], value);
    }

    /// One histogram of nanoseconds. What a bucket of the histogram holds counts as its middle, so
    /// bounds are as exact as the histogram is: to one per cent.
    pub(super) fn histogram(&mut self, labels: Labels<'_>, histogram: &Histogram<u64>) {
        let mut counts = [0; BOUNDS.len()];
        let mut sum = 0.0;
        for step in histogram.iter_recorded() {
            let middle = histogram.median_equivalent(step.value_iterated_to());
            let count = step.count_at_value();
            sum += middle as f64 * count as f64;
            if let Some(at) = BOUNDS.iter().position(|(bound, _)| middle <= *bound) {
                counts[at] += count;
            }
        }
        let mut below = 0;
        for ((_, bound), count) in BOUNDS.iter().zip(counts) {
            below += count;
            self.write("_bucket", labels, Some(bound), below);
        }
        self.write("_bucket", labels, Some("+Inf"), histogram.len());
        self.write("_sum", labels, None, sum / 1e9);
        self.write("_count", labels, None, histogram.len());
    }

    /// The whole text.
    pub(super) fn end(mut self) -> String {
        if self.exposition == Exposition::OpenMetrics {
            self.line(format_args!("# EOF"));
        }
        self.text
    }

    fn write(&mut self, suffix: &str, labels: Labels<'_>, bound: Option<&str>, value: impl Display) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        let bound = bound.map(|bound| ("le", bound));
        for (at, (name, value)) in labels.iter().copied().chain(bound).enumerate() {
            debug_assert!(!value.contains(['"', '\\', '\n']), "{value} is ours");
            let before = if at == 0 { '{' } else { ',' };
            self.text.push(before);
            self.text.push_str(name);
            self.text.push_str("=\"");
            self.text.push_str(value);
            self.text.push('"');
        }
        if !labels.is_empty() || bound.is_some() {
            self.text.push('}');
        }
        self.line(format_args!(" {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::metrics::latency_histogram;

    #[test]
    fn open_metrics_is_written_where_it_is_asked_for() {
        use Exposition::{OpenMetrics, Prometheus};
        for (accept, exposition) in [
            ("*/*", Prometheus),
            ("text/plain", Prometheus),
            ("application/openmetrics-text", OpenMetrics),
            ("application/openmetrics-text;q=0.1, text/plain", Prometheus),
            ("application/openmetrics-text;q=0", Prometheus),
            // What Prometheus 2 and 3 send.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                 application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,*/*;q=0.2",
                OpenMetrics,
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("accept", HeaderValue::from_static(accept));
            assert_eq!(Exposition::asked(&headers), exposition, "{accept}");
        }
        assert_eq!(Exposition::asked(&HeaderMap::new()), Prometheus);
    }

    #[test]
    fn bounds_are_what_their_labels_say_and_rise() {
        for (ns, label) in BOUNDS {
            assert_eq!(label.parse::<f64>().expect("a number"), ns as f64 / 1e9, "{label}");
        }
        assert!(BOUNDS.is_sorted());
    }

    #[test]
    fn a_histogram_counts_each_duration_below_its_bounds() {
        let mut histogram = latency_histogram();
        for (us, times) in [(3, 2), (15, 1), (700, 4), (25_000_000, 1)] {
            histogram.record_n(us * 1_000, times).expect("in range");
        }
        let mut page = Page::new(Exposition::OpenMetrics);
        page.family("fanwave_x_seconds", Kind::Histogram, "Help.");
        page.histogram(&[("shard", "0")], &histogram);
        let text = page.end();
        for line in [
            "# TYPE fanwave_x_seconds histogram",
            "# UNIT fanwave_x_seconds seconds",
            "fanwave_x_seconds_bucket{shard=\"0\",le=\"1e-05\"} 2",
            "fanwave_x_seconds_bucket{shard=\"0\",le=\"2e-05\"} 3",
            "fanwave_x_seconds_bucket{shard=\"0\",le=\"0.0005\"} 3",
            "fanwave_x_seconds_bucket{shard=\"0\",le=\"0.001\"} 7",
            "fanwave_x_seconds_bucket{shard=\"0\",le=\"10.0\"} 7",
            "fanwave_x_seconds_bucket{shard=\"0\",le=\"+Inf\"} 8",
            "fanwave_x_seconds_count{shard=\"0\"} 8",
            "# EOF",
        ] {
            assert!(text.lines().any(|other| other == line), "no {line:?} in {text}");
        }
        let sum = text.lines().find_map(|line| line.strip_prefix("fanwave_x_seconds_sum{shard=\"0\"} "));
        let sum: f64 = sum.and_then(|sum| sum.parse().ok()).expect("a sum");
        assert!((24.8..25.3).contains(&sum), "{sum}");
    }

    #[test]
    fn both_texts_name_counters_and_infos_as_their_standards_want() {
        let write = |exposition| {
            let mut page = Page::new(exposition);
            page.single("fanwave_sent_bytes_total", Kind::Counter, "Bytes.", 7);
            page.family("fanwave_build_info", Kind::Info, "The build.");
            page.sample(&[("version", "1")], 1);
            page.end()
        };
        assert_eq!(
            write(Exposition::Prometheus),
            "# HELP fanwave_sent_bytes_total Bytes.\n# TYPE fanwave_sent_bytes_total counter\n\
             fanwave_sent_bytes_total 7\n# HELP fanwave_build_info The build.\n\
             # TYPE fanwave_build_info gauge\nfanwave_build_info{version=\"1\"} 1\n"
        );
        assert_eq!(
            write(Exposition::OpenMetrics),
            "# HELP fanwave_sent_bytes Bytes.\n# TYPE fanwave_sent_bytes counter\n\
             # UNIT fanwave_sent_bytes bytes\nfanwave_sent_bytes_total 7\n# HELP fanwave_build The build.\n\
             # TYPE fanwave_build info\nfanwave_build_info{version=\"1\"} 1\n# EOF\n"
        );
    }
}
