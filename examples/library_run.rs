//! A run through the library, without the command line: the demo's two teachers, a short schedule, two
//! labels.
//!
//!     cargo run --release --example library_run
//!
//! It takes some seconds on two cores, and the student is poor. Without the step counts below it trains for
//! the demo's full schedule.

use std::path::Path;

use dfka_engine::config::{Override, load_run};
use dfka_engine::error::Result;
use dfka_engine::labelled;
use dfka_engine::pipeline::observer::Observer;

/// Prints one line per stage, with the losses of its last step.
#[derive(Default)]
struct Lines {
    stage: String,
    steps: usize,
}

impl Observer for Lines {
    fn stage(&mut self, name: &str, steps: usize) {
        (self.stage, self.steps) = (name.to_string(), steps);
    }
    fn step(&mut self, step: usize, metrics: &mut dyn Iterator<Item = (&str, f32)>) {
        if step + 1 == self.steps {
            let losses: Vec<String> = metrics.map(|(name, v)| format!("{name} {v:.3}")).collect();
            println!("{}, after {} steps: {}", self.stage, self.steps, losses.join(", "));
        }
    }
    fn note(&mut self, line: &str) {
        println!("{line}");
    }
}

fn main() -> Result<()> {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/demo.toml");
    let sets = [
        "student.labels=['bag', '0']",
        "generator.steps=30",
        "dual.steps=[10, 10, 10, 10]",
        "dual.bank=640",
        // After thirty steps the images are not diverse yet, so the collapse alarm is off.
        "loss.least_diversity=0",
        "loss.least_information=0",
        "loss.least_found=0",
    ];
    let overrides = sets.into_iter().map(Override::set).collect::<Result<Vec<_>>>()?;
    let spec = load_run(&config, &overrides)?.spec;

    let out = std::env::temp_dir().join(format!("dfka-library-run-{}", std::process::id()));
    let summary = labelled::run::run(&spec, &out, false, &mut Lines::default())?;

    let student = summary.student.expect("the demo's config names evaluation data");
    println!("student: {:.1} mAP; files in {}", student.score.map, out.display());
    assert!(out.join("student.npz").exists());
    Ok(())
}
