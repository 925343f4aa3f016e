//! The page's section of generated images: snapshots during training, the labels they show, diversity and
//! entropy.

use super::bars::labels_shown;
use super::chart::{Frame, MOST_POINTS, Markers, Series, framed_chart};
use super::config_facts::ConfigFacts;
use super::grid::places;
use super::html::{data_of, escape, image, prose};
use super::metrics::thin;
use super::run_folder::RunFolder;
use crate::summary::{Captions, LabelStatistics};
use crate::text;

pub(super) fn generated(run: &RunFolder) -> String {
    let s = &run.summary;
    let has_pictures = !run.snapshots.is_empty() || run.grid_png.is_some();
    let curves = collapse_charts(run);
    if !has_pictures && curves.is_empty() {
        let why = match run.config.images.as_deref() {
            Some("noise") => "none: the student learned from random noise in place of images",
            Some(real) if real.starts_with("real:") => {
                "none: the student learned from real images without labels"
            }
            _ => "none yet",
        };
        return format!("<h2>Generated images</h2><p class=\"soft\">{why}.</p>\n");
    }
    let mut out = String::from("<h2>Generated images</h2>");
    if !run.snapshots.is_empty() {
        out += "<p>Images of the generator from the same noise and the same requested labels, at several steps of stage one.</p>\n";
        out += "<div class=\"charts large\">";
        let steps = run.config.stage("generator").map(|p| p.steps).filter(|steps| *steps > 0);
        for (done, png) in &run.snapshots {
            let share =
                steps.map_or(String::new(), |n| format!(" ({:.0} %)", 100.0 * *done as f64 / n as f64));
            let title = format!("after {done} steps{share}");
            out += &format!("<figure><figcaption>{title}</figcaption>{}</figure>", image(&title, png));
        }
        out += "</div>\n";
    }
    if let Some(png) = &run.grid_png {
        out += &run.captions.as_ref().and_then(|c| captioned(png, c)).unwrap_or_else(|| grid(png));
    }
    out += &labels_shown(run);
    if !curves.is_empty() {
        out += "<h3>Has the generator collapsed?</h3>";
        if let Some(images) = &s.label_statistics {
            out += &format!("<p>{}</p>\n", prose(&collapse_in_words(images, &run.config)));
        }
        out += &format!("<div class=\"charts large\">{curves}</div>\n");
    }
    out
}

/// The measures of the alarm, each with its threshold.
fn collapse_in_words(images: &LabelStatistics, config: &ConfigFacts) -> String {
    let alarm = |least: Option<f64>| match least {
        None => String::new(),
        Some(0.0) => " (alarm off)".into(),
        Some(l) => format!(" (alarm below {l})"),
    };
    let mut text = format!("On {} new images, without a random shift:", images.images);
    if let Some(diversity) = images.diversity {
        text += &format!(
            " the diversity of their features is {diversity:.3}{}, where 0 means that all images are alike and 2 that any \
             two are as different as possible;",
            alarm(config.least_diversity)
        );
    }
    if let Some(information) = images.information {
        text += &format!(
            " the labels that the teachers predict tell {information:.3} bits about the image{}, where 0 means that the \
             predictions are the same for all images and 1 that every label is certainly there in half of them;",
            alarm(config.least_information)
        );
    }
    let (found, of) = images.labels_found();
    text += &format!(" {found} of {of} labels are found{}.", alarm(config.least_found));
    text
}

/// The grid as one picture.
fn grid(png: &[u8]) -> String {
    let grid = image("grid of generated images", png);
    format!(
        "<figure class=\"grid\"><figcaption>images of the trained generator</figcaption>{grid}</figure>\n"
    )
}

/// Each image of the grid with its caption; `None` if the captions are not the grid's. The PNG is in the page
/// once, and each image shows its part of it.
fn captioned(png: &[u8], captions: &Captions) -> Option<String> {
    let ([width, height], places) = places(png, captions.images.len())?;
    let asks = captions.images.iter().any(|c| c.asked.is_some());
    let mut out = String::from("<h3>Images of the trained generator</h3><p>");
    if asks {
        out += "Asked: the labels that were requested of the image. ";
    }
    out += &format!(
        "Seen: those that the {} in it.",
        match captions.predicted_by.as_str() {
            "student" => "student predicts",
            _ => "teachers predict",
        }
    );
    out += &format!(
        "</p><svg class=\"source\" aria-hidden=\"true\"><defs><image id=\"samples\" width=\"{width}\" height=\"{height}\" \
         href=\"{}\"/></defs></svg><ul class=\"samples\">",
        data_of(png)
    );
    for (caption, [x, y, w, h]) in captions.images.iter().zip(places) {
        let list = |labels: &[String]| match labels {
            [] => "nothing".to_owned(),
            labels => labels.iter().map(|l| text::label(l)).collect::<Vec<_>>().join(", "),
        };
        let asked = caption.asked.as_ref().map(|asked| escape(&format!("asked: {}", list(asked))));
        let seen = escape(&format!("seen: {}", list(&caption.predicted)));
        let whole = asked.iter().map(|asked| format!("{asked}; ")).chain([seen.clone()]).collect::<String>();
        out += &format!(
            "<li><svg viewBox=\"{x} {y} {w} {h}\" role=\"img\" aria-label=\"image {}, {whole}\"><use \
             href=\"#samples\"/></svg>",
            caption.image
        );
        for line in asked.iter().chain([&seen]) {
            out += &format!("<span>{line}</span>");
        }
        out += "</li>";
    }
    Some(out + "</ul>\n")
}

/// Charts of diversity and label entropy by step. The images are shifted at random here, which adds to the diversity, so
/// the thresholds of the alarm do not apply.
fn collapse_charts(run: &RunFolder) -> String {
    let Some(stage) = run.stages.iter().find(|s| s.name == "generator") else { return String::new() };
    let per_bit = -1.0 / std::f64::consts::LN_2;
    [
        ("diversity", "diversity of shifted images by step", 1.0),
        ("entropy", "label entropy by step, bits", per_bit),
    ]
    .into_iter()
    .filter_map(|(metric, title, factor)| {
        let points = thin(stage.curves.get(metric)?, MOST_POINTS);
        let points: Vec<(f64, f64)> = points.into_iter().map(|(x, y)| (x, factor * y)).collect();
        let series = [Series { name: metric, class: "a", points, markers: Markers::None }];
        Some(framed_chart(title, &series, Frame { mark: None, include_y: Some(0.0), x_name: "step" }))
    })
    .collect()
}
