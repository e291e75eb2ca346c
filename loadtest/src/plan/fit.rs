//! Least squares for a handful of terms: weighted, robust, without negative coefficients, with
//! intervals.
//!
//! A row says how much of each term went into a measured value, and how uncertain that value is.
//! Values differ by orders of magnitude, so residuals count relative to that uncertainty. A machine
//! that does something else for a second gives a value far off; such a row gets less weight
//! (Huber), it is not dropped. A cost cannot be negative: coefficients that would be are zero
//! (Lawson and Hanson's active set). Intervals come from refits to values that are drawn anew
//! around the fitted ones (a parametric bootstrap), as far off as the residuals are: they hold both
//! the noise and what the terms do not explain. Rows must be independent of each other.

use anyhow::{Result, bail};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

/// Residuals beyond so many standard deviations lose weight (Huber's constant, 95 % efficient for
/// normal noise).
const HUBER: f64 = 1.345;
/// Rounds of reweighting; the weights have settled long before.
const REWEIGHTINGS: usize = 20;
/// Refits to values drawn anew, for the intervals.
const RESAMPLES: usize = 200;
/// The part of a normalized column that must not be a mix of the others.
const INDEPENDENT_MIN: f64 = 1e-4;
/// From the median absolute deviation to the standard deviation of normal noise.
const MAD_TO_DEVIATION: f64 = 1.4826;
/// The intervals hold this share of the resamples.
const INTERVAL: (f64, f64) = (0.05, 0.95);
/// Standard deviations from the middle of normal noise to either end of that interval.
const NORMAL: f64 = 1.645;

/// One measured value.
#[derive(Debug, Clone)]
pub struct Row {
    /// How much of each term.
    pub x: Vec<f64>,
    /// The value.
    pub y: f64,
    /// Its uncertainty, above 0, in the unit of the value; only ratios between rows matter.
    pub sigma: f64,
}

/// One coefficient.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// Its name.
    pub name: String,
    /// The coefficient, at least 0.
    pub value: f64,
    /// Its standard error; 0 for a coefficient that is held at 0.
    pub error: f64,
    /// The interval that holds 90 % of the resamples.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// A fitted sum of terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// The coefficients.
    pub terms: Vec<Term>,
    /// The coefficients of each resample, in the order of the terms.
    pub resamples: Vec<Vec<f64>>,
    /// Standard deviation of the residuals relative to the value, for a value that is far above its
    /// own noise.
    pub scatter: f64,
    /// (measured - fitted) / fitted of each row, in their order; / its uncertainty where that is
    /// larger.
    pub residuals: Vec<f64>,
}

/// A value with its interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The best guess.
    pub value: f64,
    /// 5 %.
    pub low: f64,
    /// 95 %.
    pub high: f64,
}

impl Estimate {
    /// The same in another unit, `factor` of which are one of this.
    pub fn times(self, factor: f64) -> Estimate {
        Estimate { value: self.value * factor, low: self.low * factor, high: self.high * factor }
    }
}

impl Fit {
    /// Fits `names.len()` terms to the rows. `about` is what the error calls the fit.
    pub fn of(about: &str, names: &[&str], rows: &[Row], seed: u64) -> Result<Fit> {
        check(about, names, rows)?;
        let (values, weights) = robust(rows, names.len());
        let fitted: Vec<f64> = rows.iter().map(|row| dot(&row.x, &values)).collect();
        let residual = |(row, fitted): (&Row, &f64)| (row.y - fitted) / row.sigma;
        let squares: f64 = rows.iter().zip(&fitted).map(residual).map(|residual| residual * residual).sum();
        let noise = (squares / freedom(rows.len(), names.len())).sqrt();
        let errors = standard_errors(rows, &weights, &values, noise);
        let resamples = redraw(rows, &weights, &fitted, noise, names.len(), seed);
        let terms = names.iter().enumerate().map(|(at, name)| {
            let mut column: Vec<f64> = resamples.iter().map(|resample| resample[at]).collect();
            let (low, high) = interval(&mut column);
            let [value, error, low, high] = [values[at], errors[at], low, high].map(rounded);
            Term { name: (*name).to_owned(), value, error, low, high }
        });
        let relative = |(row, fitted): (&Row, &f64)| rounded((row.y - fitted) / fitted.max(row.sigma));
        let relative: Vec<f64> = rows.iter().zip(&fitted).map(relative).collect();
        let clearest = rows.iter().map(|row| row.sigma / row.y.abs()).fold(f64::INFINITY, f64::min);
        let scatter = if noise > 0.0 { rounded(noise * clearest) } else { 0.0 };
        Ok(Fit { terms: terms.collect(), resamples, scatter, residuals: relative })
    }

    /// Refuses a fit of other terms, or with numbers that no fit has.
    pub fn check(&self, names: &[&str]) -> Result<()> {
        if !self.terms.iter().map(|term| term.name.as_str()).eq(names.iter().copied()) {
            bail!("its terms are not {}", names.join(", "));
        }
        if self.resamples.is_empty() || self.resamples.iter().any(|resample| resample.len() != names.len()) {
            bail!("a resample has too many or too few coefficients, or there is none");
        }
        if self.residuals.len() <= names.len() {
            bail!("it has too few residuals");
        }
        let terms = self.terms.iter().flat_map(|term| [term.value, term.error, term.low, term.high]);
        let costs = terms.chain(self.resamples.iter().flatten().copied()).chain([self.scatter]);
        if costs.into_iter().any(|cost| !cost.is_finite() || cost < 0.0) {
            bail!("a coefficient is negative or no number");
        }
        Ok(())
    }

    /// The value of a coefficient.
    pub fn value(&self, name: &str) -> f64 {
        self.terms.iter().find(|term| term.name == name).map_or(0.0, |term| term.value)
    }

    /// The value for so much of each term: coefficients' uncertainty and scatter together make the
    /// interval.
    pub fn predict(&self, x: &[f64]) -> Estimate {
        let value: f64 = self.terms.iter().zip(x).map(|(term, amount)| term.value * amount).sum();
        let mut draws: Vec<f64> = self.resamples.iter().map(|resample| dot(resample, x)).collect();
        let (low, high) = interval(&mut draws);
        let noise = student(freedom(self.residuals.len(), self.terms.len())) * self.scatter * value;
        Estimate {
            value,
            low: (value - (value - low).max(0.0).hypot(noise)).max(0.0),
            high: value + (high - value).max(0.0).hypot(noise),
        }
    }
}

/// What the best fit leaves unexplained: the sum of the residuals' sizes. For rows that [`check`]
/// lets pass.
pub fn loss(rows: &[Row], terms: usize) -> f64 {
    let (values, _) = robust(rows, terms);
    rows.iter().map(|row| ((row.y - dot(&row.x, &values)) / row.sigma).abs()).sum()
}

/// Nine digits: more than a measurement has, and few enough that JSON gives back the same number.
pub fn rounded(value: f64) -> f64 {
    to_digits(value, 9)
}

/// The nearest number of so many decimal digits.
pub fn to_digits(value: f64, digits: usize) -> f64 {
    format!("{value:.*e}", digits - 1).parse().unwrap_or(value)
}

/// Values that are left to tell the noise from, once the coefficients are fitted to them.
fn freedom(rows: usize, terms: usize) -> f64 {
    (rows - terms) as f64
}

/// How many standard deviations hold the interval's share of noise whose own size is known from so
/// few values: Student's t by the expansion of Cornish and Fisher, an eighth short at 1, 1 % at 2,
/// and better above.
fn student(freedom: f64) -> f64 {
    let z = |power| NORMAL.powi(power);
    let first = (z(3) + z(1)) / 4.0;
    let second = (5.0 * z(5) + 16.0 * z(3) + 3.0 * z(1)) / 96.0;
    let third = (3.0 * z(7) + 19.0 * z(5) + 17.0 * z(3) - 15.0 * z(1)) / 384.0;
    NORMAL + first / freedom + second / freedom.powi(2) + third / freedom.powi(3)
}

/// Refuses rows to which these terms cannot be fitted, in one line that says what is missing.
pub fn check(about: &str, names: &[&str], rows: &[Row]) -> Result<()> {
    let usable = |row: &Row| {
        row.x.iter().chain([&row.y, &row.sigma]).all(|number| number.is_finite()) && row.sigma > 0.0
    };
    if !rows.iter().all(usable) {
        bail!("the {about} has a measured value that is no number");
    }
    if rows.len() <= names.len() {
        bail!(
            "the {about} has {} terms and only {} measured values: measure more points",
            names.len(),
            rows.len()
        );
    }
    if let Some(at) = dependent_column(rows, names.len()) {
        bail!(
            "the measured points do not tell {:?} from the other terms of the {about}: vary it in the design",
            names[at]
        );
    }
    Ok(())
}

/// The first column that is (nearly) a mix of those before it, by Gram and Schmidt, twice for
/// accuracy.
fn dependent_column(rows: &[Row], terms: usize) -> Option<usize> {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for at in 0..terms {
        let mut column: Vec<f64> = rows.iter().map(|row| row.x[at] / row.sigma).collect();
        let length = norm(&column);
        if length == 0.0 {
            return Some(at);
        }
        column.iter_mut().for_each(|value| *value /= length);
        for other in basis.iter().chain(&basis) {
            let part = dot(other, &column);
            column.iter_mut().zip(other).for_each(|(value, other)| *value -= part * other);
        }
        let rest = norm(&column);
        if rest < INDEPENDENT_MIN {
            return Some(at);
        }
        column.iter_mut().for_each(|value| *value /= rest);
        basis.push(column);
    }
    None
}

/// Coefficients and the weights that made them.
fn robust(rows: &[Row], terms: usize) -> (Vec<f64>, Vec<f64>) {
    let mut weights = vec![1.0; rows.len()];
    let mut values = non_negative(rows, &weights, terms);
    for _ in 0..REWEIGHTINGS {
        let residuals: Vec<f64> = rows.iter().map(|row| (row.y - dot(&row.x, &values)) / row.sigma).collect();
        let limit = HUBER * deviation(&residuals, terms);
        for (weight, residual) in weights.iter_mut().zip(&residuals) {
            *weight = if residual.abs() <= limit { 1.0 } else { limit / residual.abs() };
        }
        values = non_negative(rows, &weights, terms);
    }
    (values, weights)
}

/// Non-negative weighted least squares. Rows are independent enough (checked before), so every
/// system has a solution.
fn non_negative(rows: &[Row], weights: &[f64], terms: usize) -> Vec<f64> {
    let (gram, right, scale) = normal_equations(rows, weights, terms);
    // Mostly no coefficient is held at 0, so the search starts where all are free.
    let mut free = vec![true; terms];
    let mut values = vec![1.0; terms];
    // Each step frees a term that lowers the error; the sets do not repeat, and 3 × terms is the
    // usual bound.
    for _ in 0..3 * terms {
        loop {
            let wanted = solve_free(&gram, &right, &free);
            let blocked = (0..terms).filter(|&at| free[at] && wanted[at] <= 0.0);
            let step = blocked.map(|at| values[at] / (values[at] - wanted[at])).fold(1.0, f64::min);
            for at in 0..terms {
                values[at] += step * (wanted[at] - values[at]);
                if free[at] && wanted[at] <= 0.0 && values[at] <= 1e-12 {
                    (free[at], values[at]) = (false, 0.0);
                }
            }
            if step >= 1.0 {
                break;
            }
        }
        let gradient = |at: usize| right[at] - dot(&gram[at], &values);
        let best = (0..terms).filter(|&at| !free[at]).max_by(|&a, &b| gradient(a).total_cmp(&gradient(b)));
        let Some(best) = best.filter(|&at| gradient(at) > 1e-10 * (1.0 + right[at].abs())) else { break };
        free[best] = true;
    }
    values.iter().zip(&scale).map(|(value, scale)| value / scale).collect()
}

/// The normal equations with columns of unit length, and those lengths.
fn normal_equations(rows: &[Row], weights: &[f64], terms: usize) -> (Vec<Vec<f64>>, Vec<f64>, Vec<f64>) {
    let weighted = || rows.iter().zip(weights).map(|(row, weight)| (row, weight / (row.sigma * row.sigma)));
    let scale: Vec<f64> = (0..terms)
        .map(|at| weighted().map(|(row, weight)| weight * row.x[at] * row.x[at]).sum::<f64>().sqrt())
        .map(|length| if length > 0.0 { length } else { 1.0 })
        .collect();
    let mut gram = vec![vec![0.0; terms]; terms];
    let mut right = vec![0.0; terms];
    for (row, weight) in weighted() {
        for a in 0..terms {
            let left = weight * row.x[a] / scale[a];
            right[a] += left * row.y;
            for b in 0..terms {
                gram[a][b] += left * row.x[b] / scale[b];
            }
        }
    }
    (gram, right, scale)
}

/// Solves for the free terms, the others being 0.
fn solve_free(gram: &[Vec<f64>], right: &[f64], free: &[bool]) -> Vec<f64> {
    let at: Vec<usize> = (0..free.len()).filter(|&at| free[at]).collect();
    let matrix: Vec<Vec<f64>> =
        at.iter().map(|&a| at.iter().map(|&b| gram[a][b]).chain([right[a]]).collect()).collect();
    let solved = eliminate(matrix, 1);
    let mut values = vec![0.0; free.len()];
    for (&at, row) in at.iter().zip(&solved) {
        values[at] = row[0];
    }
    values
}

/// Gauss and Jordan with row pivoting: the last `columns` columns of `matrix` become the solutions.
fn eliminate(mut matrix: Vec<Vec<f64>>, columns: usize) -> Vec<Vec<f64>> {
    let size = matrix.len();
    for step in 0..size {
        let pivot = (step..size)
            .max_by(|&a, &b| matrix[a][step].abs().total_cmp(&matrix[b][step].abs()))
            .unwrap_or(step);
        matrix.swap(step, pivot);
        let head = matrix[step][step];
        matrix[step].iter_mut().for_each(|value| *value /= head);
        let row = matrix[step].clone();
        for (at, other) in matrix.iter_mut().enumerate() {
            let factor = other[step];
            if at != step && factor != 0.0 {
                other.iter_mut().zip(&row).for_each(|(value, row)| *value -= factor * row);
            }
        }
    }
    matrix.iter().map(|row| row[row.len() - columns..].to_vec()).collect()
}

/// Standard errors of the coefficients that are not 0, for rows whose noise is `noise` times their
/// uncertainty.
fn standard_errors(rows: &[Row], weights: &[f64], values: &[f64], noise: f64) -> Vec<f64> {
    let free: Vec<usize> = (0..values.len()).filter(|&at| values[at] > 0.0).collect();
    let (gram, _, scale) = normal_equations(rows, weights, values.len());
    let size = free.len();
    let matrix: Vec<Vec<f64>> = (0..size)
        .map(|a| {
            let unit = (0..size).map(|b| if a == b { 1.0 } else { 0.0 });
            free.iter().map(|&b| gram[free[a]][b]).chain(unit).collect()
        })
        .collect();
    let inverse = eliminate(matrix, size);
    let mut errors = vec![0.0; values.len()];
    for (at, &term) in free.iter().enumerate() {
        errors[term] = noise * inverse[at][at].max(0.0).sqrt() / scale[term];
    }
    errors
}

/// Coefficients of refits to the fitted values with new noise. Each draws the size of the noise
/// too, which so few rows do not tell for sure: the coefficients scatter like Student's t.
fn redraw(
    rows: &[Row],
    weights: &[f64],
    fitted: &[f64],
    noise: f64,
    terms: usize,
    seed: u64,
) -> Vec<Vec<f64>> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut normal = || random.sample::<f64, _>(StandardNormal);
    let freedom = rows.len() - terms;
    let mut drawn = rows.to_vec();
    (0..RESAMPLES)
        .map(|_| {
            let chi_squared: f64 = (0..freedom).map(|_| normal().powi(2)).sum();
            let noise = noise * (freedom as f64 / chi_squared).sqrt();
            for (row, fitted) in drawn.iter_mut().zip(fitted) {
                row.y = fitted + noise * normal() * row.sigma;
            }
            non_negative(&drawn, weights, terms).into_iter().map(rounded).collect()
        })
        .collect()
}

/// The interval that holds most of the values, of which there is at least one; they get sorted.
fn interval(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    (at(INTERVAL.0), at(INTERVAL.1))
}

/// The standard deviation of the noise behind the residuals of a fit, outliers or not. The smallest
/// do not count: a fit of so many terms goes through as many rows, and their residuals are 0
/// whatever the noise.
fn deviation(residuals: &[f64], terms: usize) -> f64 {
    let mut sizes: Vec<f64> = residuals.iter().map(|residual| residual.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let sizes = &sizes[terms.saturating_sub(1)..];
    MAD_TO_DEVIATION * f64::midpoint(sizes[(sizes.len() - 1) / 2], sizes[sizes.len() / 2])
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(column: &[f64]) -> f64 {
    dot(column, column).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of a known truth with normal noise of this relative size.
    fn planted(truth: &[f64], noise: f64, rows: usize, seed: u64) -> Vec<Row> {
        let mut random = SmallRng::seed_from_u64(seed);
        (0..rows)
            .map(|_| {
                let x: Vec<f64> = truth.iter().map(|_| random.random_range(1.0..101.0)).collect();
                let exact = dot(&x, truth);
                let normal: f64 = random.sample(StandardNormal);
                Row { x, y: exact * (1.0 + noise * normal), sigma: exact }
            })
            .collect()
    }

    #[test]
    fn nine_of_ten_intervals_cover_what_was_planted_however_few_the_rows() {
        let truth = [3.0, 0.5, 20.0];
        const FITS: u64 = 400;
        for rows in [6, 12, 30] {
            let (mut terms, mut values, mut scatter) = (0, 0, 0.0);
            for seed in 0..FITS {
                let rows = planted(&truth, 0.03, rows, 1_000 * rows as u64 + seed);
                let fit = Fit::of("test", &["a", "b", "c"], &rows, seed).expect("regular");
                let covers = |(term, truth): (&Term, f64)| term.low <= truth && truth <= term.high;
                terms += fit.terms.iter().zip(truth).map(covers).filter(|covers| *covers).count();
                // Another value like those that were fitted.
                let new = &planted(&truth, 0.03, 1, 1_000_000 + seed)[0];
                let estimate = fit.predict(&new.x);
                values += usize::from(estimate.low <= new.y && new.y <= estimate.high);
                scatter += fit.scatter / FITS as f64;
            }
            let (terms, values) = (terms as f64 / (3 * FITS) as f64, values as f64 / FITS as f64);
            // 400 fits tell a share of 0.9 to 0.015 (one standard deviation).
            assert!((0.86..0.96).contains(&terms), "{terms} of the coefficients are covered, {rows} rows");
            assert!((0.85..0.96).contains(&values), "{values} of new values are covered, {rows} rows");
            assert!((0.025..0.035).contains(&scatter), "{scatter} for 0.03, {rows} rows");
        }
    }

    #[test]
    fn student_s_t_is_that_of_the_tables() {
        for (freedom, t) in [(2.0, 2.920), (4.0, 2.132), (10.0, 1.812), (23.0, 1.714), (1e6, 1.645)] {
            assert!((student(freedom) / t - 1.0_f64).abs() < 0.015, "{} for {t}", student(freedom));
        }
    }

    #[test]
    fn without_noise_the_coefficients_are_exact() {
        let fit = Fit::of("test", &["a", "b"], &planted(&[2.0, 7.0], 0.0, 10, 1), 1).expect("regular");
        assert!((fit.value("a") - 2.0).abs() < 1e-6 && (fit.value("b") - 7.0).abs() < 1e-6, "{fit:?}");
    }

    #[test]
    fn a_coefficient_that_would_be_negative_is_zero_and_the_others_are_refitted() {
        let mut rows = planted(&[5.0, 0.0], 0.0, 40, 3);
        for row in &mut rows {
            row.y -= 0.2 * row.x[1];
        }
        let fit = Fit::of("test", &["a", "b"], &rows, 1).expect("regular");
        assert_eq!((fit.value("b"), fit.terms[1].low, fit.terms[1].error), (0.0, 0.0, 0.0));
        assert!(fit.value("a") > 4.0);
        assert!(fit.resamples.iter().flatten().all(|value| *value >= 0.0));
    }

    #[test]
    fn disturbed_rows_do_not_move_the_fit() {
        let mut rows = planted(&[3.0, 9.0], 0.02, 60, 5);
        for row in rows.iter_mut().step_by(10) {
            row.y *= 3.0;
        }
        let fit = Fit::of("test", &["a", "b"], &rows, 1).expect("regular");
        assert!((fit.value("a") / 3.0 - 1.0).abs() < 0.08, "{:?}", fit.terms);
        assert!((fit.value("b") / 9.0 - 1.0).abs() < 0.08, "{:?}", fit.terms);
    }

    #[test]
    fn a_design_that_cannot_tell_terms_apart_is_refused_by_the_term_s_name() {
        let mut rows = planted(&[1.0, 1.0, 1.0], 0.01, 30, 1);
        for row in &mut rows {
            row.x[2] = 2.0 * row.x[0] + row.x[1];
        }
        let error = Fit::of("test", &["a", "b", "c"], &rows, 1).expect_err("singular").to_string();
        assert!(error.contains("\"c\"") && !error.contains('\n'), "{error}");
        for row in &mut rows {
            row.x[2] = 0.0;
        }
        assert!(
            Fit::of("test", &["a", "b", "c"], &rows, 1)
                .expect_err("never varied")
                .to_string()
                .contains("\"c\"")
        );
    }

    #[test]
    fn too_few_values_and_values_that_are_no_numbers_are_refused() {
        let rows = planted(&[1.0, 2.0], 0.0, 2, 1);
        assert!(
            Fit::of("test", &["a", "b"], &rows, 1).expect_err("few").to_string().contains("measure more")
        );
        let mut rows = planted(&[1.0, 2.0], 0.0, 9, 1);
        rows[4].y = f64::NAN;
        assert!(Fit::of("test", &["a", "b"], &rows, 1).expect_err("NaN").to_string().contains("no number"));
    }

    #[test]
    fn the_same_rows_and_seed_give_the_same_fit() {
        let rows = planted(&[1.0, 2.0], 0.05, 20, 1);
        let fit = |seed| Fit::of("test", &["a", "b"], &rows, seed).expect("regular");
        assert_eq!(fit(1), fit(1));
    }
}
