//! Whether a teacher was trained with softmax, as a classifier that gives one label to an image. The method needs a
//! probability for each label on its own (eq. 5), and the logits of such a network are not those of probabilities.
//!
//! A file may say it (the entry `head` of its metadata, which the converter writes). Otherwise the weights show it.
//! Under softmax cross-entropy the gradients of the logits of an image sum to zero, so gradient descent never changes
//! the sum of the head's rows: it stays at its small initial value, or decays, while the rows grow. Then
//! [`rows_sum`] is small, and the logits of any image sum to almost nothing, so that [`balance`] is small. Under
//! binary cross-entropy nothing holds the sum. If `K` labels are independent and as often present as absent, both
//! are about 1; if labels are rare, they are more; and for `K` labels that exclude each other the balance is
//! `sqrt(K) (K - 2) / (2 sqrt(K - 1))`, 0.61 for three.
//!
//! A network has to be below both limits. Measured on small networks (docs/weights.md), those that gradient descent
//! trained with softmax have at most 0.95 of the limits, and those of binary cross-entropy at least twice
//! one of them. Adam divides each gradient by its own size, so that the sum does not stay: a network that Adam
//! trained with softmax is not recognised.

use super::Device;
use super::predictor::Predictor;
use super::teacher_file::Known;
use super::teachers::OpenedTeacher;
use crate::data::unlabelled::ImageSet;
use crate::device::philox::Draws;
use crate::error::Result;
use crate::weights::Tensors;

/// Fewest labels of a network that its logits are judged by: two labels that exclude each other have opposite
/// logits whatever the loss.
const LEAST_LABELS: usize = 3;

/// The largest [`balance`] of a network of softmax.
pub const MOST_BALANCE: f64 = 0.3;
/// The largest [`rows_sum`] of a network of softmax.
pub const MOST_ROWS_SUM: f64 = 0.45;

/// Images of noise for each side of their squares.
const EACH: usize = 4;
/// Sides of the squares of one colour, in pixels.
const SQUARES: [usize; 4] = [1, 4, 8, 16];
/// Longest side of the images. A ResNet takes images of any size; 16 of this one are 30 GFLOP for ResNet-152.
const SIDE: usize = 64;

/// Why a teacher cannot be one, in words that follow its name; `None` where nothing says so. A file of `teach`
/// describes its network, and is trusted.
///
/// Errors: no memory for the network.
pub fn suspicion(teacher: &OpenedTeacher) -> Result<Option<String>> {
    let Some(tensors) = teacher.tensors.as_deref() else { return Ok(None) };
    let because = match tensors.meta.get("head").and_then(|head| head.as_str()) {
        Some("softmax") => "was trained with softmax, says its file".to_owned(),
        Some("sigmoid") => return Ok(None),
        None if tensors.meta.contains_key("network") => return Ok(None),
        _ if teacher.known.labels.len() < LEAST_LABELS => return Ok(None),
        _ if rows_sum(tensors).is_none_or(|sum| sum > MOST_ROWS_SUM) => return Ok(None),
        _ => {
            let found = balance(&teacher.known, tensors)?;
            if found.is_nan() || found > MOST_BALANCE {
                return Ok(None);
            }
            format!(
                "seems to be trained with softmax: the rows of its head sum to almost nothing, and so do its logits on images \
                 of noise ({found:.2} of their spread; with binary cross-entropy it is more than {MOST_BALANCE})"
            )
        }
    };
    Ok(Some(format!(
        "{because}. Such a network gives one label to an image, and the method needs a probability for each label; train \
         its head again with binary cross-entropy (dfka-engine teach, with these weights as `init`), or write head = \
         \"sigmoid\" here if that is how it was trained"
    )))
}

/// The length of the sum of the rows of a head, in units of the length of all its weights together: 1 for random
/// weights. `None` for a head without weights.
pub fn rows_sum(tensors: &Tensors) -> Option<f64> {
    let head = tensors.get("fc.weight")?;
    let columns = head.shape.get(1).copied().filter(|c| *c > 0)?;
    let mut sums = vec![0.0; columns];
    for row in head.data.chunks_exact(columns) {
        sums.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(*w));
    }
    let squares = head.data.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
    (squares > 0.0).then(|| (sums.iter().map(|s| s * s).sum::<f64>() / squares).sqrt())
}

/// The sum of a network's logits on images of noise, in units of their spread around their mean, both as root mean
/// squares over the images.
///
/// Errors: no memory for the network.
pub fn balance(known: &Known, tensors: &Tensors) -> Result<f64> {
    let mut known = known.clone();
    let [h, w, c] = known.network.image;
    known.network.image = [h.min(SIDE), w.min(SIDE), c];
    let images = noise(known.network.image)?;
    let labels = known.labels.len();
    let logits = Predictor::of(known, tensors.clone(), &Device::default())?.logits(&images)?;
    let (mut sums, mut spreads) = (0.0, 0.0);
    for row in logits.chunks_exact(labels) {
        let sum: f64 = row.iter().map(|l| f64::from(*l)).sum();
        let mean = sum / labels as f64;
        sums += sum * sum;
        spreads += row.iter().map(|l| (f64::from(*l) - mean).powi(2)).sum::<f64>();
    }
    Ok((sums / spreads).sqrt())
}

/// Squares of random colours, of each size for a few images.
fn noise([h, w, c]: [usize; 3]) -> Result<ImageSet> {
    let n = EACH * SQUARES.len();
    let mut pixels = Vec::with_capacity(n * h * w * c);
    for i in 0..n {
        let (side, draws) = (SQUARES[i / EACH], Draws::new(0, 0, i as u64));
        let columns = w.div_ceil(side);
        for (y, x, channel) in (0..h * w * c).map(|at| (at / c / w, at / c % w, at % c)) {
            let square = (y / side * columns + x / side) * c + channel;
            pixels.push((256.0 * draws.uniforms(square as u32, 0)[0]) as u8);
        }
    }
    ImageSet::new(pixels, [n, h, w, c], "noise")
}
