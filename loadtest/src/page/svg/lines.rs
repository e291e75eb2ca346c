//! Lines: several series over one x axis, usually time.

use super::scale::{Scale, log_ticks, nice_ticks};
use super::{AXIS_NAME, Anchor, Canvas, Picture, WIDTH, nothing, shortened, text_width};
use crate::unit::Unit;

/// Height of the plot itself.
const PLOT: f64 = 170.0;
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

/// An axis.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What it shows.
    pub label: String,
    /// What its numbers are.
    pub unit: Unit,
    /// Logarithmic; else linear, and down to zero.
    pub log: bool,
}

impl Axis {
    /// A linear axis that starts at 0.
    pub fn linear(label: impl Into<String>, unit: Unit) -> Axis {
        Axis { label: label.into(), unit, log: false }
    }

    /// A logarithmic axis.
    pub fn log(label: impl Into<String>, unit: Unit) -> Axis {
        Axis { label: label.into(), unit, log: true }
    }

    /// Ticks that hold all values; values that have no place on the axis do not count.
    fn ticks(&self, values: impl Iterator<Item = f64>) -> Vec<f64> {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite() && (!self.log || *value > 0.0)) {
            (low, high) = (low.min(value), high.max(value));
        }
        match (low <= high, self.log) {
            (true, true) => log_ticks(low, high),
            (true, false) => nice_ticks(self.unit, low.min(0.0), high, TICKS),
            (false, true) => log_ticks(1.0, 10.0),
            (false, false) => nice_ticks(self.unit, 0.0, self.unit.step(0.0).0, TICKS),
        }
    }
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
}

impl Line {
    /// A line through points.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Line {
        Line { name: name.into(), points, dots: false }
    }

    /// Points that are not connected, for example measurements beside a model.
    pub fn dots(name: impl Into<String>, points: Vec<(f64, f64)>) -> Line {
        Line { name: name.into(), points, dots: true }
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
}

/// Draws lines.
pub fn lines(plot: &Lines) -> Picture {
    let mut canvas = Canvas::default();
    // A single line is named by title and axis.
    let named = if plot.lines.len() > 1 { &plot.lines[..] } else { &[] };
    let names: Vec<&str> = named.iter().map(|line| line.name.as_str()).collect();
    let connected: Vec<bool> = plot.lines.iter().map(|line| !line.dots).collect();
    let top = canvas.legend(&names, &connected, 0.0) + AXIS_NAME;
    let height = top + PLOT + 42.0;
    let all = || plot.lines.iter().flat_map(|line| line.points.iter().copied());
    if all().any(|(x, y)| x.is_finite() && y.is_finite()) {
        let x_ticks = plot.x.ticks(all().map(|(x, _)| x));
        let y_ticks = plot.y.ticks(all().map(|(_, y)| y).chain(plot.limits.iter().map(|&(y, _)| y)));
        let frame = frame(&mut canvas, (&plot.x, &x_ticks), (&plot.y, &y_ticks), top);
        let limits = || plot.limits.iter().filter(|(limit, _)| frame.y.has(*limit));
        for (limit, _) in limits() {
            let y = frame.y.at(*limit);
            canvas.line("limit", (frame.left, y), (WIDTH - RIGHT, y));
        }
        for (series, line) in plot.lines.iter().enumerate() {
            draw(&mut canvas, &frame, series, line);
        }
        let places: Vec<_> = all()
            .filter(|&(x, y)| frame.x.has(x) && frame.y.has(y))
            .map(|(x, y)| (frame.x.at(x), frame.y.at(y)))
            .collect();
        for (limit, name) in limits() {
            limit_name(&mut canvas, &frame, &places, frame.y.at(*limit), &shortened(name, 40));
        }
    } else {
        nothing(&mut canvas, height);
    }
    let (head, rows) = figures(plot);
    Picture {
        title: plot.title.clone(),
        description: plot.about.clone(),
        height,
        body: canvas.body,
        head,
        rows,
    }
}

/// Where values lie in a picture.
pub struct Frame {
    pub x: Scale,
    pub y: Scale,
    pub left: f64,
}

/// Draws axes, grid and labels; the plot reaches from `top` down.
fn frame(
    canvas: &mut Canvas,
    (x, x_ticks): (&Axis, &[f64]),
    (y, y_ticks): (&Axis, &[f64]),
    top: f64,
) -> Frame {
    let labels: Vec<String> = y_ticks.iter().map(|&tick| y.unit.tick(tick)).collect();
    let left = left_of(&labels);
    let bottom = top + PLOT;
    let frame = Frame {
        x: Scale::new(ends(x_ticks), x.log, (left, WIDTH - RIGHT)),
        y: Scale::new(ends(y_ticks), y.log, (bottom, top)),
        left,
    };
    y_axis(canvas, &frame, y_ticks, &labels, &y.label, top);
    let mut free_from = 0.0;
    for &tick in x_ticks {
        let place = frame.x.at(tick);
        let label = x.unit.tick(tick);
        canvas.line("tick", (place, bottom), (place, bottom + 4.0));
        let half = text_width(&label) / 2.0;
        if place - half >= free_from {
            canvas.text("label", Anchor::Middle, (place, bottom + 17.0), &label);
            free_from = place + half + 4.0;
        }
    }
    x_label(canvas, &frame, &x.label, bottom);
    frame
}

/// Room that the labels of a y axis need.
pub fn left_of(labels: &[String]) -> f64 {
    labels.iter().map(|label| text_width(label)).fold(20.0, f64::max) + 8.0
}

/// Smallest and largest tick.
pub fn ends(ticks: &[f64]) -> (f64, f64) {
    (ticks[0], ticks[ticks.len() - 1])
}

/// The y axis: a line across the plot at each tick, its label at the left, the axis's name above.
pub fn y_axis(canvas: &mut Canvas, frame: &Frame, ticks: &[f64], labels: &[String], name: &str, top: f64) {
    for (at, (&tick, label)) in ticks.iter().zip(labels).enumerate() {
        let place = frame.y.at(tick);
        let class = if at == 0 { "base" } else { "grid" };
        canvas.line(class, (frame.left, place), (WIDTH - RIGHT, place));
        canvas.text("label", Anchor::End, (frame.left - 6.0, place + 4.0), label);
    }
    canvas.text("axis", Anchor::Start, (0.0, top - 14.0), &shortened(name, 56));
}

/// The name of the x axis, beneath its labels.
pub fn x_label(canvas: &mut Canvas, frame: &Frame, name: &str, bottom: f64) {
    let middle = (frame.left + WIDTH - RIGHT) / 2.0;
    canvas.text("axis", Anchor::Middle, (middle, bottom + 34.0), &shortened(name, 48));
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
    let mut runs = vec![Vec::new()];
    for &(x, y) in &line.points {
        if frame.x.has(x) && frame.y.has(y) {
            let place = (frame.x.at(x), frame.y.at(y));
            runs.last_mut().expect("there is always a run").push(place);
        } else {
            runs.push(Vec::new());
        }
    }
    if !line.dots {
        canvas.run(series, &runs);
    }
    let points: Vec<_> = runs.into_iter().flatten().collect();
    let every = if line.dots || points.len() <= MARKED_MAX { 1 } else { points.len() / MARKERS };
    for &place in points.iter().step_by(every) {
        canvas.marker(series, place);
    }
}

/// The table of a picture of lines: one row per x.
fn figures(plot: &Lines) -> (Vec<String>, Vec<Vec<String>>) {
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
            y: Axis { label: "latency".into(), unit: Unit::Nanoseconds, log },
            lines: series,
            limits: vec![(f64::NAN, "none".into()), (50.0, "limit".into())],
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
}
