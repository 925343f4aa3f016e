//! Gradients against finite differences of `L = sum(dy * y)`, in f64.

use super::case::Case;
use super::cpu::run;
use super::result::{Part, RunResult, coordinates};
use crate::device::philox::Draws;
use crate::ops::operands::Write;
use crate::ops::operator::Operator;
use std::ops::Range;

/// Elements of each input that are moved alone, at most. Each takes two forward passes, which are some fifty times
/// slower in a build without optimisation; there, the least sample must do until the release tests run.
const SAMPLE: usize = if cfg!(debug_assertions) { LEAST_SAMPLE } else { 24 };
const LEAST_SAMPLE: usize = 3;

/// Multiply-accumulates that the passes of one input's sample may take: an expensive op gets a smaller sample,
/// because the random direction below reaches all elements with two passes, or four.
const SAMPLE_MACS: u64 = 4_000_000;

/// How far a single element is moved.
const ELEMENT_STEP: f64 = 1e-5;

/// How far an element is moved along the random direction, times a standard normal. All elements move at
/// once, so at the larger step some of 100 000 elements cross a kink (of a ReLU or a maximum), and at the
/// smaller one almost surely none does; but there, the rounding of a sum over as many elements shows. A
/// correct gradient agrees at one of them.
const DIRECTION_STEPS: [f64; 2] = [1e-7, 1e-5];

/// A case whose inputs can be moved.
pub struct GradientCheck<'a, O> {
    /// The op and its operands.
    pub case: &'a Case<O>,
    /// Where the derivatives are taken.
    pub inputs: &'a [Vec<f64>],
    /// The gradients of the outputs.
    pub dy: &'a [Vec<f64>],
    /// The op's own gradients.
    pub result: &'a RunResult,
}

impl<O: Operator> GradientCheck<'_, O> {
    /// The loss at these inputs, and the sum of its terms' magnitudes.
    fn loss(&self, inputs: &[Vec<f64>]) -> (f64, f64) {
        let none = vec![false; inputs.len()];
        let result = run::<f64, O>(self.case, inputs, &none, &[], Write::Set);
        let outputs = self.dy.iter().enumerate().map(|(i, dy)| (dy, &result.of(Part::Output(i)).values));
        let of_output = |(dy, y): (&Vec<f64>, &Vec<f64>)| {
            let terms = || dy.iter().zip(y).map(|(d, y)| d * y);
            (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>())
        };
        outputs.map(of_output).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1))
    }

    /// A sample of the elements of each input, one at a time: shows which element is wrong, and sees no
    /// others.
    pub fn of_elements(&self) {
        let affordable = SAMPLE_MACS / (2 * self.case.signature().macs_forward).max(1);
        let sample = (affordable as usize).clamp(LEAST_SAMPLE, SAMPLE);
        for (i, gradient) in self.result.gradients() {
            let (n, grad) = (gradient.values.len(), &gradient.values);
            let last = n.clamp(2, sample).saturating_sub(1);
            let scale = grad.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
            for e in (0..n.min(sample)).map(|k| k * (n - 1) / last) {
                let mut moved = self.inputs.to_vec();
                moved[i][e] = self.inputs[i][e] + ELEMENT_STEP;
                let above = self.loss(&moved).0;
                moved[i][e] = self.inputs[i][e] - ELEMENT_STEP;
                let difference = (above - self.loss(&moved).0) / (2.0 * ELEMENT_STEP);
                let error = (difference - grad[e]).abs() / scale;
                assert!(
                    error < 2e-5,
                    "{}: {} at {:?}: finite difference {difference}, backward {}: off by {error:.1e} of {scale:.1e}",
                    self.case.name,
                    gradient.part,
                    coordinates(gradient.shape, e),
                    grad[e]
                );
            }
        }
    }

    /// All elements of all inputs at once, along one random direction `d` of length 1:
    /// `(L(x + h d) - L(x - h d)) / 2h` against `<grad, d>`. An error in any element shows, for a random
    /// direction is orthogonal to none.
    ///
    /// The bound has two terms. The difference of two losses carries their rounding, `4 eps sum|dy y| / h`.
    /// And a unit direction in N dimensions sees one element's gradient divided by sqrt(N); a relative error
    /// of 1e-5 is allowed, of the root mean square of the gradient, for the difference's own truncation.
    pub fn along_a_direction(&self) {
        let all = Direction::random(self.result);
        if all.is_empty() || self.deviation(&all, 0..all.len()).is_allowed() {
            return;
        }
        // Halves the set of elements that move until one is left, for the message.
        let mut range = 0..all.len();
        while range.len() > 1 {
            let middle = range.start + range.len() / 2;
            let halves = [range.start..middle, middle..range.end];
            let excess = halves.clone().map(|h| self.deviation(&all, h).excess());
            range = halves[usize::from(excess[1] > excess[0])].clone();
        }
        let (whole, one) = (self.deviation(&all, 0..all.len()), self.deviation(&all, range.clone()));
        let (input, e, z) = all.moves[range.start];
        let gradient = self.result.of(Part::Gradient(input));
        panic!(
            "{}: the derivative along a random direction: finite difference {}, <grad, d> {}, allowed difference {:.1e}; \
             {} at {:?} differs most: finite difference {}, backward {}",
            self.case.name,
            whole.difference,
            whole.product,
            whole.bound,
            gradient.part,
            coordinates(gradient.shape, e),
            one.difference * z.signum(),
            gradient.values[e]
        );
    }

    /// Moves the elements in `range` of a direction, which is then scaled to length 1: by the first step that
    /// the gradient agrees with, or by the one at which it differs least.
    fn deviation(&self, direction: &Direction, range: Range<usize>) -> Deviation {
        let [small, large] = DIRECTION_STEPS;
        let first = self.deviation_at(direction, range.clone(), small);
        if first.is_allowed() {
            return first;
        }
        let second = self.deviation_at(direction, range, large);
        if first.excess() < second.excess() { first } else { second }
    }

    fn deviation_at(&self, direction: &Direction, range: Range<usize>, step: f64) -> Deviation {
        let moves = &direction.moves[range];
        let gradient = |input: usize, e: usize| self.result.of(Part::Gradient(input)).values[e];
        let norm = moves.iter().map(|(.., z)| z * z).sum::<f64>().sqrt();
        let loss = |step: f64| {
            let mut moved = self.inputs.to_vec();
            moves.iter().for_each(|(i, e, z)| moved[*i][*e] += step * z);
            self.loss(&moved)
        };
        let ((above, magnitude), (below, _)) = (loss(step), loss(-step));
        let h = step * norm;
        let squares = moves.iter().map(|(i, e, _)| gradient(*i, *e).powi(2)).sum::<f64>();
        // An op computes with numbers around 1 even where its output is smaller.
        let rounding = 4.0 * f64::EPSILON * magnitude.max(1.0) / h;
        Deviation {
            difference: (above - below) / (2.0 * h),
            product: moves.iter().map(|(i, e, z)| gradient(*i, *e) * z).sum::<f64>() / norm,
            bound: rounding + 1e-5 * (squares / moves.len() as f64).sqrt(),
        }
    }
}

/// A direction over all inputs with gradients: input, element, and a standard normal for it.
struct Direction {
    moves: Vec<(usize, usize, f64)>,
}

impl Direction {
    /// The same for every case of the same shapes.
    fn random(result: &RunResult) -> Self {
        let draws = Draws::new(22, 4, 0);
        let of_input = |(i, elems): (usize, usize)| {
            (0..elems).map(move |e| (i, e, draws.normals(e as u32, i as u32)[0]))
        };
        let sizes = result.gradients().map(|(i, g)| (i, g.values.len()));
        Direction { moves: sizes.flat_map(of_input).collect() }
    }
    fn len(&self) -> usize {
        self.moves.len()
    }
    fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }
}

/// A derivative along a direction, computed twice.
struct Deviation {
    difference: f64,
    product: f64,
    bound: f64,
}

impl Deviation {
    fn excess(&self) -> f64 {
        (self.difference - self.product).abs() / self.bound
    }
    fn is_allowed(&self) -> bool {
        self.excess() <= 1.0
    }
}
