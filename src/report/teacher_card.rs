//! The model card of a teacher: `README.md` in the folder of its training.

use std::io::Write;
use std::path::Path;

use serde::Deserialize;

use super::card::{MARK, cell, is_ours};
use super::files::CARD;
use super::origin::Call;
use super::table::{duration, percent};
use crate::error::{Error, Result};
use crate::summary::Score;
use crate::text::label;
use crate::weights::npz::Archive;
use crate::weights::{Meta, meta_as, sha256, write_atomic};

/// Name of a training's result in its folder.
const WEIGHTS: &str = "weights.npz";

/// The result of a training, as `teach` prints it.
#[derive(Deserialize)]
struct Taught {
    labels: Vec<String>,
    #[serde(default)]
    loss: Option<f64>,
    #[serde(default)]
    score: Option<Score>,
    seconds: f64,
}

/// What the file says of its network.
#[derive(Deserialize)]
struct Network {
    /// Height, width and channels.
    image: [usize; 3],
    #[serde(default)]
    normalisation: Option<Normalisation>,
}

#[derive(Deserialize)]
struct Normalisation {
    mean: Vec<f32>,
    std: Vec<f32>,
}

/// Writes the card of a training whose result is in `folder`: `name` is the config's, `taught` its summary.
/// Without weights there is no card, and a `README.md` that this program did not write stays as it is.
///
/// Errors: a file that cannot be read or written; a summary of another kind.
pub fn write_teacher_card(folder: &Path, name: &str, taught: &serde_json::Value, call: &Call) -> Result<()> {
    let (file, card) = (folder.join(WEIGHTS), folder.join(CARD));
    if !file.exists() || (card.exists() && !is_ours(&card)?) {
        return Ok(());
    }
    let taught = Taught::deserialize(taught)
        .map_err(|e| Error::Run(format!("{}: the summary of a training: {e}", folder.display())))?;
    let meta = Archive::open(&file)?.meta()?;
    let network: Network = meta_as(&file, &meta, "network")?;
    let hash = sha256(&file)?;
    let text = text(name, &taught, &network, &meta, &hash, call);
    write_atomic(card, |w| w.write_all(text.as_bytes()))
}

fn text(name: &str, taught: &Taught, network: &Network, meta: &Meta, hash: &str, call: &Call) -> String {
    let count = taught.labels.len();
    let mut text = format!(
        "{MARK}\n\n# {}\n\n\
         An image classifier with {count} {}, any number of which an image can have: a teacher for dfka-engine, which trained \
         it with binary cross-entropy.\n",
        cell(name),
        if count == 1 { "label" } else { "labels" },
    );
    if let Some(from) = meta.get("provenance").and_then(|p| p.as_str()) {
        text += &format!("\nTraining: {}, in {}", cell(from), duration(taught.seconds));
        if let Some(loss) = taught.loss.filter(|loss| loss.is_finite()) {
            text += &format!("; the loss over the last tenth of the steps is {loss:.4}");
        }
        text += ".\n";
    }
    text += "\n## Labels\n\nA label is predicted if its probability is above 0.5.";
    match &taught.score {
        Some(score) => {
            text += &format!(
                " Scores are in percent, on {} labelled images that training did not see; chance is a random ranking's.\n\n\
                 | label | AP | AP, 11 points | chance |\n|---|---|---|---|\n",
                score.images
            );
            for name in &taught.labels {
                let of =
                    |figures: &std::collections::BTreeMap<String, f64>| percent(figures.get(name).copied());
                let (ap, points, chance) = (of(&score.ap), of(&score.ap_11_point), of(&score.chance));
                text += &format!("| {} | {ap} | {points} | {chance} |\n", cell(&label(name)));
            }
            let means = [score.map, score.map_11_point].map(|map| percent(Some(map)));
            text += &format!("| mean | {} | {} | |\n", means[0], means[1]);
        }
        None => {
            text +=
                " It was not scored: the config names no labelled images (evaluation).\n\n| label |\n|---|\n";
            taught.labels.iter().for_each(|name| text += &format!("| {} |\n", cell(&label(name))));
        }
    }
    text + &use_of(network) + &made_by(call, hash)
}

/// Preprocessing, and how to use the weights.
fn use_of(network: &Network) -> String {
    let [h, w, c] = network.image;
    let kind = if c == 1 { "Gray" } else { "RGB" };
    let numbers = |v: &[f32]| v.iter().map(|x| format!("{x}")).collect::<Vec<_>>().join(", ");
    let (mean, std) = match &network.normalisation {
        Some(n) => (numbers(&n.mean), numbers(&n.std)),
        None => ("0.5".into(), "0.5".into()),
    };
    format!(
        "\n## Use\n\n\
         {kind} images of {w} x {h} pixels, divided by 255; the normalisation by mean ({mean}) and deviation ({std}) is part of \
         the model.\n\n\
         ```toml\n[[teachers]]\nname = \"mine\"\nweights = \"{WEIGHTS}\"\n```\n\n\
         ```sh\n\
         dfka-engine predict {WEIGHTS} photo.jpg\n\
         dfka-engine eval {WEIGHTS} evaluation.npz\n\
         dfka-engine export {WEIGHTS} --to teacher.onnx\n\
         ```\n"
    )
}

/// The command that made the weights, and their hash.
fn made_by(call: &Call, hash: &str) -> String {
    let line = call.line().replace('\n', " ");
    format!(
        "\n## Origin\n\nMade by dfka-engine {} on {} with this command:\n\n    {line}\n\nSHA-256 of `{WEIGHTS}`: `{hash}`\n",
        cell(&call.version),
        cell(&call.device)
    )
}
