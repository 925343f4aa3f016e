//! Whether a gradient's first term can stay in the buffer of another gradient until the next term is added to it.

use crate::autograd::tape::Tape;
use crate::ops::fusion::Fusion;

/// Whether the gradient of input 0 of node `i`, which equals the gradient of the output, need not be copied: the next op
/// that writes to the gradient reads a first term from elsewhere (`Fusion::adds_first_term`), and nothing is added to the
/// output's gradient before that. The output's gradient is also that of the last input, the skip connection.
///
/// `later`: the groups that run backward after the group of `i`.
pub(crate) fn next_writer_adds_it(tape: &Tape, fusions: &[Fusion], later: &[Vec<usize>], i: usize) -> bool {
    let node = &tape.nodes[i];
    let (first, skip) = (tape.root(node.inputs[0]), tape.root(node.inputs[node.inputs.len() - 1]));
    for &j in later.iter().flatten() {
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
