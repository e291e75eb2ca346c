//! Latencies as an HdrHistogram interval log (`.hlog`, format version 1.3), which the usual viewers
//! read.
//!
//! Values are nanoseconds; the column of maxima, which is for human eyes only, is in milliseconds
//! (divisor 1,000,000). Each line is one histogram in the V2 form, deflated, with a tag: `each` and
//! `last`, for example. A histogram is made anew from what an outcome keeps, at the same three
//! significant digits, so every count stays at its value.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::outcome::Latency;

/// The line that names the columns, as the format's own writer words it.
const LEGEND: &str =
    "\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n";
/// Nanoseconds in one unit of the column of maxima.
const MAX_DIVISOR: f64 = 1e6;
/// Significant digits of every latency in this program.
const DIGITS: u8 = 3;

/// Writes latencies to a file: tag, length of the measurement in seconds, values. A tag with a
/// space or a comma, which the format cannot hold, is an error.
pub fn write(path: &Path, latencies: &[(String, f64, &Latency)]) -> Result<()> {
    let text = log(latencies)?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn log(latencies: &[(String, f64, &Latency)]) -> Result<Vec<u8>> {
    let mut text = Vec::from(
        "#[Logged with fanwave loadtest; values are nanoseconds, Interval_Max is milliseconds]\n\
         #[Histogram log format version 1.3]\n\
         #[StartTime: 0.000 (seconds since epoch), seconds below are from the start of the measurement]\n",
    );
    text.extend_from_slice(LEGEND.as_bytes());
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .with_max_value_divisor(MAX_DIVISOR)
        .begin_log_with(&mut text, &mut serializer)?;
    for (tag, seconds, latency) in latencies {
        let name = Tag::new(tag).with_context(|| format!("{tag:?} cannot be a tag of an .hlog file"))?;
        let time = Duration::try_from_secs_f64(*seconds)
            .with_context(|| format!("{tag}: {seconds} seconds is no time"))?;
        let histogram = histogram(latency).with_context(|| format!("the latencies {tag}"))?;
        writer
            .write_histogram(&histogram, Duration::ZERO, time, Some(name))
            .map_err(|error| anyhow!("the latencies {tag}: {error}"))?;
    }
    Ok(text)
}

fn histogram(latency: &Latency) -> Result<Histogram<u64>> {
    let mut histogram = Histogram::new(DIGITS)?;
    for &(ns, count) in &latency.recorded {
        histogram.record_n(ns, count)?;
    }
    Ok(histogram)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    fn latency(values: impl Iterator<Item = u64>) -> Latency {
        let mut histogram = crate::receiver::latency_histogram();
        for ns in values {
            histogram.record(ns).expect("within bounds");
        }
        Latency::of(&histogram)
    }

    #[test]
    fn what_is_written_reads_back_as_it_was() {
        let each = latency((1..20_000).map(|step| step * step * 7));
        let last = latency([123_456_789, 5_000_000_000].into_iter());
        let none = Latency::default();
        let all = [("each", 30.5, &each), ("last", 30.5, &last), ("none", 2.0, &none)];
        let text =
            log(&all.map(|(tag, seconds, latency)| (tag.to_owned(), seconds, latency))).expect("a log");
        let mut read = Vec::new();
        for entry in IntervalLogIterator::new(&text) {
            if let LogEntry::Interval(interval) = entry.expect("well formed") {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(interval.encoded_histogram())
                    .expect("base64");
                let histogram: Histogram<u64> =
                    Deserializer::new().deserialize(&mut &bytes[..]).expect("a histogram");
                let tag = interval.tag().map(|tag| tag.as_str().to_owned()).expect("a tag");
                read.push((tag, interval.start_timestamp(), interval.duration(), interval.max(), histogram));
            }
        }
        let tags: Vec<_> = read.iter().map(|line| line.0.as_str()).collect();
        assert_eq!(tags, ["each", "last", "none"]);
        for (line, latency) in read.iter().zip([&each, &last, &none]) {
            let again = Latency::of(&line.4);
            assert_eq!(
                (again.count, &again.quantiles, &again.recorded),
                (latency.count, &latency.quantiles, &latency.recorded)
            );
        }
        assert_eq!((read[0].1, read[0].2), (Duration::ZERO, Duration::from_millis(30_500)));
        assert_eq!((read[2].1, read[2].2), (Duration::ZERO, Duration::from_secs(2)));
        assert!((read[1].3 - 5_000.0).abs() < 5.0, "the maximum is in milliseconds: {}", read[1].3);
    }

    #[test]
    fn the_head_says_format_and_units() {
        let text = String::from_utf8(log(&[]).expect("a log")).expect("text");
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].contains("nanoseconds") && lines[0].contains("milliseconds"));
        assert_eq!(lines[1], "#[Histogram log format version 1.3]");
        assert!(lines[3].starts_with("\"StartTimestamp\""));
        assert_eq!(lines[4], "#[MaxValueDivisor: 1000000.000]");
    }

    #[test]
    fn what_the_format_cannot_hold_is_an_error() {
        let latency = latency([5_000].into_iter());
        for (tag, seconds) in [("two words", 1.0), ("each", -1.0), ("each", f64::NAN)] {
            assert!(log(&[(tag.to_owned(), seconds, &latency)]).is_err(), "{tag} {seconds}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let error = write(Path::new("/nonexistent/run.hlog"), &[]).expect_err("there is no such directory");
        assert!(format!("{error:#}").contains("/nonexistent/run.hlog"));
    }
}
