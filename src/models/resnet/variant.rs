//! How a ResNet may differ from those of He et al. 2016.

use serde::{Deserialize, Serialize};

/// The differences from a network of He et al., of which most networks have none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Output channels of the first two convolutions of each block's bottlenecks; empty: a quarter of the
    /// block's width (Zagoruyko and Komodakis 2016 for wider ones).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inner_widths: Vec<usize>,
    /// Output channels of the first two of the stem's three convolutions. The third has [`Stem::width`]
    /// channels; all have the stem's filter size, and the first has its stride (He et al. 2019, ResNet-C).
    /// `None`: the stem is one convolution.
    ///
    /// [`Stem::width`]: super::Stem::width
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deep_stem: Option<[usize; 2]>,
    /// How a shortcut halves the resolution.
    #[serde(default, skip_serializing_if = "Shortcut::is_strided")]
    pub shortcut: Shortcut,
}

/// How the shortcut of a unit of stride 2 halves the resolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortcut {
    /// Its 1x1 convolution has stride 2.
    #[default]
    Strided,
    /// A 2x2 average pool comes before the convolution, which has stride 1 (He et al. 2019, ResNet-D).
    AveragePool,
}

impl Shortcut {
    fn is_strided(&self) -> bool {
        *self == Shortcut::Strided
    }
}

impl Variant {
    /// Whether the network is one of He et al.
    pub fn is_none(&self) -> bool {
        *self == Variant::default()
    }

    /// The variant of a network whose bottlenecks have these inner widths.
    pub fn of_inner_widths(inner: Vec<usize>, widths: &[usize]) -> Variant {
        let is_plain = inner.iter().map(|w| 4 * w).eq(widths.iter().copied());
        Variant { inner_widths: if is_plain { Vec::new() } else { inner }, ..Variant::default() }
    }

    /// Checks the inner widths of bottlenecks with these outer widths.
    ///
    /// Errors: sizes that no network has. A list that says the same as an empty one is refused, so that equal
    /// networks have equal descriptions.
    pub(super) fn validate_bottlenecks(&self, widths: &[usize]) -> Result<(), String> {
        let inner = &self.inner_widths;
        if inner.is_empty() {
            return match widths.iter().any(|w| w % 4 != 0) {
                true => Err("bottleneck widths must be multiples of 4".into()),
                false => Ok(()),
            };
        }
        if inner.len() != widths.len() || inner.iter().any(|v| *v == 0 || *v > 1 << 16) {
            let blocks = widths.len();
            return Err(format!(
                "inner_widths: expected {blocks} sizes between 1 and 65536, found {inner:?}"
            ));
        }
        if Variant::of_inner_widths(inner.clone(), widths).inner_widths.is_empty() {
            return Err("inner_widths: leave them out where each is a quarter of its block's width".into());
        }
        Ok(())
    }

    /// What follows the widths and depths of a network in a message.
    pub(super) fn in_words(&self) -> String {
        let mut words = String::new();
        if !self.inner_widths.is_empty() {
            words += &format!(", inner widths {:?}", self.inner_widths);
        }
        if let Some([first, second]) = self.deep_stem {
            words += &format!(", a deep stem of {first} and {second} channels");
        }
        if self.shortcut == Shortcut::AveragePool {
            words += ", average-pool shortcuts";
        }
        words
    }
}
