//! Who multiplies a gradient by the slope of the activation it flows back through.
//!
//! An op with an activation at its end would begin its backward with a pass of its own: `dz = dy * act'`. Whoever writes dy
//! last has the sum in registers and multiplies there for the price of one bit an element; the op then finds dz. For a
//! residual unit that leaves one read and one write of each gradient, and the skip's gradient is the unit's own dz,
//! where it lies (`Operator::passes_gradient`).

use crate::autograd::tape::Tape;
use crate::ops::fusion::Fusion;
use std::collections::HashMap;

/// A multiplication by an activation's slope.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Gate {
    /// The node whose activation it is; its first saved buffer is the mask.
    pub(super) producer: usize,
    /// Where the mask's bit is not set.
    pub(super) slope: f32,
}

/// All such agreements of a step.
#[derive(Default)]
pub(super) struct Gates {
    /// By the node that multiplies: the gradient of which input.
    by: HashMap<usize, (usize, Gate)>,
    /// The nodes that find their output's gradient multiplied.
    gated: Vec<usize>,
}

impl Gates {
    /// `backward`: the groups of nodes that run backward, in their order.
    pub(super) fn of(tape: &Tape, fusions: &[Fusion], backward: &[Vec<usize>]) -> Gates {
        // The last to write each gradient, an input of a node.
        let mut last: HashMap<usize, (usize, usize)> = HashMap::new();
        for i in backward.iter().flatten() {
            let inputs = tape.nodes[*i].inputs.iter().enumerate().filter(|(_, v)| tape.needs_grad(**v));
            last.extend(inputs.map(|(j, v)| (tape.root(*v), (*i, j))));
        }
        let mut gates = Gates::default();
        for &producer in backward.iter().flatten() {
            let node = &tape.nodes[producer];
            let (Some(gated), [y]) = (fusions[producer].act_mask, &node.outputs[..]) else { continue };
            let Some(&(i, j)) = last.get(&tape.root(*y)) else { continue };
            let writer = &tape.nodes[i];
            // A reshaped view has its bits elsewhere.
            let same_shape = tape.shape(writer.inputs[j]) == tape.shape(*y);
            if j == 0 && fusions[i].masks_input_grad && same_shape && !gates.by.contains_key(&i) {
                gates.by.insert(i, (j, Gate { producer, slope: gated.slope }));
                gates.gated.push(producer);
            }
        }
        gates
    }
    /// What node `i` multiplies.
    pub(super) fn by(&self, i: usize) -> Option<(usize, Gate)> {
        self.by.get(&i).copied()
    }
    /// Whether somebody multiplies for node `i`.
    pub(super) fn dy_is_masked(&self, i: usize) -> bool {
        self.gated.contains(&i)
    }
}

/// Whether the gradient of the first input of node `i`, in the `k`-th group, can wait where the output's lies: whoever writes to
/// it next adds to a first part from elsewhere, and until then nobody adds to the output's, which is also the skip's.
pub(super) fn is_next_added(
    tape: &Tape,
    fusions: &[Fusion],
    backward: &[Vec<usize>],
    k: usize,
    i: usize,
) -> bool {
    let node = &tape.nodes[i];
    let (first, skip) = (tape.root(node.inputs[0]), tape.root(node.inputs[node.inputs.len() - 1]));
    for &j in backward[k + 1..].iter().flatten() {
        let next = &tape.nodes[j];
        let mut written = next.inputs.iter().filter(|v| tape.needs_grad(**v)).map(|v| tape.root(*v));
        if next.inputs.first().is_some_and(|v| tape.needs_grad(*v) && tape.root(*v) == first) {
            return fusions[j].adds_first_term;
        }
        if written.any(|r| r == first || r == skip) {
            return false;
        }
    }
    false
}
