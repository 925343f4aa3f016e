//! `eval`: average precision of a weights file on labelled images.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::args::DeviceArgs;
use super::commands::Commands;
use super::output::pretty;
use crate::error::{Error, Result};
use crate::pipeline::Device;
use crate::pipeline::spec::EvaluationData;
use crate::report;

#[derive(Args)]
pub struct EvalArgs {
    /// Weights that carry their architecture and labels: npz, safetensors, or an ONNX file of ours
    weights: PathBuf,
    /// An npz of images and targets; a year of PASCAL VOC, perhaps with the name of its list (VOCdevkit/VOC2007:test); or
    /// MS-COCO's instances JSON
    data: PathBuf,
    /// The folder of MS-COCO's images
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn eval(args: &EvalArgs, commands: &Commands) -> Result<String> {
    let data = data_at(&args.data, args.images.as_deref())?;
    let (choice, _) = args.device.device.open()?;
    let device = Device { choice, ..Device::default() };
    let score = (commands.evaluate)(&args.weights, &data, &device)?;
    if args.json {
        return pretty(&json!(score));
    }
    Ok(report::score_table(&args.weights.display().to_string(), &score))
}

/// What the argument names: a JSON file is COCO's, a folder is VOC's, and anything else an npz.
fn data_at(data: &Path, images: Option<&Path>) -> Result<EvaluationData> {
    let is_json = data.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    match (is_json, images) {
        (true, Some(images)) => {
            return Ok(EvaluationData::Coco { images: images.into(), annotations: data.into() });
        }
        (true, None) => {
            return Err(Error::Usage(format!(
                "{}: COCO's annotations name files only; --images says in which folder they are",
                data.display()
            )));
        }
        (false, Some(_)) => {
            return Err(Error::Usage(format!(
                "--images goes with COCO's annotations; {} is no .json file",
                data.display()
            )));
        }
        (false, None) => {}
    }
    let voc = |folder: &Path, split: &str| EvaluationData::Voc { folder: folder.into(), split: split.into() };
    if data.is_dir() {
        // What the field's tables are computed on.
        return Ok(voc(data, "test"));
    }
    let named = data.to_str().and_then(|text| text.rsplit_once(':'));
    match named.filter(|(folder, _)| Path::new(folder).is_dir()) {
        Some((folder, split)) if !split.is_empty() && !split.contains(['/', '\\']) => {
            Ok(voc(Path::new(folder), split))
        }
        Some(_) | None => Ok(EvaluationData::Npz(data.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_says_what_kind_of_data_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let voc = |split: &str| EvaluationData::Voc { folder: folder.into(), split: split.into() };
        assert_eq!(data_at(folder, None).unwrap(), voc("test"));
        let with_list = PathBuf::from(format!("{}:trainval", folder.display()));
        assert_eq!(data_at(&with_list, None).unwrap(), voc("trainval"));
        let npz = Path::new("C:a.npz");
        assert_eq!(data_at(npz, None).unwrap(), EvaluationData::Npz(npz.into()));
        let json = Path::new("instances.JSON");
        let coco = EvaluationData::Coco { images: folder.into(), annotations: json.into() };
        assert_eq!(data_at(json, Some(folder)).unwrap(), coco);
        for (data, images, expected) in
            [(json, None, "--images says in which"), (npz, Some(folder), "goes with COCO's annotations")]
        {
            let e = data_at(data, images).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains(expected), "{e}");
        }
    }
}
