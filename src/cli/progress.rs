//! Shows a run as it goes, and writes `metrics.jsonl`.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::signals::Signals;
use crate::error::{Error, Result};
use crate::pipeline::observer::{Observer, Stop};
use crate::report::duration;
use crate::report::metrics::{Record, Stage, parse};
use crate::report::tensorboard::{EventFile, TENSORBOARD};
use crate::report::{CONFIG, METRICS};
use crate::weights::write_atomic;

const TEMPLATE: &str = "{prefix:14} {bar:12} {pos}/{len}  {elapsed}, {eta} left  {wide_msg}";

/// Who reads along.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Audience {
    /// A bar for each stage.
    Terminal,
    /// A line for each tenth of a stage.
    Pipe,
    Nobody,
}

impl Audience {
    pub fn of_stderr() -> Self {
        if io::stderr().is_terminal() { Audience::Terminal } else { Audience::Pipe }
    }
}

pub struct Progress {
    audience: Audience,
    log: Log,
    board: Board,
    stage: String,
    steps: usize,
    begun: Instant,
    bar: Option<ProgressBar>,
    /// The first step seen of the stage: not 0 where a resumed run goes on.
    first: Option<usize>,
    /// Tenths of the stage that a line told of.
    tenths: usize,
    signals: Signals,
}

impl Progress {
    /// Metrics go to `folder`: behind those already there when resuming, else into a new file.
    pub fn start(folder: &Path, is_resumed: bool, audience: Audience) -> Result<Self> {
        let log = Log::open(folder.join(METRICS), is_resumed)?;
        let board = Board::open(folder)?;
        let (stage, begun) = (String::new(), Instant::now());
        let signals = Signals::default();
        let (first, tenths) = (None, 0);
        Ok(Progress { audience, log, board, stage, steps: 0, begun, bar: None, first, tenths, signals })
    }

    /// The same, stopping the run when one of `signals` asks for it.
    pub fn stopping_on(self, signals: Signals) -> Self {
        Progress { signals, ..self }
    }

    /// A line for whoever reads along.
    pub fn say(&self, line: &str) {
        match (self.audience, &self.bar) {
            (Audience::Nobody, _) => {}
            (Audience::Terminal, Some(bar)) => bar.println(line),
            (Audience::Terminal, None) | (Audience::Pipe, _) => {
                // A reader who left does not stop the run.
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
    }

    /// Ends the last stage; tells whether every metric was written.
    pub fn finish(mut self) -> Result<()> {
        self.end_stage();
        self.log.close().and(self.board.close())
    }

    fn end_stage(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}

impl Observer for Progress {
    fn stage(&mut self, name: &str, steps: usize) {
        self.end_stage();
        (self.stage, self.steps, self.begun) = (name.into(), steps, Instant::now());
        (self.first, self.tenths) = (None, 0);
        if self.audience == Audience::Terminal {
            let bar = ProgressBar::new(steps as u64).with_prefix(self.stage.clone());
            // A test has seen the template; indicatif's own bar is the fallback.
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, step: usize, metrics: &mut dyn Iterator<Item = (&str, f32)>) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let metrics: Vec<(String, f32)> = metrics.map(|(name, value)| (name.into(), value)).collect();
        let first = *self.first.get_or_insert(step);
        match self.audience {
            Audience::Terminal => {
                if let Some(bar) = &self.bar {
                    if step == first && first > 0 {
                        bar.set_position(first as u64);
                        bar.reset_eta();
                    }
                    bar.set_position(step as u64 + 1);
                    bar.set_message(in_words(&metrics));
                }
            }
            Audience::Pipe => {
                let tenths = ((step + 1) * 10).checked_div(self.steps).unwrap_or(0);
                if tenths > self.tenths {
                    self.tenths = tenths;
                    self.say(&tenth(&self.stage, step, first, self.steps, seconds, &metrics));
                }
            }
            Audience::Nobody => {}
        }
        self.board.write(|file| file.scalars(&self.stage, step, &metrics));
        let metrics = metrics.into_iter().map(|(name, v)| (name, v.is_finite().then_some(v))).collect();
        self.log.write(&Record { stage: self.stage.clone(), step, seconds, metrics });
    }

    fn picture(&mut self, step: usize, png: &[u8]) {
        self.board.write(|file| file.image(&format!("{}/images", self.stage), step, png));
    }

    fn note(&mut self, line: &str) {
        self.say(line);
    }

    fn resumed(&mut self, is_kept: &dyn Fn(&str, usize) -> bool) -> Result<()> {
        self.log.keep(is_kept)?;
        let kept =
            std::fs::read_to_string(&self.log.path).map_err(|e| Error::io("read", &self.log.path, e))?;
        self.board.tell_again(&kept);
        Ok(())
    }

    fn store(&mut self) -> Result<()> {
        // Pictures are told once only; a failure waits, as all of the board's.
        self.board.write(EventFile::flush);
        self.log.store()
    }

    fn should_stop(&self) -> Option<Stop> {
        self.signals.stop()
    }
}

/// `generator: 40/400 (10 %) in 3.1 s, 28 s left  total 1.2000`.
fn tenth(
    stage: &str,
    step: usize,
    first: usize,
    steps: usize,
    seconds: f64,
    metrics: &[(String, f32)],
) -> String {
    let done = step + 1;
    let left = seconds / done.saturating_sub(first).max(1) as f64 * steps.saturating_sub(done) as f64;
    format!(
        "{stage}: {done}/{steps} ({} %) in {}, {} left  {}",
        done * 100 / steps.max(1),
        duration(seconds),
        duration(left),
        in_words(metrics)
    )
}

fn in_words(metrics: &[(String, f32)]) -> String {
    let each = metrics.iter().map(|(name, value)| format!("{name} {}", four_digits(*value)));
    each.collect::<Vec<_>>().join("  ")
}

/// Enough to see a loss move.
fn four_digits(value: f32) -> String {
    if value != 0.0 && !(1e-3..1e5).contains(&value.abs()) {
        format!("{value:.3e}")
    } else {
        format!("{value:.4}")
    }
}

/// `metrics.jsonl`. An observer has no way to fail, so the first failure waits for `close`.
struct Log {
    path: PathBuf,
    file: BufWriter<File>,
    flushed: Instant,
    failure: Option<io::Error>,
}

impl Log {
    fn open(path: PathBuf, is_resumed: bool) -> Result<Self> {
        let file = if is_resumed { appending(&path) } else { File::create(&path) };
        let file = file.map_err(|e| Error::io("write", &path, e))?;
        Ok(Log { path, file: BufWriter::new(file), flushed: Instant::now(), failure: None })
    }

    /// Leaves only the steps that are `kept`, each once; a line that is no record (a killed run's last) goes.
    fn keep(&mut self, is_kept: &dyn Fn(&str, usize) -> bool) -> Result<()> {
        let cannot = |e| Error::io("read", &self.path, e);
        let old = std::fs::read(&self.path).map_err(cannot)?;
        let mut told: HashMap<String, HashSet<usize>> = HashMap::new();
        let mut kept = Vec::new();
        for line in old.split(|b| *b == b'\n') {
            let Ok(Record { stage, step, .. }) = serde_json::from_slice(line) else { continue };
            if is_kept(&stage, step) && told.entry(stage).or_default().insert(step) {
                kept.push(line);
            }
        }
        write_atomic(&self.path, |w| {
            kept.iter().try_for_each(|line| w.write_all(line).and_then(|()| w.write_all(b"\n")))
        })?;
        let file = appending(&self.path).map_err(|e| Error::io("write", &self.path, e))?;
        self.file = BufWriter::new(file);
        Ok(())
    }

    /// Brings what was told to the disk.
    fn store(&mut self) -> Result<()> {
        if self.failure.is_none() {
            let sync = |file: &File| match file.sync_data() {
                // What is no file on a disk: a pipe, a device.
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
                other => other,
            };
            self.failure = self.file.flush().and_then(|()| sync(self.file.get_ref())).err();
        }
        match &self.failure {
            None => Ok(()),
            // The failure itself stays, for later steps are not to be written behind a gap.
            Some(e) => Err(Error::Run(format!("cannot write {}: {e}", self.path.display()))),
        }
    }

    fn write(&mut self, record: &Record) {
        if self.failure.is_some() {
            return;
        }
        self.failure = self.try_write(record).err();
    }

    fn try_write(&mut self, record: &Record) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, record)?;
        self.file.write_all(b"\n")?;
        // Often enough to follow with `tail -f`, seldom enough to cost nothing.
        if self.flushed.elapsed() > Duration::from_secs(1) {
            self.file.flush()?;
            self.flushed = Instant::now();
        }
        Ok(())
    }

    fn close(mut self) -> Result<()> {
        match self.failure.take().map_or_else(|| self.file.flush(), Err) {
            Ok(()) => Ok(()),
            Err(e) => Err(Error::io("write", &self.path, e)),
        }
    }
}

/// TensorBoard's file. As with [`Log`], the first failure waits for `close`.
struct Board {
    folder: PathBuf,
    file: EventFile,
    flushed: Instant,
    failure: Option<io::Error>,
}

impl Board {
    /// A file of this call's own, with the config that the folder holds.
    fn open(run: &Path) -> Result<Self> {
        let config = std::fs::read_to_string(run.join(CONFIG)).unwrap_or_default();
        let folder = run.join(TENSORBOARD);
        let file = EventFile::create(&folder).map_err(|e| Error::io("write", &folder, e))?;
        let mut board = Board { folder, file, flushed: Instant::now(), failure: None };
        // Markdown shows what is indented by four as it stands.
        let indented: String = config.lines().map(|l| format!("    {l}\n")).collect();
        board.write(|file| file.text("config", &indented));
        Ok(board)
    }

    /// The steps that a resumed run keeps, for a kill may have kept them from the file before.
    fn tell_again(&mut self, metrics: &str) {
        for Stage { name, curves, .. } in parse(metrics) {
            for (metric, points) in curves {
                for (step, value) in points {
                    let one = [(metric.clone(), value as f32)];
                    self.write(|file| file.scalars(&name, step as usize, &one));
                }
            }
        }
    }

    fn write(&mut self, put: impl FnOnce(&mut EventFile) -> io::Result<()>) {
        if self.failure.is_some() {
            return;
        }
        let mut result = put(&mut self.file);
        if result.is_ok() && self.flushed.elapsed() > Duration::from_secs(1) {
            (result, self.flushed) = (self.file.flush(), Instant::now());
        }
        self.failure = result.err();
    }

    fn close(mut self) -> Result<()> {
        match self.failure.take().map_or_else(|| self.file.flush(), Err) {
            Ok(()) => Ok(()),
            Err(e) => Err(Error::io("write", &self.folder, e)),
        }
    }
}

fn appending(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tensorboard;

    fn go(folder: &Path, is_resumed: bool, from: usize) {
        for audience in [Audience::Terminal, Audience::Nobody] {
            let mut p = Progress::start(folder, is_resumed, audience).unwrap();
            if is_resumed {
                p.resumed(&|stage, step| stage == "generator" && step < from).unwrap();
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
    fn metrics_are_logged_and_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(METRICS);
        go(dir.path(), false, 0);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 30, "a new run starts a new file");
        assert!(text.contains("\"ie\":null"), "{text}");

        std::fs::write(&path, text + "{\"stage\":\"gen").unwrap();
        go(dir.path(), true, 20);
        let text = std::fs::read_to_string(&path).unwrap();
        let stages = parse(&text);
        assert_eq!((stages.len(), stages[0].curves["oh"].len()), (1, 30));
        assert_eq!(text.lines().count(), 30, "no step twice, no half line:\n{text}");
        let logged = tensorboard::read(&dir.path().join(TENSORBOARD)).unwrap();
        let steps: Vec<i64> = logged.scalars["generator/oh"].iter().map(|s| s.0).collect();
        assert_eq!(steps, (0..30).collect::<Vec<_>>(), "no step comes twice");
    }

    #[test]
    fn what_was_told_is_in_the_file_once_it_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        let mut p = Progress::start(dir.path(), false, Audience::Nobody).unwrap();
        p.stage("generator", 2);
        p.step(0, &mut [("oh", 1.0)].into_iter());
        p.store().unwrap();
        let text = std::fs::read_to_string(dir.path().join(METRICS)).unwrap();
        assert!(text.ends_with("}\n") && text.lines().count() == 1, "{text}");
    }

    /// Linux: a device that is always full.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_stops_the_next_checkpoint() {
        let mut log = Log::open("/dev/full".into(), false).unwrap();
        log.store().unwrap();
        for step in 0..2 {
            let record = Record { stage: "a".into(), step, seconds: 0.0, metrics: Default::default() };
            log.write(&record);
            let e = log.store().unwrap_err();
            assert_eq!(e.exit_code(), 1);
            assert_eq!(e.to_string(), "cannot write /dev/full: No space left on device (os error 28)");
        }
        assert_eq!(log.close().unwrap_err().exit_code(), 1);
    }

    #[test]
    fn lines_and_bars_read_well() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
        let metrics = [("total".into(), 0.5), ("oh".into(), 2e-7)];
        let line = "generator: 300/400 (75 %) in 3.0 s, 1.5 s left  total 0.5000  oh 2.000e-7";
        assert_eq!(tenth("generator", 299, 100, 400, 3.0, &metrics), line);
    }
}
