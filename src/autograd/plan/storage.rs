//! How the values of a step are stored: element types and bytes.

use crate::autograd::tape::{Tape, Value};
use crate::device::gpu::target::Target;
use crate::ops::fusion::Fusion;
use crate::ops::operator::Extent;
use crate::tensor::{Elem, Real};

/// The element type and the bytes of every value and buffer.
pub(crate) struct Storage<'a> {
    tape: &'a Tape,
    /// The types of each value and of its gradient, by the value that owns the memory; none on the CPU, where all are the
    /// scalar of the plan.
    elems: Option<Vec<[Elem; 2]>>,
    scalar_bytes: usize,
}

impl<'a> Storage<'a> {
    /// `R`: the CPU's scalar. `target`: the GPU that the plan is for; none for the CPU.
    pub(crate) fn of<R: Real>(tape: &'a Tape, fusions: &[Fusion], target: Option<&Target>) -> Storage<'a> {
        let elems = target.map(|t| element_types(tape, fusions, t.map_dtype));
        let scalar_bytes = if target.is_some() { Elem::F32.bytes() } else { size_of::<R>() };
        Storage { tape, elems, scalar_bytes }
    }
    /// The element type of a value on a GPU, and `F32` on the CPU.
    pub(crate) fn elem(&self, v: Value) -> Elem {
        self.elems.as_ref().map_or(Elem::F32, |e| e[self.tape.root(v)][0])
    }
    /// The element type of a value's gradient, likewise.
    pub(crate) fn gradient_elem(&self, v: Value) -> Elem {
        self.elems.as_ref().map_or(Elem::F32, |e| e[self.tape.root(v)][1])
    }
    /// The bytes of a value.
    pub(crate) fn value_bytes(&self, v: Value) -> usize {
        self.bytes(v, self.elem(v))
    }
    /// The bytes of a value's gradient.
    pub(crate) fn gradient_bytes(&self, v: Value) -> usize {
        self.bytes(v, self.gradient_elem(v))
    }
    fn bytes(&self, v: Value, elem: Elem) -> usize {
        let elem_bytes = if self.elems.is_some() { elem.bytes() } else { self.scalar_bytes };
        self.tape.shape(v).elems() * elem_bytes
    }
    /// The bytes of a saved or scratch buffer.
    pub(crate) fn extent_bytes(&self, extent: &Extent) -> usize {
        match extent {
            Extent::Reals(n) => n * self.scalar_bytes,
            Extent::Bytes(b) => *b,
        }
    }
}

/// How a GPU stores each value and its gradient, by the value's index; leaves are f32.
fn element_types(tape: &Tape, fusions: &[Fusion], map_dtype: Elem) -> Vec<[Elem; 2]> {
    let mut elems = vec![[Elem::F32; 2]; tape.values.len()];
    for (node, fusion) in tape.nodes.iter().zip(fusions) {
        let inputs: Vec<Elem> = node.inputs.iter().map(|v| elems[tape.root(*v)][0]).collect();
        for (i, v) in node.outputs.iter().enumerate() {
            let elem = fusion.output_elem(i, tape.shape(*v), &inputs, map_dtype);
            elems[tape.root(*v)] = [elem, fusion.gradient_elem(elem)];
        }
    }
    elems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Store;
    use crate::autograd::plan::needs::Needs;
    use crate::autograd::tape::Learn;
    use crate::ops::layers::conv2d::Conv2d;
    use crate::ops::layers::fold_norm::FoldNorm;
    use crate::ops::layers::global_avg_pool::GlobalAvgPool;
    use crate::tensor::Shape;

    #[test]
    fn a_gpu_stores_maps_as_bf16_and_leaves_and_means_as_f32() {
        let mut store = Store::<f64>::default();
        let x = store.add("x", Shape::new(2, 4, 4, 8));
        let w = store.add("w", Shape::new(8, 1, 1, 8));
        let mut t = Tape::default();
        let (x, w) = (t.leaf(&store, x, Learn::Frozen), t.leaf(&store, w, Learn::Frozen));
        let y = t.apply(Conv2d::new(1, 0), &[x, w]).unwrap();
        let view = t.reshape(y, Shape::rows(2, 128)).unwrap();
        let mean = t.apply(GlobalAvgPool, &[y]).unwrap();
        let target = Target::h200(Elem::Bf16);
        let fusions = |target| Needs::of(&t, None, target).unwrap().fusions;

        let gpu = Storage::of::<f64>(&t, &fusions(Some(&target)), Some(&target));
        assert_eq!([x, w, y, view, mean].map(|v| gpu.elem(v)), {
            use Elem::{Bf16, F32};
            [F32, F32, Bf16, Bf16, F32]
        });
        assert_eq!([x, y, view, mean].map(|v| gpu.value_bytes(v)), [1024, 512, 512, 64]);
        assert_eq!([Extent::Reals(3), Extent::Bytes(3)].map(|e| gpu.extent_bytes(&e)), [12, 3]);

        let cpu = Storage::of::<f64>(&t, &fusions(None), None);
        assert_eq!([x, y, view, mean].map(|v| cpu.value_bytes(v)), [2048, 2048, 2048, 128]);
        assert_eq!(cpu.extent_bytes(&Extent::Reals(3)), 24);
    }

    #[test]
    fn a_folded_filter_is_stored_as_maps_and_its_gradient_as_f32() {
        let mut store = Store::<f32>::default();
        let mut t = Tape::default();
        let w = store.add("w", Shape::new(8, 3, 3, 4));
        let vectors = ["gamma", "beta", "mean", "var"].map(|n| store.add(n, Shape::vector(8)));
        let operands: Vec<Value> =
            [w].iter().chain(&vectors).map(|id| t.leaf(&store, *id, Learn::Frozen)).collect();
        let outputs = t.apply_all(FoldNorm { eps: 1e-5 }.into(), &operands).unwrap();
        for map_dtype in [Elem::F32, Elem::Bf16] {
            let target = Target::h200(map_dtype);
            let fusions = Needs::of(&t, None, Some(&target)).unwrap().fusions;
            let storage = Storage::of::<f32>(&t, &fusions, Some(&target));
            assert_eq!([0, 1].map(|i| storage.elem(outputs[i])), [map_dtype, Elem::F32]);
            assert_eq!([0, 1].map(|i| storage.gradient_elem(outputs[i])), [Elem::F32; 2]);
            assert_eq!([0, 1].map(|i| storage.value_bytes(outputs[i])), [288 * map_dtype.bytes(), 32]);
            assert_eq!([0, 1].map(|i| storage.gradient_bytes(outputs[i])), [288 * 4, 32]);
        }
    }
}
