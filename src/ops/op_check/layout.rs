//! Slots for a run's operands, with a gap around each. The slots start as NaN, so that an element left
//! unwritten shows in a result. The gaps hold one byte throughout, so that a write outside the slots shows at
//! the end.

use crate::device::memory::ALIGN;
use crate::device::{Slot, Space};
use crate::ops::operands::{Operands, Write};
use crate::ops::operator::{Extent, OperandInfo, Signature};
use crate::tensor::Shape;

/// The byte that slots hold before anything is written: NaN in every float type.
pub const POISON: u8 = 0xFF;

/// What gaps hold: NaN, with which a read outside the slots shows, and a number, 0.75 in f32 and bf16. A
/// kernel that runs past the ends of its input and its output alike writes NaN over NaN; only in a gap of
/// numbers does that show.
pub const GAPS: [u8; 2] = [POISON, 0x3F];

/// What a gradient holds before it is added to.
pub fn base_gradient(elems: usize) -> Vec<f64> {
    (0..elems).map(|i| (i % 5) as f64 - 2.0).collect()
}

/// A slot and what it holds, in a message's words.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// Such as "gradient of input 1".
    pub label: String,
    /// Its place.
    pub slot: Slot,
}

/// Hands out slots, a gap before and after each.
pub struct Layout {
    store_end: usize,
    arena_end: usize,
    slots: Vec<Labelled>,
}

impl Layout {
    /// No slots yet.
    pub fn new() -> Self {
        Layout { store_end: ALIGN, arena_end: ALIGN, slots: Vec::new() }
    }
    /// The next slot of a space.
    pub fn take(&mut self, label: String, space: Space, bytes: usize) -> Slot {
        let end = if space == Space::Arena { &mut self.arena_end } else { &mut self.store_end };
        let slot = Slot { space, offset: *end, bytes };
        *end = (*end + bytes).next_multiple_of(ALIGN) + ALIGN;
        self.slots.push(Labelled { label, slot });
        slot
    }
    /// All bytes of a space, slots and gaps.
    pub fn whole(&self, space: Space) -> Slot {
        let bytes = if space == Space::Arena { self.arena_end } else { self.store_end };
        Slot { space, offset: 0, bytes }
    }
    /// The slots of a space.
    pub fn slots(&self, space: Space) -> impl Iterator<Item = Slot> {
        self.slots.iter().map(|s| s.slot).filter(move |s| s.space == space)
    }
    /// What a slot was handed out for; `None` for a slot of another layout.
    pub fn label(&self, slot: Slot) -> Option<&str> {
        self.slots.iter().find(|s| s.slot == slot).map(|s| s.label.as_str())
    }
    /// Describes the first byte outside all slots that is not `gap`; `bytes` are those of the whole space.
    pub fn first_stray_byte(&self, space: Space, bytes: &[u8], gap: u8) -> Option<String> {
        let mut gaps = bytes.to_vec();
        let slots = || self.slots.iter().filter(|s| s.slot.space == space);
        slots().for_each(|s| gaps[s.slot.offset..s.slot.offset + s.slot.bytes].fill(gap));
        if gaps == vec![gap; gaps.len()] {
            return None; // one memcmp, which is fast in a build without optimisation too
        }
        let at = gaps.iter().position(|b| *b != gap)?;
        let end = |s: &Labelled| s.slot.offset + s.slot.bytes;
        let place = match slots().filter(|s| end(s) <= at).max_by_key(|s| end(s)) {
            Some(s) => format!("{} bytes behind the end of {}", at - end(s), s.label),
            None => "before the first operand".into(),
        };
        Some(format!("wrote outside its operands, {place} (byte {at} of {space:?})"))
    }
}

/// Spaces and sizes of a run's operands.
pub trait Placement {
    /// Where input `i` lies, and the bytes of one of its elements.
    fn input(&self, i: usize) -> (Space, usize);
    /// Bytes of an element of output `i`.
    fn output(&self, i: usize) -> usize;
    /// Bytes of an element of the gradient of output `i`.
    fn dy(&self, i: usize) -> usize;
    /// Bytes of an element of a saved or scratch buffer.
    fn real(&self) -> usize;
}

/// The operands of a run.
pub struct LaidOut {
    /// Of forward.
    pub forward: Operands,
    /// Of backward, if an input needs a gradient.
    pub backward: Option<Operands>,
    /// All of their slots.
    pub layout: Layout,
}

/// Slots for all operands of forward and backward. A gradient has the element type of its input or output.
pub fn lay_out(
    operands: &[OperandInfo],
    signature: &Signature,
    placement: &impl Placement,
    write: Write,
) -> LaidOut {
    let mut layout = Layout::new();
    let arena = Space::Arena;
    let outputs = |layout: &mut Layout, what: &str, elem_bytes: &dyn Fn(usize) -> usize| -> Vec<Slot> {
        let bytes = |(i, s): (usize, &Shape)| (i, s.elems() * elem_bytes(i));
        let all = signature.outputs.iter().enumerate().map(bytes);
        all.map(|(i, bytes)| layout.take(format!("{what} {i}"), arena, bytes)).collect()
    };
    let extents = |layout: &mut Layout, what: &str, extents: &[Extent]| -> Vec<Slot> {
        let bytes = |e: &Extent| match e {
            Extent::Reals(n) => n * placement.real(),
            Extent::Bytes(n) => *n,
        };
        let all = extents.iter().enumerate();
        all.map(|(i, e)| layout.take(format!("{what} {i}"), arena, bytes(e))).collect()
    };
    let input = |i: usize| (placement.input(i).0, operands[i].shape.elems() * placement.input(i).1);
    let indices = 0..operands.len();
    let inputs = indices.clone().map(|i| layout.take(format!("input {i}"), input(i).0, input(i).1)).collect();
    let needs_backward = operands.iter().any(|o| o.needs_grad);
    let forward = Operands {
        inputs,
        input_shapes: operands.iter().map(|o| o.shape).collect(),
        outputs: outputs(&mut layout, "output", &|i| placement.output(i)),
        output_shapes: signature.outputs.clone(),
        saved: extents(&mut layout, "saved buffer", if needs_backward { &signature.saved } else { &[] }),
        scratch: extents(&mut layout, "forward scratch", &signature.scratch_forward),
        ..Default::default()
    };
    let backward = needs_backward.then(|| {
        let mut gradient =
            |i: usize| (layout.take(format!("gradient of input {i}"), arena, input(i).1), write);
        let input_grads = indices.map(|i| operands[i].needs_grad.then(|| gradient(i))).collect();
        Operands {
            scratch: extents(&mut layout, "backward scratch", &signature.scratch_backward),
            output_grads: outputs(&mut layout, "gradient of output", &|i| placement.dy(i))
                .into_iter()
                .map(Some)
                .collect(),
            input_grads,
            ..forward.clone()
        }
    });
    LaidOut { forward, backward, layout }
}

/// The slots that forward reads and must leave as they are.
pub fn read_only_forward(forward: &Operands, signature: &Signature) -> Vec<Slot> {
    let inputs = forward.inputs.iter().enumerate().filter(|(i, _)| !signature.updates.contains(i));
    inputs.map(|(_, s)| *s).collect()
}

/// The slots that backward reads and must leave as they are.
pub fn read_only_backward(backward: &Operands) -> Vec<Slot> {
    let dy = backward.output_grads.iter().flatten();
    let masks = backward.input_masks.iter().flatten().map(|(s, _)| s);
    let kept = backward.inputs.iter().chain(&backward.outputs).chain(&backward.saved);
    let linear = backward.linear_grad.iter().flat_map(|g| [&g.u, &g.coefficients, &g.dloss]);
    kept.chain(dy).chain(masks).chain(linear).copied().collect()
}

/// The slots that hold nothing for backward: what the signature does not list as kept may be overwritten
/// after forward.
pub fn dropped_after_forward(forward: &Operands, signature: &Signature) -> Vec<Slot> {
    let inputs = forward.inputs.iter().enumerate().filter(|(i, _)| !signature.keeps_inputs.contains(i));
    let outputs = forward.outputs.iter().filter(|_| !signature.keeps_outputs);
    inputs.map(|(_, s)| s).chain(outputs).chain(&forward.scratch).copied().collect()
}
