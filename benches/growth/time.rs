//! Times of a step. Each value has a process of its own, because the pool of threads is made once in a process. They
//! take turns, so that a machine whose clock changes slows all of them alike.

use crate::row::{Row, Step, Vary, named};
use dfka_engine::autograd::Engine;
use dfka_engine::device::StepState;
use dfka_engine::error::{Error, Result};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

/// Steps before those that are timed: the first one grows the workers' buffers.
const WARM_UPS: u64 = 3;

/// The times of one value, in milliseconds.
pub struct Times {
    pub value: usize,
    pub median: f64,
    pub least: f64,
    /// Its time over that of the base.
    pub to_base: f64,
    /// Its time over that of the value before, over what that would be if time grew linearly; none for the first value.
    pub over_linear: Option<f64>,
}

/// Times a step with every value of `vary`, in `rounds` turns of `seconds` each. Ratios of times are medians of the
/// rounds' ratios.
pub fn measure(step: Step, vary: Vary, folder: &Path, rounds: usize, seconds: f64) -> Result<Vec<Times>> {
    let values = vary.values();
    let mut workers =
        values.iter().map(|v| Worker::start(step, vary, *v, folder)).collect::<Result<Vec<_>>>()?;
    workers.iter_mut().try_for_each(|w| w.answer().map(|_| ()))?;
    let mut all: Vec<Vec<f64>> = vec![Vec::new(); values.len()];
    // By value: the median of each round.
    let mut medians: Vec<Vec<f64>> = all.clone();
    for round in 0..rounds {
        // Forth and back, so that no value always follows the same other one.
        let order: Vec<usize> =
            if round % 2 == 0 { (0..values.len()).collect() } else { (0..values.len()).rev().collect() };
        for i in order {
            let mut times = workers[i].repeat(seconds)?;
            medians[i].push(median(&mut times));
            all[i].extend(times);
        }
    }
    let ratio = |i: usize, j: usize| {
        let mut ratios: Vec<f64> = medians[i].iter().zip(&medians[j]).map(|(a, b)| a / b).collect();
        median(&mut ratios)
    };
    let base = values.iter().position(|v| *v == vary.base()).unwrap_or(0);
    let of_value = |(i, value): (usize, &usize)| Times {
        value: *value,
        median: median(&mut all[i].clone()),
        least: all[i].iter().copied().fold(f64::INFINITY, f64::min),
        to_base: ratio(i, base),
        over_linear: i
            .checked_sub(1)
            .map(|before| ratio(i, before) * vary.linear(values[before]) / vary.linear(*value)),
    };
    Ok(values.iter().enumerate().map(of_value).collect())
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The process that repeats the step of one value when it is told to.
struct Worker {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Worker {
    fn start(step: Step, vary: Vary, value: usize, folder: &Path) -> Result<Worker> {
        let failed = |e: &dyn std::fmt::Display| Error::Run(format!("a worker: {e}"));
        let program = std::env::current_exe().map_err(|e| failed(&e))?;
        let mut command = Command::new(program);
        command.args(["--worker", step.name(), vary.name(), &value.to_string()]).arg(folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| failed(&e))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(&"no pipes"));
        };
        Ok(Worker { child, to, from: BufReader::new(from) })
    }

    /// The next line that the process writes.
    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(n) if n > 0 => Ok(line),
            Ok(_) | Err(_) => Err(Error::Run("a worker ended before its time".into())),
        }
    }

    /// The times of steps that are repeated for so long.
    fn repeat(&mut self, seconds: f64) -> Result<Vec<f64>> {
        writeln!(self.to, "{seconds}").map_err(|e| Error::Run(format!("a worker: {e}")))?;
        let line = self.answer()?;
        let times: Option<Vec<f64>> = line.split_whitespace().map(|t| t.parse().ok()).collect();
        times.filter(|t| !t.is_empty()).ok_or_else(|| Error::Run(format!("a worker's times: {line}")))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It only waits for the next line. If it has ended already, there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process does: it builds the step that the words name, says so, and repeats it for as many seconds as each
/// line that it reads says.
pub fn work(words: &[String]) -> Result<()> {
    let [step, vary, value, folder] = words else {
        return Err(Error::Usage("--worker: expected a step, what varies, its value and a folder".into()));
    };
    let number =
        |text: &str| text.parse::<f64>().map_err(|_| Error::Usage(format!("{text}: expected a number")));
    let row = Row::with(named(&Vary::ALL, Vary::name, vary)?, number(value)? as usize);
    rayon::ThreadPoolBuilder::new()
        .num_threads(row.number(Vary::Threads))
        .build_global()
        .map_err(|e| Error::Run(format!("threads: {e}")))?;
    let mut engine = Engine::default();
    let mut stage = row.build(named(&Step::ALL, Step::name, step)?, Path::new(folder), &mut engine)?;
    stage.plan.reserve(&mut engine)?;
    let mut done = 0;
    let mut replay = || -> Result<f64> {
        let state = StepState { seed: 1, step: done, lr: stage.learning_rates };
        let start = Instant::now();
        stage.plan.replay(&mut engine, &state)?;
        done += 1;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    for _ in 0..WARM_UPS {
        replay()?;
    }
    println!("ready");
    for line in std::io::stdin().lines() {
        let seconds = number(&line.map_err(|e| Error::Run(format!("the next line: {e}")))?)?;
        let (mut times, start) = (Vec::new(), Instant::now());
        while times.is_empty() || start.elapsed().as_secs_f64() < seconds {
            times.push(format!("{:.4}", replay()?));
        }
        println!("{}", times.join(" "));
    }
    Ok(())
}
