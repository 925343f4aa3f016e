//! Writing students and teachers in every format.

use super::describe::{Contents, Facts};
use super::graph::{self, halve, model};
use crate::error::{Error, Result};
use crate::models::targetnet::TargetNetSpec;
use crate::weights::{self, Tensors, onnx};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Names of a run's student in each format.
pub const STUDENTS: [&str; 3] = ["student.npz", "student.safetensors", "student.onnx"];
/// Name of the file with a student's labels and [`Facts`], for programs that do not read the weights.
pub const LABELS: &str = "labels.json";

/// The weights file that a path means: of a folder, its student in the first format that exists.
///
/// Errors: a folder without a student.
pub fn student_file(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let found = STUDENTS.iter().map(|name| path.join(name)).find(|file| file.exists());
    found.ok_or_else(|| {
        Error::data(path, format!("expected a run's folder with one of {}", STUDENTS.join(", ")))
    })
}

/// The numbers of an exported file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floats {
    /// As the weights have them.
    Single,
    /// Rounded to two bytes each, for ONNX only.
    Half,
}

/// Writes the weights of `from`, a file or a run's folder, to `to`, in the format of its extension.
///
/// Errors: an extension other than npz, safetensors and onnx; a file that is neither a student's nor a
/// teacher's; tensors of other shapes than its network's.
pub fn export(from: &Path, to: &Path) -> Result<Facts> {
    export_as(from, to, Floats::Single)
}

/// The same with numbers of this size.
///
/// Errors: also half precision for another format than ONNX, or for weights beyond its range.
pub fn export_as(from: &Path, to: &Path, floats: Floats) -> Result<Facts> {
    let is_known = to.extension().is_some_and(|e| ["npz", "safetensors", "onnx"].iter().any(|k| e == *k));
    if !is_known {
        let message = format!("{}: expected a name that ends in .npz, .safetensors or .onnx", to.display());
        return Err(Error::Usage(message));
    }
    let is_onnx = to.extension().is_some_and(|e| e == "onnx");
    if floats == Floats::Half && !is_onnx {
        let message = format!("{}: --half is for ONNX; expected a name that ends in .onnx", to.display());
        return Err(Error::Usage(message));
    }
    let file = student_file(from)?;
    let (mut tensors, contents) = Contents::open(&file)?;
    let facts = complete(&mut tensors, &contents)?;
    if !is_onnx {
        graph::check(&tensors, &contents)?; // as an ONNX file's graph does
    }
    match floats {
        Floats::Single => write(to, &tensors, &contents, &facts)?,
        Floats::Half => {
            let mut model = model(&tensors, &contents, &facts)?;
            halve(&mut model).map_err(|m| Error::data(&file, m))?;
            onnx::save(to, &model)?;
        }
    }
    Ok(facts)
}

fn write(to: &Path, tensors: &Tensors, contents: &Contents, facts: &Facts) -> Result<()> {
    if to.extension().is_some_and(|e| e == "onnx") {
        return onnx::save(to, &model(tensors, contents, facts)?);
    }
    weights::save(to, tensors)
}

/// Adds the facts to the metadata.
fn complete(tensors: &mut Tensors, contents: &Contents) -> Result<Facts> {
    let facts = Facts::of(tensors, contents)?;
    tensors.meta.extend(facts.json()?);
    Ok(facts)
}

/// Writes a run's student to its folder, in every format, and its labels.
pub fn write_student(folder: &Path, mut student: Tensors) -> Result<()> {
    let contents = Contents::Student(Box::new(TargetNetSpec::of(&student)?));
    let facts = complete(&mut student, &contents)?;
    for name in STUDENTS {
        write(&folder.join(name), &student, &contents, &facts)?;
    }
    let labels = serde_json::to_vec_pretty(&facts).map_err(|e| Error::Run(format!("labels as JSON: {e}")))?;
    weights::write_atomic(folder.join(LABELS), |w| {
        w.write_all(&labels)?;
        w.write_all(b"\n")
    })
}
