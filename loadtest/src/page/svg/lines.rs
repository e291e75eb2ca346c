//! Lines: several series over one x axis: time, a rate, or the nines of a percentile.

use super::scale::{Scale, log_ticks, nice_ticks};
use super::{AXIS_NAME, Anchor, Canvas, Picture, Table, WIDTH, nothing, shortened, text_width};
use crate::unit::Unit;

/// Height of the plot itself.
const PLOT: f64 = 185.0;
/// Room right of the plot, for half of the last tick's label.
const RIGHT: f64 = 24.0;
/// Series of more points than this have markers at some of them only.
const MARKED_MAX: usize = 24;
/// Markers on a long series.
const MARKERS: usize = 8;
/// Rows of the table beneath; more points are thinned out evenly there.
const ROWS_MAX: usize = 60;
/// Ticks that are aimed at.
const TICKS: usize = 5;
/// An axis of nines ends at the latest here: 99.999999 %.
const NINES_MAX: f64 = 8.0;

/// How values lie along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// From zero.
    Linear,
    /// By their logarithm.
    Log,
    /// Quantiles by their number of nines, from 0 % on (see [`nines`]).
    Nines,
}

/// An axis.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What it shows.
    pub label: String,
    /// What its numbers are.
    pub unit: Unit,
    /// How they lie.
    pub kind: Kind,
}

/// The place of a quantile on an axis of nines: 0 at 0, 1 at 0.9, 2 at 0.99, and so on.
pub fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).max(f64::MIN_POSITIVE).log10()
}

impl Axis {
    /// A linear axis that starts at 0.
    pub fn linear(label: impl Into<String>, unit: Unit) -> Axis {
        Axis { label: label.into(), unit, kind: Kind::Linear }
    }

    /// A logarithmic axis.
    pub fn log(label: impl Into<String>, unit: Unit) -> Axis {
        Axis { label: label.into(), unit, kind: Kind::Log }
    }

    /// The range and the ticks, with their labels, that hold all values; values that have no place
    /// on the axis do not count.
    fn ticks(&self, values: impl Iterator<Item = f64>) -> ((f64, f64), Vec<(f64, String)>) {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite() && (self.kind != Kind::Log || *value > 0.0)) {
            (low, high) = (low.min(value), high.max(value));
        }
        let any = low <= high;
        let ticks = match self.kind {
            Kind::Nines => {
                let end = high.clamp(1.0, NINES_MAX);
                return ((0.0, end), nines_ticks(end));
            }
            Kind::Log if any => log_ticks(low, high),
            Kind::Log => log_ticks(1.0, 10.0),
            Kind::Linear if any => nice_ticks(self.unit, low.min(0.0), high, TICKS),
            Kind::Linear => nice_ticks(self.unit, 0.0, self.unit.step(0.0).0, TICKS),
        };
        let range = (ticks[0], ticks[ticks.len() - 1]);
        (range, ticks.into_iter().map(|tick| (tick, self.unit.tick(tick))).collect())
    }
}

/// Ticks of an axis of nines, up to `end` of them.
fn nines_ticks(end: f64) -> Vec<(f64, String)> {
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

/// One series.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// x and y, rising in x.
    pub points: Vec<(f64, f64)>,
    /// Markers alone, without a line between them.
    pub dots: bool,
    /// Where markers stand, if not at points.
    pub marks: Option<Vec<(f64, f64)>>,
}

impl Line {
    /// A line through points.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Line {
        Line { name: name.into(), points, dots: false, marks: None }
    }

    /// Points that are not connected, for example measurements beside a model.
    pub fn dots(name: impl Into<String>, points: Vec<(f64, f64)>) -> Line {
        Line { dots: true, ..Line::new(name, points) }
    }
}

/// A picture of lines.
#[derive(Debug, Clone)]
pub struct Lines {
    /// Its name.
    pub title: String,
    /// What is to be seen, for who cannot see it.
    pub about: String,
    /// The axis along the bottom.
    pub x: Axis,
    /// The axis along the left.
    pub y: Axis,
    /// What is drawn, in the order of the legend; up to six differ in colour, dashes and marker.
    pub lines: Vec<Line>,
    /// Limits: a y value and what it is, drawn across the plot.
    pub limits: Vec<(f64, String)>,
    /// Its figures, if they are not those of the points.
    pub table: Option<Table>,
}

impl Lines {
    /// Without limits.
    pub fn new(title: &str, about: &str, x: Axis, y: Axis, lines: Vec<Line>) -> Lines {
        Lines { title: title.into(), about: about.into(), x, y, lines, limits: Vec::new(), table: None }
    }
}

/// Draws lines.
pub fn lines(plot: &Lines) -> Picture {
    let mut canvas = Canvas::default();
    // A single line is named by title and axis.
    let named = plot.lines.len() > 1 || plot.x.kind == Kind::Nines;
    let names = plot.lines.iter().filter(|_| named).map(|line| (line.name.as_str(), !line.dots));
    let top = canvas.legend(names) + AXIS_NAME;
    let height = top + PLOT + 42.0;
    let all = || plot.lines.iter().flat_map(|line| line.points.iter().copied());
    if all().any(|(x, y)| x.is_finite() && y.is_finite()) {
        let frame = Frame::draw(&mut canvas, plot, top);
        let limits = || plot.limits.iter().filter(|(limit, _)| frame.y.has(*limit));
        for (limit, _) in limits() {
            let y = frame.y.at(*limit);
            canvas.line("limit", (frame.left, y), (WIDTH - RIGHT, y));
        }
        for (series, line) in plot.lines.iter().enumerate() {
            draw(&mut canvas, &frame, series, line);
        }
        let places: Vec<_> = all().filter_map(|point| frame.at(point)).collect();
        for (limit, name) in limits() {
            limit_name(&mut canvas, &frame, &places, frame.y.at(*limit), &shortened(name, 40));
        }
    } else {
        nothing(&mut canvas, height);
    }
    let table = plot.table.clone().unwrap_or_else(|| figures(plot));
    canvas.picture(&plot.title, &plot.about, height, table)
}

/// Where values lie in a picture.
struct Frame {
    x: Scale,
    y: Scale,
    left: f64,
}

impl Frame {
    /// Draws axes, grid and labels; the plot reaches from `top` down.
    fn draw(canvas: &mut Canvas, plot: &Lines, top: f64) -> Frame {
        let all = || plot.lines.iter().flat_map(|line| line.points.iter().copied());
        let (x_range, x_ticks) = plot.x.ticks(all().map(|(x, _)| x));
        let (y_range, y_ticks) =
            plot.y.ticks(all().map(|(_, y)| y).chain(plot.limits.iter().map(|&(y, _)| y)));
        let left = y_ticks.iter().map(|(_, label)| text_width(label)).fold(20.0, f64::max) + 8.0;
        let (right, bottom) = (WIDTH - RIGHT, top + PLOT);
        let scale = |axis: &Axis, range, ends| Scale::new(range, axis.kind == Kind::Log, ends);
        let (x, y) = (scale(&plot.x, x_range, (left, right)), scale(&plot.y, y_range, (bottom, top)));
        for (at, (tick, label)) in y_ticks.iter().enumerate() {
            let place = y.at(*tick);
            canvas.line(if at == 0 { "base" } else { "grid" }, (left, place), (right, place));
            canvas.text("label", Anchor::End, (left - 6.0, place + 4.0), label);
        }
        canvas.text("axis", Anchor::Start, (0.0, top - 14.0), &shortened(&plot.y.label, 56));
        for (tick, _) in &x_ticks {
            let place = x.at(*tick);
            match plot.x.kind {
                Kind::Nines => canvas.line("grid", (place, top), (place, bottom)),
                _ => canvas.line("tick", (place, bottom), (place, bottom + 4.0)),
            }
        }
        canvas.x_labels(x_ticks.iter().map(|(tick, label)| (x.at(*tick), label.clone())), bottom + 17.0);
        let middle = f64::midpoint(left, right);
        canvas.text("axis", Anchor::Middle, (middle, bottom + 34.0), &shortened(&plot.x.label, 48));
        Frame { x, y, left }
    }

    /// The place of a point, if it has one.
    fn at(&self, (x, y): (f64, f64)) -> Option<(f64, f64)> {
        (self.x.has(x) && self.y.has(y)).then(|| (self.x.at(x), self.y.at(y)))
    }
}

/// Names a limit at the end of its line where fewer of the points are in the way.
fn limit_name(canvas: &mut Canvas, frame: &Frame, points: &[(f64, f64)], y: f64, name: &str) {
    let (from, to) = (frame.left, WIDTH - RIGHT);
    let width = text_width(name);
    let crowd = |low: f64, high: f64| {
        points
            .iter()
            .filter(|point| (low..high).contains(&point.0) && (y - point.1 + 8.0).abs() < 16.0)
            .count()
    };
    let (anchor, x) = match crowd(from, from + width) <= crowd(to - width, to) {
        true => (Anchor::Start, from + 4.0),
        false => (Anchor::End, to - 2.0),
    };
    canvas.text("limit-name", anchor, (x, y - 4.0), name);
}

fn draw(canvas: &mut Canvas, frame: &Frame, series: usize, line: &Line) {
    let places: Vec<Option<(f64, f64)>> = line.points.iter().map(|&point| frame.at(point)).collect();
    if !line.dots {
        let runs: Vec<Vec<(f64, f64)>> =
            places.split(Option::is_none).map(|run| run.iter().copied().flatten().collect()).collect();
        canvas.run(series, &runs);
    }
    if let Some(marks) = &line.marks {
        marks.iter().filter_map(|&mark| frame.at(mark)).for_each(|place| canvas.marker(series, place));
        return;
    }
    let points: Vec<_> = places.into_iter().flatten().collect();
    let every = if line.dots || points.len() <= MARKED_MAX { 1 } else { points.len() / MARKERS };
    points.iter().step_by(every).for_each(|&place| canvas.marker(series, place));
}

/// The table of a picture of lines: one row per x.
fn figures(plot: &Lines) -> Table {
    let head = std::iter::once(plot.x.label.clone())
        .chain(plot.lines.iter().map(|line| line.name.clone()))
        .collect();
    let mut xs: Vec<f64> = plot.lines.iter().flat_map(|line| line.points.iter().map(|&(x, _)| x)).collect();
    xs.retain(|x| x.is_finite());
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let every = xs.len().div_ceil(ROWS_MAX).max(1);
    let rows = xs
        .into_iter()
        .step_by(every)
        .map(|x| {
            let cells = plot.lines.iter().map(|line| {
                let found = line.points.iter().find(|point| point.0 == x);
                found.map_or_else(String::new, |&(_, y)| plot.y.unit.show(y))
            });
            std::iter::once(plot.x.unit.show(x)).chain(cells).collect()
        })
        .collect();
    (head, rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, f64)>, log: bool) -> Picture {
        plot_of(vec![Line::new("a <b>", points)], log)
    }

    fn plot_of(series: Vec<Line>, log: bool) -> Picture {
        lines(&Lines {
            title: "<script>alert(1)</script>".into(),
            about: "a & b".into(),
            x: Axis::linear("time", Unit::Seconds),
            y: match log {
                true => Axis::log("latency", Unit::Nanoseconds),
                false => Axis::linear("latency", Unit::Nanoseconds),
            },
            lines: series,
            limits: vec![(f64::NAN, "none".into()), (50.0, "limit".into())],
            table: None,
        })
    }

    #[test]
    fn every_coordinate_is_a_number_whatever_the_values_are() {
        let cases = [
            vec![],
            vec![(0.0, 5.0)],
            vec![(0.0, 0.0), (0.0, 0.0)],
            vec![(1.0, f64::NAN), (2.0, 3.0), (f64::INFINITY, 1.0), (4.0, 0.0), (5.0, 1e18)],
        ];
        for points in cases {
            for log in [false, true] {
                let svg = plot(points.clone(), log).svg("p");
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?}: {svg}");
            }
        }
    }

    #[test]
    fn one_point_is_seen_as_a_marker() {
        let svg = plot(vec![(3.0, 70.0)], false).svg("p");
        assert_eq!(svg.matches("<circle").count(), 1, "a single line needs no legend");
        assert!(!svg.contains("nothing was measured"));
    }

    #[test]
    fn a_value_that_is_none_leaves_a_gap() {
        let whole = plot(vec![(1.0, 2.0), (2.0, 2.0), (3.0, 2.0), (4.0, 2.0)], true).svg("p");
        let broken = plot(vec![(1.0, 2.0), (2.0, 0.0), (3.0, 2.0), (4.0, 2.0)], true).svg("p");
        assert_eq!((whole.matches('L').count(), broken.matches('L').count()), (3, 1));
    }

    #[test]
    fn the_name_of_a_limit_stands_where_no_line_is() {
        let anchor = |points: Vec<(f64, f64)>| {
            let svg = plot(points, false).svg("p");
            let text = svg.split("<text class=\"limit-name\" text-anchor=\"").nth(1).expect("a name");
            text.split('"').next().map(str::to_owned)
        };
        assert_eq!(anchor(vec![(0.0, 1.0), (8.0, 50.0), (10.0, 55.0)]).as_deref(), Some("start"));
        assert_eq!(anchor(vec![(0.0, 55.0), (0.5, 52.0), (10.0, 1.0)]).as_deref(), Some("end"));
    }

    #[test]
    fn an_empty_plot_says_so() {
        let picture = plot(vec![], false);
        assert!(picture.svg("p").contains("nothing was measured"));
        assert!(picture.rows.is_empty());
    }

    #[test]
    fn names_are_escaped() {
        let points = vec![(1.0, 1.0), (2.0, 2.0)];
        let svg = plot_of(vec![Line::new("a <b>", points.clone()), Line::dots("c", points)], false).svg("p");
        assert_eq!(
            svg.matches("class=\"line").count(),
            2,
            "one of the legend, one of the line, none of the dots"
        );
        assert!(svg.contains("&lt;script&gt;") && !svg.contains("<script") && svg.contains("a &lt;b&gt;"));
        assert!(svg.contains("a &amp; b"));
    }

    #[test]
    fn the_table_has_a_row_for_each_x_and_no_more_than_can_be_read() {
        let few = plot(vec![(1.0, 1_000.0), (2.0, 2_500.0)], false);
        assert_eq!(few.head, ["time", "a <b>"]);
        assert_eq!(few.rows, [["1 s", "1 µs"], ["2 s", "2.50 µs"]]);
        let many = plot((0..1_000).map(|x| (f64::from(x), 1.0)).collect(), false);
        assert!(many.rows.len() <= ROWS_MAX && many.rows.len() > ROWS_MAX / 2);
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
        let labels: Vec<_> = nines_ticks(4.7).into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
    }
}
