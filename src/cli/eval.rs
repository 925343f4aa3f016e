//! `eval`: average precision of trained weights on labelled images.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::args::DeviceArgs;
use super::commands::Commands;
use super::output::{self, pretty};
use crate::config;
use crate::error::{Error, Result};
use crate::labelled::evaluate::Evaluated;
use crate::pipeline::Device;
use crate::pipeline::export::student_file;
use crate::pipeline::spec::EvaluationData;
use crate::report;

#[derive(Args)]
pub struct EvalArgs {
    /// Weights with their architecture and labels (npz, safetensors, or an ONNX file that this program wrote), or the
    /// folder of a run for its student
    model: PathBuf,
    /// An npz of images and targets; a folder of PASCAL VOC, optionally with an image list
    /// (VOCdevkit/VOC2007:test); MS-COCO's instances JSON; or a CSV of labels (file,label1,label2,...) [default: the
    /// run's own evaluation data]
    data: Option<PathBuf>,
    /// Folder of the images of MS-COCO, or of a CSV whose images do not lie in its own folder
    #[arg(long, value_name = "FOLDER", requires = "data")]
    images: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn eval(args: &EvalArgs, commands: &Commands) -> Result<String> {
    let data = match &args.data {
        Some(data) => data_at(data, args.images.as_deref())?,
        None => data_of_run(&args.model)?,
    };
    let weights = student_file(&args.model)?;
    let (choice, _) = args.device.open()?;
    let device = Device { choice, ..Device::default() };
    let Evaluated { score, notes } = (commands.evaluate)(&weights, &data, &device)?;
    output::notes(&notes);
    if args.json {
        return pretty(&json!(score));
    }
    Ok(report::score_table(&args.model.display().to_string(), &score))
}

/// The evaluation data that the config of a run names.
///
/// Errors: a path that is not the folder of a run; a config without evaluation data.
fn data_of_run(run: &Path) -> Result<EvaluationData> {
    if run.is_file() {
        return Err(Error::Usage(format!(
            "DATA: {} is a file, which names no evaluation data; expected labelled images after it, or the folder of a run \
             in its place",
            run.display()
        )));
    }
    // Before the config, so that a folder of another kind is called by its name.
    student_file(run)?;
    let resolved = run.join(report::CONFIG);
    config::load_run(&resolved, &[])?.spec.evaluation.ok_or_else(|| {
        Error::Usage(format!(
            "DATA: {} has no table [evaluation], so this run has no evaluation data; name labelled images after the \
             folder",
            resolved.display()
        ))
    })
}

/// The kind of data at a path: a JSON file is COCO, a CSV file a table of labels, a folder is VOC, anything
/// else an npz.
///
/// Errors: COCO without `--images`, or `--images` with other data.
fn data_at(data: &Path, images: Option<&Path>) -> Result<EvaluationData> {
    let name = data.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    // A compressed file is refused by the reader of annotations, which says what to do.
    let is_json = name.ends_with(".json") || name.ends_with(".json.gz");
    if name.ends_with(".csv") {
        let folder = images.or(data.parent()).map(Path::to_path_buf).unwrap_or_default();
        let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
        return Ok(EvaluationData::Csv { folder, table: data.into() });
    }
    match (is_json, images) {
        (true, Some(images)) => {
            return Ok(EvaluationData::Coco { images: images.into(), annotations: data.into() });
        }
        (true, None) => {
            return Err(Error::Usage(format!(
                "{}: COCO's annotations have file names only; name their folder with --images",
                data.display()
            )));
        }
        (false, Some(_)) => {
            return Err(Error::Usage(format!(
                "--images is only for COCO's annotations and tables of labels, and {} is neither a .json nor a .csv file",
                data.display()
            )));
        }
        (false, None) => {}
    }
    let voc = |folder: &Path, split: &str| EvaluationData::Voc { folder: folder.into(), split: split.into() };
    if data.is_dir() {
        // Published results are on the test list.
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
    fn the_kind_of_data_follows_from_the_path() {
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
        let table = |name: &str, folder: &str| {
            assert_eq!(
                data_at(Path::new(name), None).unwrap(),
                EvaluationData::Csv { folder: folder.into(), table: name.into() }
            );
        };
        table("x/labels.csv", "x");
        table("labels.CSV", ".");
        let elsewhere = data_at(Path::new("labels.csv"), Some(folder)).unwrap();
        assert_eq!(elsewhere, EvaluationData::Csv { folder: folder.into(), table: "labels.csv".into() });
        for (data, images, expected) in [
            (json, None, "name their folder with --images"),
            (npz, Some(folder), "only for COCO's annotations"),
        ] {
            let e = data_at(data, images).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains(expected), "{e}");
        }
    }
}
