//! `report`: writes a run's page again from its folder.

use std::path::PathBuf;

use clap::Args;

use crate::error::Result;
use crate::report::{self, RunFolder};

#[derive(Args)]
pub struct PageArgs {
    /// The output folder of a run: finished, failed or still going on
    folder: PathBuf,
}

/// Writes the page; says where it is and what it could not show.
pub fn rebuild(args: &PageArgs) -> Result<String> {
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
