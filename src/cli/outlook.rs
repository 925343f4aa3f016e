//! What `check` prints by default: whether a config fits, and what its run will take.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::commands::TeacherFacts;
use super::forecast::number;
use crate::machine::available_memory;
use crate::pipeline::spec::{Branch, RunSpec};
use crate::report;

/// Everything that `check` has found out.
pub struct Outlook<'a> {
    pub config: &'a Path,
    pub spec: &'a RunSpec,
    /// As [`super::device::DeviceChoice::open`] describes it.
    pub device: &'a str,
    pub teachers: &'a [TeacherFacts],
    pub forecast: &'a Value,
    /// The folder that the run writes to.
    pub out: &'a Path,
    /// Free bytes of its file system.
    pub free: Option<u64>,
}

impl Outlook<'_> {
    /// The config's file, whether it fits, and what a run takes.
    fn verdict(&self) -> String {
        let (f, config) = (self.forecast, self.config.display());
        let is_drawn = self.teachers.iter().any(|t| t.is_drawn);
        let fits = if is_drawn { "fits what it states of its teachers" } else { "matches its teachers" };
        let (least, memory) = match f["is_measured"] == true {
            true => ("about", number(&f["peak_bytes"])),
            false => ("at least", number(&f["gpu_peak_bytes"])),
        };
        let time = format!("{least} {} on {}", rough(number(&f["seconds"])), self.place());
        format!(
            "{config}: {fits}; a run takes {time} and needs {} of memory, {} of disk\n",
            gigabytes(memory),
            gigabytes(number(&f["disk"]["bytes"]))
        )
    }

    /// What the times are of, in words.
    fn place(&self) -> String {
        match self.forecast["is_measured"] == true {
            true => format!("this {}", self.machine()),
            false => {
                format!("an {}", self.forecast["card"]["name"].as_str().unwrap_or("card").to_uppercase())
            }
        }
    }

    fn machine(&self) -> &'static str {
        let is = |name: &str| self.device.starts_with(&format!("device: {name}"));
        if is("cuda") {
            "GPU"
        } else if is("cpu") {
            "CPU"
        } else {
            "emulator"
        }
    }

    /// Lines that say what to change, if the machine lacks memory or space.
    fn warnings(&self) -> String {
        let mut text = String::new();
        let (peak, needed) = (number(&self.forecast["peak_bytes"]), number(&self.forecast["disk"]["bytes"]));
        if let Some(free) = available_memory().map(|free| free as f64)
            && self.forecast["is_measured"] == true
            && self.machine() != "GPU"
            && free < peak
        {
            text += &format!(
                "warning: this machine has {} of memory available; lower generator.batch, dual.batch or dual.bank\n",
                gigabytes(free)
            );
        }
        if let Some(free) = self.free.map(|free| free as f64)
            && free < needed
        {
            text += &format!(
                "warning: {} has {} of disk free; make room, or choose another folder with --out\n",
                self.out.display(),
                gigabytes(free)
            );
        }
        text
    }

    /// At most a dozen lines for two teachers, the verdict first.
    pub fn text(&self) -> String {
        let f = self.forecast;
        let mut text = self.verdict() + &self.warnings();
        text += &format!("{}\n", self.device);
        text += &TeacherFacts::lines(&self.spec.teachers, self.teachers);
        let parameters = |of: &str| number(&f["parameters"][of]);
        let labels = match self.spec.student.labels.len() {
            0 => self.teachers.iter().flat_map(|t| &t.labels).collect::<BTreeSet<_>>().len(),
            n => n,
        };
        let (least, of) = match self.spec.student.branch {
            Branch::Auto { .. } => ("at least ", ", by the block that the run chooses to branch after"),
            Branch::Block(_) => ("", ""),
        };
        text += &format!(
            "student: {labels} labels, {least}{:.2} M parameters, {least}{:.1} % of the teachers'{of}\n",
            parameters("student") / 1e6,
            100.0 * parameters("student") / parameters("teachers").max(1.0)
        );
        let stages = f["stages"].as_array().map(Vec::as_slice).unwrap_or_default();
        let each = stages.iter().map(|s| {
            format!("{} {}", s["name"].as_str().unwrap_or("?"), report::duration(number(&s["seconds"])))
        });
        text += &format!("time on {}: {}\n", self.place(), each.collect::<Vec<_>>().join(", "));
        let disk = |part: &str| gigabytes(number(&f["disk"][part]));
        text += &format!(
            "disk: {} for checkpoints while it runs, {} for students, {} for the rest, in {}",
            disk("checkpoint_bytes"),
            disk("student_bytes"),
            disk("other_bytes"),
            self.out.display()
        );
        text +=
            &self.free.map_or("\n".into(), |free| format!(", where {} are free\n", gigabytes(free as f64)));
        let whole = number(&f["card"]["memory_bytes"]);
        text += &format!(
            "on an {}: {} of its memory, {:.1} %\n",
            f["card"]["name"].as_str().unwrap_or("card").to_uppercase(),
            gigabytes(number(&f["gpu_peak_bytes"])),
            100.0 * number(&f["gpu_peak_bytes"]) / whole.max(1.0)
        );
        text + "--detail prints the cost of every stage, part and op; --json has every number\n"
    }
}

/// A duration as people say it in advance: `40 s`, `12 min`, `3.5 h`, `2.1 days`.
fn rough(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{:.0} s", s.max(1.0)),
        s if s < 90.0 * 60.0 => format!("{:.0} min", s / 60.0),
        s if s < 48.0 * 3600.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

/// `1.3 GB`, `420 MB`.
fn gigabytes(bytes: f64) -> String {
    if bytes >= 1e9 { format!("{:.1} GB", bytes / 1e9) } else { format!("{:.0} MB", (bytes / 1e6).max(1.0)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_rounded_as_people_say_them() {
        let all = [0.2, 40.0, 700.0, 12_600.0, 200_000.0].map(rough);
        assert_eq!(all, ["1 s", "40 s", "12 min", "3.5 h", "2.3 days"]);
        assert_eq!([1.0, 4.2e8, 1.34e9].map(gigabytes), ["1 MB", "420 MB", "1.3 GB"]);
    }
}
