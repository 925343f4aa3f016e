//! The last lines of a run on the terminal.

use super::overview::training_seconds;
use super::table::{duration, millions};
use crate::summary::{Summary, Word};
use std::path::Path;

/// Three lines: the verdict and what it rests on, what the student costs, and where to go on.
pub fn closing_lines(summary: &Summary, folder: &Path) -> String {
    let (verdict, p) = (summary.verdict(), &summary.parameters);
    let share = 100.0 * p.student as f64 / p.teachers.max(1) as f64;
    let next = match verdict.word {
        Word::Failed => "what to try: docs/students.md#weak-and-failed-students".to_string(),
        Word::Good | Word::Weak => format!("next: dfka-engine predict {} IMAGE...", folder.display()),
    };
    format!(
        "{}: {}\n\
         size: {} parameters, {share:.1} % of the teachers' {}; trained in {}\n\
         student and report in {}; {next}\n",
        verdict.word.text(),
        verdict.reason,
        millions(p.student),
        millions(p.teachers),
        duration(training_seconds(summary)),
        folder.display()
    )
}

#[cfg(test)]
mod tests {
    use super::super::table::example;
    use super::*;

    #[test]
    fn three_lines_say_result_cost_and_next_step() {
        let text = closing_lines(&example(2), Path::new("runs/x"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(
            lines[0],
            "good: the student has a mAP of 71.7 %, its teachers 74.8 %, chance 7.5 %, on 4952 labelled images"
        );
        assert!(lines[1].starts_with("size: 59.80 M parameters, 67.4 % of the teachers' 88.70 M"), "{text}");
        assert!(lines[2].ends_with("runs/x; next: dfka-engine predict runs/x IMAGE..."), "{text}");
    }
}
