//! The contrast of the page's colours by WCAG 2.1, level AA: 4.5 to 1 for text, 3 to 1 for large text and for
//! graphics (criteria 1.4.3 and 1.4.11), in the light and in the dark scheme.
//!
//! The pairs are read from the style sheet, so that a new colour is measured without a change here: every
//! colour of text and of graphics against every colour that something can stand on.

use std::collections::BTreeMap;

const STYLE: &str = include_str!("../../src/report/style.css");

/// Colours that separate or frame, and carry no information: rules between rows, frames, grid lines of a chart.
const DECORATION: [&str; 2] = ["line", "warn-line"];

type Colour = [f64; 3];

/// `#rrggbb` or `#rgb` as sRGB from 0 to 1.
fn colour(text: &str) -> Colour {
    let digits = text.strip_prefix('#').unwrap_or_else(|| panic!("{text}: expected #rrggbb"));
    let whole = match digits.len() {
        3 => digits.chars().flat_map(|c| [c, c]).collect(),
        _ => digits.to_string(),
    };
    assert_eq!(whole.len(), 6, "{text}");
    [0, 2, 4].map(|at| f64::from(u8::from_str_radix(&whole[at..at + 2], 16).unwrap()) / 255.0)
}

/// Relative luminance.
fn luminance(c: Colour) -> f64 {
    let linear = |v: f64| if v <= 0.04045 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) };
    0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2])
}

fn contrast(a: Colour, b: Colour) -> f64 {
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

/// The rules of a style sheet as (selector, declarations); a media query's are listed like all others.
fn rules(css: &str) -> Vec<(&str, Vec<(&str, &str)>)> {
    let mut all = Vec::new();
    for part in css.split('}') {
        let Some((selector, body)) = part.rsplit_once('{') else { continue };
        let selector = selector.rsplit('{').next().unwrap().trim();
        let declared = body.split(';').filter_map(|d| d.split_once(':'));
        all.push((selector, declared.map(|(name, value)| (name.trim(), value.trim())).collect()));
    }
    all
}

/// The variables of the light scheme, and of the dark one, which replaces some of them.
fn schemes() -> [(&'static str, BTreeMap<&'static str, &'static str>); 2] {
    let roots: Vec<BTreeMap<&str, &str>> = rules(STYLE)
        .into_iter()
        .filter(|(selector, _)| *selector == ":root")
        .map(|(_, d)| d.iter().filter_map(|(name, value)| Some((name.strip_prefix("--")?, *value))).collect())
        .collect();
    let [light, dark] = &roots[..] else { panic!("expected two schemes, found {}", roots.len()) };
    let whole_dark = light.iter().chain(dark).map(|(k, v)| (*k, *v)).collect();
    [("light", light.clone()), ("dark", whole_dark)]
}

/// What a colour is used for.
#[derive(Debug, Default)]
struct Uses {
    text: Vec<&'static str>,
    /// Each with its opacity.
    graphics: Vec<(&'static str, f64)>,
    surfaces: Vec<&'static str>,
}

fn uses() -> Uses {
    let mut uses = Uses::default();
    for (selector, declared) in rules(STYLE).into_iter().filter(|(selector, _)| *selector != ":root") {
        let opacity = declared.iter().find(|(name, _)| name.ends_with("opacity"));
        let opacity: f64 = opacity.map_or(1.0, |(_, value)| value.parse().unwrap());
        for (name, value) in &declared {
            assert!(!value.contains('#') && !value.contains("rgb"), "{selector}: {value} is no variable");
            let Some((_, rest)) = value.split_once("var(--") else { continue };
            let colour = rest.split(')').next().unwrap();
            let is_mark = selector.starts_with("i.") || selector.contains("::before");
            match *name {
                _ if DECORATION.contains(&colour) => {}
                "color" => uses.text.push(colour),
                "fill" if selector.contains("text") => uses.text.push(colour),
                "fill" | "stroke" => uses.graphics.push((colour, opacity)),
                "background" if is_mark => uses.graphics.push((colour, opacity)),
                "background" => uses.surfaces.push(colour),
                other => panic!("{selector}: {other} has the colour {colour}, which this test does not know"),
            }
        }
    }
    uses
}

/// The pairs below the least contrast, each in words.
fn faint(schemes: &[(&str, BTreeMap<&str, &str>)], uses: &Uses) -> Vec<String> {
    let mut faint = Vec::new();
    for (scheme, variables) in schemes {
        let of = |name: &str| colour(variables[name]);
        for surface in &uses.surfaces {
            let below = of(surface);
            let text = uses.text.iter().map(|name| (*name, 1.0, 4.5));
            let graphics = uses.graphics.iter().map(|(name, opacity)| (*name, *opacity, 3.0));
            for (name, opacity, least) in text.chain(graphics) {
                let above = of(name);
                let seen = [0, 1, 2].map(|i| opacity * above[i] + (1.0 - opacity) * below[i]);
                let found = contrast(seen, below);
                if found < least {
                    faint.push(format!("{scheme}: {name} on {surface} has {found:.2}, less than {least}"));
                }
            }
        }
    }
    faint.sort();
    faint.dedup();
    faint
}

#[test]
fn every_text_and_every_graphic_has_the_contrast_of_wcag_aa() {
    let uses = uses();
    for name in ["ink", "soft", "good", "warn", "bad"] {
        assert!(uses.text.contains(&name), "{name} is not found as a text's colour: {uses:?}");
    }
    for name in ["a", "b", "c", "d", "e", "f", "ref"] {
        assert!(uses.graphics.iter().any(|g| g.0 == name), "{name} is not found as a graphic's: {uses:?}");
    }
    for name in ["page", "card", "track", "warn-page"] {
        assert!(uses.surfaces.contains(&name), "{name} is not found as a background: {uses:?}");
    }
    assert_eq!(faint(&schemes(), &uses), Vec::<String>::new());
}

#[test]
fn the_measure_is_that_of_wcag_and_finds_a_faint_colour() {
    let is = |a: &str, b: &str, expected: f64| {
        let found = contrast(colour(a), colour(b));
        assert!((found - expected).abs() < 0.005, "{a} on {b}: {found}");
    };
    is("#000", "#fff", 21.0);
    is("#fff", "#ffffff", 1.0);
    // The lightest gray that passes on white, and the next one, as in the criterion's examples.
    is("#767676", "#fff", 4.54);
    is("#777", "#fff", 4.48);
    let mut schemes = schemes();
    schemes[1].1.insert("soft", "#5c6773");
    let found = faint(&schemes, &uses());
    assert!(found.iter().any(|f| f.starts_with("dark: soft on card has 2.8")), "{found:?}");
}
