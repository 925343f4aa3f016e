//! The `[evaluation]` table: labelled images of one of three kinds.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::keys::value_or;
use super::source::Source;
use crate::error::Result;
use crate::pipeline::spec::EvaluationData;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEvaluation {
    data: Option<String>,
    voc: Option<RawVoc>,
    coco: Option<RawCoco>,
    csv: Option<RawCsv>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawVoc {
    root: String,
    year: Option<i64>,
    split: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawCoco {
    images: String,
    annotations: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawCsv {
    folder: String,
    labels: Option<String>,
}

/// A folder of images and the table of their labels, by default `labels.csv` in that folder. A name without a
/// folder means a file in the folder of the images.
pub(super) fn csv_files(
    source: &Source,
    path: &str,
    folder: &mut String,
    labels: &mut Option<String>,
) -> Result<(PathBuf, PathBuf)> {
    let images = source.file(&format!("{path}.folder"), folder)?;
    let labels = labels.get_or_insert("labels.csv".into());
    let mut table = labels.clone();
    let given = source.file(&format!("{path}.labels"), &mut table)?;
    // The printed config must mean the same file.
    let table = if labels.contains(['/', '\\']) { given } else { images.join(&*labels) };
    *labels = table.to_string_lossy().into_owned();
    Ok((images, table))
}

/// The folder of one year of PASCAL VOC, by default the paper's 2007.
///
/// Errors: a year outside 2007 to 2012, a `split` that cannot be the name of a list in that folder.
pub(super) fn voc_folder(
    source: &Source,
    path: &str,
    root: &mut String,
    year: &mut Option<i64>,
    split: &str,
) -> Result<PathBuf> {
    let year = source.count(&format!("{path}.year"), value_or(year, 2007), 2007..=2012)?;
    if split.is_empty() || split.contains(['/', '\\']) {
        let path = format!("{path}.split");
        let message = format!("`{path}` is {split:?}; expected the name of a list such as \"test\"");
        return Err(source.fail(&path, message));
    }
    Ok(source.file(&format!("{path}.root"), root)?.join(format!("VOC{year}")))
}

impl RawEvaluation {
    pub fn build(&mut self, source: &Source) -> Result<EvaluationData> {
        match (&mut self.data, &mut self.voc, &mut self.coco, &mut self.csv) {
            (Some(file), None, None, None) => Ok(EvaluationData::Npz(source.file("evaluation.data", file)?)),
            (None, Some(v), None, None) => {
                let split = value_or(&mut v.split, "test".into());
                let folder = voc_folder(source, "evaluation.voc", &mut v.root, &mut v.year, &split)?;
                Ok(EvaluationData::Voc { folder, split })
            }
            (None, None, None, Some(c)) => {
                let (folder, table) = csv_files(source, "evaluation.csv", &mut c.folder, &mut c.labels)?;
                Ok(EvaluationData::Csv { folder, table })
            }
            (None, None, Some(c), None) => Ok(EvaluationData::Coco {
                images: source.file("evaluation.coco.images", &mut c.images)?,
                annotations: source.file("evaluation.coco.annotations", &mut c.annotations)?,
            }),
            _ => {
                let message = "`evaluation` takes one of `data = \"FILE.npz\"`, [evaluation.voc], [evaluation.coco] and \
                               [evaluation.csv]";
                Err(source.fail("evaluation", message))
            }
        }
    }
}
