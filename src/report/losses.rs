//! The page's section of losses by step.

use super::chart::{MOST_POINTS, Markers, Series, line_chart};
use super::html::escape;
use super::metrics::{Stage, thin};
use super::overview::is_students;

pub(super) fn curves(stages: &[Stage]) -> String {
    if stages.is_empty() {
        return String::new();
    }
    let line = |title: &str, points: &[(f64, f64)]| {
        let one =
            Series { name: title, class: "a", points: thin(points, MOST_POINTS), markers: Markers::None };
        line_chart(title, &[one])
    };
    let mut out = String::from("<h2>Losses by step</h2><div class=\"charts\">");
    for stage in stages.iter().filter(|s| is_students(&s.name)).take(MOST_STAGES) {
        // What the stage minimises; its first metric where it is of another kind.
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

/// Stages, and metrics of one, that a page shows: a run of ResNets with both baselines has 13 stages.
const MOST_STAGES: usize = 64;
