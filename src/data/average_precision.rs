//! The average precision of a ranking, computed in the two ways that PASCAL VOC has used.
//!
//! The entries of one label are ranked by score, highest first. Equal scores keep the order of their
//! indices, so that the result depends on the input alone. Entries marked difficult are removed first: they
//! count neither as right nor as wrong. With precision `P(k)` and recall `R(k)` after the first `k` entries:
//!
//! - *eleven point* (VOC 2007): the mean over `t` in `0, 0.1, .., 1` of `max { P(k) : R(k) >= t }`;
//! - *all point* (VOC 2010 and later): the area under the precision envelope
//!   `p(r) = max { P(k) : R(k) >= r }`, which is the mean of the envelope at the recall of each positive.
//!
//! Recall is compared in integers (`10 hits >= t positives`), so that a rounding error cannot miss a
//! threshold.

use crate::error::{Error, Result};

/// The target of an entry that does not count, VOC's `difficult`.
pub const DIFFICULT: u8 = 2;

/// Both average precisions of one ranking, in `0..=1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AveragePrecision {
    pub eleven_point: f64,
    pub all_point: f64,
}

/// The average precisions of a labelled set, by label.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelPrecisions {
    /// `None` for a label without positives, for which all rankings are equally good.
    pub per_label: Vec<Option<AveragePrecision>>,
    /// The mean over the labels that have a value; `None` if none has.
    pub mean: Option<AveragePrecision>,
}

/// The average precision of one label, from `scores[i]` and `targets[i]` (0 absent, 1 present, 2 difficult).
/// `None` if there are no positives.
///
/// Errors: those of [`label_precisions`].
pub fn average_precision(scores: &[f32], targets: &[u8]) -> Result<Option<AveragePrecision>> {
    Ok(label_precisions(scores, targets, 1)?.per_label[0])
}

/// The average precision of each label. `scores` and `targets` are `[n, labels]`, row by row.
///
/// Errors: sizes that do not match, a score that is NaN, a target other than 0, 1 and 2.
pub fn label_precisions(scores: &[f32], targets: &[u8], labels: usize) -> Result<LabelPrecisions> {
    let fail = |m: String| Err(Error::shape("average_precision", m));
    if labels == 0 || scores.len() != targets.len() || !scores.len().is_multiple_of(labels) {
        let (s, t) = (scores.len(), targets.len());
        return fail(format!("expected n x {labels} scores and as many targets, found {s} and {t}"));
    }
    if let Some(i) = scores.iter().position(|s| s.is_nan()) {
        return fail(format!(
            "expected numbers as scores, found NaN for sample {}, label {}",
            i / labels,
            i % labels
        ));
    }
    if let Some(i) = targets.iter().position(|t| *t > DIFFICULT) {
        let (n, c, t) = (i / labels, i % labels, targets[i]);
        return fail(format!("expected targets 0, 1 or 2, found {t} for sample {n}, label {c}"));
    }
    let per_label: Vec<_> = (0..labels)
        .map(|c| {
            let column = (c..scores.len()).step_by(labels);
            let mut ranked: Vec<(f32, bool)> =
                column.filter(|&i| targets[i] != DIFFICULT).map(|i| (scores[i], targets[i] == 1)).collect();
            // The sort is stable. Adding zero turns -0.0 into 0.0, so that the two tie.
            ranked.sort_by(|a, b| (b.0 + 0.0).total_cmp(&(a.0 + 0.0)));
            of_ranking(ranked.iter().map(|r| r.1))
        })
        .collect();
    let known: Vec<AveragePrecision> = per_label.iter().copied().flatten().collect();
    let mean_of = |f: fn(&AveragePrecision) -> f64| known.iter().map(f).sum::<f64>() / known.len() as f64;
    let mean = (!known.is_empty()).then(|| AveragePrecision {
        eleven_point: mean_of(|a| a.eleven_point),
        all_point: mean_of(|a| a.all_point),
    });
    Ok(LabelPrecisions { per_label, mean })
}

fn of_ranking(ranked: impl Iterator<Item = bool>) -> Option<AveragePrecision> {
    // Recall changes, and precision has its peaks, only at positives: the k-th positive at rank r has
    // precision k / r.
    let mut envelope: Vec<f64> = vec![];
    for (before, positive) in ranked.enumerate() {
        if positive {
            envelope.push((envelope.len() + 1) as f64 / (before + 1) as f64);
        }
    }
    for k in (1..envelope.len()).rev() {
        envelope[k - 1] = envelope[k - 1].max(envelope[k]);
    }
    let positives = envelope.len();
    if positives == 0 {
        return None;
    }
    // The envelope at the first positive whose recall reaches t / 10; for t = 0 that is the first positive.
    let at = |t: usize| envelope[(t * positives).div_ceil(10).max(1) - 1];
    Some(AveragePrecision {
        eleven_point: (0..=10).map(at).sum::<f64>() / 11.0,
        all_point: envelope.iter().sum::<f64>() / positives as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ap(scores: &[f32], targets: &[u8]) -> (f64, f64) {
        let a = average_precision(scores, targets).unwrap().unwrap();
        (a.eleven_point, a.all_point)
    }

    fn near(found: (f64, f64), expected: (f64, f64)) {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(close(found.0, expected.0) && close(found.1, expected.1), "{found:?}, expected {expected:?}");
    }

    /// rank      1    2    3    4    5    6
    /// target    1    0    1    0    0    1
    /// P         1   1/2  2/3  1/2  2/5  1/2
    /// R        1/3  1/3  2/3  2/3  2/3   1
    ///
    /// Envelope at the positives: 1, 2/3, 1/2, hence all point (1 + 2/3 + 1/2) / 3 = 13/18.
    /// Eleven point: t = 0..0.3 (4 values) give 1, 0.4..0.6 (3) give 2/3, 0.7..1 (4) give 1/2, hence
    /// (4 + 2 + 2) / 11 = 8/11.
    #[test]
    fn a_case_worked_by_hand() {
        near(ap(&[0.9, 0.8, 0.7, 0.6, 0.5, 0.4], &[1, 0, 1, 0, 0, 1]), (8.0 / 11.0, 13.0 / 18.0));
        // The same entries in another order.
        near(ap(&[0.4, 0.9, 0.5, 0.8, 0.6, 0.7], &[1, 1, 0, 0, 0, 1]), (8.0 / 11.0, 13.0 / 18.0));
    }

    #[test]
    fn the_envelope_lifts_a_dip() {
        // P at the positives: 1/2, 2/3, 3/4; the last is the highest, so the envelope is flat.
        near(ap(&[4., 3., 2., 1.], &[0, 1, 1, 1]), (0.75, 0.75));
    }

    #[test]
    fn perfect_and_worst_rankings() {
        near(ap(&[3., 2., 1.], &[1, 1, 0]), (1.0, 1.0));
        near(ap(&[3., 2., 1.], &[0, 0, 1]), (1.0 / 3.0, 1.0 / 3.0));
        near(ap(&[f32::INFINITY, f32::NEG_INFINITY], &[1, 0]), (1.0, 1.0));
    }

    #[test]
    fn a_threshold_that_recall_meets_exactly_counts() {
        // With ten positives recall takes the values t / 10 exactly; in floating point 0.1 * 3 > 0.3 would
        // miss one. The positives have the odd ranks, so that P of the k-th is k / (2k - 1), which falls,
        // and the envelope is P itself.
        let targets: Vec<u8> = (0..20).map(|i| (i % 2 == 0) as u8).collect();
        let scores: Vec<f32> = (0..20).map(|i| -(i as f32)).collect();
        let p: Vec<f64> = (1..=10).map(|k| k as f64 / (2 * k - 1) as f64).collect();
        let sum: f64 = p.iter().sum();
        near(ap(&scores, &targets), ((1.0 + sum) / 11.0, sum / 10.0));
    }

    /// The definitions at the top of the file, implemented literally in quadratic time.
    fn by_definition(scores: &[f32], targets: &[u8]) -> (f64, f64) {
        let mut order: Vec<usize> = (0..scores.len()).filter(|i| targets[*i] != DIFFICULT).collect();
        order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap().then(a.cmp(&b)));
        let hits = |k: usize| order[..k].iter().filter(|i| targets[**i] == 1).count();
        let (n, positives) = (order.len(), hits(order.len()));
        let best = |enough: &dyn Fn(usize) -> bool| {
            (1..=n).filter(|k| enough(hits(*k))).map(|k| hits(k) as f64 / k as f64).fold(0.0, f64::max)
        };
        let eleven = (0..=10).map(|t| best(&|h| 10 * h >= t * positives)).sum::<f64>() / 11.0;
        let all = (1..=positives).map(|p| best(&|h| h >= p)).sum::<f64>() / positives as f64;
        (eleven, all)
    }

    #[test]
    fn random_rankings_agree_with_the_definition() {
        let mut rng = crate::data::rng::Rng::stream(11, 0, 0);
        for _ in 0..500 {
            let n = 1 + rng.below(40);
            // Only 12 distinct scores, so that ties are frequent.
            let scores: Vec<f32> = (0..n).map(|_| rng.below(12) as f32 - 6.0).collect();
            let mut targets: Vec<u8> = (0..n).map(|_| rng.below(3) as u8).collect();
            targets[rng.below(n)] = 1;
            near(ap(&scores, &targets), by_definition(&scores, &targets));
        }
    }

    #[test]
    fn difficult_entries_count_neither_way() {
        let with = ap(&[0.95, 0.9, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4], &[2, 1, 0, 2, 1, 0, 0, 1]);
        near(with, (8.0 / 11.0, 13.0 / 18.0));
        assert_eq!(average_precision(&[1., 2.], &[2, 0]).unwrap(), None);
    }

    #[test]
    fn ties_rank_by_index() {
        near(ap(&[0.5, 0.5], &[1, 0]), (1.0, 1.0));
        near(ap(&[0.5, 0.5], &[0, 1]), (0.5, 0.5));
        near(ap(&[-0.0, 0.0], &[1, 0]), (1.0, 1.0));
    }

    #[test]
    fn a_label_without_positives_stays_out_of_the_mean() {
        // Three labels and two samples. The first label is ranked perfectly, the second has no positives,
        // the third is ranked worst.
        let r = label_precisions(&[0.9, 0.3, 0.9, 0.1, 0.4, 0.1], &[1, 0, 0, 0, 0, 1], 3).unwrap();
        let ap = |v| AveragePrecision { eleven_point: v, all_point: v };
        assert_eq!(r.per_label, [Some(ap(1.0)), None, Some(ap(0.5))]);
        assert_eq!(r.mean, Some(ap(0.75)));
        assert_eq!(label_precisions(&[0.5], &[0], 1).unwrap().mean, None);
        assert_eq!(label_precisions(&[], &[], 2).unwrap().per_label, [None, None]);
    }

    #[test]
    fn malformed_input_is_an_error() {
        for (scores, targets, labels, why) in [
            (&[0.0f32, 1.0][..], &[0u8][..], 1, "found 2 and 1"),
            (&[0.0, 1.0, 2.0], &[0, 0, 1], 2, "n x 2"),
            (&[0.0], &[1], 0, "n x 0"),
            (&[0.0, f32::NAN, 2.0, 3.0], &[0, 0, 1, 0], 2, "sample 0, label 1"),
            (&[0.0, 1.0, 2.0, 3.0], &[0, 0, 1, 3], 2, "found 3 for sample 1, label 1"),
        ] {
            let e = label_precisions(scores, targets, labels).unwrap_err().to_string();
            assert!(e.contains(why), "{e}");
        }
    }
}
