//! Whether a teacher was trained with softmax, as a classifier that gives one label to an image. The method needs a
//! probability for each label on its own (eq. 5), and the logits of such a network are not those of probabilities.
//!
//! A file may say it (the entry `head` of its metadata, which the converter writes). Otherwise the logits show it.
//! Under softmax cross-entropy the gradients of the logits of an image sum to zero, so gradient descent never changes
//! the sum of the head's rows: it stays at its small initial value, or decays. The logits of any image then sum to
//! almost nothing. Under binary cross-entropy nothing holds the sum. If `K` labels are independent and as often
//! present as absent, the sum is about as large as their spread, [`balance`] is 1; if labels are rare, it is more;
//! and for `K` labels that exclude each other it is `sqrt(K) (K - 2) / (2 sqrt(K - 1))`, 0.61 for three.
//!
//! Measured on small networks (docs/weights.md): at most 0.24 with softmax and gradient descent, at least 0.60 with
//! binary cross-entropy. Adam divides each gradient by its own size, so that the sum does not stay: a network that
//! Adam trained with softmax is often not recognised.

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

/// The largest [`balance`] that counts as softmax's: half of the least that binary cross-entropy gave.
const MOST_BALANCE: f64 = 0.3;

/// Images of noise for each side of their squares.
const EACH: usize = 4;
/// Sides of the squares of one colour, in pixels.
const SQUARES: [usize; 4] = [1, 4, 8, 16];
/// Longest side of the images. A ResNet takes images of any size; 16 of this one take a second through ResNet-152.
const SIDE: usize = 64;

/// Why a teacher cannot be one, in words that follow its name; `None` where nothing says so. A file of `teach`
/// describes its network, and is trusted.
///
/// Errors: no memory for the network.
pub fn suspicion(teacher: &OpenedTeacher) -> Result<Option<String>> {
    let Some(tensors) = teacher.tensors.as_deref() else { return Ok(None) };
    let because = match tensors.meta.get("head").and_then(|head| head.as_str()) {
        Some("softmax") => "was trained with softmax, says its file".to_owned(),
        Some(_) => return Ok(None),
        None if tensors.meta.contains_key("network") || teacher.known.labels.len() < LEAST_LABELS => {
            return Ok(None);
        }
        None => {
            let found = balance(&teacher.known, tensors)?;
            if found.is_nan() || found > MOST_BALANCE {
                return Ok(None);
            }
            format!(
                "seems to be trained with softmax: on images of noise its logits sum to {found:.2} of their spread, and with \
                 binary cross-entropy to more than {MOST_BALANCE}"
            )
        }
    };
    Ok(Some(format!(
        "{because}. Such a network gives one label to an image, and the method needs a probability for each label; train \
         its head again with binary cross-entropy (dfka-engine teach, with these weights as `init`), or write head = \
         \"sigmoid\" here if that is how it was trained"
    )))
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
