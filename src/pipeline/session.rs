//! One run's progress through its stages: the training loop, the alarms, and the checkpoints.

use super::checkpoint::{self, Found, Outcome, Progress, Tail};
use super::observer::{Observer, Stop};
use super::schedule::Schedule;
use super::snapshots::Snapshots;
use crate::autograd::{Engine, Plan, Store};
use crate::device::StepState;
use crate::device::cpu::par::on_a_worker;
use crate::device::gpu::nvtx;
use crate::device::memory;
use crate::device::philox::derive_seed;
use crate::error::{Error, Result};
use crate::tensor::Elem;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Seconds between checkpoints unless asked otherwise: writing one costs about a tenth of a second at demo scale.
pub const CHECKPOINT_SECONDS: f32 = 20.0;

/// A checkpoint's share of the time, at most: at 224 px it is gigabytes and takes many seconds (ours).
const CHECKPOINT_SHARE: f32 = 0.05;

/// Steps that a GPU runs between two looks at their losses: a look waits for the device, and an alarm may come as much
/// later (ours).
const READ_EVERY: usize = 16;

/// A stage's step, ready to be repeated.
pub struct Stage {
    pub name: String,
    pub plan: Plan<f32>,
    pub steps: usize,
    pub schedule: Schedule,
    /// Peak rate of each optimiser.
    pub learning_rates: [f32; 4],
    /// Independent of what other stages draw.
    pub seed: u64,
    /// Images of a step, and the config's key for them.
    pub batch: (usize, &'static str),
}

/// Writes the data of a step into the store before it runs.
pub type Feed = Box<dyn FnMut(u64, &mut Store<f32>) -> Result<()> + Send>;

impl Stage {
    /// Makes room for the step.
    ///
    /// Errors: a device without that much memory; says what is needed and the batch that would fit.
    pub(super) fn reserve(&self, engine: &mut Engine<f32>) -> Result<()> {
        self.plan.reserve(engine).map_err(|e| {
            let Error::OutOfMemory(message) = &e else { return e };
            let (needed, (batch, key)) = (self.plan.cost().arena_bytes, self.batch);
            // What stays whatever the batch: the store, and bf16 copies of at most all of it.
            let (stays, room) = match engine.machine() {
                Some(machine) => {
                    let copies = if machine.target.map_dtype == Elem::Bf16 { engine.store.bytes() / 2 } else { 0 };
                    let stays = engine.store.bytes() + copies;
                    let free = machine.gpu.memory().map_or(0, |(free, _)| free) + machine.held_bytes();
                    (stays, free.saturating_sub(stays))
                }
                // A CPU's store is there already.
                None => (engine.store.bytes(), memory::available().unwrap_or(0)),
            };
            // The step's memory grows with the batch.
            let fits = (batch as f64 * room as f64 / needed.max(1) as f64 * 0.98) as usize;
            let way_out = if fits > 0 {
                format!("a batch of about {fits} would fit: --set {key}={fits}")
            } else {
                "not even a batch of 1 would fit".into()
            };
            let mb = |bytes: usize| bytes as f64 / 1e6;
            Error::OutOfMemory(format!(
                "{}: {message}; a step of {batch} images needs {:.0} MB beside {:.0} MB of weights, moments and images; \
                 {way_out}",
                self.name,
                mb(needed),
                mb(stays)
            ))
        })
    }
}

pub struct Session<'o> {
    out: PathBuf,
    observer: &'o mut dyn Observer,
    progress: Progress,
    /// Least time between two checkpoints.
    checkpoint_seconds: f32,
    /// Whose stages are being trained.
    student: String,
    /// Resuming: this checkpoint's tensors go back into the first stage that is not done, if they are its student's.
    pending_restore: Option<PathBuf>,
    /// What is to be looked at during the next stage.
    snapshots: Option<Snapshots>,
}

impl<'o> Session<'o> {
    /// Starts afresh, or where the checkpoint in `out` left off.
    pub fn open(
        out: &Path,
        resume: bool,
        fingerprint: String,
        checkpoint_seconds: f32,
        observer: &'o mut dyn Observer,
    ) -> Result<Session<'o>> {
        let mut session = Session {
            out: out.into(),
            observer,
            progress: Progress { fingerprint, ..Default::default() },
            checkpoint_seconds,
            student: String::new(),
            pending_restore: None,
            snapshots: None,
        };
        if !resume {
            return Ok(session);
        }
        if let Some(Found { file, progress, fell_back }) = checkpoint::find(out)? {
            if progress.fingerprint != session.progress.fingerprint {
                return Err(Error::Usage(format!(
                    "{} is of another configuration, seed, or contents of the files it names; start afresh with \
                     --force, or resume with the same ones",
                    file.display()
                )));
            }
            let newest = out.join(checkpoint::FILE);
            if let Some(why) = fell_back {
                session.note(&format!("{why}; going on from {}", file.display()));
            }
            // The next checkpoint is to push aside this one, not a damaged one.
            if file != newest {
                std::fs::rename(&file, &newest).map_err(|e| Error::io("rename", &file, e))?;
            }
            (session.progress, session.pending_restore) = (progress, Some(newest));
        }
        let Session { observer, progress, .. } = &mut session;
        observer.resumed(&|stage, step| progress.covers(stage, step))?;
        Ok(session)
    }

    /// Turns to another student, whose tensors are its own: a checkpoint holds those of one.
    pub fn turn_to(&mut self, student: &str) {
        self.student = student.into();
    }

    /// Takes pictures while the next stage trains.
    pub fn watch(&mut self, snapshots: Snapshots) {
        self.snapshots = Some(snapshots);
    }

    pub fn out(&self) -> &Path {
        &self.out
    }
    pub fn note(&mut self, line: &str) {
        self.observer.note(line);
    }
    pub fn done(&self, stage: &str) -> Option<&Outcome> {
        self.progress.done.get(stage)
    }
    pub fn outcomes(&self) -> impl Iterator<Item = (&String, &Outcome)> {
        self.progress.done.iter()
    }

    /// The step that a stage begins with: where the checkpoint left it.
    pub fn first_step(&self, stage: &str) -> u64 {
        if self.progress.stage == stage { self.progress.step } else { 0 }
    }

    /// Trains a stage to its end, unless the checkpoint says that it is done. `finish` then stores what the stage
    /// produced, before the stage counts as done.
    pub fn train(
        &mut self,
        engine: &mut Engine<f32>,
        stage: Stage,
        finish: impl FnOnce(&mut Engine<f32>, &Outcome) -> Result<()>,
    ) -> Result<Outcome> {
        self.train_on(engine, stage, None, finish)
    }

    /// The same, each step on what `feed` writes for it.
    pub fn train_on(
        &mut self,
        engine: &mut Engine<f32>,
        mut stage: Stage,
        mut feed: Option<Feed>,
        finish: impl FnOnce(&mut Engine<f32>, &Outcome) -> Result<()>,
    ) -> Result<Outcome> {
        let mut snapshots = self.snapshots.take();
        if let Some(done) = self.done(&stage.name) {
            return Ok(done.clone());
        }
        self.stop_if_asked(&format!("before {}", stage.name))?;
        stage.reserve(engine)?;
        snapshots.iter().try_for_each(|s| s.reserve(engine))?;
        if let Some(file) = self.pending_restore.take()
            && self.progress.student == self.student
        {
            checkpoint::restore(&file, &mut engine.store)?;
        }
        if self.progress.stage != stage.name {
            let (fingerprint, done) =
                (self.progress.fingerprint.clone(), std::mem::take(&mut self.progress.done));
            let (stage, student) = (stage.name.clone(), self.student.clone());
            self.progress = Progress { fingerprint, done, student, stage, ..Default::default() };
        }
        let names: Vec<String> = stage.plan.metric_names().to_vec();
        self.progress.tail.sums.resize(names.len(), 0.0);
        let (began, spent) = (Instant::now(), self.progress.seconds);
        self.observer.stage(&stage.name, stage.steps);
        // All of it on a worker, so that replays allocate nothing.
        on_a_worker(|| self.repeat(engine, &mut stage, feed.as_mut(), &mut snapshots))?;
        // The last update has no loss after it that would tell.
        expect_finite(&engine.store, &stage.name, "the last step")?;
        let tail = &self.progress.tail;
        let converged =
            names.into_iter().zip(&tail.sums).map(|(n, s)| (n, s / tail.count.max(1) as f64)).collect();
        let outcome = Outcome { seconds: spent + began.elapsed().as_secs_f64(), converged };
        finish(engine, &outcome)?;
        engine.pull()?; // it may have run a step of its own
        self.progress.done.insert(stage.name.clone(), outcome.clone());
        self.progress.stage.clear();
        self.progress.step = 0;
        self.progress.seconds = 0.0;
        self.progress.tail = Tail::default();
        self.save(&engine.store)?;
        Ok(outcome)
    }

    /// Replays a stage's step from where the progress stands to the end.
    fn repeat(
        &mut self,
        engine: &mut Engine<f32>,
        stage: &mut Stage,
        mut feed: Option<&mut Feed>,
        snapshots: &mut Option<Snapshots>,
    ) -> Result<()> {
        // Ranges nest on one thread: the steps' are this worker's.
        let _range = nvtx::range(&stage.name);
        let (began, spent) = (Instant::now(), self.progress.seconds);
        let (mut saved, mut cost) = (began, 0.0);
        let (last, tail_from) = (stage.steps as u64, (stage.steps - stage.steps.div_ceil(10)) as u64);
        let most_pending = stage.plan.most_pending().min(READ_EVERY) as u64;
        if let (Some(s), 0) = (&mut *snapshots, self.progress.step) {
            s.take(engine, &self.out, 0, self.observer)?;
        }
        for step in self.progress.step..last {
            let lr = stage.learning_rates.map(|peak| stage.schedule.at(peak, step, stage.steps));
            if let Some(feed) = &mut feed {
                feed(step, &mut engine.store)?;
            }
            stage.plan.replay(engine, &StepState { seed: stage.seed, step, lr })?;
            let stop = self.observer.should_stop();
            if (step + 1) % most_pending != 0 && step + 1 != last && stop.is_none() {
                continue;
            }
            stage.plan.collect(engine)?;
            let Stage { name, plan, .. } = stage;
            let names = plan.metric_names();
            for (step, row) in plan.rows() {
                if let Some(i) = row.iter().position(|v| !v.is_finite()) {
                    return Err(Error::Diverged(format!(
                        "{name}: {} is {} at step {step}: training diverged; lower the learning rate of this stage",
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
            // Before the checkpoint that a resumed run would begin from.
            if let Some(s) = snapshots
                && s.is_due(self.progress.step..step + 1)
            {
                s.take(engine, &self.out, step + 1, self.observer)?;
            }
            self.progress.step = step + 1;
            let since = saved.elapsed().as_secs_f32();
            if stop.is_some() || since >= self.checkpoint_seconds.max(cost) {
                let writing = Instant::now();
                self.progress.seconds = spent + began.elapsed().as_secs_f64();
                engine.pull()?;
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
    /// Stops where somebody asked for it: between stages, and between whatever is not worth a checkpoint.
    pub fn stop_if_asked(&self, place: &str) -> Result<()> {
        self.observer.should_stop().map_or(Ok(()), |stop| Err(stopped(stop, place)))
    }

    /// The run is over: what remains of the checkpoints says that every stage is done, without their tensors.
    pub fn finish(&mut self) -> Result<()> {
        // Once for each of the two that are kept.
        (0..2).try_for_each(|_| self.save(&Store::default()))
    }

    fn save(&mut self, store: &Store<f32>) -> Result<()> {
        self.observer.store()?;
        checkpoint::save(&self.out, &self.progress, store)
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
            "{stage}: {name} is not finite after {after}: training diverged; lower the learning rate of this stage"
        ))),
    }
}

/// The key of a stage's random draws.
pub fn stage_seed(seed: u64, stage: &str) -> u64 {
    stage.bytes().fold(derive_seed(seed, 1), |s, b| derive_seed(s, u64::from(b)))
}
