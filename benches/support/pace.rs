//! How long the benchmarks measure: short enough that all of them together take about a minute,
//! long enough that a change of a tenth shows. `--warm-up-time`, `--measurement-time` and
//! `--sample-size` make it longer.

use std::time::Duration;

use criterion::Criterion;

/// A criterion that spends about a second and a half on each benchmark.
pub fn quick() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .without_plots()
}
