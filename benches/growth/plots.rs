//! The table as two pictures, SVG: a panel for everything that varies.

use crate::memory::Memory;
use crate::row::{Step, Vary};
use crate::table::Line;
use crate::time::Times;
use dfka_engine::error::{Error, Result};
use std::fmt::Write;
use std::path::Path;

/// Pixels: a panel, and the room for its axes.
const WIDE: f64 = 250.0;
const HIGH: f64 = 210.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 34.0;

/// The panels' row above begins here, below the legend.
const LEGEND: f64 = 30.0;

/// Panels in a row.
const ACROSS: usize = 3;

/// Colours that differ in brightness too.
const BLUE: &str = "#1f5fa8";
const ORANGE: &str = "#e0731d";
const GREY: &str = "#8a8a8a";

/// How a series is drawn.
#[derive(PartialEq)]
enum Style {
    Dashes,
    Line,
    Dots,
    LineAndDots,
}

struct Series {
    name: &'static str,
    colour: &'static str,
    style: Style,
    points: Vec<(f64, f64)>,
}

/// Draws `growth-time.svg` and `growth-memory.svg` in `folder`.
pub fn write(folder: &Path, lines: &[Line]) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    let time: Vec<(Vary, Vec<Series>)> = Vary::ALL.map(|v| (v, times(lines, v))).into();
    let memory: Vec<(Vary, Vec<Series>)> = Vary::ALL.map(|v| (v, megabytes(lines, v))).into();
    let pictures = [
        ("growth-time.svg", "Time of a step, over that of the base", time),
        ("growth-memory.svg", "Memory of a run at its peak, MB", memory),
    ];
    for (name, title, panels) in pictures {
        let (file, svg) = (folder.join(name), picture(title, &panels));
        std::fs::write(&file, svg).map_err(|e| Error::io("write", &file, e))?;
    }
    Ok(())
}

/// The time of each step by value, and what it would be if it grew linearly.
fn times(lines: &[Line], vary: Vary) -> Vec<Series> {
    let of = |step: Step| -> Vec<(f64, f64)> {
        let point = |l: &Line| match l {
            Line::Time(s, v, Times { value, to_base, .. }) if (*s, *v) == (step, vary) => {
                Some((*value as f64, *to_base))
            }
            Line::Time(..) | Line::Memory(..) => None,
        };
        lines.iter().filter_map(point).collect()
    };
    let linear = |value: &usize| (*value as f64, vary.linear(*value) / vary.linear(vary.base()));
    let colours = [BLUE, ORANGE];
    let steps = Step::ALL.into_iter().zip(colours).map(|(step, colour)| Series {
        name: step.name(),
        colour,
        style: Style::LineAndDots,
        points: of(step),
    });
    let linear = vary.values().iter().map(linear).collect();
    let ideal =
        Series { name: "linear (side: in pixels)", colour: GREY, style: Style::Dashes, points: linear };
    std::iter::once(ideal).chain(steps).collect()
}

/// The forecast and what was measured.
fn megabytes(lines: &[Line], vary: Vary) -> Vec<Series> {
    let of = |part: fn(&Memory) -> f64| -> Vec<(f64, f64)> {
        let point = |l: &Line| match l {
            Line::Memory(v, m) if *v == vary => Some((m.value as f64, part(m))),
            Line::Memory(..) | Line::Time(..) => None,
        };
        lines.iter().filter_map(point).collect()
    };
    let (forecast, peak) = (of(|m| m.forecast), of(|m| m.peak));
    vec![
        Series { name: "forecast", colour: BLUE, style: Style::Line, points: forecast },
        Series { name: "measured", colour: ORANGE, style: Style::Dots, points: peak },
    ]
}

/// All panels below a title and a legend, with the same y axis. Both axes are logarithmic, so that what is proportional is
/// straight.
fn picture(title: &str, panels: &[(Vary, Vec<Series>)]) -> String {
    let (wide, high) = (WIDE * ACROSS as f64, LEGEND + HIGH * panels.len().div_ceil(ACROSS) as f64);
    // Writing to a String cannot fail, so the results here and below are ignored.
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {wide} {high}\" width=\"{wide}\" height=\"{high}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"13\" fill=\"#222222\">{title}</text>\n"
    );
    let mut x = 330.0;
    for s in panels.first().map_or(&[][..], |(_, series)| series) {
        out += &drawn(&[(x, 16.0), (x + 22.0, 16.0)], s);
        let _ = writeln!(out, "<text x=\"{}\" y=\"20\" fill=\"#222222\">{}</text>", x + 30.0, s.name);
        x += 56.0 + 6.0 * s.name.len() as f64;
    }
    let ys = range(panels.iter().flat_map(|(_, series)| series).flat_map(|s| &s.points).map(|p| p.1));
    let ys = (2f64.powf(ys.0.log2().floor()), 2f64.powf(ys.1.log2().ceil()));
    for (i, (vary, series)) in panels.iter().enumerate() {
        let at = (WIDE * (i % ACROSS) as f64, LEGEND + HIGH * (i / ACROSS) as f64);
        let _ = writeln!(out, "<g transform=\"translate({} {})\">", at.0, at.1);
        out += &panel(*vary, series, ys);
        out += "</g>\n";
    }
    out + "</svg>\n"
}

/// A panel, whose y axis has this range.
fn panel(vary: Vary, series: &[Series], ys: (f64, f64)) -> String {
    let xs = range(vary.values().iter().map(|v| *v as f64));
    let place = |v: f64, (low, high): (f64, f64)| (v / low).ln() / (high / low).ln();
    let x = |v: f64| LEFT + place(v, xs) * (WIDE - LEFT - RIGHT);
    let y = |v: f64| HIGH - BOTTOM - place(v, ys) * (HIGH - TOP - BOTTOM);
    let mut out = String::new();
    for power in ys.0.log2() as i32..=ys.1.log2() as i32 {
        let tick = 2f64.powi(power);
        let at = y(tick);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {at:.1}H{}\" stroke=\"#dddddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" \
             fill=\"#555555\">{tick}</text>",
            WIDE - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for value in vary.values() {
        let at = x(*value as f64);
        let low = HIGH - BOTTOM + 15.0;
        let _ = writeln!(
            out,
            "<text x=\"{at:.1}\" y=\"{low}\" text-anchor=\"middle\" fill=\"#555555\">{value}</text>"
        );
    }
    let middle = (LEFT + WIDE - RIGHT) / 2.0;
    let _ = writeln!(
        out,
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" fill=\"#222222\">{}</text>",
        HIGH - 4.0,
        vary.name()
    );
    for s in series {
        let points: Vec<(f64, f64)> = s.points.iter().map(|p| (x(p.0), y(p.1))).collect();
        out += &drawn(&points, s);
    }
    out
}

/// A series at these points of the picture.
fn drawn(points: &[(f64, f64)], s: &Series) -> String {
    let d: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let mut out = String::new();
    if s.style != Style::Dots {
        let dash = if s.style == Style::Dashes { " stroke-dasharray=\"5 4\"" } else { "" };
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{dash}/>",
            d.join(" "),
            s.colour
        );
    }
    if matches!(s.style, Style::Dots | Style::LineAndDots) {
        for (x, y) in points {
            let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{}\"/>", s.colour);
        }
    }
    out
}

/// The least and the largest of positive values.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0), |(low, high), v| (low.min(v), high.max(v)))
}
