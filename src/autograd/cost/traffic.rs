//! What the launches of a plan move and multiply, and the least that they would have to.

use super::bytes::launch_bytes;
use crate::autograd::Store;
use crate::autograd::plan::Plan;
use crate::autograd::plan::instruction::{Instruction, Phase};
use crate::autograd::plan::program::Program;
use crate::device::gpu::card::Card;
use crate::device::gpu::room::{Held, Room};
use crate::ops::operator::Operator;
use crate::tensor::{Elem, Real};

/// What the instructions of one op in one part of a step cost on a GPU.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Traffic {
    /// The scope of the tape; empty for ops outside all scopes.
    #[serde(skip)]
    pub part: &'static str,
    /// The op's name; `plan` for the launches that the plan itself adds (the gradient of the loss, the
    /// metrics).
    pub op: &'static str,
    /// The phase of the instructions.
    pub phase: Phase,
    /// What these instructions cost together.
    #[serde(flatten)]
    pub sum: Sum,
}

/// What some instructions cost together.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Sum {
    /// Kernel launches.
    pub launches: usize,
    /// Additions and multiplications of the ops that count them: two per multiply-add of their signature.
    pub flops: u64,
    /// Bytes that the plan's launches move.
    pub bytes_moved: u64,
    /// Bytes that have to move ([`Operator::minimal_bytes`]).
    pub minimal_bytes: u64,
    /// `bytes_moved / minimal_bytes`; none if nothing has to move.
    pub ratio: Option<f64>,
    /// The least time on the card, in milliseconds: of each instruction the longer of moving its minimal
    /// bytes and of its arithmetic, summed.
    pub roofline_ms: f64,
    /// The same for the bytes moved: these launches cannot be faster.
    pub planned_ms: f64,
    /// The forecast time of the launches, which run one after the other, at each rate of the L2
    /// ([`L2_BYTES`](crate::device::gpu::launch::L2_BYTES)). A launch takes its start and the longer of two times: that of
    /// the bytes that it moves, and that of its products' cycles ([`Card::modelled_seconds`]).
    pub modelled_ms: [f64; 2],
}

impl Sum {
    /// Adds the costs of other instructions.
    pub fn add(&mut self, o: &Sum) {
        self.launches += o.launches;
        self.flops += o.flops;
        self.bytes_moved += o.bytes_moved;
        self.minimal_bytes += o.minimal_bytes;
        self.ratio = (self.minimal_bytes > 0).then(|| self.bytes_moved as f64 / self.minimal_bytes as f64);
        self.roofline_ms += o.roofline_ms;
        self.planned_ms += o.planned_ms;
        self.modelled_ms = std::array::from_fn(|i| self.modelled_ms[i] + o.modelled_ms[i]);
    }
}

/// Launches, bytes and modelled seconds that an instruction accounts for.
#[derive(Clone, Copy, Default)]
struct Share {
    launches: usize,
    bytes: u64,
    seconds: [f64; 2],
}

/// The share of each instruction, and at the end that of the launches that the plan itself adds. A launch
/// counts for the first instruction that it runs; its bytes and its time are divided equally, and the first instruction
/// takes the remainder of the bytes.
fn shares(instructions: &[Instruction], program: &Program, card: &Card) -> Vec<Share> {
    let mut shares = vec![Share::default(); instructions.len() + 1];
    for (i, launch) in program.launches.iter().enumerate() {
        let bytes = launch_bytes(instructions, program, i);
        let owners = &program.owners[i];
        let first = owners.first().copied().unwrap_or(instructions.len());
        let (count, each) = (owners.len().max(1), bytes / owners.len().max(1) as u64);
        let seconds = launch.cycles().map(|c| card.modelled_seconds(bytes, c) / count as f64);
        shares[first].launches += 1;
        shares[first].bytes += bytes - each * owners.len() as u64;
        for o in owners.iter().copied().chain(owners.is_empty().then_some(first)) {
            shares[o].seconds = std::array::from_fn(|i| shares[o].seconds[i] + seconds[i]);
        }
        owners.iter().for_each(|o| shares[*o].bytes += each);
    }
    shares
}

impl<R: Real> Plan<R> {
    /// What a GPU holds while this plan runs, after the plans that were given room before.
    pub fn held(&self, store: &Store<R>, room: &mut Room) -> Held {
        let launches = self.program.as_ref().map_or(&[][..], |p| &p.launches);
        room.take(&store.mirrored, launches, self.cost.arena_bytes)
    }

    /// What every op of every part costs on `card`, in the order in which they first run. Empty for a plan
    /// of the CPU.
    pub fn traffic(&self, card: &Card) -> Vec<Traffic> {
        let Some(program) = &self.program else { return Vec::new() };
        let mut rows: Vec<Traffic> = Vec::new();
        for (i, share) in shares(&self.instructions, program, card).into_iter().enumerate() {
            let owner = self.instructions.get(i);
            let (part, op, phase) = match owner {
                Some(i) => (i.scope, i.op.name(), i.phase),
                None => ("", "plan", Phase::Update),
            };
            let minimal_bytes = owner.map_or(share.bytes, |i| i.op.minimal_bytes(&i.operands));
            let flops = owner.map_or(0, Instruction::flops);
            let is_bf16 = owner.is_some_and(|i| i.operands.input_elems.first() == Some(&Elem::Bf16));
            let sum = Sum {
                launches: share.launches,
                flops,
                bytes_moved: share.bytes,
                minimal_bytes,
                ratio: None,
                roofline_ms: 1e3 * card.least_seconds(minimal_bytes, flops, is_bf16),
                planned_ms: 1e3 * card.least_seconds(share.bytes, flops, is_bf16),
                modelled_ms: share.seconds.map(|s| 1e3 * s),
            };
            match rows.iter_mut().find(|r| (r.part, r.op, r.phase) == (part, op, phase)) {
                Some(row) => row.sum.add(&sum),
                None => {
                    let mut total = Sum::default();
                    total.add(&sum);
                    rows.push(Traffic { part, op, phase, sum: total });
                }
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::tape::{Learn, Tape, Value};
    use crate::autograd::{Engine, TensorId};
    use crate::device::gpu::target::Target;
    use crate::ops::layers::activation::Act;
    use crate::ops::layers::batch_norm::{BatchNorm, Stats};
    use crate::ops::layers::conv2d::Conv2d;
    use crate::ops::layers::global_avg_pool::GlobalAvgPool;
    use crate::ops::losses::activation_loss::ActivationLoss;
    use crate::ops::movement::gather_images::GatherImages;
    use crate::tensor::Shape;

    /// Trainable rows, seen as a bf16 map `[2, 4, 4, 8]`, `layers` on it in the scope "toy", and a loss.
    fn plan(
        filters: &[(Shape, Learn)],
        layers: impl FnOnce(&mut Tape, Value, &[Value]) -> Value,
    ) -> Plan<f32> {
        let mut e = Engine::<f32>::planning(Target::h200(Elem::Bf16));
        let z = e.store.add("z", Shape::rows(2, 128));
        let norm = [(); 4].map(|()| e.store.add(&format!("norm{}", e.store.ids().count()), Shape::vector(8)));
        let filters: Vec<(TensorId, Learn)> =
            filters.iter().enumerate().map(|(i, (s, l))| (e.store.add(&format!("w{i}"), *s), *l)).collect();
        let mut t = Tape::default();
        let z = t.leaf(&e.store, z, Learn::Trainable);
        let x = t.reshape(z, Shape::new(2, 4, 4, 8)).unwrap();
        let [a, b, c, d] = norm.map(|n| t.leaf(&e.store, n, Learn::Frozen));
        let bn = BatchNorm { stats: Stats::Running, act: Act::None, momentum: 0.1, eps: 1e-5 };
        let x = t.apply(bn, &[x, a, b, c, d]).unwrap();
        let w: Vec<Value> = filters.iter().map(|(w, learn)| t.leaf(&e.store, *w, *learn)).collect();
        t.scope("toy");
        let y = layers(&mut t, x, &w);
        t.scope("");
        let f = t.apply(GlobalAvgPool, &[y]).unwrap();
        let loss = t.apply(ActivationLoss { mean_over_features: true }, &[f]).unwrap();
        Plan::compile(&t, &e.store, Some(loss), &[]).unwrap()
    }

    fn row(plan: &Plan<f32>, card: &Card, part: &str, op: &str, phase: Phase) -> Sum {
        let rows = plan.traffic(card);
        rows.into_iter().find(|r| (r.part, r.op, r.phase) == (part, op, phase)).unwrap().sum
    }

    /// Bytes in bf16: x 512, w 2304, y 1024, then x 1024, w 512, y 1024. Backward moves as many as forward.
    #[test]
    fn two_convolutions_move_the_bytes_counted_by_hand() {
        let filters = [(Shape::new(16, 3, 3, 8), Learn::Frozen), (Shape::new(16, 1, 1, 16), Learn::Frozen)];
        let plan = plan(&filters, |t, x, w| {
            let y = t.apply(Conv2d::new(1, 1), &[x, w[0]]).unwrap();
            t.apply(Conv2d::new(1, 0), &[y, w[1]]).unwrap()
        });
        let mut card = <&Card>::default().clone();
        (card.bytes_per_second, card.bf16_flops) = (1e9, 1e10);
        for phase in [Phase::Forward, Phase::Backward] {
            let found = row(&plan, &card, "toy", "conv2d", phase);
            assert_eq!((found.launches, found.bytes_moved, found.minimal_bytes), (2, 6400, 6400));
            // 512 outputs of 72 and of 16 multiply-adds.
            assert_eq!((found.flops, found.ratio), (2 * 512 * (72 + 16), Some(1.0)));
            // Arithmetic bounds the first, 73728 / 1e10 s; memory the second, 2560 / 1e9 s.
            assert!((found.roofline_ms - (7.3728e-3 + 2.56e-3)).abs() < 1e-12, "{found:?}");
            assert_eq!(found.planned_ms, found.roofline_ms);
        }
        // The rows sum up to the cost of the plan, including the launches that the plan itself adds.
        let rows = plan.traffic(&card);
        assert_eq!(rows.iter().map(|r| r.sum.bytes_moved).sum::<u64>(), plan.cost().bytes_moved);
        assert_eq!(rows.iter().map(|r| r.sum.launches).sum::<usize>(), plan.cost().launches);
        assert!(rows.iter().any(|r| r.op == "plan"));
        assert!(plan.launches().any(|(_, label)| label.starts_with("conv2d Backward (toy) of [")));
    }

    /// A map is 512 bytes, its mask 32, a filter 128 (its gradient, f32, 256).
    #[test]
    fn minimal_bytes_include_masks_residuals_and_trainable_filters() {
        let filters = [(Shape::new(8, 1, 1, 8), Learn::Trainable), (Shape::new(8, 1, 1, 8), Learn::Frozen)];
        let relu = Conv2d { act: Act::Relu, ..Conv2d::new(1, 0) };
        let card = <&Card>::default();
        let unit = plan(&filters, |t, x, w| {
            let y = t.apply(relu, &[x, w[0]]).unwrap();
            t.apply(Conv2d { residual: true, ..relu }, &[y, w[1], x]).unwrap()
        });
        let least = |phase| row(&unit, card, "toy", "conv2d", phase).minimal_bytes;
        assert_eq!(least(Phase::Forward), (512 + 128 + 512 + 32) + (512 + 128 + 512 + 512 + 32));
        // The second convolution writes the residual's gradient, which is its dz. The first adds to that
        // gradient, and writes its filter's gradient.
        let backward = (512 + 32 + 128 + 512) + (512 + 32 + 128 + 2 * 512 + 512 + 256);
        assert_eq!(least(Phase::Backward), backward);

        // The kernels before and after an activation that is an op of its own can compute it. The activation
        // then costs only the read of the residual.
        let apart = plan(&filters, |t, x, w| {
            let y = t.apply(Conv2d::new(1, 0), &[x, w[0]]).unwrap();
            t.apply(crate::ops::layers::activation::Activation(Act::Relu), &[y, x]).unwrap()
        });
        assert_eq!(row(&apart, card, "toy", "activation", Phase::Forward).minimal_bytes, 512);
        assert_eq!(row(&apart, card, "toy", "activation", Phase::Backward).minimal_bytes, 0);
    }

    #[test]
    fn backward_reads_x_and_dy_twice_with_batch_statistics() {
        let stats = |stats| {
            let vectors = [(Shape::vector(8), Learn::Frozen); 4];
            let bn = BatchNorm { stats, act: Act::Relu, momentum: 0.1, eps: 1e-5 };
            let plan = plan(&vectors, |t, x, w| t.apply(bn, &[x, w[0], w[1], w[2], w[3]]).unwrap());
            row(&plan, <&Card>::default(), "toy", "batch_norm", Phase::Backward).minimal_bytes
        };
        // x, dy and dx, three vectors saved and two read; x and dy again.
        assert_eq!(stats(Stats::Running), 3 * 512 + (3 + 2) * 32);
        assert_eq!(stats(Stats::Batch), 5 * 512 + (3 + 2) * 32);
    }

    #[test]
    fn only_the_drawn_rows_of_a_bank_are_moved() {
        let mut e = Engine::<f32>::planning(Target::h200(Elem::Bf16));
        let bank = e.store.add("bank", Shape::new(100, 4, 4, 8));
        let mut t = Tape::default();
        let bank = t.leaf(&e.store, bank, Learn::Frozen);
        let x = t.apply(GatherImages { n: 2, stream: 1 }, &[bank]).unwrap();
        t.output(x);
        let plan = Plan::compile(&t, &e.store, None, &[]).unwrap();
        let found = row(&plan, <&Card>::default(), "", "gather_images", Phase::Forward);
        assert_eq!((found.bytes_moved, found.minimal_bytes), (2 * 512 + 512, 2 * 512 + 512));
        // Two images of f32, and two of bf16.
        assert_eq!(found.bytes_moved, 2 * 128 * 4 + 2 * 128 * 2);
    }
}
