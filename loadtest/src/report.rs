//! What a command prints and saves: lines and tables on standard output, one JSON document in a file.
//!
//! Nothing here is printed before it is complete: a run that fails leaves one line of error and no results.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::machine::Machine;

/// One line of output.
#[expect(clippy::print_stdout, reason = "the one place where a command's results leave it")]
pub fn say(line: &str) {
    println!("{line}");
}

/// What is being done, on standard error, so that results stay clean.
pub fn progress(line: &str) {
    eprintln!("loadtest: {line}");
}

/// The saved form of a run.
#[derive(Debug, Serialize)]
struct Document<'a, T> {
    /// What was asked.
    command: &'a str,
    machine: &'a Machine,
    results: &'a T,
}

/// Saves a run's results with the machine, if a file was asked for.
pub fn save<T: Serialize>(file: Option<&Path>, command: &str, machine: &Machine, results: &T) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let mut text = serde_json::to_string_pretty(&Document { command, machine, results })?;
    text.push('\n');
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// Prints rows under a head, columns as wide as their widest cell; the first `left` columns lean left.
pub fn table(left: usize, head: &[&str], rows: &[Vec<String>]) {
    for line in layout(left, head, rows) {
        say(&line);
    }
}

fn layout(left: usize, head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let all = || std::iter::once(&head).chain(rows);
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    all()
        .map(|row| {
            let cells =
                row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column < left {
                    true => format!("{cell:<width$}"),
                    false => format!("{cell:>width$}"),
                });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

/// The median and the extremes of a few figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Middle value; the mean of the two middle ones of an even number.
    pub median: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

impl Spread {
    /// Over at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        assert!(!values.is_empty(), "a spread is over at least one value");
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Spread { median: (low + high) / 2.0, min: values[0], max: values[values.len() - 1] }
    }

    /// `median (min to max)` with so many decimals.
    pub fn show(&self, decimals: usize) -> String {
        format!("{:.decimals$} ({:.decimals$} to {:.decimals$})", self.median, self.min, self.max)
    }
}

/// A number with thousands set apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of([7.0]).show(1), "7.0 (7.0 to 7.0)");
    }

    #[test]
    fn columns_line_up() {
        let lines =
            layout(1, &["what", "n"], &[vec!["a".into(), "100".into()], vec!["longer".into(), "1".into()]]);
        assert_eq!(lines, ["what      n", "a       100", "longer    1"]);
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
    }
}
