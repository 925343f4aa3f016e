//! The page's section of losses by step.

use super::chart::{Frame, MOST_POINTS, Markers, Series, framed_chart};
use super::html::escape;
use super::metrics::{Stage, thin};
use super::overview::is_student_stage;

/// One chart per stage of the student's training, then every metric of each stage in a closed `details`
/// element.
pub(super) fn curves(stages: &[Stage]) -> String {
    if stages.is_empty() {
        return String::new();
    }
    let line = |title: &str, points: &[(f64, f64)]| {
        let one =
            Series { name: title, class: "a", points: thin(points, MOST_POINTS), markers: Markers::None };
        framed_chart(title, &[one], Frame { x_name: "step", ..Frame::default() })
    };
    let mut out = String::from("<h2>Losses by step</h2><div class=\"charts\">");
    for stage in stages.iter().filter(|s| is_student_stage(&s.name)).take(MOST_STAGES) {
        // The loss that the stage minimises, or its first metric if no metric has that name.
        let loss = stage.curves.get("loss").or(stage.curves.values().next());
        out += &loss.map_or(String::new(), |points| line(&stage.name, points));
    }
    out += "</div>\n";
    for stage in stages.iter().take(MOST_STAGES).filter(|s| s.curves.len() > 1) {
        let (name, terms) = (escape(&stage.name), stage.curves.len());
        out += &format!(
            "<details class=\"small\"><summary>{name}: all {terms} terms</summary><div class=\"charts\">"
        );
        for (metric, points) in stage.curves.iter().take(MOST_STAGES) {
            out += &line(metric, points);
        }
        out += "</div></details>\n";
    }
    out
}

/// Limit on the stages, and on the metrics of one stage, that the page shows. A run of ResNets with both
/// baselines has 13 stages; a damaged file may name any number.
const MOST_STAGES: usize = 64;
