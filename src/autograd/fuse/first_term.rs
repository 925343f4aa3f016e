//! Whether a gradient's first term can stay in the buffer of another gradient until the next term is added
//! to it.

use crate::autograd::tape::Tape;
use crate::ops::fusion::Fusion;

/// Whether the gradient of input 0 of node `i`, which equals the gradient of the output, need not be copied:
/// the next op that writes to the gradient reads a first term from elsewhere (`Fusion::adds_first_term`),
/// and nothing is added to the output's gradient before that. The output's gradient is also that of the last
/// input, the skip connection.
///
/// `later`: the nodes that run backward after the group of `i`, in order.
pub(crate) fn next_writer_adds_it(
    tape: &Tape,
    fusions: &[Fusion],
    later: impl Iterator<Item = usize>,
    i: usize,
) -> bool {
    let node = &tape.nodes[i];
    let (first, skip) = (tape.root(node.inputs[0]), tape.root(node.inputs[node.inputs.len() - 1]));
    for j in later {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Store;
    use crate::autograd::tape::Learn;
    use crate::ops::layers::activation::{Act, Activation};
    use crate::ops::losses::statistics_loss::StatisticsLoss;
    use crate::tensor::Shape;

    /// Node 0 is a loss on z, node 1 a ReLU of z and the skip x, node 2 another reader of x.
    fn tape() -> Tape {
        let mut store = Store::<f32>::planned(None);
        let [z, x] = ["z", "x"].map(|n| store.add(n, Shape::new(2, 4, 4, 8)));
        let [mean, std] = ["mean", "std"].map(|n| store.add(n, Shape::vector(8)));
        let mut t = Tape::default();
        let [z, x] = [z, x].map(|id| t.leaf(&store, id, Learn::Trainable));
        let [mean, std] = [mean, std].map(|id| t.leaf(&store, id, Learn::Frozen));
        t.apply(StatisticsLoss { eps: 1e-8 }, &[z, mean, std]).unwrap();
        t.apply(Activation(Act::Relu), &[z, x]).unwrap();
        t.apply(Activation(Act::Tanh), &[x]).unwrap();
        t
    }

    /// Whether the gradient of z can stay in the buffer of the ReLU's output, if these groups run backward
    /// later.
    fn can_stay(loss_adds_first_term: bool, later: &[usize]) -> bool {
        let loss = Fusion { adds_first_term: loss_adds_first_term, ..Fusion::default() };
        let later = later.iter().copied();
        next_writer_adds_it(&tape(), &[loss, Fusion::default(), Fusion::default()], later, 1)
    }

    #[test]
    fn a_gradient_stays_if_the_next_writer_reads_its_first_term_from_elsewhere() {
        assert!(can_stay(true, &[0]));
        assert!(can_stay(true, &[0, 2]), "the skip is written after the loss has read it");
    }

    #[test]
    fn a_gradient_does_not_stay_if_its_next_writer_only_adds_in_place() {
        assert!(!can_stay(false, &[0]));
    }

    #[test]
    fn a_gradient_does_not_stay_if_the_skip_is_written_before() {
        assert!(!can_stay(true, &[2, 0]));
    }

    #[test]
    fn a_gradient_does_not_stay_if_nothing_writes_to_it_again() {
        assert!(!can_stay(true, &[]) && !can_stay(true, &[2]));
    }
}
