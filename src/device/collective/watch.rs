//! Ends the process if the other ranks do not answer: a library waits for ever for a rank that is stopped.

use crate::error::{Error, Result};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Seconds after which a rank that waits gives up, unless `DFKA_RANK_TIMEOUT` says otherwise. Between two stages the others
/// wait while rank 0 evaluates and writes.
const PATIENCE: u64 = 600;

/// How often the time is checked.
const EVERY: Duration = Duration::from_millis(100);

/// Ends the process, for a reason, because another rank is lost.
pub type Lost = fn(&str) -> !;

/// A thread that looks how long this process has been waiting.
pub struct Watch {
    lost: Lost,
    /// Since when it waits.
    since: Arc<Mutex<Option<Instant>>>,
}

impl Watch {
    /// Starts the thread.
    ///
    /// Errors: a `DFKA_RANK_TIMEOUT` that is not a number of seconds; a thread that cannot be started.
    pub fn start(lost: Lost) -> Result<Watch> {
        let patience = match std::env::var("DFKA_RANK_TIMEOUT") {
            Err(_) => PATIENCE,
            Ok(text) => text.parse().map_err(|_| {
                Error::Usage(format!("DFKA_RANK_TIMEOUT: expected a number of seconds, found `{text}`"))
            })?,
        };
        let since = Arc::new(Mutex::new(None));
        let watch = Watch { lost, since: since.clone() };
        let patience = Duration::from_secs(patience);
        let watching = move || {
            loop {
                std::thread::sleep(EVERY);
                let began: Option<Instant> = *since.lock().unwrap_or_else(PoisonError::into_inner);
                if began.is_some_and(|b| b.elapsed() > patience) {
                    lost(&format!("no answer from the other ranks for {} s", patience.as_secs()));
                }
            }
        };
        let thread = std::thread::Builder::new().name("watch".into()).spawn(watching);
        thread.map_err(|e| Error::Run(format!("cannot start a thread that watches the other ranks: {e}")))?;
        Ok(watch)
    }

    /// Runs something that waits for other ranks. It may contain another such thing, whose time is counted alone.
    pub fn during<O>(&self, waits: impl FnOnce() -> O) -> O {
        let outer = self.replace(Some(Instant::now()));
        let out = waits();
        self.replace(outer.map(|_| Instant::now()));
        out
    }
    fn replace(&self, since: Option<Instant>) -> Option<Instant> {
        std::mem::replace(&mut *self.since.lock().unwrap_or_else(PoisonError::into_inner), since)
    }

    /// Ends this process, because a move of data has failed.
    pub fn give_up(&self, why: &str) -> ! {
        (self.lost)(why)
    }
}
