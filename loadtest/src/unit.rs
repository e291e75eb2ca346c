//! Figures as people read them: three significant digits and a unit of fitting size.
//!
//! A [`Unit`] says what a number is; how it looks follows from that, the same in tables, on pages
//! and along axes. Time and rates step by thousands, memory by 1,024. Nothing here rounds a figure
//! that is kept: only text comes out.

/// What a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things counted.
    Count,
    /// Things counted, per second.
    PerSecond,
    /// Memory in bytes.
    Bytes,
    /// Bytes on the wire, per second.
    BytesPerSecond,
    /// Bits on the wire, per second.
    BitsPerSecond,
    /// Wall time in nanoseconds.
    Nanoseconds,
    /// CPU time in microseconds; shown in microseconds whatever its size, so that columns compare.
    CpuMicroseconds,
    /// Wall time in seconds.
    Seconds,
    /// A part of one: 0.5 is 50 %.
    Share,
    /// A multiple of something.
    Ratio,
}

const THOUSAND: f64 = 1e3;
const MILLION: f64 = 1e6;
const BILLION: f64 = 1e9;
const KIBI: f64 = 1_024.0;

impl Unit {
    /// Sizes in rising order with what stands behind a number of that size.
    fn steps(self) -> &'static [(f64, &'static str)] {
        match self {
            Unit::Count => &[(1.0, ""), (THOUSAND, " k"), (MILLION, " M"), (BILLION, " G")],
            Unit::PerSecond => &[(1.0, "/s"), (THOUSAND, " k/s"), (MILLION, " M/s"), (BILLION, " G/s")],
            Unit::Bytes => &[
                (1.0, " B"),
                (KIBI, " KiB"),
                (KIBI * KIBI, " MiB"),
                (KIBI * KIBI * KIBI, " GiB"),
                (KIBI * KIBI * KIBI * KIBI, " TiB"),
            ],
            Unit::BytesPerSecond => {
                &[(1.0, " B/s"), (THOUSAND, " kB/s"), (MILLION, " MB/s"), (BILLION, " GB/s")]
            }
            Unit::BitsPerSecond => {
                &[(1.0, " bit/s"), (THOUSAND, " kbit/s"), (MILLION, " Mbit/s"), (BILLION, " Gbit/s")]
            }
            Unit::Nanoseconds => &[(1.0, " ns"), (THOUSAND, " µs"), (MILLION, " ms"), (BILLION, " s")],
            Unit::CpuMicroseconds => &[(1.0, " µs")],
            Unit::Seconds => &[(1e-9, " ns"), (1e-6, " µs"), (1e-3, " ms"), (1.0, " s")],
            Unit::Share => &[(0.01, " %")],
            Unit::Ratio => &[(1.0, " ×")],
        }
    }

    /// The size that fits a number, and what stands behind it.
    pub fn step(self, value: f64) -> (f64, &'static str) {
        let steps = self.steps();
        // A number that three digits round up to the next size is of that size.
        let fits = |&&(size, _): &&(f64, &str)| value.abs() >= size * 0.9995;
        match steps.iter().rev().find(fits) {
            Some(&step) => step,
            None if value == 0.0 && self == Unit::Seconds => (1.0, " s"),
            None => steps[0],
        }
    }

    /// The number with its unit; `–` if it is none.
    pub fn show(self, value: f64) -> String {
        if !value.is_finite() {
            return "–".to_owned();
        }
        let exact =
            matches!(self, Unit::Count | Unit::PerSecond) && (1_000.0..10.0 * MILLION).contains(&value);
        if exact {
            return format!("{}{}", grouped(value.round() as u64), self.steps()[0].1);
        }
        let (size, suffix) = self.step(value);
        format!("{}{suffix}", significant(value / size))
    }

    /// The number along an axis: no digits that say nothing, and a bare 0.
    pub fn tick(self, value: f64) -> String {
        let (size, suffix) = self.step(value);
        let scaled = value / size;
        if scaled.abs() < 1e-9 {
            return "0".to_owned();
        }
        format!("{}{suffix}", trimmed(significant(scaled)))
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

/// Three significant digits, at most six decimals; whole numbers of up to three digits have none.
fn significant(value: f64) -> String {
    if value.abs() < 1_000.0 && value.fract() == 0.0 {
        return format!("{value:.0}");
    }
    // What rounds up to the next power of ten has its digits.
    let exponent = (value.abs() * 1.000_501).log10().floor();
    let decimals = (2.0 - exponent).clamp(0.0, 6.0) as usize;
    match value >= 999.5 {
        true => grouped(value.round() as u64),
        false => format!("{value:.decimals$}"),
    }
}

fn trimmed(text: String) -> String {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_three_digits_and_a_unit_of_its_size() {
        let cases = [
            (Unit::Nanoseconds, 123_456.0, "123 µs"),
            (Unit::Nanoseconds, 999_999.0, "1.00 ms"),
            (Unit::Nanoseconds, 1_234_567_890.0, "1.23 s"),
            (Unit::Bytes, 178.0, "178 B"),
            (Unit::Bytes, 9_318.4, "9.10 KiB"),
            (Unit::CpuMicroseconds, 0.3634, "0.363 µs"),
            (Unit::CpuMicroseconds, 1_234.0, "1,234 µs"),
            (Unit::Share, 0.5, "50 %"),
            (Unit::Share, 0.123_45, "12.3 %"),
            (Unit::Ratio, 0.8449, "0.845 ×"),
            (Unit::PerSecond, 1_234_567.4, "1,234,567/s"),
            (Unit::PerSecond, 12_345_678.0, "12.3 M/s"),
            (Unit::Count, 0.0, "0"),
            (Unit::Seconds, 0.0021, "2.10 ms"),
            (Unit::BytesPerSecond, 52_428_800.0, "52.4 MB/s"),
            (Unit::BitsPerSecond, 2_320_000_000.0, "2.32 Gbit/s"),
        ];
        for (unit, value, shown) in cases {
            assert_eq!(unit.show(value), shown);
        }
    }

    #[test]
    fn what_is_no_number_is_not_shown_as_one() {
        for unit in [Unit::Count, Unit::Nanoseconds, Unit::Ratio] {
            assert_eq!(unit.show(f64::NAN), "–");
            assert_eq!(unit.show(f64::INFINITY), "–");
        }
    }

    #[test]
    fn ticks_have_no_digits_that_say_nothing() {
        assert_eq!(Unit::Nanoseconds.tick(100_000.0), "100 µs");
        assert_eq!(Unit::Nanoseconds.tick(2_500_000.0), "2.5 ms");
        assert_eq!(Unit::PerSecond.tick(1_500_000.0), "1.5 M/s");
        assert_eq!(Unit::Ratio.tick(1.0), "1 ×");
        assert_eq!(Unit::Bytes.tick(0.0), "0");
    }
}
