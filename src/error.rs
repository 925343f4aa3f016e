//! The error type of the crate. Each kind of failure has an exit code of its own, for scripts.

use std::path::{Path, PathBuf};

/// A result whose error is [`Error`] unless stated otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, with a message for a person: it names the file, line or tensor, what was expected and what was
/// found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The run itself failed: an I/O error, a worker thread that died, an internal contradiction.
    #[error("{0}")]
    Run(String),
    /// The command line names something that does not exist, or its arguments contradict each other.
    #[error("{0}")]
    Usage(String),
    /// The config is malformed. `line` is 1-based, or 0 if no single line is at fault.
    #[error("{}{}: {message}", file.display(), if *line > 0 { format!(":{line}") } else { String::new() })]
    Config { file: PathBuf, line: usize, message: String },
    /// Weights or data are missing or malformed.
    #[error("{}: {message}", file.display())]
    Data { file: PathBuf, message: String },
    /// The requested device is not available.
    #[error("{0}")]
    NoDevice(String),
    /// The plan needs more memory than there is.
    #[error("{0}")]
    OutOfMemory(String),
    /// A loss is no longer finite, or the generator has collapsed.
    #[error("{0}")]
    Diverged(String),
    /// A signal stopped the run, which can be resumed.
    #[error("{message}")]
    Stopped { exit_code: u8, message: String },
    /// An op was recorded with operands that it cannot take. The message names operand, expected and found.
    #[error("{op}: {message}")]
    Shape { op: &'static str, message: String },
}

impl Error {
    /// The exit code of the process: 1 run, 2 usage, 3 config, 4 weights or data, 5 device, 6 memory, 7
    /// diverged, or 128 plus the number of the signal that stopped the run.
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

    /// [`Error::Data`] for `file`.
    pub fn data(file: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Data { file: file.as_ref().into(), message: message.into() }
    }

    /// [`Error::Shape`] for `op`.
    pub fn shape(op: &'static str, message: impl Into<String>) -> Self {
        Error::Shape { op, message: message.into() }
    }

    /// The operating system's error `e` for `file`: "cannot `what` `file`".
    pub fn io(what: &str, file: impl AsRef<Path>, e: std::io::Error) -> Self {
        Error::Run(format!("cannot {what} {}: {e}", file.as_ref().display()))
    }
}
