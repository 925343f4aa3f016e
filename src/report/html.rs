//! `report.html`: one file that needs nothing else, neither a network nor a script.

use super::bars::precision;
use super::blocks::branching;
use super::chart::{Markers, Series, line_chart};
use super::costs::{parameters, timings};
use super::gather::Gathered;
use super::images::{POINTS, generated};
use super::metrics::{Stage, thin};
use super::origin::utc;
use super::table::{Table, facts, headline, tables};
use super::verdict::{Status, is_students, sentences, tiles};

pub(super) const STYLE: &str = include_str!("style.css");

/// The whole page of a run's folder.
pub fn html(g: &Gathered) -> String {
    let s = &g.summary;
    let status = Status::of(g);
    let class = if status == Status::Finished { "badge" } else { "badge warn" };
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0} ({1})</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><style>{STYLE}</style></head>\n\
         <body><header><h1>{0}<span class=\"{class}\">{1}</span></h1><p class=\"soft\">{2}</p></header>\n<main>\n",
        escape(&s.name),
        status.word(),
        escape(&subtitle(g))
    );
    out += "<section class=\"verdict\">";
    for sentence in sentences(g) {
        out += &format!("<p>{}</p>", prose(&sentence));
    }
    out += "</section>\n";
    if !g.damaged.is_empty() {
        let all = escape(&g.damaged.join("; "));
        out += &format!("<p class=\"notice\">Left out, for these files are damaged: {all}.</p>\n");
    }
    let tiles = tiles(g);
    if !tiles.is_empty() {
        out += "<div class=\"tiles\">";
        for t in tiles {
            let [what, value, note] = [&t.what, &t.value, &t.note].map(|text| prose(text));
            out += &format!("<div class=\"tile\"><span>{what}</span><b>{value}</b><span>{note}</span></div>");
        }
        out += "</div>\n";
    }
    out += &precision(g);
    out += &all_figures(g);
    out += &branching(g);
    out += &generated(g);
    out += &curves(&g.stages);
    out += &timings(g);
    out += &parameters(g);
    out += &origin(g);
    if !g.config.is_empty() {
        out += &format!(
            "<details><summary>Resolved config</summary><div class=\"wide\"><pre>{}</pre></div></details>\n",
            escape(&g.config)
        );
    }
    out + "</main></body></html>\n"
}

/// Running text: escaped, `code` between backticks, and no line ends between a number and its unit.
pub(super) fn prose(text: &str) -> String {
    let parts: Vec<String> = unbroken(text).split('`').map(escape).collect();
    if parts.len().is_multiple_of(2) {
        return escape(&unbroken(text)); // a backtick without its pair
    }
    let one = |(i, part)| if i % 2 == 0 { part } else { format!("<code>{part}</code>") };
    parts.into_iter().enumerate().map(one).collect()
}

fn unbroken(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_digit = false;
    for word in text.split_inclusive(' ') {
        let unit = word.trim_end_matches([' ', '.', ',', ':', ';', ')']);
        if is_digit && ["%", "s", "min", "h", "M"].contains(&unit) {
            out.pop();
            out.push('\u{a0}');
        }
        out += word;
        is_digit = word.trim_end().ends_with(|c: char| c.is_ascii_digit());
    }
    out
}

fn subtitle(g: &Gathered) -> String {
    let call = g.origin.as_ref().and_then(|o| o.calls.first());
    let mut text = if g.is_finished { headline(&g.summary) } else { format!("seed {}", g.summary.seed) };
    if let Some(call) = call {
        text += &format!(", begun {}", utc(call.started));
    }
    text
}

/// The text report's own tables, for who wants every number.
fn all_figures(g: &Gathered) -> String {
    if g.summary.student.is_none() {
        return String::new();
    }
    let precisions = tables(&g.summary).into_iter().next();
    let table = precisions.map_or(String::new(), |t| html_table(&Table { title: String::new(), ..t }));
    format!(
        "<details class=\"small\"><summary>All models, {} labels</summary>{table}</details>\n",
        g.summary.labels.len()
    )
}

pub(super) fn html_table(table: &Table) -> String {
    marked_table(table, None)
}

/// The row `marked` stands out.
pub(super) fn marked_table(table: &Table, marked: Option<usize>) -> String {
    let row = |cells: &[String]| {
        let figures: String = cells.iter().skip(1).map(|c| format!("<td>{}</td>", escape(c))).collect();
        format!("<th scope=\"row\">{}</th>{figures}", escape(&cells[0]))
    };
    let head: String = table.header.iter().map(|h| format!("<th scope=\"col\">{}</th>", escape(h))).collect();
    let first_total = table.rows.len() - table.totals;
    let class = |i: usize| match i {
        i if i >= first_total => " class=\"total\"",
        i if marked == Some(i) => " class=\"chosen\"",
        _ => "",
    };
    let body: String =
        table.rows.iter().enumerate().map(|(i, r)| format!("<tr{}>{}</tr>", class(i), row(r))).collect();
    let heading =
        if table.title.is_empty() { String::new() } else { format!("<h2>{}</h2>", escape(&table.title)) };
    format!(
        "{heading}<div class=\"wide\"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )
}

fn curves(stages: &[Stage]) -> String {
    if stages.is_empty() {
        return String::new();
    }
    let line = |title: &str, points: &[(f64, f64)]| {
        let one = Series { name: title, class: "a", points: thin(points, POINTS), markers: Markers::None };
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

/// Where the result comes from, so that it can be made again.
fn origin(g: &Gathered) -> String {
    let mut rows = vec![("seed".to_owned(), g.summary.seed.to_string())];
    if !g.summary.version.is_empty() {
        rows.push(("version".into(), format!("dfka-engine {}", g.summary.version)));
    }
    for (i, call) in g.origin.iter().flat_map(|o| &o.calls).enumerate() {
        rows.push((if i == 0 { "begun".into() } else { format!("resumed ({i})") }, utc(call.started)));
        rows.push(("command".into(), call.line()));
        rows.push((
            "device".into(),
            format!("{}; {} CPU threads, {}", call.device, call.threads, call.system),
        ));
    }
    if g.is_finished {
        for (name, facts) in facts(&g.summary).into_iter().filter(|(name, _)| *name == "generated images") {
            rows.push((name.into(), facts.join(", ")));
        }
    }
    let mut out = String::from("<h2>How it was made</h2><dl>");
    for (name, value) in rows {
        let tag = if name == "command" { "code" } else { "span" };
        out += &format!("<dt>{name}</dt><dd><{tag}>{}</{tag}></dd>", escape(&value));
    }
    out += "</dl>\n";
    let weights: Vec<&super::origin::WeightsFile> = g.origin.iter().flat_map(|o| &o.weights).collect();
    if weights.is_empty() {
        return out
            + "<p class=\"soft\">The folder has no run.json: which weights were used is not recorded.</p>\n";
    }
    out += "<div class=\"wide\"><table><thead><tr><th>weights</th><th>bytes</th><th class=\"hash\">SHA-256</th><th class=\"hash\">file</th></tr></thead><tbody>";
    for w in weights {
        out += &format!(
            "<tr><th scope=\"row\">{}</th><td>{}</td><td class=\"hash\"><code>{}</code></td><td class=\"hash\"><code>{}</code></td></tr>",
            escape(&w.name),
            w.bytes,
            escape(&w.sha256),
            escape(&w.file.display().to_string())
        );
    }
    out + "</tbody></table></div>\n"
}

/// A PNG that is part of the page.
pub(super) fn image(alt: &str, png: &[u8]) -> String {
    format!("<img alt=\"{}\" src=\"data:image/png;base64,{}\">", escape(alt), base64(png))
}

/// Text as it may stand anywhere in the page, attributes included.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            other => out.push(other),
        }
    }
    out
}

/// RFC 4648, padded.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let word = part.iter().enumerate().fold(0u32, |word, (i, b)| word | u32::from(*b) << (16 - 8 * i));
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i <= part.len() { digit } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::asked::Asked;
    use super::super::origin::{Call, Origin, WeightsFile};
    use super::super::table::example;
    use super::*;
    use crate::error::Error;
    use crate::summary::Summary;

    /// Every tag that opens closes, in order.
    fn check_balance(page: &str) {
        let mut open: Vec<&str> = Vec::new();
        let body = page.strip_prefix("<!DOCTYPE html>").unwrap();
        for part in body.split('<').skip(1) {
            let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("a lone < before {part:.40}"));
            assert!(open.last() == Some(&"style") || !text.contains('>'), "a lone > in {text:.80}");
            let name = tag.split_whitespace().next().unwrap();
            if let Some(name) = name.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "in {part:.80}");
            } else if !tag.ends_with('/') && !["meta", "img"].contains(&name) {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    fn example_stages() -> Vec<Stage> {
        let curve =
            |k: f64| (0..900).map(|i| (i as f64, (-(i as f64) / 200.0).exp() * k)).collect::<Vec<_>>();
        let stage = |name: &str, curves: &[(&str, Vec<(f64, f64)>)]| Stage {
            name: name.into(),
            steps: 900,
            seconds: 9.0,
            curves: curves.iter().map(|(n, c)| (n.to_string(), c.clone())).collect(),
        };
        vec![
            stage(
                "generator",
                &[
                    ("loss", curve(3.0)),
                    ("<i>oh</i>", curve(0.7)),
                    ("diversity", curve(1.0)),
                    ("entropy", curve(-0.6)),
                ],
            ),
            stage("block1", &[("a & b", vec![(0.0, f64::NAN)]), ("dual.<A>", curve(0.5))]),
        ]
    }

    const CONFIG: &str = "name = \"</pre><script>alert(1)</script>\"\n[student]\nlabels = \"all\"\n[generator]\n\
                          steps = 900\nbatch = 4\n[dual]\nsteps = [900, 100]\nbatch = 8\nimages = \"generator\"\n\
                          [loss]\nleast_diversity = 0.3\n";

    fn example_folder(summary: Summary, is_finished: bool) -> Gathered {
        let images: Vec<f32> = (0..25 * 32 * 32 * 3).map(|i| (i as f32 * 0.0137).sin()).collect();
        let png = super::super::grid_png(&images, 25, 32, 32, 3).unwrap();
        let call = Call { command: vec!["dfka-engine".into(), "<run>".into()], ..Call::now("cpu") };
        let file =
            WeightsFile { name: "<A>".into(), file: "/a&b.npz".into(), bytes: 7, sha256: "ab12".into() };
        let failure = (!is_finished).then(|| (&Error::Diverged("a loss is <NaN>".into())).into());
        Gathered {
            summary,
            is_finished,
            asked: Asked::read(CONFIG),
            stages: example_stages(),
            snapshots: vec![(0, png.clone()), (900, png.clone())],
            grid_png: Some(png),
            origin: Some(Origin { calls: vec![call], weights: vec![file], failure }),
            config: CONFIG.into(),
            damaged: vec!["samples-<5>.png: not a PNG".into()],
        }
    }

    #[test]
    fn is_balanced_escaped_and_alone() {
        let mut summary = example(2);
        summary.name = "\"quoted\" & <u>".into();
        let page = html(&example_folder(summary, true)).replace('\u{a0}', " ");
        check_balance(&page);
        assert!(page.contains("&lt;b&gt;bus&lt;/b&gt;") && !page.contains("<b>bus"));
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
        assert!(page.contains("&lt;i&gt;oh") && page.contains("nothing finite"));
        assert!(!page.contains("http") && !page.contains("<link") && !page.contains("url("));
        for expected in [
            "mean average precision of 71.7 %. Its 2 teachers reach 74.8 %",
            "the student keeps 95.9 % of that",
            "59.80 M parameters, 67.4 % of the teachers&#39; 88.70 M",
            "used no real image",
            "reaches 5.0 % on random noise",
            "after block 3, where their dual losses add up to the least",
            "block 1 would have been better: 73.2 % against 72.2 %",
            ">chosen</text>",
            "after 900 steps (100 %)",
            "It shows these less than every second time: &lt;b&gt;bus&lt;/b&gt;.",
            "(alarm below 0.3)",
            "samples-&lt;5&gt;.png",
            "dfka-engine &#39;&lt;run&gt;&#39;",
            "ab12",
        ] {
            assert!(page.contains(expected), "missing {expected:?} in\n{page}");
        }
    }

    #[test]
    fn an_unfinished_run_says_how_far_it_came_and_why_it_ended() {
        let page = html(&example_folder(Summary { name: "half".into(), ..Summary::default() }, false));
        check_balance(&page);
        for expected in [
            "failed</span>",
            "This run failed: a loss is &lt;NaN&gt;. It reached step 900 of 900 of block1.",
            "1800 of 1900 training steps are done. <code>--resume</code> alone would come to the same end",
            "No block is chosen yet",
            "dual loss &lt;A&gt;",
            "Not measured: the config names no labelled images",
        ] {
            assert!(page.contains(expected), "missing {expected:?} in\n{page}");
        }
        let mut stopped = example_folder(Summary::default(), false);
        let stop = Error::Stopped { exit_code: 143, message: "stopped by SIGTERM".into() };
        stopped.origin.as_mut().unwrap().failure = Some((&stop).into());
        let page = html(&stopped);
        assert!(
            page.contains("stopped</span>") && page.contains("This run was stopped: stopped by SIGTERM.")
        );
        assert!(page.contains("<code>--resume</code> goes on from the last checkpoint"));
        let mut going = example_folder(Summary::default(), false);
        going.origin = None;
        going.stages.clear();
        let page = html(&going);
        check_balance(&page);
        assert!(page.contains("unfinished</span>") && page.contains("tells of no step of training"));
    }

    #[test]
    fn without_evaluation_it_says_what_is_missing() {
        let mut summary = example(2);
        (summary.student, summary.noise, summary.ka) = (None, None, None);
        summary.teachers.clear();
        let page = html(&example_folder(summary, true));
        check_balance(&page);
        assert!(page.contains("The student is trained and stored; it recognises 2 labels of 2 teachers."));
        assert!(page.contains("was not measured: the config names no labelled images"));
        assert!(page.contains("dual loss by block") && !page.contains("mAP by block"));
    }

    #[test]
    fn an_empty_run_gives_a_page() {
        let g = Gathered {
            summary: Summary::default(),
            is_finished: true,
            asked: Asked::default(),
            stages: Vec::new(),
            snapshots: Vec::new(),
            grid_png: None,
            origin: None,
            config: String::new(),
            damaged: Vec::new(),
        };
        let page = html(&g);
        check_balance(&page);
        assert!(!page.contains("<img") && !page.contains("<svg"));
    }

    #[test]
    fn backticks_make_code_in_pairs() {
        assert_eq!(prose("a `<b>` c"), "a <code>&lt;b&gt;</code> c");
        assert_eq!(prose("one ` <only>"), "one ` &lt;only&gt;");
    }

    #[test]
    fn numbers_keep_their_units() {
        assert_eq!(
            unbroken("in 3 min 45 s, 95.4 % of 20 labels"),
            "in 3\u{a0}min 45\u{a0}s, 95.4\u{a0}% of 20 labels"
        );
    }

    #[test]
    fn base64_matches_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
