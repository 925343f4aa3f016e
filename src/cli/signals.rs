//! Signals that ask a run to stop: it does so with a checkpoint. A second one ends the process at once, as a kill would;
//! files are whole even then.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use crate::error::{Error, Result};
use crate::pipeline::observer::Stop;

/// A lost terminal (SIGHUP) is a request like the others.
const REQUESTS: [(i32, &str); 3] = [(SIGINT, "SIGINT"), (SIGTERM, "SIGTERM"), (SIGHUP, "SIGHUP")];

/// What has been asked of this process since it began to listen.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    last: Arc<AtomicUsize>,
}

impl Signals {
    /// Listens from the first call on, for as long as the process lives.
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
        let (ignored, asked) = (ignored(), Arc::new(AtomicBool::new(false)));
        for (signal, _) in REQUESTS.into_iter().filter(|(signal, _)| ignored >> (signal - 1) & 1 == 0) {
            // In this order: the first one is not yet asked of when it comes.
            flag::register_conditional_shutdown(signal, 128 + signal, asked.clone())?;
            flag::register(signal, asked.clone())?;
            flag::register_usize(signal, self.last.clone(), signal as usize)?;
        }
        // A file that outgrows `ulimit -f` is then a failed write that names it, not a death.
        flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        Ok(())
    }

    pub fn stop(&self) -> Option<Stop> {
        let last = self.last.load(Ordering::SeqCst);
        let (signal, why) = REQUESTS.into_iter().find(|(signal, _)| *signal as usize == last)?;
        Some(Stop { why, exit_code: 128 + signal as u8 })
    }
}

/// Signals that whoever started the process had it ignore, a bit each: `nohup` does so with SIGHUP, a shell script with
/// SIGINT of what it puts in the background. They stay ignored. Only Linux tells.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0)
}
