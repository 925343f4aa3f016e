//! Stochastic gradient descent with momentum.

use crate::device::cpu::par::{Rows, for_rows};
use crate::device::gpu::launch;
use crate::error::Result;
use crate::ops::launch::chunks::Chunks;
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::operands::Io;
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_f32, expect_setting, expect_shape};
use crate::ops::optim::adam::CHUNK;
use crate::tensor::Real;

/// `d = g + weight_decay p`, `m = momentum m + d`, then `p = p - lr m`;
/// `lr` is the learning rate that the step has in slot `lr_slot`, and m starts at 0.
///
/// Shapes: p, g and m of one shape, in groups of three for any number of parameters; p and m are updated in
/// place; no output.
/// Source: Sutskever et al. 2013, in the form of `torch.optim.SGD`: the rate is outside the momentum, the
/// decay inside.
/// Backward: none.
/// Errors: operands that are not groups of three equal shapes; a slot or setting outside its range.
/// Cost: no multiply-adds counted; reads 3 tensors and writes 2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Which of the step's learning rates applies.
    pub lr_slot: usize,
    /// The weight of the previous update.
    pub momentum: f64,
    /// The rate of the weight decay.
    pub weight_decay: f64,
}

impl Operator for Sgd {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        let Sgd { lr_slot, momentum, weight_decay } = *self;
        expect_setting("sgd", !args.is_empty() && args.len().is_multiple_of(3), || {
            format!("expected groups of 3 operands (p, g, m), found {}", args.len())
        })?;
        for group in args.chunks(3) {
            for (what, arg) in ["g", "m"].iter().zip(&group[1..]) {
                expect_shape("sgd", what, group[0].shape, arg.shape)?;
            }
        }
        let slots = crate::device::StepState::default().lr.len();
        expect_setting("sgd", lr_slot < slots, || format!("learning rate {lr_slot}: a step has {slots}"))?;
        expect_setting("sgd", (0.0..1.0).contains(&momentum) && weight_decay >= 0.0, || {
            format!("expected 0 <= momentum < 1 and weight_decay >= 0, found {momentum} and {weight_decay}")
        })?;
        let updates = (0..args.len()).filter(|i| i % 3 != 1).collect();
        Ok(Signature { updates, ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let rate = R::of(f64::from(io.step.lr[self.lr_slot]));
        let [momentum, decay] = [self.momentum, self.weight_decay].map(R::of);
        for i in (0..io.inputs()).step_by(3) {
            let (p, g, m) = (io.state(i), io.x(i + 1), io.state(i + 2));
            let items = p.len();
            let tensors = (Rows::new(p, items), Rows::new(m, items));
            for_rows(tensors, 1, &|first, (p, m): (Rows<R>, Rows<R>)| {
                for ((p, g), m) in p.data.iter_mut().zip(&g[first..]).zip(m.data) {
                    let d = *g + decay * *p;
                    *m = momentum * *m + d;
                    *p -= rate * *m;
                }
            });
        }
    }

    fn backward<R: Real>(&self, _: &Io<R>) {}

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let row = |i: usize| -> Result<[launch::KernelArg; 5]> {
            let [p, g, m] =
                [l.x(i), expect_f32("sgd", "g", l.x(i + 1))?, l.x(i + 2)].map(launch::KernelArg::from);
            Ok([p, g, m, l.bf16_copy_of_state(i).into(), (l.shape(i).elems() as i64).into()])
        };
        let tensors = (0..l.inputs()).step_by(3).map(row).collect::<Result<_>>()?;
        let elements = (0..l.inputs()).step_by(3).map(|i| l.shape(i).elems());
        let chunks = Chunks::of(elements, CHUNK, l.target());
        let [momentum, weight_decay] =
            [self.momentum as f32, self.weight_decay as f32].map(launch::KernelArg::from);
        l.launch(
            "sgd",
            chunks.grid,
            THREADS,
            0,
            [
                launch::KernelArg::table(tensors),
                chunks.table,
                chunks.count,
                chunks.size,
                l.step(),
                (self.lr_slot as i32).into(),
                momentum,
                weight_decay,
            ],
        )
    }

    fn launch_backward(&self, _: &mut Launches) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::op_check::{Case, check, check_bf16_copies};
    use crate::tensor::Shape;

    const SGD: Sgd = Sgd { lr_slot: 0, momentum: 0.9, weight_decay: 0.01 };

    fn case(op: Sgd, tensors: &[Shape]) -> Case {
        let shapes: Vec<Shape> = tensors.iter().flat_map(|s| [*s; 3]).collect();
        (0..shapes.len()).fold(Case::new(op, &shapes), |case, i| case.frozen(i))
    }

    #[test]
    fn passes_the_op_checks() {
        for tensors in
            [vec![Shape::vector(1)], vec![Shape::new(7, 3, 3, 5), Shape::vector(7), Shape::rows(131, 257)]]
        {
            for op in [SGD, Sgd { momentum: 0.0, weight_decay: 0.0, ..SGD }] {
                check(case(op, &tensors).reference(move |x| {
                    let mut out = Vec::new();
                    for x in x.chunks(3) {
                        let (mut p, mut m) = (x[0].clone(), x[2].clone());
                        for (i, g) in x[1].iter().enumerate() {
                            let d = g + op.weight_decay * p[i];
                            m[i] = op.momentum * m[i] + d;
                            p[i] -= f64::from(0.01f32) * m[i];
                        }
                        out.extend([p, m]);
                    }
                    out
                }));
            }
        }
    }

    /// PyTorch 2.15.0, float64, three steps from p = (1, -2, 0.5) with lr = float32(0.01) and these
    /// gradients: `torch.optim.SGD([p], lr=lr, momentum=0.9, weight_decay=0.01)`, printing p and
    /// momentum_buffer.
    #[test]
    fn three_steps_of_pytorch() {
        let grads = [[0.5, -1.0, 0.25], [0.25, 2.0, -0.5], [-1.0, 0.5, 0.125]];
        let start = [[1.0, -2.0, 0.5], [0.0; 3]];
        let states = [
            start,
            [[0.9949000001139939, -1.9898000002279879, 0.497450000056997], [0.51, -1.02, 0.255]],
            [
                [0.9877105102746802, -2.000421019990567, 0.5001052549976417],
                [0.71894900000114, 1.06210199999772, -0.26552549999943],
            ],
            [
                [0.9911411981469606, -2.0147798955676013, 0.5011949739477797],
                [-0.3430687948962272, 1.4358875897980423, -0.10897189744951058],
            ],
        ];
        for (step, g) in grads.iter().enumerate() {
            let ([p, m], after) = (states[step], states[step + 1].map(|v| v.to_vec()).to_vec());
            let case = case(SGD, &[Shape::vector(3)]).step(step as u64);
            let case = case.values(0, p.to_vec()).values(1, g.to_vec()).values(2, m.to_vec());
            check(case.reference(move |_| after.clone()));
        }
    }

    #[test]
    fn refreshes_the_bf16_copies() {
        check_bf16_copies(SGD, 3);
    }

    #[test]
    fn refuses_operands_and_settings_that_do_not_fit() {
        let e = |op: Sgd, sizes: &[usize]| {
            let args: Vec<OperandInfo> =
                sizes.iter().map(|c| OperandInfo { shape: Shape::vector(*c), needs_grad: false }).collect();
            op.signature(&args).unwrap_err().to_string()
        };
        assert_eq!(e(SGD, &[3; 4]), "sgd: expected groups of 3 operands (p, g, m), found 4");
        assert!(e(SGD, &[]).contains("found 0"));
        assert_eq!(e(SGD, &[3, 4, 3]), "sgd: g: expected [1, 1, 1, 3], found [1, 1, 1, 4]");
        assert_eq!(e(Sgd { lr_slot: 9, ..SGD }, &[3; 3]), "sgd: learning rate 9: a step has 4");
        assert!(e(Sgd { momentum: 1.0, ..SGD }, &[3; 3]).contains("0 <= momentum < 1"));
    }
}
