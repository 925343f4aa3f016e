//! Line charts as inline SVG.

use std::fmt::Write;

use super::html::escape;

/// One line of a chart.
pub(super) struct Series<'a> {
    pub name: &'a str,
    /// CSS class, which sets the colour.
    pub class: &'a str,
    /// (x, y) with x ascending. A y that is not finite leaves a gap in the line.
    pub points: Vec<(f64, f64)>,
    pub markers: Markers,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Markers {
    None,
    Dots,
}

/// A vertical line at `x` with a label above it.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    pub x: f64,
    pub text: &'static str,
}

/// What a chart shows besides its lines.
#[derive(Clone, Copy, Default)]
pub(super) struct Frame {
    pub mark: Option<Mark>,
    /// A value that the y axis must include, such as 0.
    pub include_y: Option<f64>,
    /// What x counts. The chart's title says what y is.
    pub x_name: &'static str,
}

/// Points to draw of a long curve, one for each unit of the chart's width: more would only make the file
/// larger.
pub(super) const MOST_POINTS: usize = 360;

const W: f64 = 360.0;
const H: f64 = 214.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 38.0;

/// A chart with a caption: the last value if there is one line, a legend if there are more.
pub(super) fn framed_chart(title: &str, series: &[Series], frame: Frame) -> String {
    // Values near the limits of f64 would overflow the axis range, so they become gaps.
    let drawable = |p: &(f64, f64)| (p.0, if p.1.abs() < 1e100 { p.1 } else { f64::NAN });
    let series: Vec<Series> =
        series.iter().map(|s| Series { points: s.points.iter().map(drawable).collect(), ..*s }).collect();
    let finite = || series.iter().flat_map(|s| &s.points).filter(|p| p.1.is_finite());
    let ys = finite().map(|p| p.1).chain(frame.include_y.filter(|y| y.is_finite()));
    let mut out = String::from("<figure>");
    let (Some(xs), Some(ys)) = (extent(finite().map(|p| p.0)), extent(ys)) else {
        return format!("<figure><figcaption>{}: no finite value</figcaption></figure>", escape(title));
    };
    out += &caption(title, &series);
    let y_ticks = ticks(ys.0, ys.1, 4);
    let ys = (ys.0.min(first(&y_ticks, ys.0)), ys.1.max(last(&y_ticks, ys.1)));
    let span = |(low, high): (f64, f64)| if high > low { high - low } else { 1.0 };
    // A single x is drawn in the middle.
    let from = if xs.1 > xs.0 { xs.0 } else { xs.0 - 0.5 };
    let x = |v: f64| LEFT + (v - from) / span(xs) * (W - LEFT - RIGHT);
    let y = |v: f64| H - BOTTOM - (v - ys.0) / span(ys) * (H - TOP - BOTTOM);

    // Writing to a String cannot fail, so the results below are ignored.
    let _ = write!(out, "<svg viewBox=\"0 0 {W} {H}\" role=\"img\" aria-label=\"{}\">", escape(title));
    for tick in y_ticks {
        let (at, right) = (y(tick), W - RIGHT);
        let _ = write!(
            out,
            "<path class=\"rule\" d=\"M{LEFT} {at:.1}H{right}\"/><text x=\"{}\" y=\"{:.1}\" class=\"y\">{}</text>",
            LEFT - 6.0,
            at + 3.5,
            short(tick)
        );
    }
    for tick in ticks(xs.0, xs.1, 5).into_iter().filter(|t| t.fract() == 0.0 && (xs.0..=xs.1).contains(t)) {
        let _ =
            write!(out, "<text x=\"{:.1}\" y=\"{}\" class=\"x\">{}</text>", x(tick), H - 22.0, short(tick));
    }
    let (middle, low) = ((LEFT + W - RIGHT) / 2.0, H - 6.0);
    let _ = write!(out, "<text x=\"{middle}\" y=\"{low}\" class=\"x\">{}</text>", escape(frame.x_name));
    if let Some(mark) = frame.mark.filter(|m| (xs.0..=xs.1).contains(&m.x)) {
        let at = x(mark.x);
        let _ = write!(
            out,
            "<path class=\"stem\" d=\"M{at:.1} {TOP}V{}\"/><text x=\"{:.1}\" y=\"11\" class=\"mark\">{}</text>",
            H - BOTTOM,
            at.clamp(LEFT + 16.0, W - RIGHT - 16.0),
            mark.text
        );
    }
    for s in &series {
        let _ = write!(out, "<path class=\"line {}\" d=\"{}\"/>", s.class, path(&s.points, x, y));
        if s.markers == Markers::Dots {
            for p in s.points.iter().filter(|p| p.1.is_finite()) {
                let _ = write!(
                    out,
                    "<circle class=\"{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>{}: {}</title></circle>",
                    s.class,
                    x(p.0),
                    y(p.1),
                    escape(s.name),
                    short(p.1)
                );
            }
        }
    }
    out + "</svg></figure>"
}

fn caption(title: &str, series: &[Series]) -> String {
    let mut out = format!("<figcaption>{}", escape(title));
    if let [only] = series {
        let value = only.points.last().map_or(f64::NAN, |p| p.1);
        out += &format!(" <b>{}</b>", short(value));
    } else {
        for s in series {
            out += &format!(" <span class=\"key {}\">{}</span>", s.class, escape(s.name));
        }
    }
    out + "</figcaption>"
}

fn path(points: &[(f64, f64)], x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let mut d = String::new();
    let mut pen = 'M';
    for p in points {
        if !p.1.is_finite() {
            pen = 'M';
            continue;
        }
        let _ = write!(d, "{pen}{:.1} {:.1}", x(p.0), y(p.1));
        pen = 'L';
    }
    // A single point becomes a line of length 0, which its round cap makes visible.
    if points.len() == 1 && !d.is_empty() {
        d += "h0";
    }
    d
}

fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, v| {
        Some(range.map_or((v, v), |(low, high): (f64, f64)| (low.min(v), high.max(v))))
    })
}

/// Round numbers that cover `low..=high`, about `count` of them.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let raw = (high - low) / count as f64;
    // The range is empty, so small that a step would be 0, or infinite.
    if raw < f64::MIN_POSITIVE || !raw.is_finite() {
        return vec![low];
    }
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= raw).unwrap_or(raw);
    let (from, to) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    (from..=to).map(|i| i as f64 * step).collect()
}

fn first(ticks: &[f64], otherwise: f64) -> f64 {
    ticks.first().copied().unwrap_or(otherwise)
}

fn last(ticks: &[f64], otherwise: f64) -> f64 {
    ticks.last().copied().unwrap_or(otherwise)
}

/// `v` with about three significant digits.
pub(super) fn short(v: f64) -> String {
    if !v.is_finite() {
        return "not finite".into();
    }
    let text = match v.abs() {
        0.0 => return "0".into(),
        a if !(1e-3..1e6).contains(&a) => return format!("{v:.1e}"),
        a if a < 1.0 => format!("{v:.4}"),
        a if a < 100.0 => format!("{v:.2}"),
        _ => format!("{v:.0}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        assert_eq!(ticks(0.0, 100.0, 4), [0.0, 50.0, 100.0]);
        assert_eq!(ticks(3.0, 3.0, 4), [3.0]);
        assert_eq!(ticks(-5e-324, 0.0, 4), [-5e-324]);
        let t = ticks(-0.13, 0.71, 4);
        assert!(first(&t, 0.0) <= -0.13 && last(&t, 0.0) >= 0.71 && t.len() < 9);
    }

    #[test]
    fn numbers_are_short() {
        let pairs = [
            (0.0, "0"),
            (0.25, "0.25"),
            (12.5, "12.5"),
            (1500.0, "1500"),
            (2e-7, "2.0e-7"),
            (f64::NAN, "not finite"),
        ];
        for (v, expected) in pairs {
            assert_eq!(short(v), expected);
        }
    }

    #[test]
    fn a_value_that_is_not_finite_breaks_the_line() {
        assert_eq!(
            path(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0), (3.0, 4.0)], |x| x, |y| y),
            "M0.0 1.0M2.0 3.0L3.0 4.0"
        );
    }

    #[test]
    fn a_frame_marks_an_x_and_includes_a_y() {
        let series =
            [Series { name: "n", class: "a", points: vec![(1.0, 5.0), (3.0, 6.0)], markers: Markers::None }];
        let chart = |frame| framed_chart("t", &series, frame);
        let mark = Some(Mark { x: 2.0, text: "chosen" });
        assert!(chart(Frame { mark, ..Frame::default() }).contains(">chosen</text>"));
        assert!(
            !chart(Frame { mark: Some(Mark { x: 9.0, text: "chosen" }), ..Frame::default() })
                .contains("chosen")
        );
        assert!(
            chart(Frame { include_y: Some(0.0), x_name: "step", ..Frame::default() })
                .contains("class=\"y\">0</text>")
        );
        assert!(chart(Frame { x_name: "step", ..Frame::default() }).contains("class=\"x\">step</text>"));
        assert!(!chart(Frame::default()).contains("class=\"y\">0</text>"));
    }

    #[test]
    fn every_input_draws_a_complete_figure() {
        for points in [
            vec![],
            vec![(0.0, f64::NAN)],
            vec![(0.0, 1.0)],
            vec![(0.0, 1.0), (1.0, 1.0)],
            vec![(0.0, -1e30), (1.0, 1e30)],
            vec![(0.0, f64::MIN), (1.0, f64::MAX)],
        ] {
            let svg = framed_chart(
                "t",
                &[Series { name: "n", class: "a", points, markers: Markers::Dots }],
                Frame::default(),
            );
            assert!(
                svg.starts_with("<figure>") && svg.ends_with("</figure>") && !svg.contains("NaN"),
                "{svg}"
            );
        }
    }
}
