//! One run's progress through its stages: the training loop, the checks for divergence, and the checkpoints.

use super::checkpoint::{self, Found, Progress, StageResult, Tail};
use super::observer::{Observer, Stop};
use super::share;
use super::snapshots::Snapshots;
use super::stage::{Feed, Stage};
use super::written;
use crate::autograd::{Engine, Store};
use crate::device::StepState;
use crate::device::collective;
use crate::device::cpu::par::on_a_worker;
use crate::device::gpu::nvtx;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Default of the seconds between checkpoints. Writing one takes about a tenth of a second at the demo's
/// scale.
pub const CHECKPOINT_SECONDS: f32 = 20.0;

/// Largest share of the time that is spent on checkpoints (ours). At 224 px one has gigabytes and takes many
/// seconds.
const CHECKPOINT_SHARE: f32 = 0.05;

/// Steps of a GPU between two reads of its losses (ours). A read waits for the device; divergence is noticed
/// up to this many steps late.
const READ_EVERY: usize = 16;

/// What a stage is trained with beside its step.
#[derive(Default)]
pub struct Extras {
    /// Writes the data of each step into the store.
    pub feed: Option<Feed>,
    /// Takes pictures of the generator at some steps.
    pub snapshots: Option<Snapshots>,
}

/// A run in its output folder: trains one stage after the other, and resumes from checkpoints.
pub struct Session<'o> {
    out: PathBuf,
    observer: &'o mut dyn Observer,
    progress: Progress,
    /// Least time between two checkpoints.
    checkpoint_seconds: f32,
    /// File prefix of the student whose stages are being trained.
    student: String,
    /// After a resume: the checkpoint whose tensors the first unfinished stage gets, if they are of its
    /// student.
    pending_restore: Option<PathBuf>,
    /// When this call of the program began the run or resumed it.
    began: Instant,
    /// Seconds of earlier calls.
    earlier: f64,
    is_resumed: bool,
}

impl<'o> Session<'o> {
    /// Starts a run in the folder `out`, which is made if it is not there, or with `resume` continues it from
    /// the checkpoint there, if there is one.
    ///
    /// Errors: a folder that cannot be made; with `resume`, damaged checkpoints, one of another `fingerprint`, or a file
    /// of a finished stage that is not the one that this run wrote.
    pub fn open(
        out: &Path,
        resume: bool,
        fingerprint: String,
        checkpoint_seconds: f32,
        observer: &'o mut dyn Observer,
    ) -> Result<Session<'o>> {
        if collective::leads() {
            std::fs::create_dir_all(out).map_err(|e| Error::io("make the output folder", out, e))?;
        }
        let mut session = Session {
            out: out.into(),
            observer,
            progress: Progress { fingerprint, ..Default::default() },
            checkpoint_seconds,
            student: String::new(),
            pending_restore: None,
            began: Instant::now(),
            earlier: 0.0,
            is_resumed: resume,
        };
        if !resume {
            return Ok(session);
        }
        // Rank 0 mends the names of the checkpoints before the others read them.
        if let Some(ranks) = collective::current().filter(|_| !collective::leads()) {
            ranks.meet();
        }
        if let Some(Found { file, progress, fell_back }) = checkpoint::find(out)? {
            if progress.fingerprint != session.progress.fingerprint {
                return Err(Error::Usage(format!(
                    "{} is of another configuration, seed, or contents of the files it names; start over \
                     with --force, or resume with the same ones",
                    file.display()
                )));
            }
            if collective::leads() {
                written::expect_unchanged(out, &progress.files)?;
            }
            let newest = out.join(checkpoint::FILE);
            session.note(&progress.place());
            if let Some(why) = fell_back {
                session.note(&format!("{why}; going on from {}", file.display()));
            }
            // The next checkpoint renames the newest one to the previous one: that must be this one, not a
            // damaged one.
            if file != newest {
                std::fs::rename(&file, &newest).map_err(|e| Error::io("rename", &file, e))?;
            }
            session.earlier = progress.total;
            (session.progress, session.pending_restore) = (progress, Some(newest));
        }
        if let Some(ranks) = collective::current().filter(|_| collective::leads()) {
            ranks.meet();
        }
        Ok(session)
    }

    /// Begins the stages of the student with this file prefix. A checkpoint holds the tensors of one student.
    pub fn begin_student(&mut self, student: &str) {
        self.student = student.into();
    }

    /// The output folder.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Tells the observer of all stages, before the first begins, and which of their steps a resumed run does not repeat.
    ///
    /// Errors: those of [`Observer::resumed`].
    pub fn plan(&mut self, stages: &[(String, usize)]) -> Result<()> {
        let Session { observer, progress, .. } = self;
        observer.planned(stages);
        if self.is_resumed {
            observer.resumed(stages, &|stage, step| progress.covers(stage, step))?;
        }
        Ok(())
    }

    /// Tells the observer how far the evaluation has come.
    pub fn evaluated(&mut self, done: usize, all: usize) {
        self.observer.evaluated(done, all);
    }

    /// Passes a line on to the observer.
    pub fn note(&mut self, line: &str) {
        self.observer.note(line);
    }

    /// The result of a finished stage.
    pub fn done(&self, stage: &str) -> Option<&StageResult> {
        self.progress.done.get(stage)
    }

    /// Name and result of every finished stage.
    pub fn results(&self) -> impl Iterator<Item = (&String, &StageResult)> {
        self.progress.done.iter()
    }

    /// The step that a stage begins with: after a resume, the next one of the checkpoint.
    pub fn first_step(&self, stage: &str) -> u64 {
        if self.progress.stage == stage { self.progress.step } else { 0 }
    }

    /// Trains a stage to its end, unless it is finished already. Then `finish` stores what the stage produced, and returns
    /// the files on which the rest of the run builds; only after it does the stage count as finished.
    ///
    /// Errors: too little memory, divergence, a stop, a checkpoint that does not fit or cannot be written;
    /// those of `finish`.
    pub fn train(
        &mut self,
        engine: &mut Engine<f32>,
        stage: Stage,
        finish: impl FnOnce(&mut Engine<f32>, &StageResult) -> Result<Vec<PathBuf>>,
    ) -> Result<StageResult> {
        self.train_with(engine, stage, Extras::default(), finish)
    }

    /// [`Session::train`], with data for each step or with pictures.
    pub fn train_with(
        &mut self,
        engine: &mut Engine<f32>,
        mut stage: Stage,
        mut extras: Extras,
        finish: impl FnOnce(&mut Engine<f32>, &StageResult) -> Result<Vec<PathBuf>>,
    ) -> Result<StageResult> {
        if let Some(done) = self.done(&stage.name) {
            return Ok(done.clone());
        }
        if let Some(stop) = agreed(self.observer.should_stop(), false).0 {
            return Err(stopped(stop, &format!("before {}", stage.name)));
        }
        stage.reserve(engine)?;
        extras.snapshots.iter().try_for_each(|s| s.reserve(engine))?;
        if let Some(file) = self.pending_restore.take()
            && self.progress.student == self.student
        {
            checkpoint::restore(&file, &mut engine.store)?;
        }
        if self.progress.stage != stage.name {
            let Progress { fingerprint, done, files, .. } = std::mem::take(&mut self.progress);
            let (stage, student) = (stage.name.clone(), self.student.clone());
            self.progress = Progress { fingerprint, done, files, student, stage, ..Default::default() };
        }
        let names: Vec<String> = stage.plan.metric_names().to_vec();
        self.progress.tail.sums.resize(names.len(), 0.0);
        let (began, spent) = (Instant::now(), self.progress.seconds);
        self.observer.stage(&stage.name, stage.steps);
        if let Some(turns) = stage.turns_in_words() {
            self.observer.note(&turns);
        }
        if self.observer.wants_costs() {
            self.observer.note(&stage.cost_in_words());
        }
        // The whole loop runs on one worker thread, so that replays allocate nothing.
        on_a_worker(|| self.repeat(engine, &mut stage, &mut extras))?;
        share::bring_together(&mut engine.store, &stage.owned);
        // No loss is computed after the last update, so the tensors themselves are checked.
        expect_finite(&engine.store, &stage.name, "the last step")?;
        let tail = &self.progress.tail;
        let converged =
            names.into_iter().zip(&tail.sums).map(|(n, s)| (n, s / tail.count.max(1) as f64)).collect();
        let result = StageResult { seconds: spent + began.elapsed().as_secs_f64(), converged };
        if collective::leads() {
            let files = finish(engine, &result)?;
            self.progress.files.extend(written::hashes(&files)?);
            engine.pull()?; // `finish` may have run steps of its own
        }
        self.progress.done.insert(stage.name.clone(), result.clone());
        self.progress.stage.clear();
        self.progress.step = 0;
        self.progress.seconds = 0.0;
        self.progress.tail = Tail::default();
        self.save(&engine.store)?;
        Ok(result)
    }

    /// Replays a stage's step, from the step that the progress has reached to the last one.
    fn repeat(&mut self, engine: &mut Engine<f32>, stage: &mut Stage, extras: &mut Extras) -> Result<()> {
        let Extras { feed, snapshots } = extras;
        // NVTX ranges nest per thread, and this thread opens those of the steps.
        let _range = nvtx::range(&stage.name);
        let (began, spent) = (Instant::now(), self.progress.seconds);
        let (mut saved, mut cost) = (began, 0.0);
        let (last, tail_from) = (stage.steps as u64, (stage.steps - stage.steps.div_ceil(10)) as u64);
        let most_pending = stage.plan.most_pending().min(READ_EVERY) as u64;
        if let (Some(s), 0, true) = (&mut *snapshots, self.progress.step, collective::leads()) {
            s.take(engine, &self.out, 0, self.observer)?;
        }
        for step in self.progress.step..last {
            let lr = stage.learning_rates.map(|peak| stage.schedule.at(peak, step, stage.steps));
            if let Some(feed) = feed {
                feed(step, &mut engine.store)?;
            }
            stage.plan.replay(engine, &StepState { seed: stage.seed, step, lr })?;
            let is_due = saved.elapsed().as_secs_f32() >= self.checkpoint_seconds.max(cost);
            let is_read = (step + 1) % most_pending == 0 || step + 1 == last;
            // A process that is alone stops after any step, several ranks where they have waited for the device anyway.
            let has_ranks = collective::current().is_some();
            let asked = if has_ranks { None } else { self.observer.should_stop() };
            if !is_read && asked.is_none() {
                continue;
            }
            stage.plan.collect(engine)?;
            let (stop, is_due) =
                if has_ranks { agreed(self.observer.should_stop(), is_due) } else { (asked, is_due) };
            if let Some(note) = engine.note() {
                self.observer.note(&note);
            }
            let Stage { name, plan, .. } = stage;
            let names = plan.metric_names();
            for (step, row) in plan.rows() {
                if let Some(i) = row.iter().position(|v| !v.is_finite()) {
                    return Err(Error::Diverged(format!(
                        "{name}: {} is {} at step {step}: training diverged; lower the learning rate of \
                         this stage",
                        names[i], row[i]
                    )));
                }
                if step >= tail_from {
                    self.progress.tail.count += 1;
                    self.progress.tail.sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
                }
                self.observer
                    .step(step as usize, &mut names.iter().map(String::as_str).zip(row.iter().copied()));
            }
            // Before the checkpoint: a run that resumes from it does not take this picture again.
            if let Some(s) = snapshots
                && collective::leads()
                && s.is_due(self.progress.step..step + 1)
            {
                s.take(engine, &self.out, step + 1, self.observer)?;
            }
            self.progress.step = step + 1;
            if stop.is_some() || is_due {
                let writing = Instant::now();
                self.progress.seconds = spent + began.elapsed().as_secs_f64();
                engine.pull()?;
                share::bring_together(&mut engine.store, &stage.owned);
                expect_finite(&engine.store, &stage.name, &format!("step {step}"))?;
                self.save(&engine.store)?;
                if self.checkpoint_seconds > 0.0 {
                    cost = writing.elapsed().as_secs_f32() / CHECKPOINT_SHARE;
                }
                saved = Instant::now();
            }
            if let Some(stop) = stop {
                return Err(stopped(stop, &format!("after step {} of {last} of {}", step + 1, stage.name)));
            }
        }
        engine.pull()
    }
}

impl Session<'_> {
    /// Stops the run if the observer asks for it. Called in places without a checkpoint of their own, where of several
    /// ranks only rank 0 works.
    ///
    /// Errors: [`Error::Stopped`], which names `place`.
    pub fn stop_if_asked(&self, place: &str) -> Result<()> {
        self.observer.should_stop().map_or(Ok(()), |stop| Err(stopped(stop, place)))
    }

    /// Seconds of the whole run so far. Of an earlier call of the program, the time up to its last checkpoint
    /// counts: what came after it is done again.
    pub fn seconds(&self) -> f64 {
        self.earlier + self.began.elapsed().as_secs_f64()
    }

    /// Ends the run: both checkpoints are replaced by ones that list every stage as finished and hold no
    /// tensors.
    pub fn finish(&mut self) -> Result<()> {
        // Once for each of the two that are kept.
        (0..2).try_for_each(|_| self.write(&Store::default()))
    }

    /// Writes a checkpoint, once it is certain that all ranks have the same state.
    fn save(&mut self, store: &Store<f32>) -> Result<()> {
        expect_one_state(store)?;
        self.write(store)
    }

    fn write(&mut self, store: &Store<f32>) -> Result<()> {
        if !collective::leads() {
            return Ok(());
        }
        self.observer.store()?;
        self.progress.total = self.seconds();
        checkpoint::save(&self.out, &self.progress, store)
    }
}

/// A stop that any rank was asked for, and whether rank 0, whose clock counts, wants a checkpoint.
fn agreed(stop: Option<Stop>, is_due: bool) -> (Option<Stop>, bool) {
    let Some(ranks) = collective::current() else { return (stop, is_due) };
    let codes = ranks.numbers(u64::from(stop.map_or(0, |s| s.exit_code)) << 1 | u64::from(is_due));
    let of_another = codes.iter().map(|code| (code >> 1) as u8).find(|code| *code > 0);
    let of_another = of_another.map(|exit_code| Stop { why: "a signal to another rank", exit_code });
    (stop.or(of_another), codes[0] & 1 == 1)
}

/// Errors: ranks whose tensors have come apart.
fn expect_one_state(store: &Store<f32>) -> Result<()> {
    let Some(ranks) = collective::current() else { return Ok(()) };
    let hashes = ranks.numbers(checkpoint::hash(store));
    match hashes.iter().position(|h| *h != hashes[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::Run(format!(
            "rank {rank} has other weights than rank 0, although both compute the same; do all ranks run the same program on \
             the same kind of processor?"
        ))),
    }
}

fn stopped(stop: Stop, place: &str) -> Error {
    let Stop { why, exit_code } = stop;
    Error::Stopped {
        exit_code,
        message: format!("{why}: stopped {place}; the same command with --resume goes on from there"),
    }
}

fn expect_finite(store: &Store<f32>, stage: &str, after: &str) -> Result<()> {
    match checkpoint::not_finite(store) {
        None => Ok(()),
        Some(name) => Err(Error::Diverged(format!(
            "{stage}: {name} is not finite after {after}: training diverged; lower the learning rate of \
             this stage"
        ))),
    }
}
