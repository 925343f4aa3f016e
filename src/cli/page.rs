//! `report`: writes a run's page again from its folder.

use std::path::PathBuf;

use clap::Args;

use crate::error::{Error, Result};
use crate::report::{self, RunFolder};

#[derive(Args)]
pub struct PageArgs {
    /// Output folder of a run that has finished, failed or is still running
    folder: PathBuf,
}

/// Writes the page; returns its path and the damaged files that it leaves out.
pub fn rebuild(args: &PageArgs) -> Result<String> {
    if args.folder.exists() && !args.folder.is_dir() {
        let message = format!("{}: expected the folder of a run, found a file", args.folder.display());
        return Err(Error::Usage(message));
    }
    let RunFolder { is_finished, damaged, .. } = report::rebuild(&args.folder)?;
    let page = args.folder.join(report::HTML);
    let mut text = format!("{}", page.display());
    if !is_finished {
        text += ", of an unfinished run";
    }
    text += "\n";
    damaged.iter().for_each(|d| text += &format!("left out: {d}\n"));
    Ok(text)
}
