//! The top of the page: the result of a run in a few sentences and figures.

use super::origin::Failure;
use super::run_folder::RunFolder;
use super::table::{duration, millions, teachers_map};
use crate::summary::{Score, Summary};
use crate::text::label;

/// A figure in large type, with a caption and a note.
pub(super) struct Tile {
    pub caption: String,
    pub value: String,
    pub note: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Status {
    Finished,
    Failed,
    /// A signal stopped it.
    Stopped,
    /// It is still running, or was killed: the folder does not show which.
    Unfinished,
}

impl Status {
    pub fn of(run: &RunFolder) -> Status {
        match failure(run) {
            _ if run.is_finished => Status::Finished,
            Some(f) if f.is_stop() => Status::Stopped,
            Some(_) => Status::Failed,
            None => Status::Unfinished,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Status::Finished => "finished",
            Status::Failed => "failed",
            Status::Stopped => "stopped",
            Status::Unfinished => "unfinished",
        }
    }
}

/// Why the last call ended without a result.
fn failure(run: &RunFolder) -> Option<&Failure> {
    run.origin.as_ref()?.failure.as_ref()
}

/// Whether a stage belongs to the student's training, rather than to a baseline's.
pub(super) fn is_student_stage(stage: &str) -> bool {
    !stage.starts_with("noise.") && !stage.starts_with("ka.") && stage != "total"
}

/// Seconds of the student's training, summed over all calls of the program.
pub(super) fn training_seconds(s: &Summary) -> f64 {
    s.seconds.iter().filter(|(stage, _)| is_student_stage(stage)).map(|(_, seconds)| seconds).sum()
}

/// The teacher from which the student learns a label.
pub(super) fn owner<'a>(s: &'a Summary, label: &str) -> Option<&'a str> {
    s.branch.iter().find(|t| t.labels.iter().any(|l| l == label)).map(|t| t.teacher.as_str())
}

/// Average precision, on a label, of the teacher that owns it.
pub(super) fn owners_ap(s: &Summary, label: &str) -> Option<f64> {
    s.teachers.get(owner(s, label)?)?.ap.get(label).copied()
}

/// The student's score, and the teachers' mAP on the same labels, if both are known.
fn scores(s: &Summary) -> Option<(&Score, f64)> {
    let teachers = teachers_map(s).filter(|m| m.is_finite() && *m > 0.0)?;
    let student = &s.student.as_ref()?.score;
    student.map.is_finite().then_some((student, teachers))
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// The result in sentences; for an unfinished run, how far it came and why it ended.
pub(super) fn sentences(run: &RunFolder) -> Vec<String> {
    let s = &run.summary;
    if !run.is_finished {
        return unfinished(run);
    }
    let labels = count(s.labels.len(), "label");
    let teachers = count(run.config.teachers.len().max(s.branch.len()), "teacher");
    let verdict = s.verdict();
    let mut out = vec![format!("Verdict: {}. It rests on this: {}.", verdict.word.text(), verdict.reason)];
    match scores(s) {
        Some((student, of_teachers)) => out.push(format!(
            "The student recognises {labels} with a mean average precision of {:.1} %. Its {teachers} reach \
             {of_teachers:.1} % on the same labels and images: the student keeps {:.1} % of that.",
            student.map,
            100.0 * student.map / of_teachers
        )),
        None => out.push(format!("The student is trained and saved; it recognises {labels} of {teachers}.")),
    }
    let p = &s.parameters;
    if p.teachers > 0 && p.student > 0 {
        out.push(format!(
            "It has {} parameters, {:.1} % of the teachers' {}; training took {}{}.",
            millions(p.student),
            100.0 * p.student as f64 / p.teachers as f64,
            millions(p.teachers),
            duration(training_seconds(s)),
            match run.config.images.as_deref() {
                Some("generator") => " and used no real image: it learned from images that a generator made",
                Some("noise") => " on random noise in place of images",
                Some(_) => " on real images without labels",
                None => "",
            }
        ));
    }
    let baselines =
        [("on random noise in place of images", &s.noise), ("on real images without labels (KA)", &s.ka)];
    let known: Vec<String> = baselines
        .iter()
        .filter_map(|(what, x)| Some((what, x.as_ref()?.score.map)))
        .filter(|(_, map)| map.is_finite())
        .map(|(what, map)| format!("{map:.1} % {what}"))
        .collect();
    if !known.is_empty() {
        out.push(format!("For comparison, the same training reaches {}.", known.join(" and ")));
    }
    out.extend(weakest(s));
    if scores(s).is_none() {
        out.push(not_measured(run));
    }
    out
}

/// A sentence that says why there is no average precision.
pub(super) fn not_measured(run: &RunFolder) -> String {
    let eval = "`dfka-engine eval student.npz DATA` scores it on labelled images of your own";
    match (run.is_finished, run.config.has_evaluation) {
        (true, false) => format!(
            "Its accuracy was not measured: the config names no labelled images (evaluation.data). {eval}."
        ),
        (true, true) => format!("Its score is missing from the summary. {eval}."),
        (false, true) => "Not measured yet: models are scored after the last stage.".into(),
        (false, false) => "Not measured: the config names no labelled images (evaluation.data).".into(),
    }
}

/// A sentence that names up to three labels on which the student loses most, if it loses 5 points or more.
fn weakest(s: &Summary) -> Option<String> {
    let student = &s.student.as_ref()?.score;
    let mut lost: Vec<(f64, &String, f64, f64)> = student
        .ap
        .iter()
        .filter_map(|(label, ap)| owners_ap(s, label).map(|of| (of - ap, label, *ap, of)))
        .filter(|l| l.0 >= 5.0)
        .collect();
    lost.sort_by(|a, b| b.0.total_cmp(&a.0));
    lost.truncate(3);
    let each: Vec<String> =
        lost.iter().map(|(_, l, ap, of)| format!("{} ({ap:.1} % against {of:.1} %)", label(l))).collect();
    (!each.is_empty()).then(|| format!("It loses most on {}.", each.join(", ")))
}

fn unfinished(run: &RunFolder) -> Vec<String> {
    let failure = failure(run);
    let reached = match run.stages.last() {
        Some(stage) => match run.config.stage(&stage.name) {
            Some(planned) => format!("step {} of {} of {}", stage.steps, planned.steps, stage.name),
            None => format!("step {} of {}", stage.steps, stage.name),
        },
        None => "no step of training".into(),
    };
    let mut out = vec![match failure {
        Some(f) => {
            let how = if f.is_stop() { "was stopped" } else { "failed" };
            format!("This run {how}: {}. It reached {reached}.", f.message)
        }
        None => {
            format!("This run has not finished: its folder shows {reached}. It may still be running.")
        }
    }];
    let total: usize = run.config.stages.iter().map(|s| s.steps).sum();
    let of = |name: &str| run.stages.iter().find(|s| s.name == name).map_or(0, |s| s.steps);
    let done: usize = run.config.stages.iter().map(|s| of(&s.name).min(s.steps)).sum();
    if total > 0 {
        let next = match failure {
            // Such a message says which setting to change, for instance the alarm's threshold.
            Some(f) if f.is_repeatable() => "alone would fail in the same way",
            Some(_) | None => "continues from the last checkpoint",
        };
        out.push(format!("{done} of {total} training steps are done. `--resume` {next}."));
    }
    out
}

/// The figures in large type; only those that the run has.
pub(super) fn tiles(run: &RunFolder) -> Vec<Tile> {
    let s = &run.summary;
    let mut out = Vec::new();
    if let Some((student, of_teachers)) = scores(s) {
        out.push(Tile {
            caption: "student, mAP".into(),
            value: format!("{:.1} %", student.map),
            note: format!("teachers {of_teachers:.1} %"),
        });
        out.push(Tile {
            caption: "of the teachers' mAP".into(),
            value: format!("{:.1} %", 100.0 * student.map / of_teachers),
            note: format!("11-point mAP {:.1} %", student.map_11_point),
        });
    }
    let p = &s.parameters;
    if p.student > 0 {
        let share = 100.0 * p.student as f64 / p.teachers.max(1) as f64;
        out.push(Tile {
            caption: "parameters".into(),
            value: millions(p.student),
            note: format!("{share:.1} % of the teachers' {}", millions(p.teachers)),
        });
    }
    let seconds = training_seconds(s);
    if seconds > 0.0 {
        let call = run.origin.as_ref().and_then(|o| o.calls.last());
        let device = call.map_or(String::new(), |c| format!("on {}", c.device));
        out.push(Tile { caption: "training time".into(), value: duration(seconds), note: device });
    }
    out
}
