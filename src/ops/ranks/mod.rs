//! Ops that exchange values between the processes of a run (device/collective). All ranks record them in the same order.
//! A single rank has nobody to exchange with, and computes the same.
//!
//! Those of a divided batch run on the CPU: their launches are an error.

pub mod all_rows;
pub mod gather_columns;
pub mod own_rows;
pub mod spread;

use crate::error::{Error, Result};

/// Errors: always.
fn no_launch(op: &str) -> Result<()> {
    Err(Error::NoDevice(format!("{op}: several ranks divide a batch on the CPU only; add --device cpu")))
}
