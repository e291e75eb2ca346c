//! From values to places: linear and logarithmic scales, and ticks at numbers that people count in.

use crate::unit::Unit;

/// Maps values to coordinates.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Smallest value; above 0 if logarithmic. Always below `high`.
    low: f64,
    high: f64,
    log: bool,
    /// Coordinates of `low` and `high`.
    from: f64,
    to: f64,
}

impl Scale {
    /// From `low` at coordinate `from` to `high` at coordinate `to`.
    pub fn new((low, high): (f64, f64), log: bool, (from, to): (f64, f64)) -> Scale {
        assert!(low < high && (!log || low > 0.0), "a scale has a range");
        Scale { low, high, log, from, to }
    }

    /// The coordinate of a value within the range.
    pub fn at(&self, value: f64) -> f64 {
        let part = match self.log {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        self.from + part.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// True if the value has a place: finite, and above zero on a logarithmic scale.
    pub fn has(&self, value: f64) -> bool {
        value.is_finite() && (!self.log || value > 0.0)
    }
}

/// Ticks of a linear axis that holds `low..=high`, about `wanted` of them, at multiples of 1, 2,
/// 2.5 or 5 × 10ⁿ of the unit's own size. The first is at or below `low`, the last at or above
/// `high`; there are always two.
pub fn nice_ticks(unit: Unit, low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let high = if high > low { high } else { low + low.abs().max(unit.step(low).0) };
    let (size, _) = unit.step(high.abs().max(low.abs()));
    let (low, high) = (low / size, high / size);
    let rough = (high - low) / wanted.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough * 0.999_999)
        .unwrap_or(10.0 * power);
    let first = (low / step + 1e-9).floor() as i64;
    let last = ((high / step - 1e-9).ceil() as i64).max(first + 1);
    (first..=last).map(|tick| tick as f64 * step * size).collect()
}

/// Ticks of a logarithmic axis that holds `low..=high`, both above 0: powers of ten, with 2 and 5
/// between them where there would be few. The first is at or below `low`, the last at or above
/// `high`; there are always two.
pub fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let high = high.max(low);
    let decades = (high / low).log10();
    let factors: &[f64] = if decades < 2.2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let first = low.log10().floor() as i32;
    let last = high.log10().ceil() as i32 + 1;
    let all: Vec<f64> = (first..=last)
        .flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)))
        .collect();
    let start = all.iter().rposition(|tick| *tick <= low * 1.000_001).unwrap_or(0);
    let end = all.iter().position(|tick| *tick >= high * 0.999_999).unwrap_or(all.len() - 1);
    all[start..=end.max(start + 1).min(all.len() - 1)].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_at_numbers_that_people_count_in() {
        assert_eq!(nice_ticks(Unit::Count, 0.0, 9.3, 5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(nice_ticks(Unit::Ratio, 0.0, 1.0, 4), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(nice_ticks(Unit::Seconds, 0.0, 30.0, 6), [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]);
        let memory = nice_ticks(Unit::Bytes, 0.0, 1_500.0 * 1_024.0, 3);
        assert_eq!(memory, [0.0, 512.0 * 1_024.0, 1_024.0 * 1_024.0, 1_536.0 * 1_024.0]);
    }

    #[test]
    fn ticks_hold_the_range_whatever_it_is() {
        for (low, high) in [(0.0, 0.0), (5.0, 5.0), (0.0, 1e-7), (3.0, 4.0e12), (-2.0, 7.0)] {
            let ticks = nice_ticks(Unit::Count, low, high, 5);
            assert!(ticks.len() >= 2 && ticks.len() <= 12, "{low}..{high}: {ticks:?}");
            let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
            assert!(first <= low && last >= high && first < last, "{low}..{high}: {ticks:?}");
        }
        for (low, high) in [(1.0, 1.0), (7.0, 7.1), (1_234.0, 56_789_012.0), (1.0, 1e9), (0.002, 0.003)] {
            let ticks = log_ticks(low, high);
            assert!(ticks.len() >= 2 && ticks.len() <= 12, "{low}..{high}: {ticks:?}");
            let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
            assert!(first <= low * 1.000_01 && last >= high * 0.999_99, "{low}..{high}: {ticks:?}");
        }
    }

    #[test]
    fn a_logarithmic_axis_has_its_decades_at_even_distances() {
        assert_eq!(log_ticks(10.0, 10_000.0), [10.0, 100.0, 1_000.0, 10_000.0]);
        assert_eq!(log_ticks(30.0, 130.0), [20.0, 50.0, 100.0, 200.0]);
        let scale = Scale::new((1.0, 10_000.0), true, (0.0, 400.0));
        for (value, place) in [(1.0, 0.0), (10.0, 100.0), (1_000.0, 300.0), (10_000.0, 400.0)] {
            assert!((scale.at(value) - place).abs() < 1e-9);
        }
        assert!(!scale.has(0.0) && !scale.has(f64::NAN));
    }

    #[test]
    fn a_value_out_of_range_stays_in_the_picture() {
        let scale = Scale::new((0.0, 10.0), false, (100.0, 0.0));
        assert_eq!((scale.at(5.0), scale.at(-3.0), scale.at(99.0)), (50.0, 100.0, 0.0));
    }
}
