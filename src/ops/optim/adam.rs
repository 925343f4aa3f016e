//! The Adam optimiser with decoupled weight decay.

use crate::device::cpu::par::{Rows, for_rows};
use crate::device::cpu::vectorised;
use crate::device::gpu::launch;
use crate::error::Result;
use crate::ops::launch::chunks::Chunks;
use crate::ops::launch::launches::{Launches, THREADS};
use crate::ops::operands::Io;
use crate::ops::operator::{OperandInfo, Operator, Signature, expect_f32, expect_setting, expect_shape};
use crate::tensor::Real;

/// At step `t = 1, 2, ...`, with the learning rate `lr` that the step has in slot `lr_slot`:
///
/// `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g^2`,
/// `p = p - lr (weight_decay p + m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps))`
///
/// Shapes: p, g, m and v of one shape, in groups of four for any number of parameters; p, m and v are updated
/// in place; no output.
/// Source: Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2 (AdamW). t is the number of
/// replays of the recorded step.
/// Backward: none.
/// Errors: operands that are not groups of four equal shapes; a slot or setting outside its range.
/// Cost: no multiply-adds counted; reads 4 tensors and writes 3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Which of the step's learning rates applies.
    pub lr_slot: usize,
    /// The decay rate of the first moment.
    pub beta1: f64,
    /// The decay rate of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// The rate of the decoupled weight decay.
    pub weight_decay: f64,
}

/// The layout of `AdamDims` in kernels/optim/adam.cu.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct AdamDims {
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
}
const _: () = assert!(size_of::<AdamDims>() == 32, "AdamDims must match kernels/optim/adam.cu");

/// Elements of a parameter that a block updates at a time.
pub(super) const CHUNK: usize = 4096;

impl Operator for Adam {
    fn signature(&self, args: &[OperandInfo]) -> Result<Signature> {
        let Adam { lr_slot, beta1, beta2, eps, weight_decay } = *self;
        expect_setting("adam", !args.is_empty() && args.len().is_multiple_of(4), || {
            format!("expected groups of 4 operands (p, g, m, v), found {}", args.len())
        })?;
        for group in args.chunks(4) {
            for (what, arg) in ["g", "m", "v"].iter().zip(&group[1..]) {
                expect_shape("adam", what, group[0].shape, arg.shape)?;
            }
        }
        let slots = crate::device::StepState::default().lr.len();
        expect_setting("adam", lr_slot < slots, || format!("learning rate {lr_slot}: a step has {slots}"))?;
        let fraction = |beta: f64| (0.0..1.0).contains(&beta);
        expect_setting("adam", fraction(beta1) && fraction(beta2), || {
            format!("beta1 and beta2: expected 0 <= beta < 1, found {beta1} and {beta2}")
        })?;
        expect_setting("adam", eps > 0.0 && weight_decay >= 0.0, || {
            format!("expected eps > 0 and weight_decay >= 0, found {eps} and {weight_decay}")
        })?;
        let updates = (0..args.len()).filter(|i| i % 4 != 1).collect();
        Ok(Signature { updates, ..Default::default() })
    }

    fn forward<R: Real>(&self, io: &Io<R>) {
        let (t, lr) = (io.step.step as f64 + 1.0, f64::from(io.step.lr[self.lr_slot]));
        // The factors that do not depend on the element, in f64: p = keep p - rate m / (sqrt(v) root + eps).
        let rate = R::of(lr / (1.0 - self.beta1.powf(t)));
        let root = R::of(1.0 / (1.0 - self.beta2.powf(t)).sqrt());
        let (keep, eps) = (R::of(1.0 - lr * self.weight_decay), R::of(self.eps));
        let [b1, b2] = [self.beta1, self.beta2].map(R::of);
        let [c1, c2] = [self.beta1, self.beta2].map(|beta| R::of(1.0 - beta));
        for i in (0..io.inputs()).step_by(4) {
            let (p, g, m, v) = (io.state(i), io.x(i + 1), io.state(i + 2), io.state(i + 3));
            let items = p.len();
            let tensors = (Rows::new(p, items), Rows::new(m, items), Rows::new(v, items));
            for_rows(tensors, 1, &|first, (p, m, v): (Rows<R>, Rows<R>, Rows<R>)| {
                let g = &g[first..][..p.data.len()];
                vectorised(
                    #[inline(always)]
                    || {
                        let moments = m.data.iter_mut().zip(v.data.iter_mut());
                        for ((p, g), (m, v)) in p.data.iter_mut().zip(g).zip(moments) {
                            *m = b1 * *m + c1 * *g;
                            *v = b2 * *v + c2 * *g * *g;
                            *p = keep * *p - rate * *m / (v.sqrt() * root + eps);
                        }
                    },
                );
            });
        }
    }

    fn backward<R: Real>(&self, _: &Io<R>) {}

    fn launch_forward(&self, l: &mut Launches) -> Result<()> {
        let Adam { lr_slot, beta1, beta2, eps, weight_decay } = *self;
        let row = |i: usize| -> Result<[launch::KernelArg; 6]> {
            let g = expect_f32("adam", "g", l.x(i + 1))?;
            let [p, g, m, v] = [l.x(i), g, l.x(i + 2), l.x(i + 3)].map(launch::KernelArg::from);
            Ok([p, g, m, v, l.bf16_copy_of_state(i).into(), (l.shape(i).elems() as i64).into()])
        };
        let tensors = (0..l.inputs()).step_by(4).map(row).collect::<Result<_>>()?;
        let elements = (0..l.inputs()).step_by(4).map(|i| l.shape(i).elems());
        let chunks = Chunks::of(elements, CHUNK, l.target());
        let dims = AdamDims { beta1, beta2, eps, weight_decay };
        l.launch(
            "adam",
            chunks.grid,
            THREADS,
            0,
            [
                launch::KernelArg::table(tensors),
                chunks.table,
                chunks.count,
                chunks.size,
                l.step(),
                (lr_slot as i32).into(),
                launch::KernelArg::structure("AdamDims", &dims),
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

    const ADAM: Adam = Adam { lr_slot: 1, beta1: 0.5, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };

    /// Groups of p, g, m, v, the second moments positive.
    fn case(op: Adam, tensors: &[Shape]) -> Case {
        let shapes: Vec<Shape> = tensors.iter().flat_map(|s| [*s; 4]).collect();
        (0..shapes.len()).fold(Case::new(op, &shapes), |case, i| {
            let case = case.frozen(i);
            if i % 4 == 3 { case.map(i, f64::abs) } else { case }
        })
    }

    #[test]
    fn passes_the_op_checks() {
        let decayed = Adam { beta1: 0.9, weight_decay: 0.05, ..ADAM };
        for tensors in
            [vec![Shape::vector(1)], vec![Shape::new(7, 3, 3, 5), Shape::vector(7), Shape::rows(131, 257)]]
        {
            for (op, step) in [(ADAM, 0), (decayed, 0), (decayed, 5), (ADAM, 100_000)] {
                check(case(op, &tensors).step(step).reference(move |x| {
                    let lr = f64::from(0.01f32);
                    let t = step as i32 + 1;
                    let mut out = Vec::new();
                    for x in x.chunks(4) {
                        let (mut p, mut m, mut v) = (x[0].clone(), x[2].clone(), x[3].clone());
                        for (i, g) in x[1].iter().enumerate() {
                            m[i] = op.beta1 * m[i] + (1.0 - op.beta1) * g;
                            v[i] = op.beta2 * v[i] + (1.0 - op.beta2) * g * g;
                            let (mean, var) =
                                (m[i] / (1.0 - op.beta1.powi(t)), v[i] / (1.0 - op.beta2.powi(t)));
                            p[i] -= lr * (op.weight_decay * p[i] + mean / (var.sqrt() + op.eps));
                        }
                        out.extend([p, m, v]);
                    }
                    out
                }));
            }
        }
    }

    /// PyTorch 2.15.0, float64, three steps from p = (1, -2, 0.5) with lr = float32(0.01) and these
    /// gradients: `torch.optim.AdamW([p], lr=lr, betas=(0.5, 0.999), eps=1e-8, weight_decay=0.1)`, printing
    /// p, exp_avg, exp_avg_sq.
    #[test]
    fn three_steps_of_pytorch() {
        let grads = [[0.5, -1.0, 0.25], [0.25, 2.0, -0.5], [-1.0, 0.5, 0.125]];
        let states: [[[f64; 3]; 3]; 4] = [
            [[1.0, -2.0, 0.5], [0.0; 3], [0.0; 3]],
            [
                [0.9890000004458692, -1.988000000368221, 0.4895000006346933],
                [0.25, -0.5, 0.125],
                [0.00025, 0.001, 0.0000625],
            ],
            [
                [0.9795769946135288, -1.99233560660703, 0.49533410671977784],
                [0.25, 0.75, -0.1875],
                [0.00031225, 0.004999, 0.0003124375],
            ],
            [
                [0.9850749565144288, -1.995743149846523, 0.4959187483599499],
                [-0.375, 0.625, -0.03125],
                [0.00131193775, 0.005244001, 0.0003277500625],
            ],
        ];
        for (step, g) in grads.iter().enumerate() {
            let ([p, m, v], after) = (states[step], states[step + 1].map(|v| v.to_vec()).to_vec());
            let case = case(Adam { weight_decay: 0.1, ..ADAM }, &[Shape::vector(3)]).step(step as u64);
            let case =
                case.values(0, p.to_vec()).values(1, g.to_vec()).values(2, m.to_vec()).values(3, v.to_vec());
            check(case.reference(move |_| after.clone()));
        }
    }

    #[test]
    fn refreshes_the_bf16_copies() {
        check_bf16_copies(ADAM, 4);
    }

    #[test]
    fn refuses_operands_and_settings_that_do_not_fit() {
        let e = |op: Adam, sizes: &[usize]| {
            let args: Vec<OperandInfo> =
                sizes.iter().map(|c| OperandInfo { shape: Shape::vector(*c), needs_grad: false }).collect();
            op.signature(&args).unwrap_err().to_string()
        };
        assert_eq!(e(ADAM, &[3; 5]), "adam: expected groups of 4 operands (p, g, m, v), found 5");
        assert!(e(ADAM, &[]).contains("found 0"));
        assert_eq!(e(ADAM, &[3, 3, 3, 3, 5, 5, 4, 5]), "adam: m: expected [1, 1, 1, 5], found [1, 1, 1, 4]");
        assert_eq!(e(Adam { lr_slot: 4, ..ADAM }, &[3; 4]), "adam: learning rate 4: a step has 4");
        assert!(e(Adam { beta2: 1.0, ..ADAM }, &[3; 4]).contains("0 <= beta < 1"));
        assert!(e(Adam { eps: 0.0, ..ADAM }, &[3; 4]).contains("eps > 0"));
    }
}
