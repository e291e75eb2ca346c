//! Pages: a report as one HTML file that needs nothing but a browser.
//!
//! [`Page`] is the builder that every command uses: tiles, text, tables, pictures, warnings. [`run`] fills it from
//! outcomes. A page has no script, loads nothing (its own policy forbids it), follows the reader's light or dark
//! setting, prints, and fits a phone. Whatever comes from a user or a server is escaped here, on its way in; pictures
//! escape their own text. Each picture carries its figures as a table, folded away beneath it.

use std::fmt::Write;

use crate::machine::Machine;
pub use run::run_page;
use svg::Picture;

#[cfg(test)]
pub mod fixture;
mod run;
pub mod svg;

const STYLE: &str = include_str!("style.css");

/// A page in the making. Parts stand in the order in which they are added; warnings stand at the top.
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
    /// A page with its heading. `about` says in a sentence what was measured; the machine stands beneath it, command
    /// and commit in the footer.
    pub fn new(title: &str, about: &str, machine: &Machine) -> Page {
        let kernel = machine.kernel.split(" #").next().unwrap_or(&machine.kernel);
        let memory = machine.memory_bytes >> 30;
        let mut subtitle = String::new();
        if !about.is_empty() {
            push(&mut subtitle, format_args!("<p class=\"about\">{}</p>\n", escape(about)));
        }
        push(
            &mut subtitle,
            format_args!(
                "<p class=\"machine\">{} · {} CPUs · {memory} GiB · {} · <time>{}</time></p>\n",
                escape(&machine.cpu),
                machine.cpus,
                escape(kernel),
                escape(&machine.date)
            ),
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
        push(
            &mut self.notices,
            format_args!("<p class=\"notice {class}\"><strong>{word}</strong> {}</p>\n", escape(text)),
        );
    }

    /// Warnings at the top of the page.
    pub fn warnings(&mut self, warnings: &[String]) {
        for warning in warnings {
            self.notice(Notice::Warning, warning);
        }
    }

    /// A heading; what follows belongs to it.
    pub fn section(&mut self, heading: &str) {
        push(&mut self.body, format_args!("<h2>{}</h2>\n", escape(heading)));
    }

    /// A smaller heading within a section.
    pub fn part(&mut self, heading: &str) {
        push(&mut self.body, format_args!("<h3>{}</h3>\n", escape(heading)));
    }

    /// A paragraph.
    pub fn text(&mut self, text: &str) {
        push(&mut self.body, format_args!("<p>{}</p>\n", escape(text)));
    }

    /// Key figures, side by side.
    pub fn tiles(&mut self, tiles: &[Tile]) {
        if tiles.is_empty() {
            return;
        }
        self.body.push_str("<dl class=\"tiles\">\n");
        for tile in tiles {
            let (label, value) = (escape(&tile.label), escape(&tile.value));
            push(&mut self.body, format_args!("<div><dt>{label}</dt><dd>{value}"));
            if !tile.note.is_empty() {
                push(&mut self.body, format_args!("<small>{}</small>", escape(&tile.note)));
            }
            self.body.push_str("</dd></div>\n");
        }
        self.body.push_str("</dl>\n");
    }

    /// A table with a caption (may be empty). The first `left` columns lean left and head their rows; rows may be
    /// shorter than the head.
    pub fn table(&mut self, caption: &str, left: usize, head: &[&str], rows: &[Vec<String>]) {
        let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
        self.body.push_str(&table(caption, left, &head, rows));
    }

    /// A picture with a caption that says what to see in it. Pictures added one after the other stand side by side
    /// where there is room.
    pub fn figure(&mut self, picture: &Picture, caption: &str) {
        let identifier = format!("picture{}", self.pictures);
        self.pictures += 1;
        // Neighbours share one grid: the end of the last grid is taken back.
        const END: &str = "</div><!-- pictures -->\n";
        match self.body.strip_suffix(END) {
            Some(open) => self.body.truncate(open.len()),
            None => self.body.push_str("<div class=\"pictures\">\n"),
        }
        push(
            &mut self.body,
            format_args!("<figure>\n<figcaption><strong>{}</strong>", escape(&picture.title)),
        );
        if !caption.is_empty() {
            push(&mut self.body, format_args!("<span>{}</span>", escape(caption)));
        }
        push(&mut self.body, format_args!("</figcaption>\n{}", picture.svg(&identifier)));
        if !picture.rows.is_empty() {
            let rows = table("", 1, &picture.head, &picture.rows);
            push(&mut self.body, format_args!("<details><summary>As a table</summary>\n{rows}</details>\n"));
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

/// Text as it may stand between tags and in quoted attributes. Control characters, which XML has no form for, become
/// the replacement character.
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
    let mut text = String::from("<div class=\"scroll\" tabindex=\"0\">\n<table>\n");
    if !caption.is_empty() {
        push(&mut text, format_args!("<caption>{}</caption>\n", escape(caption)));
    }
    let class = |column: usize| if column < left { " class=\"left\"" } else { "" };
    text.push_str("<thead><tr>");
    for (column, cell) in head.iter().enumerate() {
        push(&mut text, format_args!("<th scope=\"col\"{}>{}</th>", class(column), escape(cell)));
    }
    text.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        text.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let cell = escape(cell);
            match column {
                0 if left > 0 => {
                    push(&mut text, format_args!("<th scope=\"row\" class=\"left\">{cell}</th>"))
                }
                _ => push(&mut text, format_args!("<td{}>{cell}</td>", class(column))),
            }
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody>\n</table>\n</div>\n");
    text
}

fn push(text: &mut String, part: std::fmt::Arguments<'_>) {
    text.write_fmt(part).expect("a String takes everything");
}
