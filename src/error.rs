//! Every way a run can fail, each with the exit code a caller's script sees.

use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure that a person reads. Messages name the file, line or tensor, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The run itself failed: an I/O error, a worker that died, an internal contradiction.
    #[error("{0}")]
    Run(String),
    /// The command line asks for something that does not exist or does not fit together.
    #[error("{0}")]
    Usage(String),
    /// The configuration is malformed; `line` is 1-based, 0 when no single line is at fault.
    #[error("{}{}: {message}", file.display(), if *line > 0 { format!(":{line}") } else { String::new() })]
    Config { file: PathBuf, line: usize, message: String },
    /// Weights or data are missing or malformed.
    #[error("{}: {message}", file.display())]
    Data { file: PathBuf, message: String },
    /// The device asked for is not there.
    #[error("{0}")]
    NoDevice(String),
    /// The plan does not fit the memory at hand.
    #[error("{0}")]
    OutOfMemory(String),
    /// A loss stopped being finite, or the generator collapsed.
    #[error("{0}")]
    Diverged(String),
    /// Somebody asked the run to stop, and it can be resumed.
    #[error("{message}")]
    Stopped { exit_code: u8, message: String },
    /// An op was recorded with operands it cannot take: op, operand, expected, found.
    #[error("{op}: {message}")]
    Shape { op: &'static str, message: String },
}

impl Error {
    /// The process exit code: 1 run, 2 usage, 3 config, 4 weights or data, 5 device, 6 memory, 7 diverged;
    /// 128 and the signal's number where one stopped the run.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Run(_) | Error::Shape { .. } => 1,
            Error::Usage(_) => 2,
            Error::Config { .. } => 3,
            Error::Data { .. } => 4,
            Error::NoDevice(_) => 5,
            Error::OutOfMemory(_) => 6,
            Error::Diverged(_) => 7,
            Error::Stopped { exit_code, .. } => *exit_code,
        }
    }

    pub fn data(file: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Data { file: file.as_ref().into(), message: message.into() }
    }

    pub fn shape(op: &'static str, message: impl Into<String>) -> Self {
        Error::Shape { op, message: message.into() }
    }

    /// An operating-system failure while doing `what` to `file`.
    pub fn io(what: &str, file: impl AsRef<Path>, e: std::io::Error) -> Self {
        Error::Run(format!("cannot {what} {}: {e}", file.as_ref().display()))
    }
}
