//! Pages: a report as one HTML file that needs nothing but a browser.
//!
//! [`Page`] is the builder that every command uses: tiles, text, tables, pictures, warnings.
//! [`run`] fills it from outcomes. A page has no script, loads nothing (its own policy forbids it),
//! follows the reader's light or dark setting, prints, and fits a phone. Whatever comes from a user
//! or a server is escaped here, on its way in; pictures escape their own text. Each picture carries
//! its figures as a table, folded away beneath it.

use crate::machine::Machine;
pub use run::run_page;
use svg::Picture;

#[cfg(test)]
pub mod fixture;
mod run;
pub mod svg;

const STYLE: &str = include_str!("style.css");

/// A page in the making. Parts stand in the order in which they are added; warnings stand at the
/// top.
#[derive(Debug)]
pub struct Page {
    title: String,
    subtitle: String,
    footer: String,
    /// Notices and warnings, as markup.
    notices: String,
    /// Everything else, as markup.
    body: String,
    /// Pictures so far: they make identifiers.
    pictures: usize,
}

/// One key figure.
#[derive(Debug, Clone)]
pub struct Tile {
    /// What it is, in a few words.
    pub label: String,
    /// The figure with its unit.
    pub value: String,
    /// What belongs to it, for example the ratio to the floor; may be empty.
    pub note: String,
}

impl Tile {
    /// A tile.
    pub fn new(label: impl Into<String>, value: impl Into<String>, note: impl Into<String>) -> Tile {
        Tile { label: label.into(), value: value.into(), note: note.into() }
    }
}

/// How a notice looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// All is well.
    Good,
    /// The figures are doubtful.
    Warning,
    /// A promise is broken.
    Bad,
}

impl Page {
    /// A page with its heading. `about` says in a sentence what was measured; the machine stands
    /// beneath it, command and commit in the footer.
    pub fn new(title: &str, about: &str, machine: &Machine) -> Page {
        let kernel = machine.kernel.split(" #").next().unwrap_or(&machine.kernel);
        let memory = machine.memory_bytes >> 30;
        let mut subtitle = String::new();
        if !about.is_empty() {
            subtitle += &format!("<p class=\"about\">{}</p>\n", escape(about));
        }
        subtitle += &format!(
            "<p class=\"machine\">{} · {} CPUs · {memory} GiB · {} · <time>{}</time></p>\n",
            escape(&machine.cpu),
            machine.cpus,
            escape(kernel),
            escape(&machine.date)
        );
        let footer = format!(
            "<p>Command</p>\n<pre><code>{}</code></pre>\n<p>Commit <code>{}</code> · loadtest {} · {} descriptors per \
             process · {}</p>\n<p>Figures drift with the machine: compare those of one run, and ratios rather than \
             absolute figures.</p>\n",
            escape(&machine.command.join(" ")),
            escape(machine.commit.as_deref().unwrap_or("unknown")),
            env!("CARGO_PKG_VERSION"),
            machine.descriptors,
            escape(&machine.kernel)
        );
        Page {
            title: title.to_owned(),
            subtitle,
            footer,
            notices: String::new(),
            body: String::new(),
            pictures: 0,
        }
    }

    /// A notice at the top of the page, for example the result of the audit.
    pub fn notice(&mut self, kind: Notice, text: &str) {
        let (class, word) = match kind {
            Notice::Good => ("good", "✓"),
            Notice::Warning => ("warning", "Warning"),
            Notice::Bad => ("bad", "✗ Failed"),
        };
        self.notices +=
            &format!("<p class=\"notice {class}\"><strong>{word}</strong> {}</p>\n", escape(text));
    }

    /// Warnings at the top of the page.
    pub fn warnings(&mut self, warnings: &[String]) {
        for warning in warnings {
            self.notice(Notice::Warning, warning);
        }
    }

    /// A heading; what follows belongs to it.
    pub fn section(&mut self, heading: &str) {
        self.body += &format!("<h2>{}</h2>\n", escape(heading));
    }

    /// A smaller heading within a section.
    pub fn part(&mut self, heading: &str) {
        self.body += &format!("<h3>{}</h3>\n", escape(heading));
    }

    /// A paragraph.
    pub fn text(&mut self, text: &str) {
        self.body += &format!("<p>{}</p>\n", escape(text));
    }

    /// Key figures, side by side.
    pub fn tiles(&mut self, tiles: &[Tile]) {
        if tiles.is_empty() {
            return;
        }
        self.body.push_str("<dl class=\"tiles\">\n");
        for tile in tiles {
            let (label, value) = (escape(&tile.label), escape(&tile.value));
            self.body += &format!("<div><dt>{label}</dt><dd>{value}");
            if !tile.note.is_empty() {
                self.body += &format!("<small>{}</small>", escape(&tile.note));
            }
            self.body.push_str("</dd></div>\n");
        }
        self.body.push_str("</dl>\n");
    }

    /// A table with a caption (may be empty). The first `left` columns lean left and head their
    /// rows; rows may be shorter than the head, not longer.
    pub fn table(&mut self, caption: &str, left: usize, head: &[&str], rows: &[Vec<String>]) {
        let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
        self.body.push_str(&table(caption, left, &head, rows));
    }

    /// A picture with a caption that says what to see in it. Pictures added one after the other
    /// stand side by side where there is room.
    pub fn figure(&mut self, picture: &Picture, caption: &str) {
        let identifier = format!("picture{}", self.pictures);
        self.pictures += 1;
        // Neighbours share one grid: the end of the last grid is taken back.
        const END: &str = "</div><!-- pictures -->\n";
        match self.body.strip_suffix(END) {
            Some(open) => self.body.truncate(open.len()),
            None => self.body.push_str("<div class=\"pictures\">\n"),
        }
        self.body += &format!("<figure>\n<figcaption><strong>{}</strong>", escape(&picture.title));
        if !caption.is_empty() {
            self.body += &format!("<span>{}</span>", escape(caption));
        }
        self.body += &format!("</figcaption>\n{}", picture.svg(&identifier));
        if !picture.rows.is_empty() {
            let rows = table("", 1, &picture.head, &picture.rows);
            self.body += &format!("<details><summary>As a table</summary>\n{rows}</details>\n");
        }
        self.body.push_str("</figure>\n");
        self.body.push_str(END);
    }

    /// The whole document.
    pub fn html(&self) -> String {
        let title = escape(&self.title);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
             <header>\n<h1>{title}</h1>\n{}</header>\n<main>\n{}{}</main>\n<footer>\n{}</footer>\n</body>\n</html>\n",
            self.subtitle, self.notices, self.body, self.footer
        )
    }
}

/// Text as it may stand between tags and in quoted attributes. Control characters, which XML has no
/// form for, become the replacement character.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(character),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

fn table(caption: &str, left: usize, head: &[String], rows: &[Vec<String>]) -> String {
    let mut text =
        String::from("<div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-label=\"table\">\n<table>\n");
    if !caption.is_empty() {
        text += &format!("<caption>{}</caption>\n", escape(caption));
    }
    let class = |column: usize| if column < left { " class=\"left\"" } else { "" };
    text.push_str("<thead><tr>");
    for (column, cell) in head.iter().enumerate() {
        text += &format!("<th scope=\"col\"{}>{}</th>", class(column), escape(cell));
    }
    text.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        text.push_str("<tr>");
        for column in 0..head.len() {
            let cell = row.get(column).map_or_else(String::new, |cell| escape(cell));
            match column {
                0 if left > 0 => text += &format!("<th scope=\"row\" class=\"left\">{cell}</th>"),
                _ => text += &format!("<td{}>{cell}</td>", class(column)),
            }
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody>\n</table>\n</div>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::fixture::{check, machine};
    use super::svg::{Axis, Bar, Bars, Group, Line, Lines, bars, lines};
    use super::*;
    use crate::report::Spread;
    use crate::unit::Unit;

    fn comparison() -> Picture {
        let group = |label: &str, medians: [f64; 3]| Group {
            label: label.into(),
            bars: ["fanwave", "nchan", "nats-server"]
                .into_iter()
                .zip(medians)
                .map(|(name, median)| {
                    Bar::spread(name, &Spread { median, min: median * 0.94, max: median * 1.08 })
                })
                .collect(),
        };
        bars(&Bars {
            title: "CPU per delivery".into(),
            about: "Three servers, two workloads".into(),
            label: "times a bare send(2) loop".into(),
            unit: Unit::Ratio,
            groups: vec![
                group("Server-Sent Events, one event at a time", [0.87, 2.31, f64::NAN]),
                group("WebSocket, 16 events in flight", [0.97, 1.84, 1.71]),
            ],
            reference: Some((1.0, "floor".into())),
        })
    }

    fn knee() -> Picture {
        let points: Vec<_> =
            (1..=14).map(|step| (f64::from(step) * 250.0, 4e6 + 1e4 * f64::from(step).powf(3.9))).collect();
        lines(&Lines {
            title: "The knee".into(),
            about: "99th percentile of latency at rising rates".into(),
            x: Axis::linear("events per second", Unit::PerSecond),
            y: Axis::log("publish → each subscriber, p99", Unit::Nanoseconds),
            lines: vec![Line::new("measured", points.clone()), Line::dots("held out", points[9..].to_vec())],
            limits: vec![(50e6, "limit: 50 ms".into())],
            table: None,
        })
    }

    #[test]
    fn a_page_of_everything_is_well_formed() {
        let mut page =
            Page::new("fanwave and its rivals", "The same workload, pinned alike, interleaved.", &machine());
        page.notice(Notice::Good, "30,000 deliveries checked");
        page.notice(Notice::Bad, "3 lost");
        page.warnings(&["the receivers used 97 % of their CPU: they were the bottleneck".into()]);
        page.tiles(&[Tile::new("a", "1 ms", ""), Tile::new("b", "2 ms", "more or less")]);
        page.tiles(&[]);
        page.section("CPU");
        page.text("Less is better.");
        page.figure(&comparison(), "whiskers: smallest and largest of five pairs");
        page.figure(&knee(), "");
        page.part("In figures");
        page.table(
            "Ratios",
            1,
            &["server", "ratio"],
            &[vec!["fanwave".into(), "0.87".into()], vec!["nchan".into()]],
        );
        page.figure(&comparison(), "again, below the table");
        let html = page.html();
        check(&html);
        assert_eq!(html.matches("<div class=\"pictures\">").count(), 2, "neighbours share a row");
        assert_eq!(html.matches("<figure>").count(), 3);
        if let Some(file) = std::env::var_os("LOADTEST_EXAMPLE_COMPARISON") {
            std::fs::write(file, html).expect("the file can be written");
        }
    }

    #[test]
    fn a_page_loads_nothing_and_runs_nothing() {
        let html = Page::new("t", "", &machine()).html();
        assert!(html.contains("default-src 'none'"));
        for forbidden in ["<script", "http://", "https://", "@import", "url("] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn text_from_outside_is_escaped_wherever_it_stands() {
        let evil = "<script>'\"&\u{0}</p>";
        let mut machine = machine();
        machine.cpu = evil.into();
        machine.commit = Some(evil.into());
        machine.command = vec![evil.into()];
        let mut page = Page::new(evil, evil, &machine);
        page.notice(Notice::Warning, evil);
        page.section(evil);
        page.part(evil);
        page.text(evil);
        page.tiles(&[Tile::new(evil, evil, evil)]);
        page.table(evil, 1, &[evil], &[vec![evil.into()]]);
        let lines = lines(&Lines {
            title: evil.into(),
            about: evil.into(),
            x: Axis::linear(evil, Unit::Count),
            y: Axis::linear(evil, Unit::Count),
            lines: vec![Line::new(evil, vec![(1.0, 1.0)]), Line::dots(evil, vec![(1.0, 1.0)])],
            limits: vec![(1.0, evil.into())],
            table: None,
        });
        page.figure(&lines, evil);
        let bar = Bar::new(evil, 1.0);
        page.figure(
            &bars(&Bars {
                title: evil.into(),
                about: evil.into(),
                label: evil.into(),
                unit: Unit::Count,
                groups: vec![Group { label: evil.into(), bars: vec![bar] }],
                reference: Some((1.0, evil.into())),
            }),
            evil,
        );
        let html = page.html();
        check(&html);
        assert!(!html.contains('\u{0}') && html.contains("&lt;script&gt;&#39;&quot;&amp;\u{fffd}"));
    }

    #[test]
    fn the_footer_says_how_to_repeat_it() {
        let html = Page::new("t", "", &machine()).html();
        assert!(html.contains("<code>loadtest run ticker --page ticker.html --json ticker.json</code>"));
        assert!(html.contains("15b80161234a") && html.contains("2026-11-21T06:20:00Z"));
    }
}
