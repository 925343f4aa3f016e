//! Signals that stop a run. The first lets the run write a checkpoint; a second ends the process at once,
//! like a kill, which leaves no half-written results either.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use crate::error::{Error, Result};
use crate::pipeline::observer::Stop;

/// The signals that stop a run. SIGHUP comes from a lost terminal.
const STOPPING: [(i32, &str); 3] = [(SIGINT, "SIGINT"), (SIGTERM, "SIGTERM"), (SIGHUP, "SIGHUP")];

/// The last stopping signal that this process received.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    last: Arc<AtomicUsize>,
}

impl Signals {
    /// Installs the handlers at the first call, for the rest of the process; later calls return the same
    /// value.
    ///
    /// Errors: a handler cannot be installed.
    pub fn listen() -> Result<Signals> {
        static LISTENING: Mutex<Option<Signals>> = Mutex::new(None);
        let mut listening = LISTENING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signals) = &*listening {
            return Ok(signals.clone());
        }
        let signals = Signals::default();
        signals.register().map_err(|e| Error::Run(format!("cannot listen for signals: {e}")))?;
        Ok(listening.insert(signals).clone())
    }

    fn register(&self) -> std::io::Result<()> {
        let (ignored, is_stopping) = (ignored(), Arc::new(AtomicBool::new(false)));
        for (signal, _) in STOPPING.into_iter().filter(|(signal, _)| ignored >> (signal - 1) & 1 == 0) {
            // The order matters: the first signal must reach the conditional shutdown before the flag is set.
            flag::register_conditional_shutdown(signal, 128 + signal, is_stopping.clone())?;
            flag::register(signal, is_stopping.clone())?;
            flag::register_usize(signal, self.last.clone(), signal as usize)?;
        }
        Ok(())
    }

    /// The request to stop, if a signal has arrived.
    pub fn stop(&self) -> Option<Stop> {
        let last = self.last.load(Ordering::SeqCst);
        let (signal, why) = STOPPING.into_iter().find(|(signal, _)| *signal as usize == last)?;
        Some(Stop { why, exit_code: 128 + signal as u8 })
    }
}

/// Makes a write beyond `ulimit -f` fail with an error, for the rest of the process. Without a handler, the signal SIGXFSZ
/// would kill the process and leave a temporary file.
///
/// Errors: the handler cannot be installed.
pub fn survive_file_limit() -> Result<()> {
    let handled = flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
    handled.map(drop).map_err(|e| Error::Run(format!("cannot listen for SIGXFSZ: {e}")))
}

/// Signals that were ignored when the process started, as a bit mask; they stay ignored. `nohup` ignores
/// SIGHUP, and a shell script ignores SIGINT for its background commands. Only Linux reports them.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0)
}
