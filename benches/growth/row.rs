//! A row: the number of everything that a step can grow by, and the step itself.

use crate::common::{demo_network, write_teacher};
use dfka_engine::autograd::Engine;
use dfka_engine::config::{self, Override};
use dfka_engine::error::{Error, Result};
use dfka_engine::pipeline::stage::Stage;
use dfka_engine::pipeline::stage_one::StageOne;
use dfka_engine::pipeline::stage_two::StageTwo;
use dfka_engine::pipeline::tasks::tasks;
use dfka_engine::pipeline::teachers::Teachers;
use std::path::{Path, PathBuf};

/// The block of the dual step. Its second input (eq. 16) is a feature of the generator's if that has two groups, so that
/// the step has every part.
const BLOCK: usize = 3;

/// The step that is timed.
#[derive(Clone, Copy, PartialEq)]
pub enum Step {
    Generator,
    Dual,
}

impl Step {
    pub const ALL: [Step; 2] = [Step::Generator, Step::Dual];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Step::Generator => "generator",
            Step::Dual => "dual block 3",
        }
    }
}

/// What a step can grow by.
#[derive(Clone, Copy, PartialEq)]
pub enum Vary {
    Batch,
    Teachers,
    Groups,
    Side,
    Threads,
}

impl Vary {
    pub const ALL: [Vary; 5] = [Vary::Batch, Vary::Teachers, Vary::Groups, Vary::Side, Vary::Threads];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Vary::Batch => "batch",
            Vary::Teachers => "teachers",
            Vary::Groups => "groups",
            Vary::Side => "side",
            Vary::Threads => "threads",
        }
    }

    /// Its values, of which [`Row::BASE`] has one.
    pub fn values(self) -> &'static [usize] {
        match self {
            Vary::Batch => &[16, 32, 64, 128],
            Vary::Teachers => &[1, 2, 4, 8],
            Vary::Groups => &[1, 2, 4],
            Vary::Side => &[16, 32, 64],
            Vary::Threads => &[1, 2],
        }
    }

    /// The time of a step that grows linearly, up to a factor: a side counts by its pixels, and threads share the work.
    pub fn linear(self, value: usize) -> f64 {
        let value = value as f64;
        match self {
            Vary::Batch | Vary::Teachers | Vary::Groups => value,
            Vary::Side => value * value,
            Vary::Threads => 1.0 / value,
        }
    }

    /// Its number in [`Row::BASE`].
    pub fn base(self) -> usize {
        Row::BASE[self as usize]
    }
}

/// A number of everything that a step can grow by, in the order of [`Vary::ALL`].
#[derive(Clone, Copy)]
pub struct Row([usize; 5]);

impl Row {
    /// Those of benches/step.toml, with the threads of the machine that the repository's figures come from.
    pub const BASE: [usize; 5] = [64, 2, 2, 32, 2];

    /// The base with another number of one thing.
    pub fn with(vary: Vary, value: usize) -> Row {
        let mut numbers = Row::BASE;
        numbers[vary as usize] = value;
        Row(numbers)
    }

    /// Its number of this.
    pub fn number(&self, of: Vary) -> usize {
        self.0[of as usize]
    }

    /// Settings of the config that make it this row's, with teachers from `folder`.
    pub fn sets(&self, folder: &Path) -> Vec<String> {
        let teacher = |m| {
            let file = teacher_file(folder, m, self.number(Vary::Side));
            format!("{{name=\"T{m}\",weights=\"{}\"}}", file.display())
        };
        let teachers: Vec<String> = (0..self.number(Vary::Teachers)).map(teacher).collect();
        let batch = self.number(Vary::Batch);
        vec![
            format!("teachers=[{}]", teachers.join(",")),
            format!("generator.groups={}", self.number(Vary::Groups)),
            format!("generator.batch={batch}"),
            format!("dual.batch={batch}"),
        ]
    }

    /// A step, as a run would record it.
    pub fn build(&self, step: Step, folder: &Path, engine: &mut Engine<f32>) -> Result<Stage> {
        let sets = self.sets(folder).iter().map(|s| Override::set(s)).collect::<Result<Vec<_>>>()?;
        let spec = config::load_run(&config_file(), &sets)?.spec;
        let teachers = Teachers::load(&mut engine.store, &spec.teachers)?;
        let one = StageOne::new(&mut engine.store, &spec, &teachers);
        if step == Step::Generator {
            return one.stage(engine, &spec, &teachers);
        }
        let tasks = tasks(&teachers, &spec.student)?;
        let two = StageTwo::new(&mut engine.store, &spec, &teachers, tasks, Some(&one))?;
        // Any images but black ones, which would leave rectifiers idle.
        let bank = engine.store.get_mut(one.bank);
        bank.iter_mut().enumerate().for_each(|(i, v)| *v = (i as f32 * 0.37).sin());
        two.stage(engine, "block", &spec, &teachers, Some(&one), BLOCK)
    }
}

/// The config that rows change.
pub fn config_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/step.toml")
}

fn teacher_file(folder: &Path, index: usize, side: usize) -> PathBuf {
    folder.join(format!("T{index}-{side}.npz"))
}

/// Writes the teachers of every row: the demo's network with random weights, ten labels each.
pub fn write_teachers(folder: &Path) -> Result<()> {
    let values = |vary: Vary| vary.values().iter().copied();
    for side in values(Vary::Side) {
        let mut network = demo_network();
        network.image = [side, side, network.image[2]];
        let most = if side == Vary::Side.base() { values(Vary::Teachers).max() } else { None };
        for m in 0..most.unwrap_or(Vary::Teachers.base()) {
            write_teacher(&teacher_file(folder, m, side), &format!("T{m}."), m as u64, &network)?;
        }
    }
    Ok(())
}

/// A value out of those that a name stands for in the command line or the table.
pub fn named<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str, text: &str) -> Result<T> {
    let found = all.iter().copied().find(|t| name(*t) == text);
    found.ok_or_else(|| {
        Error::Usage(format!(
            "{text}: expected one of {:?}",
            all.iter().map(|t| name(*t)).collect::<Vec<_>>()
        ))
    })
}
