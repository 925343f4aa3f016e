//! `report.html`: one file that needs nothing else, neither a network nor a script.

use super::chart::{Markers, Series, line_chart};
use super::metrics::{Stage, thin};
use super::table::{Table, facts, headline, tables, teachers_map};
use crate::summary::{Score, Summary};

/// What the page shows.
pub struct Page<'a> {
    pub summary: &'a Summary,
    pub stages: &'a [Stage],
    /// Generated images.
    pub grid_png: Option<&'a [u8]>,
    /// The resolved config.
    pub config: &'a str,
}

/// More points than a chart has pixels would only make the file large.
const POINTS: usize = 360;

pub(super) const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #667080; --line: #dfe3e8; --page: #fbfbfa; --card: #fff;
  --a: #2563c9; --b: #c2570c; --c: #18794e; --d: #8a5ab8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #97a1b0; --line: #2d333c; --page: #14171b; --card: #1b1f25;
    --a: #78a9ff; --b: #f59a56; --c: #5cc79a; --d: #c79bf0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .5rem; color: var(--soft); font-weight: 600; }
p { margin: .3rem 0; color: var(--soft); overflow-wrap: anywhere; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .38rem .8rem; text-align: right; white-space: nowrap; font-weight: 400; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--soft); font-size: .85rem; }
tbody tr { border-top: 1px solid var(--line); }
tr.total th, tr.total td { font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); gap: .8rem; }
figure { margin: 0; padding: .6rem .7rem .3rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figure.one { max-width: 40rem; }
figcaption { font-size: .85rem; color: var(--soft); overflow-wrap: anywhere; } figcaption b { color: var(--ink); }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 10px; } text.y { text-anchor: end; } text.x { text-anchor: middle; }
.rule { stroke: var(--line); } .line { fill: none; stroke-width: 1.6; stroke-linecap: round; stroke-linejoin: round; }
.line.a { stroke: var(--a); } .line.b { stroke: var(--b); } .line.c { stroke: var(--c); } .line.d { stroke: var(--d); }
.line.c { stroke-dasharray: 5 4; }
circle.a { fill: var(--a); } circle.b { fill: var(--b); } circle.c { fill: var(--c); } circle.d { fill: var(--d); }
.key { margin-left: .7em; white-space: nowrap; } .key::before { content: ''; display: inline-block; width: .8em;
  height: .8em; border-radius: 3px; margin-right: .35em; vertical-align: -.05em; background: currentColor; }
.key.a { color: var(--a); } .key.b { color: var(--b); } .key.c { color: var(--c); } .key.d { color: var(--d); }
img { max-width: 100%; height: auto; image-rendering: pixelated; border-radius: 4px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
pre { margin: 0; padding: .8rem 1rem; font: 13px/1.5 ui-monospace, monospace; }
details summary { cursor: pointer; margin: 2.2rem 0 .6rem; font-weight: 600; font-size: 1.1rem; }
";

/// The whole page.
pub fn html(page: &Page) -> String {
    let s = page.summary;
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><style>{STYLE}</style></head>\n\
         <body><header><h1>{0}</h1><p>{1}</p></header>\n",
        escape(&s.name),
        escape(&headline(s))
    );
    for table in tables(s) {
        out += &html_table(&table);
    }
    out += &block_chart(s);
    out += "<h2>facts</h2><dl>";
    for (name, facts) in facts(s) {
        out += &format!("<dt>{name}</dt><dd>{}</dd>", escape(&facts.join(", ")));
    }
    out += "</dl>\n";
    if let Some(png) = page.grid_png {
        out += &format!(
            "<h2>generated images</h2><img alt=\"grid of generated images\" src=\"data:image/png;base64,{}\">\n",
            base64(png)
        );
    }
    out += &curves(page.stages);
    if !page.config.is_empty() {
        out += &format!(
            "<details><summary>config</summary><div class=\"wide\"><pre>{}</pre></div></details>\n",
            escape(page.config)
        );
    }
    out + "</body></html>\n"
}

pub(super) fn html_table(table: &Table) -> String {
    let row = |cells: &[String]| {
        let figures: String = cells.iter().skip(1).map(|c| format!("<td>{}</td>", escape(c))).collect();
        format!("<th scope=\"row\">{}</th>{figures}", escape(&cells[0]))
    };
    let head: String = table.header.iter().map(|h| format!("<th scope=\"col\">{}</th>", escape(h))).collect();
    let first_total = table.rows.len() - table.totals;
    let body: String = table
        .rows
        .iter()
        .enumerate()
        .map(|(i, r)| {
            format!("<tr{}>{}</tr>", if i >= first_total { " class=\"total\"" } else { "" }, row(r))
        })
        .collect();
    format!(
        "<h2>{}</h2><div class=\"wide\"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n",
        escape(&table.title)
    )
}

/// mAP by block: student, KA and noise against the teachers' own.
fn block_chart(s: &Summary) -> String {
    let line = |by_block: &[Score]| {
        by_block.iter().enumerate().map(|(b, x)| ((b + 1) as f64, x.map)).collect::<Vec<_>>()
    };
    let mut series: Vec<Series> =
        [("student", "a", &s.student), ("KA", "d", &s.ka), ("noise", "b", &s.noise)]
            .into_iter()
            .filter_map(|(name, class, x)| {
                let points = line(&x.as_ref()?.by_block);
                (!points.is_empty()).then_some(Series { name, class, points, markers: Markers::Dots })
            })
            .collect();
    let blocks = series.iter().map(|s| s.points.len()).max().unwrap_or(0);
    if blocks < 2 {
        return String::new();
    }
    if let Some(map) = teachers_map(s) {
        let points = vec![(1.0, map), (blocks as f64, map)];
        series.push(Series { name: "teachers", class: "c", points, markers: Markers::None });
    }
    let chart = line_chart("mAP, % by branch block", &series);
    format!("<h2>where to branch</h2>{}\n", chart.replacen("<figure>", "<figure class=\"one\">", 1))
}

fn curves(stages: &[Stage]) -> String {
    if stages.is_empty() {
        return String::new();
    }
    let mut out = String::from("<h2>losses by step</h2>");
    for stage in stages {
        out += &format!("<h3>{}</h3><div class=\"charts\">", escape(&stage.name));
        for (metric, points) in &stage.curves {
            let points = thin(points, POINTS);
            let one = Series { name: metric, class: "a", points, markers: Markers::None };
            out += &line_chart(metric, &[one]);
        }
        out += "</div>\n";
    }
    out
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
    use std::collections::BTreeMap;

    use super::super::table::example;
    use super::*;

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
        vec![
            Stage {
                name: "generator".into(),
                curves: BTreeMap::from([("total".into(), curve(3.0)), ("<i>oh</i>".into(), curve(0.7))]),
            },
            Stage {
                name: "dual 1".into(),
                curves: BTreeMap::from([("a & b".into(), vec![(0.0, f64::NAN)])]),
            },
        ]
    }

    fn example_page(summary: &Summary) -> String {
        let images: Vec<f32> = (0..25 * 32 * 32 * 3).map(|i| (i as f32 * 0.0137).sin()).collect();
        let png = super::super::grid_png(&images, 25, 32, 32, 3).unwrap();
        let config = "name = \"</pre><script>alert(1)</script>\"\n[student]\nlabels = \"all\"\n";
        html(&Page { summary, stages: &example_stages(), grid_png: Some(&png), config })
    }

    #[test]
    fn is_balanced_escaped_and_alone() {
        let mut summary = example(2);
        summary.name = "\"quoted\" & <u>".into();
        let page = example_page(&summary);
        check_balance(&page);
        assert!(page.contains("&lt;b&gt;bus&lt;/b&gt;") && !page.contains("<b>bus"));
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
        assert!(page.contains("&lt;i&gt;oh") && page.contains("nothing finite"));
        assert!(!page.contains("http") && !page.contains("<link") && !page.contains("url("));
        assert!(page.contains("71.7") && page.contains("where to branch"));
    }

    #[test]
    fn an_empty_run_gives_a_page() {
        let page = html(&Page { summary: &Summary::default(), stages: &[], grid_png: None, config: "" });
        check_balance(&page);
        assert!(!page.contains("<img") && !page.contains("<svg"));
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

    /// For looking at: `DFKA_REPORT=page.html cargo test --lib report`.
    #[test]
    fn writes_an_example_when_asked() {
        if let Ok(path) = std::env::var("DFKA_REPORT") {
            let mut summary = example(2);
            for student in [&mut summary.ka].into_iter().flatten() {
                student.by_block.iter_mut().zip([74.0, 73.5, 73.0, 73.4]).for_each(|(b, v)| b.map = v);
            }
            std::fs::write(path, example_page(&summary)).unwrap();
        }
    }
}
