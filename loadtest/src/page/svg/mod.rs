//! Pictures as SVG: lines over time, latency by percentile, bars beside a floor.
//!
//! A [`Picture`] has a name, a description and its figures as a table, so that who cannot see it
//! loses nothing. Series differ in colour (told apart by colour-blind people too, see `style.css`),
//! in dashes and in markers. A picture is 420 units wide whatever it shows: text stays readable on
//! a phone and two fit side by side on a screen. Values that are not finite, or not above zero on a
//! logarithmic axis, leave a gap; no coordinate ever is NaN.

use super::escape;
pub use bars::{Bar, Bars, Group, bars};
pub use lines::{Axis, Line, Lines, lines};
pub use percentiles::percentiles;

mod bars;
mod lines;
mod percentiles;
mod scale;

/// Width of every picture, in its own units.
const WIDTH: f64 = 420.0;
/// Room above a plot for the name of its y axis.
const AXIS_NAME: f64 = 27.0;
/// Colours, dashes and markers before they repeat.
const STYLES: usize = 6;
/// Dashes of a line, by series.
const DASHES: [&str; STYLES] = ["", "7 4", "2 3", "10 3 2 3", "5 2", "1 4"];
/// Mean width of a character of 12 units' height, generously: text is measured by no one here.
const CHARACTER: f64 = 7.3;

/// Head and rows.
pub type Table = (Vec<String>, Vec<Vec<String>>);

/// A finished picture.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Its name.
    pub title: String,
    description: String,
    height: f64,
    /// Markup within the `svg` element.
    body: String,
    /// The head of its table of figures.
    pub head: Vec<String>,
    /// The rows of its table of figures.
    pub rows: Vec<Vec<String>>,
}

impl Picture {
    /// The `svg` element; `identifier` is unique in its document.
    pub fn svg(&self, identifier: &str) -> String {
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-labelledby=\"{identifier}-title {identifier}-about\">\n\
             <title id=\"{identifier}-title\">{}</title>\n<desc id=\"{identifier}-about\">{}</desc>\n{}</svg>\n",
            self.height,
            escape(&self.title),
            escape(&self.description),
            self.body
        )
    }
}

/// The markup of a picture while it is drawn.
#[derive(Debug, Default)]
struct Canvas {
    body: String,
}

/// Where a text is anchored.
#[derive(Debug, Clone, Copy)]
enum Anchor {
    Start,
    Middle,
    End,
}

impl Canvas {
    fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let (x1, y1, x2, y2) = (n(x1), n(y1), n(x2), n(y2));
        self.body += &format!("<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>\n");
    }

    fn text(&mut self, class: &str, anchor: Anchor, (x, y): (f64, f64), text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (x, y, text) = (n(x), n(y), escape(text));
        let place = format!("text-anchor=\"{anchor}\" x=\"{x}\" y=\"{y}\"");
        self.body += &format!("<text class=\"{class}\" {place}>{text}</text>\n");
    }

    fn rectangle(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        let (x, y, width, height) = (n(x), n(y), n(width.max(0.0)), n(height.max(0.0)));
        let place = format!("x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"");
        self.body += &format!("<rect class=\"{class}\" {place} rx=\"2\"/>\n");
    }

    /// A line of series `series` through `points`; runs are not connected with each other.
    fn run(&mut self, series: usize, runs: &[Vec<(f64, f64)>]) {
        let mut path = String::new();
        for run in runs.iter().filter(|run| run.len() > 1) {
            for (at, &(x, y)) in run.iter().enumerate() {
                path += &format!("{}{} {}", if at == 0 { "M" } else { "L" }, n(x), n(y));
            }
        }
        if !path.is_empty() {
            let style = series % STYLES;
            let dashes = DASHES[style];
            self.body +=
                &format!("<path class=\"line s{style}\" stroke-dasharray=\"{dashes}\" d=\"{path}\"/>\n");
        }
    }

    /// The marker of series `series`.
    fn marker(&mut self, series: usize, (x, y): (f64, f64)) {
        let style = series % STYLES;
        let (x0, x1, y0, y1) = (n(x - 3.6), n(x + 3.6), n(y - 3.6), n(y + 3.6));
        let (x, y) = (n(x), n(y));
        let shape = match style {
            0 => format!("<circle class=\"dot s0\" cx=\"{x}\" cy=\"{y}\" r=\"3.2\"/>"),
            1 => format!("<path class=\"dot s1\" d=\"M{x0} {y0}H{x1}V{y1}H{x0}Z\"/>"),
            2 => format!("<path class=\"dot s2\" d=\"M{x} {y0}L{x1} {y1}H{x0}Z\"/>"),
            3 => format!("<path class=\"dot s3\" d=\"M{x} {y0}L{x1} {y}L{x} {y1}L{x0} {y}Z\"/>"),
            4 => format!("<path class=\"dot s4\" d=\"M{x} {y1}L{x1} {y0}H{x0}Z\"/>"),
            _ => format!("<path class=\"dot s5 cross\" d=\"M{x0} {y0}L{x1} {y1}M{x0} {y1}L{x1} {y0}\"/>"),
        };
        self.body.push_str(&shape);
        self.body.push('\n');
    }

    /// Names with marker, and with line if they have one, in rows from the top left; gives the
    /// height taken.
    fn legend<'a>(&mut self, names: impl Iterator<Item = (&'a str, bool)>) -> f64 {
        const SAMPLE: f64 = 26.0;
        const ROW: f64 = 18.0;
        let (mut x, mut y, mut height) = (0.0, 12.0, 0.0);
        for (series, (name, line)) in names.enumerate() {
            let shown = shortened(name, 44);
            let width = SAMPLE + 6.0 + text_width(&shown) + 14.0;
            if x > 0.0 && x + width > WIDTH {
                (x, y) = (0.0, y + ROW);
            }
            if line {
                self.run(series, &[vec![(x, y - 4.0), (x + SAMPLE, y - 4.0)]]);
            }
            self.marker(series, (x + SAMPLE / 2.0, y - 4.0));
            self.text("name", Anchor::Start, (x + SAMPLE + 6.0, y), &shown);
            x += width;
            height = y + 8.0;
        }
        height
    }

    /// Labels of an x axis at their places. One that has no room beside its right neighbour is left
    /// out: the largest number matters most.
    fn x_labels(&mut self, labels: impl DoubleEndedIterator<Item = (f64, String)>, y: f64) {
        let mut free_to = f64::INFINITY;
        for (x, label) in labels.rev() {
            let half = text_width(&label) / 2.0;
            if x + half <= free_to {
                self.text("label", Anchor::Middle, (x, y), &label);
                free_to = x - half - 4.0;
            }
        }
    }

    fn picture(self, title: &str, about: &str, height: f64, (head, rows): Table) -> Picture {
        Picture { title: title.into(), description: about.into(), height, body: self.body, head, rows }
    }
}

/// A coordinate: one decimal is a tenth of a pixel.
fn n(value: f64) -> String {
    assert!(value.is_finite(), "coordinates are finite");
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

fn text_width(text: &str) -> f64 {
    text.chars().count() as f64 * CHARACTER
}

/// At most `most` characters.
fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

/// An empty plot: what is said where there is nothing to draw.
fn nothing(canvas: &mut Canvas, height: f64) {
    canvas.text("empty", Anchor::Middle, (WIDTH / 2.0, height / 2.0), "nothing was measured");
}
