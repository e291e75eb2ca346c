//! Latency by percentile, over a logarithmic axis of nines.
//!
//! The x axis is log₁₀ of 1 / (1 − quantile): 90 %, 99 %, 99.9 % lie at even distances, so that the
//! tail, which is what subscribers feel, gets as much room as the median. A line is the exact
//! distribution as steps: each value covers the quantiles up to its cumulated share. The largest
//! value ends it, at one in so many as were recorded.

use super::lines::{Frame, ends, left_of, x_label, y_axis};
use super::scale::{Scale, log_ticks};
use super::{AXIS_NAME, Anchor, Canvas, Picture, WIDTH, nothing, text_width};
use crate::outcome::Latency;
use crate::unit::Unit;

/// Height of the plot itself.
const PLOT: f64 = 200.0;
/// Room right of the plot.
const RIGHT: f64 = 24.0;
/// Steps narrower than this, in units of the picture, are drawn as one.
const STEP_MIN: f64 = 0.7;
/// The axis ends at the latest here: 99.999999 %.
const NINES_MAX: f64 = 8.0;
/// The quantiles of the table.
const TABLE: [(f64, &str); 6] =
    [(0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %"), (1.0, "largest")];

/// The place of a quantile on the axis of nines: 0 at 0, 1 at 0.9, 2 at 0.99, and so on.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).max(f64::MIN_POSITIVE).log10()
}

/// Ticks of the axis: place and label, up to `end` nines.
fn ticks(end: f64) -> Vec<(f64, String)> {
    let whole = (1..=end.floor() as usize).map(|count| {
        let label = match count {
            1 => "90 %".to_owned(),
            2 => "99 %".to_owned(),
            _ => format!("99.{} %", "9".repeat(count - 2)),
        };
        (count as f64, label)
    });
    [(0.0, "0 %".to_owned()), (nines(0.5), "50 %".to_owned())].into_iter().chain(whole).collect()
}

/// Draws latency distributions by name. Those without values are in the legend only.
pub fn percentiles(title: &str, about: &str, latencies: &[(&str, &Latency)]) -> Picture {
    let mut canvas = Canvas::default();
    let names: Vec<&str> = latencies.iter().map(|(name, _)| *name).collect();
    let top = canvas.legend(&names, &vec![true; names.len()], 0.0) + AXIS_NAME;
    let height = top + PLOT + 42.0;
    let values =
        || latencies.iter().flat_map(|(_, latency)| &latency.recorded).filter(|(_, count)| *count > 0);
    let low = values().map(|&(ns, _)| ns).min();
    match (low, values().map(|&(ns, _)| ns).max()) {
        (Some(low), Some(high)) => {
            let frame = frame(&mut canvas, latencies, (low.max(1) as f64, high.max(1) as f64), top);
            for (series, (_, latency)) in latencies.iter().enumerate() {
                draw(&mut canvas, &frame, series, latency);
            }
        }
        _ => nothing(&mut canvas, height),
    }
    let rows = TABLE.iter().map(|&(quantile, label)| {
        let cells = latencies.iter().map(|(_, latency)| {
            latency.at(quantile).map_or_else(|| "–".to_owned(), |ns| Unit::Nanoseconds.show(ns as f64))
        });
        std::iter::once(label.to_owned()).chain(cells).collect()
    });
    Picture {
        title: title.to_owned(),
        description: about.to_owned(),
        height,
        body: canvas.body,
        head: std::iter::once("percentile").chain(names).map(str::to_owned).collect(),
        rows: rows.collect(),
    }
}

fn frame(canvas: &mut Canvas, latencies: &[(&str, &Latency)], (low, high): (f64, f64), top: f64) -> Frame {
    let y_ticks = log_ticks(low, high);
    let labels: Vec<String> = y_ticks.iter().map(|&tick| Unit::Nanoseconds.tick(tick)).collect();
    let left = left_of(&labels);
    let bottom = top + PLOT;
    let most = latencies.iter().map(|(_, latency)| total(latency)).max().unwrap_or(1);
    let end = (most.max(1) as f64).log10().clamp(1.0, NINES_MAX);
    let frame = Frame {
        x: Scale::new((0.0, end), false, (left, WIDTH - RIGHT)),
        y: Scale::new(ends(&y_ticks), true, (bottom, top)),
        left,
    };
    y_axis(canvas, &frame, &y_ticks, &labels, "latency", top);
    // Later ticks matter more: a label that has no room beside its right neighbour is left out.
    let mut free_to = WIDTH;
    for (place, label) in ticks(end).into_iter().rev() {
        let x = frame.x.at(place);
        canvas.line("grid", (x, top), (x, bottom));
        let half = text_width(&label) / 2.0;
        if x + half <= free_to {
            canvas.text("label", Anchor::Middle, (x, bottom + 17.0), &label);
            free_to = x - half - 4.0;
        }
    }
    x_label(canvas, &frame, "percentile", bottom);
    frame
}

fn total(latency: &Latency) -> u64 {
    latency.recorded.iter().map(|(_, count)| count).sum()
}

fn draw(canvas: &mut Canvas, frame: &Frame, series: usize, latency: &Latency) {
    let total = total(latency);
    let recorded: Vec<_> = latency.recorded.iter().filter(|(_, count)| *count > 0).collect();
    let Some(&&(largest, _)) = recorded.last() else { return };
    let end = (total as f64).log10();
    let mut points = vec![(frame.x.at(0.0), frame.y.at(recorded[0].0.max(1) as f64))];
    let mut seen = 0;
    for &&(ns, count) in &recorded {
        seen += count;
        let y = frame.y.at(ns.max(1) as f64);
        let place = if seen == total { end } else { nines(seen as f64 / total as f64) };
        let x = frame.x.at(place);
        let &(last, _) = points.last().expect("the first point is there");
        if x - last >= STEP_MIN || seen == total {
            points.push((last, y));
            points.push((x, y));
        }
    }
    let last = (frame.x.at(end), frame.y.at(largest.max(1) as f64));
    canvas.run(series, &[points]);
    canvas.marker(series, last);
    for (quantile, _) in TABLE.iter().filter(|(quantile, _)| nines(*quantile) < end && *quantile < 1.0) {
        if let Some(ns) = latency.at(*quantile) {
            canvas.marker(series, (frame.x.at(nines(*quantile)), frame.y.at(ns.max(1) as f64)));
        }
    }
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
    fn nines_lie_at_even_distances() {
        for (quantile, place) in [(0.0, 0.0), (0.9, 1.0), (0.99, 2.0), (0.999, 3.0), (0.99999, 5.0)] {
            assert!((nines(quantile) - place).abs() < 1e-6, "{quantile}");
        }
        assert!((nines(0.5) - 0.301).abs() < 0.001);
        assert!(nines(1.0).is_finite());
    }

    #[test]
    fn the_axis_names_its_nines() {
        let labels: Vec<_> = ticks(4.7).into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
    }

    #[test]
    fn the_line_passes_each_quantile_at_its_value() {
        let latency = latency(&[(1_000, 90), (10_000, 9), (100_000, 1)]);
        let mut canvas = Canvas::default();
        let frame = Frame {
            x: Scale::new((0.0, 2.0), false, (0.0, 200.0)),
            y: Scale::new((1_000.0, 100_000.0), true, (100.0, 0.0)),
            left: 0.0,
        };
        draw(&mut canvas, &frame, 0, &latency);
        let path = canvas.body.split(" d=\"").nth(1).and_then(|rest| rest.split('"').next());
        assert_eq!(path, Some("M0 100L0 100L100 100L100 50L200 50L200 0L200 0"));
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
