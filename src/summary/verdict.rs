//! Whether a student is good, by stated rules.

use super::collapse::Collapse;
use super::figures::{LabelStatistics, Score, Summary};
use super::mean::mean_of_known;

/// A judgement in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// The student does what its teachers do.
    Good,
    /// It does so in part, or too little is known to say.
    Weak,
    /// It does not: it is not to be used.
    Failed,
}

impl Word {
    /// As the terminal and the report show it.
    pub fn text(self) -> &'static str {
        match self {
            Word::Good => "good",
            Word::Weak => "weak",
            Word::Failed => "failed",
        }
    }
}

/// A judgement, and what it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// In one word.
    pub word: Word,
    /// What it rests on, as the end of a sentence.
    pub reason: String,
}

/// Shares of the teachers' advantage over chance, from which on a student is good, and weak. With the demo's teachers
/// (docs/results.md), students that keep 95 % of the mAP have 0.93 of the advantage, those whose training was far too
/// short have 0.15.
const GOOD_SKILL: f64 = 0.85;
const WEAK_SKILL: f64 = 0.3;
/// The same for Cohen's kappa on generated images.
const GOOD_KAPPA: f64 = 0.6;
const WEAK_KAPPA: f64 = 0.3;
/// The share of the labels asked for that generated images must show for a good student. Less does not make it a
/// failure: a student that starts from its teachers' blocks learned from images that showed 10 % and kept 95 % of the mAP.
const GOOD_SHOWN: f64 = 0.5;
/// Fewer images than these say nothing.
const LEAST_IMAGES: usize = 32;
/// Percentage points of mAP by which teachers must be better than chance for a comparison with them.
const LEAST_ADVANTAGE: f64 = 2.0;

impl Summary {
    /// Judges the student.
    ///
    /// A generator that has collapsed is a failure, whatever else was measured: fewer than half of the labels occur in
    /// its images. Otherwise labelled images decide, if there are any on which the teachers are better than chance: the
    /// share of the teachers' advantage over chance that the student keeps. Without them the agreement of student and
    /// teachers on generated images decides, together with the share of the labels asked for that these images show.
    pub fn verdict(&self) -> Verdict {
        if let Some(reason) = self.label_statistics.as_ref().and_then(collapse) {
            return Verdict { word: Word::Failed, reason };
        }
        self.by_scores().or_else(|| self.by_agreement()).unwrap_or_else(|| Verdict {
            word: Word::Weak,
            reason: "nothing was measured that could say more: there are neither labelled images on which the teachers \
                     are better than chance nor enough generated ones"
                .into(),
        })
    }

    /// By average precision on labelled images; absent without them, or where teachers are no better than chance.
    fn by_scores(&self) -> Option<Verdict> {
        let student = &self.student.as_ref()?.score;
        let teachers = self.teachers.get("mean")?;
        let chance = chance(student)?;
        let advantage = teachers.map - chance;
        if !student.map.is_finite() || !advantage.is_finite() || advantage < LEAST_ADVANTAGE {
            return None;
        }
        let word = grade((student.map - chance) / advantage, WEAK_SKILL, GOOD_SKILL);
        let reason = format!(
            "the student has a mAP of {:.1} %, its teachers {:.1} %, chance {chance:.1} %, on {} labelled images",
            student.map, teachers.map, student.images
        );
        Some(Verdict { word, reason })
    }

    /// By generated images; absent where there are too few.
    fn by_agreement(&self) -> Option<Verdict> {
        let agreement = self.agreement.as_ref().filter(|a| a.images >= LEAST_IMAGES)?;
        let kappa = agreement.kappa()?;
        let shown = self
            .label_statistics
            .as_ref()
            .filter(|s| s.images >= LEAST_IMAGES)
            .and_then(LabelStatistics::shown);
        let word = match grade(kappa, WEAK_KAPPA, GOOD_KAPPA) {
            Word::Good if shown.is_some_and(|share| share < GOOD_SHOWN) => Word::Weak,
            word => word,
        };
        let mut reason = format!(
            "student and teachers decide alike in {:.1} % of cases on {} generated images (kappa {kappa:.2})",
            100.0 * agreement.share(),
            agreement.images
        );
        if let Some(share) = shown {
            reason += &format!(", which show {:.0} % of the labels asked for", 100.0 * share);
        }
        let end = match &self.student {
            Some(_) => {
                "; on the labelled images the teachers are hardly better than chance, so they decide nothing"
            }
            None => "; accuracy on real images was not measured",
        };
        Some(Verdict { word, reason: reason + end })
    }
}

fn grade(value: f64, weak: f64, good: f64) -> Word {
    match value {
        v if v >= good => Word::Good,
        v if v >= weak => Word::Weak,
        _ => Word::Failed,
    }
}

/// The mAP of a random ranking: the mean share of positives, over the labels that have a score.
pub fn chance(score: &Score) -> Option<f64> {
    let scored = score.ap.iter().filter(|(_, ap)| ap.is_finite());
    let mean = mean_of_known(scored.filter_map(|(label, _)| score.chance.get(label).copied()));
    Some(mean).filter(|mean| mean.is_finite())
}

/// Why the generator has collapsed, if it has. The alarm during a run has the config's limits, which may have switched it
/// off; this one holds always. The other measures are low for a generator that has hardly been trained too, from which a
/// student that starts from its teachers may take no harm.
fn collapse(s: &LabelStatistics) -> Option<String> {
    let limits = Collapse { diversity: 0.0, information: 0.0, ..Collapse::default() };
    let (_, reason) = limits.alarm(s).filter(|_| s.images >= LEAST_IMAGES)?;
    Some(format!("the generator has collapsed: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::super::{Agreement, LabelAgreement, LabelShare, StudentScore};
    use super::*;

    fn score(map: f64) -> Score {
        let one = |v: f64| [("bus".to_string(), v)].into_iter().collect();
        Score { map, ap: one(map), chance: one(10.0), images: 500, ..Score::default() }
    }

    fn scored(teachers: f64, student: f64) -> Summary {
        let teachers = [("mean".to_string(), score(teachers))].into_iter().collect();
        let student = Some(StudentScore { score: score(student), by_block: vec![] });
        Summary { teachers, student, ..Summary::default() }
    }

    /// 100 images that a generator made for one label each of ten, of which `shown` show it.
    fn statistics(shown: usize) -> LabelStatistics {
        let label = |i: usize| LabelShare {
            teacher: "t".into(),
            label: format!("l{i}"),
            drawn: Some(10),
            predicted: shown / 10,
            shown: shown / 10,
        };
        LabelStatistics { images: 100, labels: (0..10).map(label).collect(), ..Default::default() }
    }

    fn agreeing(both: usize) -> Agreement {
        let label = LabelAgreement { label: "bus".into(), threshold: 0.4, teacher: 50, student: 50, both };
        Agreement { images: 100, labels: vec![label] }
    }

    #[test]
    fn labelled_images_decide_by_the_share_of_the_advantage_over_chance() {
        for (teachers, student, word) in [
            (90.0, 85.0, Word::Good),
            (90.0, 60.0, Word::Weak),
            (90.0, 12.0, Word::Failed),
            // As far from chance as from its teachers, and a third of the teachers' figure.
            (30.0, 20.0, Word::Weak),
            (90.0, f64::NAN, Word::Weak),
        ] {
            let verdict = scored(teachers, student).verdict();
            assert_eq!(verdict.word, word, "{teachers} {student}: {}", verdict.reason);
        }
        let reason = scored(90.0, 12.0).verdict().reason;
        assert_eq!(
            reason,
            "the student has a mAP of 12.0 %, its teachers 90.0 %, chance 10.0 %, on 500 labelled images"
        );
    }

    #[test]
    fn without_labelled_images_generated_ones_decide_and_a_student_at_chance_is_never_good() {
        for (both, shown, word) in [
            (48, 80, Word::Good),
            (48, 40, Word::Weak),
            (48, 10, Word::Weak),
            (35, 80, Word::Weak),
            // 25 of the teacher's 50: chance.
            (25, 80, Word::Failed),
        ] {
            let summary = Summary {
                agreement: Some(agreeing(both)),
                label_statistics: Some(statistics(shown)),
                ..Summary::default()
            };
            let verdict = summary.verdict();
            assert_eq!(verdict.word, word, "{both} {shown}: {}", verdict.reason);
            assert!(verdict.reason.contains("was not measured"), "{}", verdict.reason);
        }
        assert_eq!(Summary::default().verdict().word, Word::Weak);
        // Teachers at chance say nothing of their student.
        let summary = Summary { agreement: Some(agreeing(48)), ..scored(10.5, 10.4) };
        assert_eq!(summary.verdict().word, Word::Good);
        let few = Agreement { images: 4, labels: vec![] };
        assert_eq!(Summary { agreement: Some(few), ..Summary::default() }.verdict().word, Word::Weak);
    }

    #[test]
    fn a_collapsed_generator_fails_whatever_the_scores() {
        let mut statistics = statistics(80);
        statistics.labels[..6].iter_mut().for_each(|l| (l.predicted, l.shown) = (0, 0));
        let summary = Summary { label_statistics: Some(statistics), ..scored(90.0, 89.0) };
        let verdict = summary.verdict();
        assert_eq!(verdict.word, Word::Failed);
        assert_eq!(
            verdict.reason,
            "the generator has collapsed: 4 of 10 labels are found in its 100 images, at least 50 % expected"
        );
    }
}
