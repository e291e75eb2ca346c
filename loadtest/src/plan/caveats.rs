//! What the reader of an answer must know of the model behind it, in words.
//!
//! An answer carries its caveats, so that the terminal, the page and the JSON cannot leave them
//! out. What lies outside of the measured range is told elsewhere (`Answer::extrapolates`).

use serde::Serialize;

use super::model::Model;
use crate::unit::Unit;

/// Above this share of disturbed legs the figures are doubtful.
const DISTURBED_MAX: f64 = 0.2;

/// One thing to know.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Caveat {
    /// True if the figures are doubtful, false if this is how they are meant.
    pub warning: bool,
    /// In a sentence or two.
    pub text: String,
}

impl Caveat {
    fn note(text: String) -> Caveat {
        Caveat { warning: false, text }
    }

    fn warning(text: String) -> Caveat {
        Caveat { warning: true, text }
    }

    /// As the terminal shows it.
    pub fn line(&self) -> String {
        if self.warning { format!("WARNING: {}", self.text) } else { self.text.clone() }
    }
}

/// What to know of a model.
pub fn of_model(model: &Model) -> Vec<Caveat> {
    let mut caveats = Vec::from_iter(disturbed(model.disturbed()));
    let left_out = model.left_out();
    if left_out > 0 {
        caveats.push(Caveat::warning(format!(
            "{left_out} measured legs are not in the fit: a core was full, and deliveries merged."
        )));
    }
    caveats.extend(checked(model));
    caveats.push(Caveat::note(
        "Measured on loopback: a network card's interrupts come on top, and the receivers' half of TCP falls away. \
         Kernel memory is of both ends; a plan takes half of it for the server."
            .to_owned(),
    ));
    caveats
}

/// What to know of an answer for nodes with so many shards.
pub fn of_answer(model: &Model, shards: f64) -> Vec<Caveat> {
    let mut caveats = of_model(model);
    if shards > 1.0 {
        caveats.push(Caveat::warning(format!(
            "CPU was measured with one shard, each node has {}: what several cores cost each other (caches, memory \
             bandwidth, locks of the kernel, the clock at full load) is not in the figures nor in their intervals.",
            Unit::Count.show(shards)
        )));
    }
    caveats
}

/// How far a point outside of the fit was off.
fn checked(model: &Model) -> Option<Caveat> {
    let point = model.checked.as_ref()?;
    let text = format!(
        "A point outside of the fit ({} connections on one shard, {} events/s of {} bytes) was predicted with an error of \
         at most {:.1} %.",
        Unit::Count.show(point.connections),
        point.rate,
        point.bytes,
        point.error * 100.0
    );
    Some(Caveat { warning: !point.holds(), text })
}

/// A warning if other programs were at work in more than a few of the legs.
pub fn disturbed(share: f64) -> Option<Caveat> {
    (share > DISTURBED_MAX).then(|| {
        Caveat::warning(format!(
            "In {} of the legs other programs took part of the server's CPU: measure on a quiet machine.",
            Unit::Share.show(share)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::model::Checked;
    use crate::plan::planted::model;

    #[test]
    fn doubtful_measurements_are_warned_of() {
        assert_eq!(disturbed(0.1), None);
        assert!(disturbed(0.5).expect("doubtful").line().starts_with("WARNING: In 50"));
        let mut model = model();
        assert!(of_model(&model).iter().all(|caveat| !caveat.warning), "{:?}", of_model(&model));
        model.measured.cpu.iter_mut().for_each(|row| {
            row.others_share = 0.5;
            row.receiver_share = 0.99;
        });
        let lines: Vec<String> = of_model(&model).iter().map(Caveat::line).collect();
        assert!(lines[0].contains("other programs") && lines[1].contains("not in the fit"), "{lines:?}");
        assert!(lines[2].contains("loopback"), "{lines:?}");
    }

    #[test]
    fn a_held_out_point_beyond_the_promise_is_a_warning_with_the_model_ever_after() {
        let mut model = model();
        for (error, warning) in [(0.15, false), (0.151, true)] {
            model.checked = Some(Checked { connections: 16_000.0, rate: 6.0, bytes: 500.0, error });
            assert_eq!(of_model(&model)[0].warning, warning, "{error}");
        }
    }

    #[test]
    fn several_shards_are_said_to_be_unmeasured_and_one_is_not() {
        let said =
            |shards| of_answer(&model(), shards).iter().any(|caveat| caveat.text.contains("one shard, each"));
        assert!(said(2.0) && !said(1.0));
    }
}
