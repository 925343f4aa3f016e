//! `[evaluation]`: labelled images of any kind.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::keys::or;
use super::source::Source;
use crate::error::Result;
use crate::pipeline::spec::EvaluationData;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RawEvaluation {
    data: Option<String>,
    voc: Option<RawVoc>,
    coco: Option<RawCoco>,
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

/// The folder of a year of PASCAL VOC, the paper's 2007 unless said otherwise, whose lists one of the name `split` is.
pub(super) fn voc(
    source: &Source,
    path: &str,
    root: &mut String,
    year: &mut Option<i64>,
    split: &str,
) -> Result<PathBuf> {
    let year = source.count(&format!("{path}.year"), or(year, 2007), 2007..=2012)?;
    if split.is_empty() || split.contains(['/', '\\']) {
        let path = format!("{path}.split");
        let message = format!("`{path}` is {split:?}; expected the name of a list such as \"test\"");
        return Err(source.fail(&path, message));
    }
    Ok(source.file(&format!("{path}.root"), root)?.join(format!("VOC{year}")))
}

impl RawEvaluation {
    pub fn build(&mut self, source: &Source) -> Result<EvaluationData> {
        match (&mut self.data, &mut self.voc, &mut self.coco) {
            (Some(file), None, None) => Ok(EvaluationData::Npz(source.file("evaluation.data", file)?)),
            (None, Some(v), None) => {
                let split = or(&mut v.split, "test".into());
                let folder = voc(source, "evaluation.voc", &mut v.root, &mut v.year, &split)?;
                Ok(EvaluationData::Voc { folder, split })
            }
            (None, None, Some(c)) => Ok(EvaluationData::Coco {
                images: source.file("evaluation.coco.images", &mut c.images)?,
                annotations: source.file("evaluation.coco.annotations", &mut c.annotations)?,
            }),
            _ => {
                let message =
                    "`evaluation` takes one of `data = \"FILE.npz\"`, [evaluation.voc] and [evaluation.coco]";
                Err(source.fail("evaluation", message))
            }
        }
    }
}
