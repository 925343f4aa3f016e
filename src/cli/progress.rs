//! Shows the progress of a run, and passes its metrics to `metrics.jsonl` and TensorBoard's file.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use super::event_log::EventLog;
use super::metrics_log::MetricsLog;
use super::signals::Signals;
use super::time_left::TimeLeft;
use crate::error::{Error, Result};
use crate::pipeline::observer::{Observer, Stop};
use crate::report::metrics::Record;
use crate::report::tensorboard::EventFile;
use crate::report::{METRICS, duration};

const TEMPLATE: &str = "{prefix:14} {bar:12} {pos}/{len}  {elapsed}, {eta} left  {wide_msg}";

/// How progress is shown on standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ProgressMode {
    /// A progress bar for each stage, for a terminal.
    Bars,
    /// A line for each tenth of a stage, for a file or a pipe.
    Lines,
    Silent,
}

impl ProgressMode {
    pub fn of_stderr() -> Self {
        if io::stderr().is_terminal() { ProgressMode::Bars } else { ProgressMode::Lines }
    }
}

pub struct Progress {
    mode: ProgressMode,
    metrics: MetricsLog,
    events: EventLog,
    stage: String,
    steps: usize,
    started: Instant,
    bar: Option<ProgressBar>,
    /// The first step of the stage in this call: not 0 if a resumed run continues the stage.
    first: Option<usize>,
    /// Tenths of the stage for which a line is printed already.
    tenths: usize,
    signals: Signals,
    is_verbose: bool,
    left: TimeLeft,
}

/// Name of the evaluation, beside those of the stages.
const EVALUATION: &str = "evaluation";

impl Progress {
    /// Opens the logs in `folder`; a resumed run appends to its metrics.
    ///
    /// Errors: a log that cannot be opened.
    pub fn start(folder: &Path, is_resumed: bool, mode: ProgressMode) -> Result<Self> {
        let metrics = MetricsLog::open(folder.join(METRICS), is_resumed)?;
        let events = EventLog::open(folder)?;
        let (stage, started) = (String::new(), Instant::now());
        let signals = Signals::default();
        let (first, tenths, is_verbose) = (None, 0, false);
        Ok(Progress {
            mode,
            metrics,
            events,
            stage,
            steps: 0,
            started,
            bar: None,
            first,
            tenths,
            signals,
            is_verbose,
            left: TimeLeft::default(),
        })
    }

    /// The same progress, which also stops the run when a signal arrives.
    pub fn stopping_on(self, signals: Signals) -> Self {
        Progress { signals, ..self }
    }

    /// The same progress, which asks for the cost of each stage's step if `is_verbose`.
    pub fn with_costs(self, is_verbose: bool) -> Self {
        Progress { is_verbose, ..self }
    }

    /// Prints a line, above the bar if there is one.
    pub fn print(&self, line: &str) {
        match (self.mode, &self.bar) {
            (ProgressMode::Silent, _) => {}
            (ProgressMode::Bars, Some(bar)) => bar.println(line),
            (ProgressMode::Bars, None) | (ProgressMode::Lines, _) => {
                // A closed standard error must not stop the run.
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
    }

    /// Ends the last stage and closes the logs.
    ///
    /// Errors: the first failed write of a log.
    pub fn finish(mut self) -> Result<()> {
        self.end_stage();
        self.metrics.close().and(self.events.close())
    }

    fn end_stage(&mut self) {
        if let Some(bar) = self.bar.take() {
            // `finish` would fill the bar of a stage that an error or a signal ended.
            if bar.length() == Some(bar.position()) { bar.finish() } else { bar.abandon() }
        }
    }

    /// A bar for something that has so many parts, in a terminal.
    fn begin(&mut self, name: &str, parts: usize) {
        self.end_stage();
        (self.stage, self.steps, self.started) = (name.into(), parts, Instant::now());
        (self.first, self.tenths) = (None, 0);
        if self.mode == ProgressMode::Bars {
            let bar = ProgressBar::new(parts as u64).with_prefix(self.stage.clone());
            // A test checks that the template is valid.
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            self.bar = Some(bar);
        }
    }

    /// Whether another tenth of the stage is done, so that a line is due.
    fn is_line_due(&mut self, done: usize) -> bool {
        let tenths = (done * 10).checked_div(self.steps).unwrap_or(0);
        let is_due = tenths > self.tenths;
        self.tenths = self.tenths.max(tenths);
        is_due
    }
}

impl Observer for Progress {
    fn planned(&mut self, stages: &[(String, usize)]) {
        self.left.plan(stages);
    }

    fn stage(&mut self, name: &str, steps: usize) {
        self.begin(name, steps);
        self.left.begin(name);
    }

    fn step(&mut self, step: usize, metrics: &mut dyn Iterator<Item = (&str, f32)>) {
        let seconds = self.started.elapsed().as_secs_f64();
        let metrics: Vec<(String, f32)> = metrics.map(|(name, value)| (name.into(), value)).collect();
        let first = *self.first.get_or_insert(step);
        let run = self.left.after(step + 1, seconds / (step + 1 - first) as f64);
        let run = run.map_or(String::new(), |left| format!("run: {} left  ", duration(left)));
        match self.mode {
            ProgressMode::Bars => {
                if let Some(bar) = &self.bar {
                    if step == first && first > 0 {
                        bar.set_position(first as u64);
                        bar.reset_eta();
                    }
                    bar.set_position(step as u64 + 1);
                    bar.set_message(run + &metrics_text(&metrics));
                }
            }
            ProgressMode::Lines => {
                if self.is_line_due(step + 1) {
                    let text = run + &metrics_text(&metrics);
                    self.print(&progress_line(&self.stage, step, first, self.steps, seconds, &text));
                }
            }
            ProgressMode::Silent => {}
        }
        self.events.write(|file| file.scalars(&self.stage, step, &metrics));
        let metrics = metrics.into_iter().map(|(name, v)| (name, v.is_finite().then_some(v))).collect();
        let resumed = step == first && first > 0;
        self.metrics.write(&Record { stage: self.stage.clone(), step, seconds, resumed, metrics });
    }

    fn evaluated(&mut self, done: usize, all: usize) {
        if self.stage != EVALUATION {
            self.begin(EVALUATION, all);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        }
        if self.mode == ProgressMode::Lines && self.is_line_due(done) {
            let seconds = self.started.elapsed().as_secs_f64();
            self.print(&progress_line(EVALUATION, done.saturating_sub(1), 0, all, seconds, "images"));
        }
    }

    fn picture(&mut self, step: usize, png: &[u8]) {
        self.events.write(|file| file.image(&format!("{}/images", self.stage), step, png));
    }

    fn note(&mut self, line: &str) {
        self.print(line);
    }

    fn wants_costs(&self) -> bool {
        self.is_verbose
    }

    fn resumed(&mut self, stages: &[(String, usize)], is_kept: &dyn Fn(&str, usize) -> bool) -> Result<()> {
        let kept = self.metrics.keep(is_kept)?;
        let expected: usize =
            stages.iter().map(|(name, n)| (0..*n).filter(|i| is_kept(name, *i)).count()).sum();
        if kept < expected {
            self.print(&format!(
                "note: {}: expected the {expected} steps before the checkpoint, found {kept}; the run goes on, and the \
                 curves of its report will lack the others",
                self.metrics.path.display()
            ));
        }
        let kept = std::fs::read_to_string(&self.metrics.path)
            .map_err(|e| Error::io("read", &self.metrics.path, e))?;
        self.events.write_again(&kept);
        Ok(())
    }

    fn store(&mut self) -> Result<()> {
        // A resumed run does not write pictures again, so they must be on the disk. A failure is reported by
        // `close`.
        self.events.write(EventFile::flush);
        self.metrics.store()
    }

    fn should_stop(&self) -> Option<Stop> {
        self.signals.stop()
    }
}

/// A line such as `generator: 40/400 (10 %) in 3.1 s, 28 s left  total 1.2000`.
fn progress_line(stage: &str, step: usize, first: usize, steps: usize, seconds: f64, text: &str) -> String {
    let done = step + 1;
    let left = seconds / done.saturating_sub(first).max(1) as f64 * steps.saturating_sub(done) as f64;
    format!(
        "{stage}: {done}/{steps} ({} %) in {}, {} left  {text}",
        done * 100 / steps.max(1),
        duration(seconds),
        duration(left)
    )
}

fn metrics_text(metrics: &[(String, f32)]) -> String {
    let each = metrics.iter().map(|(name, value)| format!("{name} {}", four_digits(*value)));
    each.collect::<Vec<_>>().join("  ")
}

/// Four significant digits, enough to see a loss change.
fn four_digits(value: f32) -> String {
    if value != 0.0 && !(1e-3..1e5).contains(&value.abs()) {
        format!("{value:.3e}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::metrics::parse;
    use crate::report::tensorboard::{self, TENSORBOARD};

    fn log_a_run(folder: &Path, is_resumed: bool, from: usize) {
        for mode in [ProgressMode::Bars, ProgressMode::Silent] {
            let mut p = Progress::start(folder, is_resumed, mode).unwrap();
            if is_resumed {
                p.resumed(&[], &|stage, step| stage == "generator" && step < from).unwrap();
            }
            p.stage("generator", 30);
            for step in from..30 {
                p.step(step, &mut [("oh", step as f32), ("ie", f32::NAN)].into_iter());
            }
            p.stage("dual 1", 0);
            p.note("a note");
            p.finish().unwrap();
        }
    }

    #[test]
    fn a_resumed_run_logs_every_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(METRICS);
        log_a_run(dir.path(), false, 0);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 30, "a new run starts a new file");
        assert!(text.contains("\"ie\":null"), "{text}");

        std::fs::write(&path, text + "{\"stage\":\"gen").unwrap();
        log_a_run(dir.path(), true, 20);
        let text = std::fs::read_to_string(&path).unwrap();
        let stages = parse(&text);
        assert_eq!((stages.len(), stages[0].curves["oh"].len()), (1, 30));
        assert_eq!(text.lines().count(), 30, "no step twice, no half line:\n{text}");
        let logged = tensorboard::read(&dir.path().join(TENSORBOARD)).unwrap();
        let steps: Vec<i64> = logged.scalars["generator/oh"].iter().map(|s| s.0).collect();
        assert_eq!(steps, (0..30).collect::<Vec<_>>(), "no step comes twice");
    }

    #[test]
    fn storing_writes_every_step_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut p = Progress::start(dir.path(), false, ProgressMode::Silent).unwrap();
        p.stage("generator", 2);
        p.step(0, &mut [("oh", 1.0)].into_iter());
        p.store().unwrap();
        let text = std::fs::read_to_string(dir.path().join(METRICS)).unwrap();
        assert!(text.ends_with("}\n") && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn the_bar_template_is_valid_and_lines_have_their_format() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
        let metrics = [("total".into(), 0.5), ("oh".into(), 2e-7)];
        let line = "generator: 300/400 (75 %) in 3.0 s, 1.5 s left  total 0.5000  oh 2.000e-7";
        assert_eq!(progress_line("generator", 299, 100, 400, 3.0, &metrics_text(&metrics)), line);
    }

    #[test]
    fn a_bar_stays_where_its_stage_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut p = Progress::start(dir.path(), false, ProgressMode::Bars).unwrap();
        p.planned(&[("generator".into(), 10), ("block1".into(), 3)]);
        p.stage("generator", 10);
        p.step(3, &mut [("oh", 1.0)].into_iter());
        let bar = p.bar.clone().unwrap();
        assert!(
            bar.message().starts_with("run: ") && bar.message().contains(" left  oh 1.0000"),
            "{}",
            bar.message()
        );
        p.evaluated(5, 20);
        assert!(bar.is_finished() && bar.position() == 4, "the generator did not end");
        let bar = p.bar.clone().unwrap();
        assert_eq!((bar.prefix().as_str(), bar.position(), bar.length()), ("evaluation", 5, Some(20)));
        p.finish().unwrap();
        assert_eq!(bar.position(), 5);
    }
}
