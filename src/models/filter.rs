//! The teacher-level filter `f_m^b`, which lets one stream feed teachers with different features: channel gains, and a
//! 1x1 convolution before them where the teacher's channels are others than the stream's.

use super::Recorder;
use super::init::normal;
use crate::autograd::tape::{Learn, Value};
use crate::autograd::{Store, TensorId};
use crate::error::Result;
use crate::ops::layers::conv2d::Conv2d;
use crate::ops::layers::se_filter::SeFilter;
use crate::tensor::{Real, Shape};
use serde::{Deserialize, Serialize};

/// What the filters of a student are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilterKind {
    /// Channel gains (supplement 1.2), and a 1x1 convolution before them only where the number of channels changes.
    #[default]
    Gain,
    /// A 1x1 convolution and channel gains everywhere *(ours)*. A gain alone cannot give a teacher the channels in its
    /// own order: networks that were trained apart can be joined by a 1x1 convolution (Bansal et al. 2021).
    Stitch,
}

impl FilterKind {
    /// Whether this is the default.
    pub fn is_gain(&self) -> bool {
        *self == FilterKind::Gain
    }
}

/// The sizes of one filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterSpec {
    /// Channels that it reads.
    pub from: usize,
    /// Channels that it gives, those of the teacher.
    pub to: usize,
    /// Channel reduction `r` of the gains (supplement 1.2: 4), a divisor of `to`.
    pub reduction: usize,
    /// Whether a 1x1 convolution comes before the gains; always so where `from` and `to` differ.
    pub is_stitch: bool,
}

impl FilterSpec {
    /// A filter of this kind from `from` to `to` channels.
    pub fn new(kind: FilterKind, from: usize, to: usize, reduction: usize) -> FilterSpec {
        FilterSpec { from, to, reduction, is_stitch: kind == FilterKind::Stitch || from != to }
    }

    /// Names and shapes of the filter's tensors, in the order of [`Filter::tensors`]: the convolution where there is
    /// one, then the two fully connected layers of the gains.
    pub fn shapes(&self) -> Vec<(&'static str, Shape)> {
        let FilterSpec { from, to, reduction: r, is_stitch } = *self;
        let stitch = [(STITCH, Shape::new(to, 1, 1, from)), ("stitch.bias", Shape::vector(to))];
        let gains = [
            ("fc1.weight", Shape::new(to / r, 1, 1, to)),
            ("fc1.bias", Shape::vector(to / r)),
            ("fc2.weight", Shape::new(to, 1, 1, to / r)),
            ("fc2.bias", Shape::vector(to)),
        ];
        stitch.into_iter().filter(|_| is_stitch).chain(gains).collect()
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.shapes().iter().map(|(_, s)| s.elems()).sum()
    }

    /// The initial values of one of its tensors, whose name in the store is `name`. The convolution starts as the
    /// identity, or, between different numbers of channels, Gaussian with variance `1 / from`. The weights of the
    /// gains are Gaussian with variance `1 / (3 fan_in)`, the second layer's with a tenth of that deviation; biases are
    /// zero.
    fn initial(&self, part: &str, shape: Shape, name: &str, seed: u64) -> Vec<f32> {
        let FilterSpec { from, to, reduction: r, .. } = *self;
        let std = match part {
            STITCH if from == to => {
                return (0..shape.elems()).map(|i| f32::from(u8::from(i / from == i % from))).collect();
            }
            STITCH => (1.0 / from as f64).sqrt(),
            "fc1.weight" => (1.0 / (3 * to) as f64).sqrt(),
            "fc2.weight" => 0.1 * (1.0 / (3 * (to / r)) as f64).sqrt(),
            _ => 0.0,
        };
        normal(seed, name, shape.elems(), std)
    }
}

/// The name of the convolution's weight.
const STITCH: &str = "stitch.weight";

/// The tensors of one filter in a store.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Weight `[to, 1, 1, from]` and bias `[1, 1, 1, to]` of the 1x1 convolution, where there is one.
    stitch: Option<[TensorId; 2]>,
    /// Weight `[c/r, 1, 1, c]` and bias `[1, 1, 1, c/r]` of the gains' first layer, and weight `[c, 1, 1, c/r]` and bias
    /// `[1, 1, 1, c]` of their second one, with c = `to`.
    gains: [TensorId; 4],
}

/// A channel's gain is `GAIN * sigmoid(...)` *(ours)*. With zero biases and small weights it starts near one,
/// so a filter begins as the identity; the published sigmoid alone would begin by halving the features that
/// the teacher expects.
pub const GAIN: f32 = 2.0;

impl Filter {
    /// The shape in a file of the tensor of that name. As in PyTorch, a matrix of one row stays a matrix, and the
    /// filter of the 1x1 convolution has four dimensions.
    pub fn file_shape(name: &str, shape: Shape) -> Vec<usize> {
        match name {
            STITCH => vec![shape.n(), shape.c(), 1, 1],
            _ if name.ends_with("weight") => vec![shape.n(), shape.c()],
            _ => vec![shape.c()],
        }
    }

    /// Adds a new filter to the store, under the names `prefix.*`.
    pub fn new<R: Real>(store: &mut Store<R>, prefix: &str, spec: &FilterSpec, seed: u64) -> Filter {
        let mut add = |(part, shape): (&'static str, Shape)| {
            let name = format!("{prefix}.{part}");
            let values = store.drawn(|| spec.initial(part, shape, &name, seed));
            store.add_with(&name, shape, &values)
        };
        Filter::of(spec.shapes().into_iter().map(&mut add).collect())
    }

    /// Adds a filter to the store, with the values that `read` gives for each of its tensors.
    ///
    /// Errors: those of `read`.
    pub fn read<R: Real>(
        store: &mut Store<R>,
        prefix: &str,
        spec: &FilterSpec,
        mut read: impl FnMut(&str, &[usize]) -> Result<Vec<f32>>,
    ) -> Result<Filter> {
        let mut ids = Vec::new();
        for (part, shape) in spec.shapes() {
            // A 1x1 filter has the same order of elements in PyTorch's layout and in the engine's.
            let values = read(part, &Filter::file_shape(part, shape))?;
            ids.push(store.add_with(&format!("{prefix}.{part}"), shape, &values));
        }
        Ok(Filter::of(ids))
    }

    /// The filter of the tensors of [`FilterSpec::shapes`], of which there are four or six.
    fn of(ids: Vec<TensorId>) -> Filter {
        let (stitch, gains) = match ids[..] {
            [weight, bias, a, b, c, d] => (Some([weight, bias]), [a, b, c, d]),
            _ => (None, [ids[0], ids[1], ids[2], ids[3]]),
        };
        Filter { stitch, gains }
    }

    /// All tensors, in the order of their use.
    pub fn tensors(&self) -> Vec<TensorId> {
        self.stitch.into_iter().flatten().chain(self.gains).collect()
    }

    /// Records the filter on features `x` `[n, h, w, from]`; the result is `[n, h, w, to]`.
    ///
    /// Errors: features with other channels.
    pub fn record<R: Real>(&self, r: &mut Recorder<R>, mut x: Value, learn: Learn) -> Result<Value> {
        if let Some(stitch) = self.stitch {
            let [weight, bias] = stitch.map(|id| r.leaf(id, learn));
            x = r.apply(Conv2d { bias: true, ..Conv2d::new(1, 0) }, &[x, weight, bias])?;
        }
        let [a, b, c, d] = self.gains.map(|id| r.leaf(id, learn));
        r.apply(SeFilter { top: GAIN }, &[x, a, b, c, d])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::{Engine, Plan, Tape};
    use crate::device::StepState;

    /// The filter of `spec` on a map whose value at pixel p and channel c is `p + 10 c`, and the number of its tensors.
    fn filtered(spec: &FilterSpec) -> (Vec<f32>, usize) {
        let mut engine = Engine::<f32>::default();
        let store = &mut engine.store;
        let filter = Filter::new(store, "f", spec, 3);
        let values: Vec<f32> =
            (0..2 * spec.from).map(|i| (i / spec.from + 10 * (i % spec.from)) as f32).collect();
        let x = store.add_with("x", Shape::new(1, 1, 2, spec.from), &values);
        let mut tape = Tape::default();
        let mut r = Recorder { tape: &mut tape, store };
        let x = r.leaf(x, Learn::Frozen);
        let y = filter.record(&mut r, x, Learn::Frozen).unwrap();
        assert_eq!(tape.shape(y), Shape::new(1, 1, 2, spec.to));
        tape.output(y);
        let mut plan = Plan::compile(&tape, &engine.store, None, &[]).unwrap();
        plan.reserve(&mut engine).unwrap();
        plan.replay(&mut engine, &StepState::default()).unwrap();
        (plan.output(&engine, y).unwrap(), filter.tensors().len())
    }

    #[test]
    fn a_stitch_between_equal_channels_starts_as_a_gain_alone() {
        let gain = FilterSpec::new(FilterKind::Gain, 8, 8, 4);
        let stitch = FilterSpec::new(FilterKind::Stitch, 8, 8, 4);
        assert_eq!((gain.is_stitch, stitch.is_stitch), (false, true));
        let ((plain, four), (stitched, six)) = (filtered(&gain), filtered(&stitch));
        assert_eq!((plain, four, six), (stitched, 4, 6));
        assert_eq!(stitch.parameters(), gain.parameters() + 8 * 8 + 8);
        assert_eq!(gain.parameters(), 2 * 8 + 2 + 8 * 2 + 8);
    }

    #[test]
    fn other_channels_are_reached_through_a_convolution() {
        let spec = FilterSpec::new(FilterKind::Gain, 4, 12, 4);
        assert!(spec.is_stitch);
        let (values, tensors) = filtered(&spec);
        assert_eq!((values.len(), tensors), (2 * 12, 6));
        assert!(values.iter().all(|v| v.is_finite()) && values.iter().any(|v| *v != 0.0));
        let shape = |(name, shape)| (name, Filter::file_shape(name, shape));
        let shapes: Vec<_> = spec.shapes().into_iter().map(shape).collect();
        assert_eq!(
            shapes[..3],
            [("stitch.weight", vec![12, 4, 1, 1]), ("stitch.bias", vec![12]), ("fc1.weight", vec![3, 12])]
        );
    }
}
