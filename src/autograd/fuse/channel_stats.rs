//! Which ops write partial statistics of their output's channels, and which ops read them.
//!
//! A batch norm on batch statistics and a statistics loss begin with sums over a whole map. The op that
//! computes the map has it in registers, tile by tile, and can store partial sums
//! (`kernels/lib/channel_stats.cuh`), which saves reading the map once more.

use crate::autograd::tape::Tape;
use crate::ops::fusion::Fusion;
use crate::tensor::Elem;

/// An op that reads the partial statistics of its input, and the op that writes them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StatsFusion {
    pub writer: usize,
    pub reader: usize,
    /// Pixels per partial.
    pub pixels: usize,
    /// Bytes of all partials: for each channel a mean and a sum of squared distances from it, f32.
    pub bytes: usize,
}

/// All pairs of a step, in the order of the readers. `order`: the nodes that run forward, in their order.
pub(crate) fn stats_fusions(tape: &Tape, fusions: &[Fusion], order: &[usize]) -> Vec<StatsFusion> {
    let pair = |&reader: &usize| {
        let x = *tape.nodes[reader].inputs.first().filter(|_| fusions[reader].reads_channel_stats)?;
        let writer = *order.iter().find(|p| tape.nodes[**p].outputs[..] == [x])?;
        let pixels = fusions[writer].writes_channel_stats?;
        // A segment runs twice, and its reader with it.
        if tape.nodes[writer].segment != tape.nodes[reader].segment {
            return None;
        }
        let c = tape.shape(x).c();
        let partials = (tape.shape(x).elems() / c).div_ceil(pixels);
        Some(StatsFusion { writer, reader, pixels, bytes: partials * 2 * c * Elem::F32.bytes() })
    };
    order.iter().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Store;
    use crate::autograd::plan::step::Step;
    use crate::autograd::tape::{Learn, Value};
    use crate::device::gpu::target::Target;
    use crate::ops::layers::activation::{Act, Activation};
    use crate::ops::layers::batch_norm::{BatchNorm, Stats};
    use crate::ops::layers::conv2d::Conv2d;
    use crate::tensor::Shape;

    /// A map of 8 x 16 x 16 pixels, `layers` on it, and a batch norm.
    fn found(stats: Stats, layers: impl FnOnce(&mut Tape, Value, Value) -> Value) -> Vec<StatsFusion> {
        let target = Target::h200(Elem::Bf16);
        let mut store = Store::<f32>::planned(Some(target));
        let x = store.add("x", Shape::new(8, 16, 16, 64));
        let w = store.add("w", Shape::new(64, 1, 1, 64));
        let norm = ["gamma", "beta", "mean", "var"].map(|n| store.add(n, Shape::vector(64)));
        let mut t = Tape::default();
        let (x, w) = (t.leaf(&store, x, Learn::Frozen), t.leaf(&store, w, Learn::Frozen));
        let [a, b, c, d] = norm.map(|n| t.leaf(&store, n, Learn::Frozen));
        let y = layers(&mut t, x, w);
        let bn = BatchNorm { stats, act: Act::Relu, momentum: 0.1, eps: 1e-5 };
        let y = t.apply(bn, &[y, a, b, c, d]).unwrap();
        t.output(y);
        Step::of::<f32>(&t, None, Some(&target)).unwrap().stats
    }

    fn conv(t: &mut Tape, x: Value, w: Value) -> Value {
        t.apply(Conv2d::new(1, 0), &[x, w]).unwrap()
    }

    #[test]
    fn a_convolution_writes_the_statistics_that_a_batch_norm_reads() {
        let [pair] = found(Stats::Batch, conv)[..] else { panic!("expected one pair") };
        assert_eq!((pair.writer, pair.reader), (0, 1));
        // Two numbers for each of 64 channels, 4 bytes each.
        assert_eq!(pair.bytes, (8 * 16 * 16usize).div_ceil(pair.pixels) * 2 * 64 * 4);
    }

    #[test]
    fn running_estimates_need_no_statistics() {
        assert_eq!(found(Stats::Running, conv), []);
    }

    #[test]
    fn a_leaf_and_a_reshaped_view_have_no_writer() {
        assert_eq!(found(Stats::Batch, |_, x, _| x), []);
        let view = found(Stats::Batch, |t, x, w| {
            let y = conv(t, x, w);
            t.reshape(y, Shape::new(8, 8, 32, 64)).unwrap()
        });
        assert_eq!(view, []);
    }

    #[test]
    fn an_op_whose_kernel_writes_no_statistics_is_no_writer() {
        let tanh = |t: &mut Tape, x: Value, _| t.apply(Activation(Act::Tanh), &[x]).unwrap();
        assert_eq!(found(Stats::Batch, tanh), []);
    }
}
