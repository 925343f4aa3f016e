//! A command as one of several processes that a launcher has started.

use std::io::Write;
use std::time::Duration;

use crate::device::Choice;
use crate::device::collective::{self, Ranks, launched};
use crate::error::{Error, Result};
use crate::pipeline::observer::{Observer, Stop};
use crate::pipeline::spec::Split;

use super::signals::Signals;

/// How long a rank with an error waits for rank 0 to end for the same reason. The launcher then ends this one, and the
/// error is printed once.
const AFTER_RANK_0: Duration = Duration::from_secs(5);

/// The exit code of a process whose other ranks no longer answer.
const LOST_RANK: i32 = 8;

/// Calls `lead` in a process that is alone and in rank 0, and `follow` in every other rank, which ends with the training.
///
/// Errors: those of the function that was called.
pub fn run(lead: impl FnOnce() -> Result<String>, follow: impl FnOnce() -> Result<()>) -> Result<String> {
    let rank = launched().filter(|l| l.size > 1).map_or(0, |l| l.rank);
    let done = if rank == 0 { lead() } else { follow().map(|()| String::new()) };
    if rank > 0 && done.is_err() {
        std::thread::sleep(AFTER_RANK_0);
        // If standard error is closed, the line is lost.
        let _ = writeln!(std::io::stderr(), "rank {rank} ends, although rank 0 goes on:");
    }
    // A process that ends with an error does not wait for the others: the launcher ends them.
    done
}

/// Joins the other ranks of this launch, each on its device; see [`collective::join`].
pub fn join(choice: Choice) -> Result<Option<&'static Ranks>> {
    let card = if let Choice::Cuda(index) = choice { Some(index) } else { None };
    collective::join(card, lost)
}

/// Ends the process, because another rank is lost. The launcher then ends the others.
fn lost(why: &str) -> ! {
    let rank = launched().map_or(0, |l| l.rank);
    // If standard error is closed, the message is lost; the exit code remains.
    let _ = writeln!(
        std::io::stderr(),
        "error: rank {rank}: {why}; the same command with --resume goes on from the last checkpoint"
    );
    collective::end(LOST_RANK)
}

/// Errors: several ranks that divide the batch on another device than the CPU.
pub fn expect_split(choice: Choice, split: Split) -> Result<()> {
    match launched().filter(|l| l.size > 1) {
        Some(l) if choice != Choice::Cpu && split == Split::Batch => Err(Error::NoDevice(format!(
            "{} ranks divide the batch (parallel.split), which they can do on the CPU only so far: add --device cpu, or \
             divide the teachers",
            l.size
        ))),
        _ => Ok(()),
    }
}

/// What a rank that follows tells of its progress: nothing. It passes signals on.
pub struct Helper(pub Signals);

impl Observer for Helper {
    fn stage(&mut self, _: &str, _: usize) {}
    fn step(&mut self, _: usize, _: &mut dyn Iterator<Item = (&str, f32)>) {}
    fn note(&mut self, _: &str) {}
    fn should_stop(&self) -> Option<Stop> {
        self.0.stop()
    }
}
