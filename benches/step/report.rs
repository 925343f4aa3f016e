//! The performance targets (bars), and the measured figures from the files of a step.
//!
//! A folder has `step.json` (of `step --json`) and `torch.json` (of benches/torch/step.py) of one call of
//! `benches/gpu.sh run`, `step2.json` and `torch2.json` of the next, and `parity-*.json`. Ratios are taken
//! within a call only, where both ran on the same card within minutes.

use dfka_engine::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

pub fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::Run(format!("{}: {e}", path.display())))?;
    serde_json::from_str(&text).map_err(|e| Error::Run(format!("{}: {e}", path.display())))
}

/// Milliseconds of PyTorch's variants of a row.
fn variants(torch: &Value, row: &str) -> Vec<(String, f64)> {
    let of_row = rows(torch).filter(|r| r["row"] == row);
    of_row.filter_map(|r| Some((r["variant"].as_str()?.to_string(), r["ms"].as_f64()?))).collect()
}

fn rows(file: &Value) -> impl Iterator<Item = &Value> {
    file["rows"].as_array().into_iter().flatten()
}

/// PyTorch's time over ours, variant by variant.
pub fn ratios(ours: &Value, torch: &Value) {
    println!("\nPyTorch {} over ours", torch["torch"].as_str().unwrap_or("?"));
    for r in ours.as_array().into_iter().flatten() {
        let (Some(row), Some(ms)) = (r["row"].as_str(), r["ms"].as_f64()) else { continue };
        let each: Vec<String> =
            variants(torch, row).iter().map(|(name, theirs)| format!("{name} {:.2}", theirs / ms)).collect();
        println!("{row:20} {}", if each.is_empty() { "not measured".into() } else { each.join(", ") });
    }
}

/// The fastest of the variants of PyTorch whose first word is one of `kinds`, as a ratio to ours, over all
/// calls.
#[derive(Default)]
struct Fastest {
    ratio: Option<f64>,
    name: String,
}

impl Fastest {
    fn take(&mut self, name: &str, ratio: f64) {
        if self.ratio.is_none_or(|r| ratio < r) {
            (self.ratio, self.name) = (Some(ratio), name.into());
        }
    }
}

const EAGER: &[&str] = &["eager", "graphed"];
const COMPILED: &[&str] = &["compile", "units"];

/// Prints the targets for a step at the paper's scale, and the measured figures.
pub fn report(folder: &Path) -> Result<()> {
    let suffixes = std::iter::once(String::new()).chain((2..10).map(|n| n.to_string()));
    let calls: Vec<(Value, Option<Value>)> = suffixes
        .filter_map(|n| {
            let ours = read(&folder.join(format!("step{n}.json"))).ok()?;
            Some((ours, read(&folder.join(format!("torch{n}.json"))).ok()))
        })
        .collect();
    if calls.is_empty() {
        return Err(Error::Run(format!("{}: no step.json", folder.display())));
    }
    for (ours, torch) in &calls {
        if let Some(torch) = torch {
            ratios(&ours["rows"], torch);
        }
    }
    let mut table = Table::default();
    let generators = ["generator, 2-stack", "generator, 4-stack", "generator, 1-stack"];
    let blocks = ["dual block 1", "dual block 2", "dual block 3", "dual block 4"];
    for row in generators.iter().chain(&blocks) {
        for (what, kinds, bar) in [("PyTorch eager", EAGER, 1.8), ("torch.compile", COMPILED, 1.2)] {
            let mut best = Fastest::default();
            for (ours, torch) in &calls {
                let ms = rows(ours).find(|r| r["row"] == *row).and_then(|r| r["ms"].as_f64());
                let (Some(ms), Some(torch)) = (ms, torch) else { continue };
                for (name, theirs) in variants(torch, row) {
                    if kinds.iter().any(|k| name.split(' ').next() == Some(k)) {
                        best.take(&name, theirs / ms);
                    }
                }
            }
            // `units` compiles each residual unit alone; a compiled whole step could be faster.
            let note = if best.name.starts_with("units") { ", whole step not compiled" } else { "" };
            let figure = best.ratio.map(|r| (format!("{r:.2}x ({}{note})", best.name), r >= bar));
            table.row(&format!("{row}: against {what}"), &format!(">= {bar}x"), figure);
        }
    }
    let latest = |row: &str| calls.iter().rev().find_map(|(ours, _)| rows(ours).find(|r| r["row"] == row));
    for row in generators.iter().chain(&blocks) {
        let Some(r) = latest(row) else { continue };
        let of = |key: &str| r[key].as_f64();
        let share = of("roof_percent").map(|v| (format!("{v:.1} %"), v >= 55.0));
        table.row(&format!("{row}: share of the layer-wise roofline"), ">= 55 %", share);
        let host = of("host_percent").map(|v| (format!("{v:.3} %"), v < 1.0));
        table.row(&format!("{row}: host time per replayed step"), "< 1 %", host);
        let ratio = of("teachers_ratio").map(|v| (format!("{v:.3}"), v <= 1.15));
        table.row(&format!("{row}: bytes moved / minimal, teachers"), "<= 1.15", ratio);
        // The decrease of the card's free memory includes the kernels' code and the driver's own memory.
        let memory = of("driver_bytes").zip(of("forecast_bytes")).map(|(used, forecast)| {
            let text = format!("{:.2} GB, forecast {:.2} GB", used / 1e9, forecast / 1e9);
            (text, (used / forecast - 1.0).abs() <= 0.05)
        });
        table.row(&format!("{row}: memory against its forecast"), "within 5 %", memory);
    }
    let mut parities = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("parity-") && name.ends_with(".json") {
            parities.insert(name.clone(), read(&entry.path())?);
        }
    }
    for (name, p) in &parities {
        let (error, cosine) = (p["error"].as_f64().unwrap_or(f64::NAN), p["cosine"].as_f64().unwrap_or(0.0));
        let is_bf16 = p["precision"] == "bf16";
        let bar = if is_bf16 { "cosine >= 0.999" } else { "<= 1e-5" };
        let theirs = p["torch_cosine"].as_f64().unwrap_or(0.0);
        let figure = if is_bf16 {
            format!("{cosine:.5} (PyTorch's bf16 {theirs:.5})")
        } else {
            format!("{error:.1e}")
        };
        let figure = (figure, p["passed"] == true);
        table.row(&format!("{}: gradients", name.trim_end_matches(".json")), bar, Some(figure));
    }
    let tiny = if calls.iter().any(|(ours, _)| ours["tiny"] == true) {
        " (tiny shapes: the figures mean nothing)"
    } else {
        ""
    };
    println!("\n{}{tiny}\n", calls[0].0["device"].as_str().unwrap_or(""));
    table.print();
    Ok(())
}

#[derive(Default)]
struct Table {
    lines: Vec<[String; 4]>,
}

impl Table {
    fn row(&mut self, what: &str, bar: &str, figure: Option<(String, bool)>) {
        let (figure, result) = match figure {
            Some((figure, true)) => (figure, "pass"),
            Some((figure, false)) => (figure, "MISS"),
            None => ("not measured".into(), "-"),
        };
        self.lines.push([what.into(), bar.into(), figure, result.into()]);
    }

    fn print(&self) {
        let head = ["measure", "bar", "figure", ""].map(String::from);
        let rule = ["---"; 4].map(String::from);
        for [what, bar, figure, result] in [head, rule].iter().chain(&self.lines) {
            println!("| {what:52} | {bar:15} | {figure:34} | {result:4} |");
        }
    }
}
