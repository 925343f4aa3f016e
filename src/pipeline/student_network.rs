//! The student's architecture, and whether its teachers fit beside it.

use super::opened::OpenedTeacher;
use super::spec::{StudentInit, StudentOptions};
use super::teacher_file::Backbone;
use crate::error::{Error, Result};
use crate::models::resnet::{Architecture, BlockKind, Normalisation, ResNetSpec, StridePlace, difference};

/// Why teachers cannot teach the student that a config asks for.
pub enum Misfit {
    /// The value of this key has to change.
    Config {
        /// Its path.
        key: &'static str,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A file does not fit.
    File(Error),
}

impl Misfit {
    fn config(key: &'static str, message: String) -> Misfit {
        Misfit::Config { key, message }
    }

    /// The error, without a line of the config.
    pub fn without_line(self) -> Error {
        match self {
            Misfit::Config { message, .. } => Error::Usage(message),
            Misfit::File(e) => e,
        }
    }
}

impl From<Error> for Misfit {
    fn from(e: Error) -> Misfit {
        Misfit::File(e)
    }
}

/// The architecture of the student of `teachers`, of which there must be at least one: the one that its options name, or
/// else the one that all teachers share. Its images are the teachers'. Its normalisation is the teachers' if they share one,
/// or else that of its initial weights, or else none, which means images in [-1, 1].
///
/// Errors: no architecture where the teachers differ; teachers with other images, or with other maps after a block;
/// initial values of another architecture.
pub fn student_network(options: &StudentOptions, teachers: &[OpenedTeacher]) -> Result<ResNetSpec, Misfit> {
    expect_one_image(teachers)?;
    let network = match &options.network {
        Some(stated) => of_config(stated, options, teachers)?,
        None => of_teachers(options, teachers)?,
    };
    let of_student = |e| Misfit::config("student.network", format!("`student.network`: {e}"));
    network.validate().map_err(of_student)?;
    for t in teachers {
        network.fits_beside(&t.known.network).map_err(|e| {
            let message = format!(
                "the teacher {} ({}) does not fit beside the student's network: {e}; filters change channels, not sizes",
                t.name,
                t.file.display()
            );
            Misfit::config("student.network", message)
        })?;
    }
    expect_fitting_init(options, &network, teachers)?;
    Ok(network)
}

/// The architecture, normalisation included, that all teachers share.
///
/// Errors: teachers that differ.
pub fn common_network(teachers: &[OpenedTeacher]) -> Result<ResNetSpec> {
    let first = &teachers[0];
    match teachers.iter().find(|t| t.known.network != first.known.network) {
        None => Ok(first.known.network.clone()),
        Some(other) => {
            let found = differs(other, &first.known.network, first);
            Err(Error::data(&other.file, format!("{found}; expected teachers of one architecture")))
        }
    }
}

/// What `teacher`'s network has other than `expected`, which is that of the file of `of`.
fn differs(teacher: &OpenedTeacher, expected: &ResNetSpec, of: &OpenedTeacher) -> String {
    let file = of.file.file_name().unwrap_or_default().to_string_lossy();
    difference(&teacher.known.network, expected, &file)
}

fn expect_one_image(teachers: &[OpenedTeacher]) -> Result<(), Misfit> {
    let first = &teachers[0];
    let Some(other) = teachers.iter().find(|t| t.known.network.image != first.known.network.image) else {
        return Ok(());
    };
    // Of what differs, only the images are named.
    let only_image = ResNetSpec { image: first.known.network.image, ..other.known.network.clone() };
    let message = format!(
        "{}; all teachers of a run must have images of one size",
        difference(
            &other.known.network,
            &only_image,
            &first.file.file_name().unwrap_or_default().to_string_lossy()
        )
    );
    Err(Error::data(&other.file, message).into())
}

/// The network that the config names.
fn of_config(
    stated: &Architecture,
    options: &StudentOptions,
    teachers: &[OpenedTeacher],
) -> Result<ResNetSpec, Misfit> {
    let (stride, normalisation) = match of_init(options, teachers)? {
        Some(found) => found,
        None => (common_stride(teachers), common_normalisation(teachers).flatten()),
    };
    let Architecture { block, stem, widths, depths, variant } = stated.clone();
    let plain = ResNetSpec::new(block, teachers[0].known.network.image, stem, widths, depths);
    Ok(ResNetSpec { stride, normalisation, variant, ..plain })
}

/// The network that all teachers have, where they differ in nothing but the normalisation.
fn of_teachers(options: &StudentOptions, teachers: &[OpenedTeacher]) -> Result<ResNetSpec, Misfit> {
    let first = &teachers[0];
    let bare = |n: &ResNetSpec| ResNetSpec { normalisation: None, ..n.clone() };
    if let Some(other) = teachers.iter().find(|t| bare(&t.known.network) != bare(&first.known.network)) {
        let message = format!(
            "{}; teachers that differ need a student whose architecture the config names: set student.network, such as \
             \"resnet18\" or a table (docs/config.md), and student.init = \"scratch\"",
            differs(other, &first.known.network, first)
        );
        return Err(Error::data(&other.file, message).into());
    }
    let normalisation = match common_normalisation(teachers) {
        Some(common) => common,
        None => of_init(options, teachers)?.and_then(|(_, normalisation)| normalisation),
    };
    Ok(ResNetSpec { normalisation, ..first.known.network.clone() })
}

/// Stride and normalisation of the network that the initial weights come from, where they come from one.
fn of_init(
    options: &StudentOptions,
    teachers: &[OpenedTeacher],
) -> Result<Option<(StridePlace, Option<Normalisation>)>> {
    Ok(match &options.init {
        StudentInit::Teacher(m) => {
            let network = &teachers[*m].known.network;
            Some((network.stride, network.normalisation.clone()))
        }
        StudentInit::Weights(file) => {
            let Backbone { stride, normalisation, .. } = Backbone::open(file)?;
            Some((stride, normalisation))
        }
        StudentInit::Scratch | StudentInit::Mean => None,
    })
}

/// The place of the stride in bottlenecks on which all teachers that have bottlenecks agree, or else torchvision's.
fn common_stride(teachers: &[OpenedTeacher]) -> StridePlace {
    let mut places = teachers
        .iter()
        .map(|t| &t.known.network)
        .filter(|n| n.block == BlockKind::Bottleneck)
        .map(|n| n.stride);
    let first = places.next().unwrap_or_default();
    if places.all(|place| place == first) { first } else { StridePlace::default() }
}

/// The normalisation that all teachers share; `None` where they differ.
fn common_normalisation(teachers: &[OpenedTeacher]) -> Option<Option<Normalisation>> {
    let first = &teachers[0].known.network.normalisation;
    teachers.iter().all(|t| t.known.network.normalisation == *first).then(|| first.clone())
}

/// Checks that teachers' blocks can be the student's initial values. A file is checked when its tensors are taken.
fn expect_fitting_init(
    options: &StudentOptions,
    network: &ResNetSpec,
    teachers: &[OpenedTeacher],
) -> Result<(), Misfit> {
    let (sources, value) = match &options.init {
        StudentInit::Scratch | StudentInit::Weights(_) => return Ok(()),
        StudentInit::Mean => (teachers, "mean".to_owned()),
        StudentInit::Teacher(m) => (&teachers[*m..=*m], format!("teacher:{}", teachers[*m].name)),
    };
    let Some(other) = sources.iter().find(|t| t.known.network != *network) else { return Ok(()) };
    let found = difference(&other.known.network, network, "the student");
    let message = format!(
        "`student.init` is \"{value}\", which needs blocks of the student's architecture; the teacher {} has {found}; use \
         student.init = \"scratch\", or a teacher or a backbone of the student's architecture",
        other.name
    );
    Err(Misfit::config("student.init", message))
}
