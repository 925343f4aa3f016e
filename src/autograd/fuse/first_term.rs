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
    let [first, skip] = first_and_skip(tape, i);
    for j in later {
        if tape.nodes[j].inputs.first().is_some_and(|v| tape.needs_grad(*v) && tape.root(*v) == first) {
            return fusions[j].adds_first_term;
        }
        if writes_one_of(tape, j, [first, skip]) {
            return false;
        }
    }
    false
}

/// Whether the gradient of input 0 of node `i`, which equals the gradient of the output, can stay in the output's
/// buffer for good: it has no other term, and the node that produced the input reads it before anything is added to
/// the output's gradient, which is also that of the last input, the skip connection. A producer that passes its own
/// gradient on as that of one of its inputs would share it with the skip, whose later terms differ.
///
/// `later`: the nodes that run backward after the group of `i`, in order.
pub(crate) fn producer_reads_it_first(
    tape: &Tape,
    fusions: &[Fusion],
    later: impl Iterator<Item = usize>,
    i: usize,
) -> bool {
    let [first, skip] = first_and_skip(tape, i);
    for j in later {
        if writes_one_of(tape, j, [first, skip]) {
            return false;
        }
        if tape.nodes[j].outputs.iter().any(|v| tape.root(*v) == first) {
            return fusions[j].grad_alias.is_none() && !fusions[j].copies_grad;
        }
    }
    false
}

/// The values of input 0 of node `i` and of its last input, the skip connection.
fn first_and_skip(tape: &Tape, i: usize) -> [usize; 2] {
    let inputs = &tape.nodes[i].inputs;
    [inputs[0], inputs[inputs.len() - 1]].map(|v| tape.root(v))
}

/// Whether node `j` writes the gradient of one of these values.
fn writes_one_of(tape: &Tape, j: usize, values: [usize; 2]) -> bool {
    let mut with_gradient = tape.nodes[j].inputs.iter().filter(|v| tape.needs_grad(**v));
    with_gradient.any(|v| values.contains(&tape.root(*v)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Store;
    use crate::autograd::tape::Learn;
    use crate::ops::layers::activation::{Act, Activation};
    use crate::ops::layers::conv2d::Conv2d;
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

    /// Whether the gradient of a convolution's output, to which a ReLU adds the skip x, can stay in the buffer of the
    /// ReLU's output. `reads_skip`: another op reads x, and its backward runs before the convolution's or after it.
    fn stays(reads_skip: Option<bool>, producer: Fusion) -> bool {
        let mut store = Store::<f32>::planned(None);
        let [x, a] = ["x", "a"].map(|n| store.add(n, Shape::new(2, 4, 4, 8)));
        let w = store.add("w", Shape::new(8, 1, 1, 8));
        let mut t = Tape::default();
        let [x, a, w] = [x, a, w].map(|id| t.leaf(&store, id, Learn::Trainable));
        let u = t.apply(Conv2d::new(1, 0), &[a, w]).unwrap();
        t.apply(Activation(Act::Relu), &[u, x]).unwrap();
        t.apply(Activation(Act::Tanh), &[x]).unwrap();
        let later = match reads_skip {
            None => vec![0],
            Some(true) => vec![2, 0],
            Some(false) => vec![0, 2],
        };
        let fusions = [producer, Fusion::default(), Fusion::default()];
        producer_reads_it_first(&t, &fusions, later.into_iter(), 1)
    }

    #[test]
    fn a_gradient_stays_for_good_if_its_producer_reads_it_before_the_skip_is_written() {
        assert!(stays(None, Fusion::default()) && stays(Some(false), Fusion::default()));
        assert!(!stays(Some(true), Fusion::default()));
        let passes_on = Fusion { grad_alias: Some(0), ..Fusion::default() };
        assert!(!stays(None, passes_on), "the producer's input would share the skip's gradient");
    }

    #[test]
    fn a_gradient_does_not_stay_if_nothing_writes_to_it_again() {
        assert!(!can_stay(true, &[]) && !can_stay(true, &[2]));
    }
}
