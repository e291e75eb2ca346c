//! Bars: figures of a few candidates side by side, in groups, beside the floor.
//!
//! Bars lie, so that every one has its name before it and its value behind it: no legend, no colour
//! that must be told apart. A whisker shows the smallest and largest of several measurements. The
//! axis starts at 0.

use super::scale::{Scale, nice_ticks};
use super::{Anchor, Canvas, Picture, STYLES, Table, WIDTH, nothing, shortened, text_width};
use crate::unit::Unit;

/// Height of a bar.
const BAR: f64 = 17.0;
/// From one bar to the next.
const PITCH: f64 = 22.0;
/// Height of a group's heading.
const HEADING: f64 = 22.0;
/// Space between groups.
const GAP: f64 = 8.0;
/// Characters of a bar's name; longer ones are cut.
const NAME_MAX: usize = 22;

/// One bar.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Who it is: bars of one name have one colour in all groups.
    pub name: String,
    /// The figure; not finite where there is none.
    pub value: f64,
    /// Smallest and largest of several measurements.
    pub range: Option<(f64, f64)>,
}

impl Bar {
    /// A bar without a whisker.
    pub fn new(name: impl Into<String>, value: f64) -> Bar {
        Bar { name: name.into(), value, range: None }
    }

    /// The median, smallest and largest of several measurements.
    pub fn spread(name: impl Into<String>, spread: &crate::report::Spread) -> Bar {
        Bar { name: name.into(), value: spread.median, range: Some((spread.min, spread.max)) }
    }
}

/// Bars that belong together.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its heading; may be empty.
    pub label: String,
    /// Its bars.
    pub bars: Vec<Bar>,
}

/// A picture of bars.
#[derive(Debug, Clone)]
pub struct Bars {
    /// Its name.
    pub title: String,
    /// What is to be seen, for who cannot see it.
    pub about: String,
    /// What the axis shows.
    pub label: String,
    /// What the figures are.
    pub unit: Unit,
    /// The bars, from top to bottom.
    pub groups: Vec<Group>,
    /// A value to compare with and its name, drawn across all bars: the floor.
    pub reference: Option<(f64, String)>,
}

/// Draws bars.
pub fn bars(plot: &Bars) -> Picture {
    let mut canvas = Canvas::default();
    let top = if plot.reference.is_some() { 20.0 } else { 4.0 };
    let rows: f64 =
        plot.groups.iter().map(|group| heading(group) + group.bars.len() as f64 * PITCH + GAP).sum();
    let bottom = top + rows;
    let height = (bottom + 32.0).max(90.0);
    if plot.groups.iter().any(|group| !group.bars.is_empty()) {
        draw(&mut canvas, plot, top, bottom);
    } else {
        nothing(&mut canvas, height);
    }
    canvas.picture(&plot.title, &plot.about, height, figures(plot))
}

fn heading(group: &Group) -> f64 {
    if group.label.is_empty() { 0.0 } else { HEADING }
}

fn all(plot: &Bars) -> impl Iterator<Item = &Bar> {
    plot.groups.iter().flat_map(|group| &group.bars)
}

fn draw(canvas: &mut Canvas, plot: &Bars, top: f64, bottom: f64) {
    let names: Vec<&str> = all(plot).fold(Vec::new(), |mut names, bar| {
        if !names.contains(&bar.name.as_str()) {
            names.push(&bar.name);
        }
        names
    });
    let left = names.iter().map(|name| text_width(&shortened(name, NAME_MAX))).fold(40.0, f64::max) + 8.0;
    let value_width = all(plot).map(|bar| text_width(&plot.unit.show(bar.value))).fold(0.0, f64::max);
    let right = WIDTH - value_width - 12.0;
    let largest = all(plot)
        .flat_map(|bar| [Some(bar.value), bar.range.map(|(_, max)| max)])
        .chain([plot.reference.as_ref().map(|(value, _)| *value)])
        .flatten()
        .filter(|value| value.is_finite())
        .fold(0.0, f64::max);
    let ticks = nice_ticks(plot.unit, 0.0, largest, 5);
    let scale = Scale::new((0.0, ticks[ticks.len() - 1]), false, (left, right));
    let reference = plot.reference.as_ref().filter(|(value, _)| value.is_finite());
    let mut values = Vec::new();
    let mut y = top;
    for group in &plot.groups {
        if !group.label.is_empty() {
            canvas.text("group", Anchor::Start, (0.0, y + 15.0), &shortened(&group.label, 56));
            y += HEADING;
        }
        // Lines run along the bars only, so that none crosses a heading.
        let across = (y - 3.0, y + group.bars.len() as f64 * PITCH - 2.0);
        for (at, &tick) in ticks.iter().enumerate() {
            vertical(canvas, if at == 0 { "base" } else { "grid" }, scale.at(tick), across);
        }
        for bar in &group.bars {
            let series = names.iter().position(|name| *name == bar.name).unwrap_or(0);
            let end = draw_bar(canvas, &scale, (left, y), series, bar);
            values.push(((end + 5.0, y + BAR / 2.0 + 4.0), plot.unit.show(bar.value)));
            y += PITCH;
        }
        if let Some((value, _)) = reference {
            vertical(canvas, "limit", scale.at(*value), across);
        }
        y += GAP;
    }
    axis(canvas, plot, &ticks, &scale, bottom - GAP);
    if let Some((value, name)) = reference {
        let x = scale.at(*value);
        let (anchor, shift) = if x > WIDTH / 2.0 { (Anchor::End, 4.0) } else { (Anchor::Start, -4.0) };
        canvas.text("limit-name", anchor, (x + shift, top - 8.0), &shortened(name, 40));
    }
    // Above all lines, so that they stay readable.
    for (place, value) in values {
        canvas.text("value", Anchor::Start, place, &value);
    }
}

fn vertical(canvas: &mut Canvas, class: &str, x: f64, (from, to): (f64, f64)) {
    canvas.line(class, (x, from), (x, to));
}

/// Numbers and name of the axis beneath `bottom`.
fn axis(canvas: &mut Canvas, plot: &Bars, ticks: &[f64], scale: &Scale, bottom: f64) {
    let labels = ticks.iter().map(|&tick| (scale.at(tick), plot.unit.tick(tick)));
    canvas.x_labels(labels, bottom + 16.0);
    let middle = (scale.at(0.0) + scale.at(ticks[ticks.len() - 1])) / 2.0;
    canvas.text("axis", Anchor::Middle, (middle, bottom + 33.0), &shortened(&plot.label, 48));
}

/// Draws a bar with its name and whisker; gives where both end.
fn draw_bar(canvas: &mut Canvas, scale: &Scale, (left, y): (f64, f64), series: usize, bar: &Bar) -> f64 {
    let middle = y + BAR / 2.0;
    canvas.text("name", Anchor::End, (left - 6.0, middle + 4.0), &shortened(&bar.name, NAME_MAX));
    let mut end = scale.at(0.0);
    if bar.value.is_finite() {
        end = scale.at(bar.value);
        canvas.rectangle(&format!("bar s{}", series % STYLES), (left, y), (end - left, BAR));
    }
    if let Some((min, max)) = bar.range.filter(|(min, max)| min.is_finite() && max.is_finite() && min < max) {
        let (from, to) = (scale.at(min), scale.at(max));
        // First wide in the colour of the sheet: seen on every bar.
        for class in ["halo", "whisker"] {
            canvas.line(class, (from, middle), (to, middle));
            vertical(canvas, class, from, (middle - 4.0, middle + 4.0));
            vertical(canvas, class, to, (middle - 4.0, middle + 4.0));
        }
        end = end.max(to);
    }
    end
}

fn figures(plot: &Bars) -> Table {
    let ranges = all(plot).any(|bar| bar.range.is_some());
    let mut head = vec!["group".to_owned(), "who".to_owned(), plot.label.clone()];
    if ranges {
        head.extend(["smallest".to_owned(), "largest".to_owned()]);
    }
    let rows = plot.groups.iter().flat_map(|group| {
        group.bars.iter().map(move |bar| {
            let mut row = vec![group.label.clone(), bar.name.clone(), plot.unit.show(bar.value)];
            if let Some((min, max)) = bar.range {
                row.extend([plot.unit.show(min), plot.unit.show(max)]);
            }
            row
        })
    });
    (head, rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(groups: Vec<Group>, reference: Option<f64>) -> Picture {
        bars(&Bars {
            title: "CPU".into(),
            about: "bars".into(),
            label: "CPU per delivery, times the floor".into(),
            unit: Unit::Ratio,
            groups,
            reference: reference.map(|value| (value, "floor".to_owned())),
        })
    }

    fn group(label: &str, bars: &[(&str, f64)]) -> Group {
        let bars = bars.iter().map(|&(name, value)| Bar::new(name, value)).collect();
        Group { label: label.into(), bars }
    }

    fn widths(svg: &str) -> Vec<f64> {
        let cells = svg.split("<rect").skip(1).filter_map(|part| part.split("width=\"").nth(1));
        cells.filter_map(|part| part.split('"').next()?.parse().ok()).collect()
    }

    #[test]
    fn a_bar_is_as_long_as_its_value() {
        let svg = plot(vec![group("a", &[("x", 1.0), ("y", 2.0), ("z", 0.0)])], None).svg("p");
        let widths = widths(&svg);
        assert!(
            (widths[1] - 2.0 * widths[0]).abs() < 0.2 && widths[0] > 50.0 && widths[2] == 0.0,
            "{widths:?}"
        );
        assert!(svg.contains("2 ×"));
    }

    #[test]
    fn one_name_has_one_colour_in_all_groups() {
        let groups = vec![group("a", &[("x", 1.0), ("y", 2.0)]), group("b", &[("y", 2.0), ("x", 1.0)])];
        let svg = plot(groups, None).svg("p");
        let classes: Vec<_> =
            svg.split("<rect class=\"").skip(1).filter_map(|part| part.split('"').next()).collect();
        assert_eq!(classes, ["bar s0", "bar s1", "bar s1", "bar s0"]);
    }

    #[test]
    fn the_floor_is_in_the_picture_even_beyond_all_bars() {
        let svg = plot(vec![group("", &[("x", 0.4)])], Some(1.0)).svg("p");
        assert!(svg.contains("class=\"limit\"") && svg.contains(">floor<"));
        assert!(widths(&svg)[0] < 200.0, "the axis reaches the floor");
    }

    #[test]
    fn bars_without_a_figure_are_named_and_not_drawn() {
        let groups = vec![group("a", &[("x", f64::NAN), ("y", f64::INFINITY), ("z", 1.0)])];
        let picture = plot(groups, Some(f64::NAN));
        let svg = picture.svg("p");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert_eq!(widths(&svg).len(), 1);
        assert_eq!(picture.rows[0], ["a", "x", "–"]);
    }

    #[test]
    fn a_whisker_shows_the_extremes() {
        let spread = crate::report::Spread { median: 2.0, min: 1.0, max: 4.0 };
        let bars = vec![Bar::spread("x", &spread), Bar::new("y", 1.0)];
        let picture = plot(vec![Group { label: String::new(), bars }], None);
        assert_eq!(picture.svg("p").matches("class=\"whisker\"").count(), 3);
        assert_eq!(picture.rows[0], ["", "x", "2 ×", "1 ×", "4 ×"]);
    }

    #[test]
    fn nothing_is_said_to_be_nothing() {
        assert!(plot(vec![], Some(1.0)).svg("p").contains("nothing was measured"));
    }
}
