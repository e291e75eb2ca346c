//! Latency by percentile, over a logarithmic axis of nines.
//!
//! The x axis is log₁₀ of 1 / (1 − quantile): 90 %, 99 %, 99.9 % lie at even distances, so that the
//! tail, which is what subscribers feel, gets as much room as the median. A line is the exact
//! distribution as steps: each value covers the quantiles up to its cumulated share. The largest
//! value ends it, at one in so many as were recorded.

use super::Picture;
use super::lines::{Axis, Kind, Line, Lines, lines, nines};
use crate::outcome::Latency;
use crate::unit::Unit;

/// Steps narrower than this part of the line are drawn as one.
const STEP_MIN: f64 = 0.002;
/// The quantiles of the table.
const TABLE: [(f64, &str); 6] =
    [(0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"), (1.0, "largest")];

/// Draws latency distributions by name. Those without values are in the legend only.
pub fn percentiles(title: &str, about: &str, latencies: &[(&str, &Latency)]) -> Picture {
    let axis = Axis { label: "percentile".into(), unit: Unit::Count, kind: Kind::Nines };
    let series = latencies
        .iter()
        .map(|(name, latency)| Line { marks: Some(marks(latency)), ..Line::new(*name, steps(latency)) });
    let mut plot = Lines::new(title, about, axis, Axis::log("latency", Unit::Nanoseconds), series.collect());
    let rows = TABLE.iter().map(|&(quantile, label)| {
        let cells = latencies.iter().map(|(_, latency)| {
            latency.at(quantile).map_or_else(|| "–".to_owned(), |ns| Unit::Nanoseconds.show(ns as f64))
        });
        std::iter::once(label.to_owned()).chain(cells).collect()
    });
    let head = std::iter::once("percentile").chain(latencies.iter().map(|(name, _)| *name));
    plot.table = Some((head.map(str::to_owned).collect(), rows.collect()));
    lines(&plot)
}

/// The place of the largest value.
fn end(latency: &Latency) -> f64 {
    (latency.count as f64).log10()
}

/// A latency that has a place on a logarithmic axis.
fn height(ns: u64) -> f64 {
    ns.max(1) as f64
}

fn steps(latency: &Latency) -> Vec<(f64, f64)> {
    let (mut seen, mut last) = (0, 0.0);
    let mut points: Vec<_> = latency.recorded.first().map(|&(ns, _)| (0.0, height(ns))).into_iter().collect();
    for &(ns, count) in &latency.recorded {
        seen += count;
        let all = seen == latency.count;
        let place = if all { end(latency) } else { nines(seen as f64 / latency.count as f64) };
        if all || place - last >= STEP_MIN * end(latency) {
            points.extend([(last, height(ns)), (place, height(ns))]);
            last = place;
        }
    }
    points
}

/// The quantiles that are kept, as far as there are so many values, and the largest value.
fn marks(latency: &Latency) -> Vec<(f64, f64)> {
    let place = |quantile: f64| if quantile == 1.0 { end(latency) } else { nines(quantile) };
    let kept = latency.quantiles.iter().map(|&(quantile, ns)| (quantile, place(quantile), height(ns)));
    kept.filter(|(quantile, at, _)| *quantile == 1.0 || *at < end(latency))
        .map(|(_, at, y)| (at, y))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;

    fn latency(values: &[(u64, u64)]) -> Latency {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000_000, 3).expect("valid bounds");
        for &(ns, count) in values {
            histogram.record_n(ns, count).expect("within bounds");
        }
        Latency::of(&histogram)
    }

    #[test]
    fn the_line_passes_each_quantile_at_its_value() {
        let latency = latency(&[(1_000, 90), (10_000, 9), (100_000, 1)]);
        let rounded: Vec<(f64, f64)> = steps(&latency)
            .into_iter()
            .map(|(place, ns)| ((place * 1e6).round() / 1e6, (ns / 1e3).round()))
            .collect();
        let expected =
            [(0.0, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, 10.0), (2.0, 10.0), (2.0, 100.0), (2.0, 100.0)];
        assert_eq!(rounded, expected);
    }

    #[test]
    fn the_table_has_what_the_report_keeps() {
        let picture =
            percentiles("t", "a", &[("each", &latency(&[(5_000, 10)])), ("none", &Latency::default())]);
        assert_eq!(picture.head, ["percentile", "each", "none"]);
        assert_eq!(picture.rows[0], ["50 %", "5.00 µs", "–"]);
        assert_eq!(picture.rows.len(), 6);
    }

    #[test]
    fn one_value_and_no_value_are_drawn_without_nonsense() {
        for values in [&[][..], &[(1, 1)], &[(7_000, 1)], &[(7_000, 1_000_000_000)]] {
            let latency = latency(values);
            let svg = percentiles("t", "a", &[("x", &latency)]).svg("p");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert_eq!(svg.contains("nothing was measured"), values.is_empty());
        }
    }

    #[test]
    fn a_distribution_of_many_values_stays_small() {
        let values: Vec<_> = (1..5_000).map(|value| (value * 1_000, 1 + 5_000 / value)).collect();
        let svg = percentiles("t", "a", &[("x", &latency(&values))]).svg("p");
        assert!(svg.len() < 24_000, "{} bytes", svg.len());
    }
}
