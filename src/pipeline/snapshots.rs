//! Pictures of the generator: its images of one z during training. Nothing here changes a tensor of the run.

use super::observer::Observer;
use super::seed::stage_seed;
use super::spec::RunSpec;
use super::stage_one::StageOne;
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Engine, Plan, Tape};
use crate::device::StepState;
use crate::error::Result;
use crate::models::Recorder;
use crate::report::{SAMPLES, STRIP_IMAGES, samples_at, small_grid_png};
use crate::weights::write_atomic;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// When pictures are taken, in percent of stage one's steps. The images change most at first.
const PERCENT: [usize; 5] = [0, 10, 30, 60, 100];

/// Most images in the last picture.
pub(super) const MOST_IMAGES: usize = 64;

/// Takes pictures of the generator during stage one, always from the same z.
pub struct Snapshots {
    plan: Plan<f32>,
    image: Value,
    /// `[n, h, w, c]`.
    shape: [usize; 4],
    seed: u64,
    /// Numbers of steps after which a picture is taken, ascending.
    due: Vec<u64>,
}

/// Images that are generated at once. Not many more than in a training step, so that a picture never needs
/// more memory than training has.
pub(super) fn images_at_once(spec: &RunSpec) -> usize {
    spec.generator.batch.clamp(STRIP_IMAGES, MOST_IMAGES)
}

impl Snapshots {
    /// Records and compiles the forward pass of the generator.
    pub fn new(one: &StageOne, engine: &Engine<f32>, spec: &RunSpec) -> Result<Snapshots> {
        let mut tape = Tape::default();
        let mut r = Recorder { tape: &mut tape, store: &engine.store };
        let (levels, _) = one.record_images(&mut r, images_at_once(spec), Learn::Frozen)?;
        let image = levels[levels.len() - 1];
        tape.output(image);
        let plan = Plan::compile(&tape, &engine.store, None, &[])?;
        let mut due: Vec<u64> = PERCENT.iter().map(|p| (spec.generator.steps * p / 100) as u64).collect();
        due.dedup();
        let (shape, seed) = (tape.shape(image).0, stage_seed(spec.seed, "samples"));
        Ok(Snapshots { plan, image, shape, seed, due })
    }

    /// Reserves memory. Called before training, so that no buffer moves during it.
    ///
    /// Errors: a device without that much memory.
    pub fn reserve(&self, engine: &mut Engine<f32>) -> Result<()> {
        self.plan.reserve(engine)
    }

    /// Whether a picture is due after the steps `steps`. On a GPU this is asked after every 16th step only.
    pub fn is_due(&self, steps: Range<u64>) -> bool {
        self.due.iter().any(|d| steps.start < *d && *d <= steps.end)
    }

    /// Writes a picture of the generator after `done` steps; the last picture comes with a second one of all
    /// images.
    ///
    /// Errors: a file that cannot be written.
    pub fn take(
        &mut self,
        engine: &mut Engine<f32>,
        out: &Path,
        done: u64,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        self.plan.replay(engine, &StepState { seed: self.seed, ..Default::default() })?;
        let images = self.plan.output(engine, self.image)?;
        let [n, h, w, c] = self.shape;
        let strip = small_grid_png(&images[..STRIP_IMAGES * h * w * c], [STRIP_IMAGES, h, w, c])?;
        write_atomic(out.join(samples_at(done)), |file| file.write_all(&strip))?;
        observer.picture(done as usize, &strip);
        if self.due.last().is_some_and(|last| done >= *last) {
            let grid = small_grid_png(&images, [n, h, w, c])?;
            write_atomic(out.join(SAMPLES), |file| file.write_all(&grid))?;
        }
        Ok(())
    }
}
