//! `[evaluation]`: labelled images of any kind.

use serde::{Deserialize, Serialize};

use super::{Source, or};
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

impl RawEvaluation {
    pub fn build(&mut self, source: &Source) -> Result<EvaluationData> {
        match (&mut self.data, &mut self.voc, &mut self.coco) {
            (Some(file), None, None) => Ok(EvaluationData::Npz(source.file("evaluation.data", file)?)),
            (None, Some(v), None) => {
                // The paper's year; its published labels are the test split's.
                let year = source.count("evaluation.voc.year", or(&mut v.year, 2007), 2007..=2012)?;
                let split = or(&mut v.split, "test".into());
                if split.is_empty() || split.contains(['/', '\\']) {
                    let message = format!(
                        "`evaluation.voc.split` is {split:?}; expected the name of a list such as \"test\""
                    );
                    return Err(source.fail("evaluation.voc.split", message));
                }
                let root = source.file("evaluation.voc.root", &mut v.root)?;
                Ok(EvaluationData::Voc { folder: root.join(format!("VOC{year}")), split })
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
