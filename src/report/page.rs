//! `report.html`, assembled from its sections: one file that needs nothing else, neither a network nor a
//! script.

use super::bars::precision;
use super::blocks::branching;
use super::costs::{parameters, timings};
use super::html::{STYLE, escape, html_table, prose};
use super::images::generated;
use super::losses::curves;
use super::overview::{Status, sentences, tiles};
use super::run_folder::RunFolder;
use super::table::{Table, facts, headline, tables};
use super::time::utc;
use crate::summary::Word;

/// The whole page of a run's folder.
pub fn page_html(run: &RunFolder) -> String {
    let s = &run.summary;
    let status = Status::of(run);
    let (class, word) = match (status, s.verdict().word) {
        (Status::Finished, Word::Good) => ("badge", Word::Good.text()),
        (Status::Finished, Word::Failed) => ("badge bad", Word::Failed.text()),
        (Status::Failed, _) => ("badge bad", status.word()),
        (Status::Finished, word) => ("badge warn", word.text()),
        (Status::Stopped | Status::Unfinished, _) => ("badge warn", status.word()),
    };
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0} ({1})</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><style>{STYLE}</style></head>\n\
         <body><header><h1>{0}<span class=\"{class}\">{1}</span></h1><p class=\"soft\">{2}</p></header>\n<main>\n",
        escape(&s.name),
        word,
        escape(&subtitle(run))
    );
    out += "<section class=\"overview\">";
    for sentence in sentences(run) {
        out += &format!("<p>{}</p>", prose(&sentence));
    }
    out += "</section>\n";
    if !run.damaged.is_empty() {
        let all = escape(&run.damaged.join("; "));
        out += &format!("<p class=\"notice\">Left out because of damaged files: {all}.</p>\n");
    }
    let tiles = tiles(run);
    if !tiles.is_empty() {
        out += "<div class=\"tiles\">";
        for t in tiles {
            let [caption, value, note] = [&t.caption, &t.value, &t.note].map(|text| prose(text));
            out +=
                &format!("<div class=\"tile\"><span>{caption}</span><b>{value}</b><span>{note}</span></div>");
        }
        out += "</div>\n";
    }
    out += &precision(run);
    out += &all_figures(run);
    out += &branching(run);
    out += &generated(run);
    out += &curves(&run.stages);
    out += &timings(run);
    out += &parameters(run);
    out += &origin(run);
    if !run.config_text.is_empty() {
        out += &format!(
            "<details><summary>Resolved config</summary><div class=\"wide\"><pre>{}</pre></div></details>\n",
            escape(&run.config_text)
        );
    }
    out + "</main></body></html>\n"
}

fn subtitle(run: &RunFolder) -> String {
    let call = run.origin.as_ref().and_then(|o| o.calls.first());
    let mut text =
        if run.is_finished { headline(&run.summary) } else { format!("seed {}", run.summary.seed) };
    if let Some(call) = call {
        text += &format!(", started {}", utc(call.started));
    }
    text
}

/// Average precision of every model on every label, in a closed `details` element.
fn all_figures(run: &RunFolder) -> String {
    if run.summary.student.is_none() {
        return String::new();
    }
    let precisions = tables(&run.summary).into_iter().next();
    let table = precisions.map_or(String::new(), |t| html_table(&Table { title: String::new(), ..t }));
    format!(
        "<details class=\"small\"><summary>All models, {} labels</summary>{table}</details>\n",
        run.summary.labels.len()
    )
}

/// The section with everything needed to make the result again: seed, version, commands, devices, hashes of
/// the weights.
fn origin(run: &RunFolder) -> String {
    let mut rows = vec![("seed".to_owned(), run.summary.seed.to_string())];
    if !run.summary.version.is_empty() {
        rows.push(("version".into(), format!("dfka-engine {}", run.summary.version)));
    }
    for (i, call) in run.origin.iter().flat_map(|o| &o.calls).enumerate() {
        rows.push((if i == 0 { "started".into() } else { format!("resumed ({i})") }, utc(call.started)));
        rows.push(("command".into(), call.line()));
        rows.push((
            "device".into(),
            format!("{}; {} CPU threads, {}", call.device, call.threads, call.system),
        ));
    }
    if run.is_finished {
        for (name, facts) in facts(&run.summary).into_iter().filter(|(name, _)| *name == "generated images") {
            rows.push((name.into(), facts.join(", ")));
        }
    }
    let mut out = String::from("<h2>How it was made</h2><dl>");
    for (name, value) in rows {
        let tag = if name == "command" { "code" } else { "span" };
        out += &format!("<dt>{name}</dt><dd><{tag}>{}</{tag}></dd>", escape(&value));
    }
    out += "</dl>\n";
    let weights: Vec<&super::origin::WeightsFile> = run.origin.iter().flat_map(|o| &o.weights).collect();
    if weights.is_empty() {
        return out
            + "<p class=\"soft\">The folder has no run.json: the weights that were used are not recorded.</p>\n";
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

#[cfg(test)]
mod tests {
    use super::super::config_facts::ConfigFacts;
    use super::super::metrics::Stage;
    use super::super::origin::{Call, Origin, WeightsFile};
    use super::super::table::example;
    use super::*;
    use crate::error::Error;
    use crate::summary::{Caption, Captions, Summary};

    /// Checks that every opened tag is closed, in order.
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

    fn example_folder(summary: Summary, is_finished: bool) -> RunFolder {
        let images: Vec<f32> = (0..25 * 32 * 32 * 3).map(|i| (i as f32 * 0.0137).sin()).collect();
        let png = crate::report::grid_png(&images, 25, 32, 32, 3).unwrap();
        let call = Call { command: vec!["dfka-engine".into(), "<run>".into()], ..Call::now("cpu") };
        let file =
            WeightsFile { name: "<A>".into(), file: "/a&b.npz".into(), bytes: 7, sha256: "ab12".into() };
        let failure = (!is_finished).then(|| (&Error::Diverged("a loss is <NaN>".into())).into());
        RunFolder {
            summary,
            is_finished,
            config: ConfigFacts::read(CONFIG),
            stages: example_stages(),
            snapshots: vec![(0, png.clone()), (900, png.clone())],
            grid_png: Some(png),
            captions: None,
            origin: Some(Origin { calls: vec![call], weights: vec![file], failure }),
            config_text: CONFIG.into(),
            damaged: vec!["samples-<5>.png: not a PNG".into()],
        }
    }

    #[test]
    fn the_page_is_balanced_escaped_and_self_contained() {
        let mut summary = example(2);
        summary.name = "\"quoted\" & <u>".into();
        let page = page_html(&example_folder(summary, true)).replace('\u{a0}', " ");
        check_balance(&page);
        assert!(page.contains("&lt;b&gt;bus&lt;/b&gt;") && !page.contains("<b>bus"));
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
        assert!(page.contains("&lt;i&gt;oh") && page.contains("no finite value"));
        assert!(!page.contains("http") && !page.contains("<link") && !page.contains("url("));
        for expected in [
            "mean average precision of 71.7 %. Its 2 teachers reach 74.8 %",
            "the student keeps 95.9 % of that",
            "59.80 M parameters, 67.4 % of the teachers&#39; 88.70 M",
            "used no real image",
            "reaches 5.0 % on random noise",
            "after block 3. That student agrees with its teachers on generated images with a kappa of 0.75",
            "block 1 would have been better: 73.2 % against 71.7 %",
            ">chosen</text>",
            "after 900 steps (100 %)",
            "These appear in fewer than half of the images requested with them: &lt;b&gt;bus&lt;/b&gt;.",
            "(alarm below 0.3)",
            "samples-&lt;5&gt;.png",
            "dfka-engine &#39;&lt;run&gt;&#39;",
            "ab12",
        ] {
            assert!(page.contains(expected), "missing {expected:?} in\n{page}");
        }
    }

    #[test]
    fn the_generated_images_have_captions() {
        let of = |image: usize, asked: Option<&[&str]>, predicted: &[&str]| {
            let names = |all: &[&str]| all.iter().map(|l| l.to_string()).collect::<Vec<_>>();
            Caption { image, asked: asked.map(names), predicted: names(predicted) }
        };
        let mut images: Vec<Caption> = (3..26).map(|i| of(i, Some(&["car"]), &[])).collect();
        images.insert(0, of(1, Some(&["<b>", "7"]), &["7"]));
        images.insert(1, of(2, None, &["car", "bus"]));
        let mut run = example_folder(example(2), true);
        run.captions = Some(Captions { predicted_by: "teachers".into(), images });
        let page = page_html(&run);
        check_balance(&page);
        for expected in [
            "aria-label=\"image 1, asked: &lt;b&gt;, &quot;7&quot;; seen: &quot;7&quot;\"",
            "<span>asked: &lt;b&gt;, &quot;7&quot;</span><span>seen: &quot;7&quot;</span>",
            "<span>seen: car, bus</span>",
            "<span>asked: car</span><span>seen: nothing</span>",
            // The third image of the first row, of five: 64 pixels wide, with a gap of one.
            "<svg viewBox=\"130 0 64 64\"",
            "<svg viewBox=\"260 260 64 64\"",
        ] {
            assert!(page.contains(expected), "missing {expected:?} in\n{page}");
        }
        assert_eq!(page.matches("<use href=\"#samples\"/>").count(), 25);
        assert!(!page.contains("grid of generated images"), "the picture is in the page twice");
        // More captions than the grid has images: the grid is shown without them.
        run.captions = Some(Captions { images: vec![Caption::default(); 26], ..Captions::default() });
        assert!(page_html(&run).contains("grid of generated images"));
    }

    #[test]
    fn the_page_of_an_unfinished_run_says_how_far_it_came_and_why_it_ended() {
        let page = page_html(&example_folder(Summary { name: "half".into(), ..Summary::default() }, false));
        check_balance(&page);
        for expected in [
            "failed</span>",
            "This run failed: a loss is &lt;NaN&gt;. It reached step 900 of 900 of block1.",
            "1800 of 1900 training steps are done. <code>--resume</code> alone would fail in the same way",
            "No block is chosen yet",
            "dual loss &lt;A&gt;",
            "Not measured: the config names no labelled images",
        ] {
            assert!(page.contains(expected), "missing {expected:?} in\n{page}");
        }
        let mut stopped = example_folder(Summary::default(), false);
        let stop = Error::Stopped { exit_code: 143, message: "stopped by SIGTERM".into() };
        stopped.origin.as_mut().unwrap().failure = Some((&stop).into());
        let page = page_html(&stopped);
        assert!(
            page.contains("stopped</span>") && page.contains("This run was stopped: stopped by SIGTERM.")
        );
        assert!(page.contains("<code>--resume</code> continues from the last checkpoint"));
        let mut going = example_folder(Summary::default(), false);
        going.origin = None;
        going.stages.clear();
        let page = page_html(&going);
        check_balance(&page);
        assert!(page.contains("unfinished</span>") && page.contains("shows no step of training"));
    }

    #[test]
    fn without_evaluation_data_the_page_says_what_is_missing() {
        let mut summary = example(2);
        (summary.student, summary.noise, summary.ka) = (None, None, None);
        summary.teachers.clear();
        let page = page_html(&example_folder(summary, true));
        check_balance(&page);
        assert!(page.contains("The student is trained and saved; it recognises 2 labels of 2 teachers."));
        assert!(page.contains("was not measured: the config names no labelled images"));
        assert!(page.contains("dual loss by block") && !page.contains("mAP by block"));
    }

    #[test]
    fn tasks_that_leave_the_trunk_after_different_blocks_are_named() {
        let mut summary = example(2);
        summary.branch[1].block = 4;
        let mut run = example_folder(summary, true);
        run.config.is_frozen = true;
        let page = page_html(&run);
        check_balance(&page);
        for expected in [
            "after different blocks: teacher-0 after block 3, teacher-1 after block 4. That student",
            "where its own dual loss is lowest (the paper&#39;s rule). No label is used",
            "<code>student-block3.npz</code> is the one that branches after block 3",
        ] {
            assert!(page.contains(expected), "missing {expected:?} in\n{page}");
        }
        assert!(!page.contains(">chosen</text>"), "no block is that of all tasks");
        run.config.branch = Some(3);
        assert!(page_html(&run).contains("The config names that block."));
    }

    #[test]
    fn an_empty_run_gives_a_page() {
        let run = RunFolder {
            summary: Summary::default(),
            is_finished: true,
            config: ConfigFacts::default(),
            stages: Vec::new(),
            snapshots: Vec::new(),
            grid_png: None,
            captions: None,
            origin: None,
            config_text: String::new(),
            damaged: Vec::new(),
        };
        let page = page_html(&run);
        check_balance(&page);
        assert!(!page.contains("<img") && !page.contains("<svg"));
    }
}
