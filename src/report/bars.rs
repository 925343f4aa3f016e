//! Tables with a bar chart in each row: average precision by label, and the labels that generated images
//! show.

use super::html::{escape, prose};
use super::origin::EVALUATION;
use super::overview::{not_measured, owner, owners_ap};
use super::run_folder::RunFolder;
use super::table::percent;
use crate::summary::{LabelShare, LabelStatistics};
use crate::text;

struct Row {
    name: String,
    /// CSS class, and length in percent of the longest bar.
    bars: Vec<(&'static str, f64)>,
    figures: Vec<String>,
}

/// Renders groups of rows as one table. A single group is shown without its heading.
fn bar_table(header: &[&str], groups: &[(String, Vec<Row>)]) -> String {
    let head: String = header.iter().map(|h| format!("<th scope=\"col\">{h}</th>")).collect();
    let mut body = String::new();
    for (heading, rows) in groups {
        if groups.len() > 1 {
            let columns = header.len();
            body += &format!("<tr class=\"group\"><th colspan=\"{columns}\">{}</th></tr>", escape(heading));
        }
        for row in rows {
            let bar = |(class, length): &(&str, f64)| {
                let length = if length.is_finite() { length.clamp(0.0, 100.0) } else { 0.0 };
                format!("<span class=\"track\"><i class=\"{class}\" style=\"width:{length:.1}%\"></i></span>")
            };
            let bars: String = row.bars.iter().map(bar).collect();
            let figures: String = row.figures.iter().map(|f| format!("<td>{}</td>", escape(f))).collect();
            let name = escape(&row.name);
            body += &format!("<tr><th scope=\"row\">{name}</th><td class=\"bar\">{bars}</td>{figures}</tr>");
        }
    }
    format!(
        "<div class=\"wide\"><table class=\"bars\"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )
}

/// The section that compares the student's average precision on each label with that of the label's teacher.
pub(super) fn precision(run: &RunFolder) -> String {
    let s = &run.summary;
    let Some(student) = &s.student else {
        return format!(
            "<h2>Average precision by label</h2><p class=\"soft\">{}</p>\n",
            prose(&not_measured(run))
        );
    };
    let row = |label: &String| {
        let known = |ap: Option<f64>| ap.filter(|v| v.is_finite());
        let (ap, of) = (known(student.score.ap.get(label).copied()), known(owners_ap(s, label)));
        let kept = ap.zip(of).filter(|(_, of)| *of > 0.0).map(|(ap, of)| 100.0 * ap / of);
        Row {
            name: text::label(label),
            bars: vec![("a", ap.unwrap_or(0.0)), ("ref", of.unwrap_or(0.0))],
            figures: [ap, of, kept, known(student.score.chance.get(label).copied())].map(percent).to_vec(),
        }
    };
    let groups = by_teacher(s.labels.iter().map(|l| (owner(s, l).unwrap_or("no teacher"), row(l))));
    let mut out = String::from(
        "<h2>Average precision by label</h2>\
         <p class=\"legend\"><span class=\"key a\">student</span><span class=\"key ref\">the label's teacher</span>, all-point \
         average precision in %; kept: student in % of the teacher; chance: a random ranking's</p>\n",
    );
    if student.score.images > 0 {
        let words = format!("Scored on {} labelled images{}.", student.score.images, data_of(run));
        out += &format!("<p>{}</p>\n", prose(&words));
    }
    out += &bar_table(&["label", "", "student", "teacher", "kept", "chance"], &groups);
    out
}

/// The evaluation data's name and hash, as the end of a sentence.
fn data_of(run: &RunFolder) -> String {
    let file = run.origin.as_ref().and_then(|o| o.weights.iter().find(|w| w.name == EVALUATION));
    file.map_or(String::new(), |f| format!(" of `{}` (SHA-256 {})", f.file.display(), f.sha256))
}

/// The section that compares the labels the generator was asked to show with those the teachers predict.
pub(super) fn labels_shown(run: &RunFolder) -> String {
    let Some(stats) = run.summary.label_statistics.as_ref().filter(|s| s.images > 0) else {
        return missing_statistics(run.config.images.as_deref());
    };
    let share = |count: usize| 100.0 * count as f64 / stats.images as f64;
    let is_drawn = stats.labels.iter().any(|l| l.drawn.is_some());
    let longest =
        stats.labels.iter().map(|l| share(l.predicted.max(l.drawn.unwrap_or(0)))).fold(1e-9, f64::max);
    let row = |l: &LabelShare| {
        let mut bars = vec![("b", 100.0 * share(l.predicted) / longest)];
        let mut figures = vec![percent(Some(share(l.predicted)))];
        if let Some(drawn) = l.drawn {
            bars.push(("ref", 100.0 * share(drawn) / longest));
            figures.push(percent(Some(share(drawn))));
            figures.push(percent((drawn > 0).then(|| 100.0 * l.shown as f64 / drawn as f64)));
        }
        Row { name: text::label(&l.label), bars, figures }
    };
    let groups = by_teacher(stats.labels.iter().map(|l| (l.teacher.as_str(), row(l))));
    let mut out = String::from("<h3>What the images show</h3>");
    out += &format!("<p>{}</p>", prose(&in_words(stats, is_drawn)));
    out += "<p class=\"legend\"><span class=\"key b\">predicted by its teacher</span>";
    if is_drawn {
        out += "<span class=\"key ref\">requested from the generator</span>";
    }
    out += ", % of the images";
    if is_drawn {
        out += "; last column: share of the images requested with the label in which its teacher predicts it";
    }
    out += "</p>\n";
    let header: &[&str] = if is_drawn {
        &["label", "", "predicted", "requested", "shown"]
    } else {
        &["label", "", "predicted"]
    };
    out + &bar_table(header, &groups)
}

fn in_words(stats: &LabelStatistics, is_drawn: bool) -> String {
    let mean = |count: usize| count as f64 / stats.images.max(1) as f64;
    let predicted: usize = stats.labels.iter().map(|l| l.predicted).sum();
    let mut text = format!("In {} images of the trained generator, the teachers predict ", stats.images);
    if !is_drawn {
        return text + &format!("{:.2} labels per image.", mean(predicted));
    }
    let drawn: usize = stats.labels.iter().filter_map(|l| l.drawn).sum();
    let shown: usize = stats.labels.iter().map(|l| l.shown).sum();
    text +=
        &format!("{:.2} labels per image; the generator was asked for {:.2}.", mean(predicted), mean(drawn));
    if drawn > 0 {
        text += &format!(
            " A requested label appears in {:.1} % of its images.",
            100.0 * shown as f64 / drawn as f64
        );
    }
    let rare: Vec<String> = stats
        .labels
        .iter()
        .filter(|l| l.drawn.is_some_and(|d| d > 0 && 2 * l.shown < d))
        .map(|l| text::label(&l.label))
        .collect();
    // A list of most labels says nothing; the count is enough.
    if rare.len() > 5 {
        let (n, all) = (rare.len(), stats.labels.len());
        text +=
            &format!(" {n} of the {all} labels appear in fewer than half of the images requested with them.");
    } else if !rare.is_empty() {
        text += &format!(
            " These appear in fewer than half of the images requested with them: {}.",
            rare.join(", ")
        );
    }
    text
}

fn missing_statistics(images: Option<&str>) -> String {
    let why = match images {
        Some("generator") => "they are counted at the end of stage one",
        _ => return String::new(),
    };
    format!("<h3>What the images show</h3><p class=\"soft\">No label statistics: {why}.</p>\n")
}

/// Groups rows by teacher, in the order in which the teachers first occur.
fn by_teacher<'a>(rows: impl Iterator<Item = (&'a str, Row)>) -> Vec<(String, Vec<Row>)> {
    let mut groups: Vec<(String, Vec<Row>)> = Vec::new();
    for (teacher, row) in rows {
        let heading = format!("teacher {teacher}");
        match groups.iter_mut().find(|(name, _)| *name == heading) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((heading, vec![row])),
        }
    }
    groups
}
