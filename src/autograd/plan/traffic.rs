//! What a plan's launches move and multiply, and what they would have to at the least.

use super::program::Program;
use super::{Instruction, Phase, Plan};
use crate::autograd::Store;
use crate::device::Slot;
use crate::device::gpu::card::Card;
use crate::device::gpu::launch::Launch;
use crate::device::gpu::room::{Held, Room};
use crate::ops::operands::Write;
use crate::ops::operator::{OperandInfo, Operator};
use crate::tensor::{Elem, Real};

/// What the instructions of one op in one part of a step cost on a GPU.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Traffic {
    /// As the tape names it; empty for the rest of the step.
    #[serde(skip)]
    pub part: &'static str,
    /// `plan` for what a plan adds itself: the loss's gradient, the metrics.
    pub op: &'static str,
    pub phase: Phase,
    #[serde(flatten)]
    pub sum: Sum,
}

/// What some instructions cost together.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Sum {
    pub launches: usize,
    /// Additions and multiplications of convolutions and linear layers.
    pub flops: u64,
    /// By the launches that the plan makes.
    pub bytes_moved: u64,
    /// By the ops' [`Operator::minimal_bytes`].
    pub minimal_bytes: u64,
    /// Of the two; none where nothing has to move.
    pub ratio: Option<f64>,
    /// The card's least time for the minimal bytes: of each instruction the longer of moving and multiplying, added up.
    pub roofline_ms: f64,
    /// The same for the bytes moved: these launches cannot be faster.
    pub planned_ms: f64,
}

impl Sum {
    pub fn add(&mut self, o: &Sum) {
        self.launches += o.launches;
        self.flops += o.flops;
        self.bytes_moved += o.bytes_moved;
        self.minimal_bytes += o.minimal_bytes;
        self.ratio = (self.minimal_bytes > 0).then(|| self.bytes_moved as f64 / self.minimal_bytes as f64);
        self.roofline_ms += o.roofline_ms;
        self.planned_ms += o.planned_ms;
    }
}

/// Bytes that a launch moves for these instructions: each of its operands once, and twice what is read before it is
/// overwritten (an optimiser's state, a gradient that is added to). A lower bound of its traffic.
pub(super) fn launch_bytes<'a>(launch: &Launch, owners: impl IntoIterator<Item = &'a Instruction>) -> u64 {
    let (mut twice, mut parts): (Vec<Slot>, Vec<(Slot, usize)>) = Default::default();
    for o in owners {
        let added = o.operands.input_grads.iter().flatten().filter(|(_, w)| *w == Write::Add);
        twice.extend(added.map(|(slot, _)| *slot));
        if o.phase != Phase::Backward {
            let touched = o.operands.inputs.iter().enumerate();
            let rows = touched.map(|(i, slot)| (*slot, o.op.touched_bytes(&o.operands, i) as usize));
            parts.extend(rows.filter(|(slot, touched)| *touched < slot.bytes));
            // A bank's rows are written without a look at what they held.
            twice.extend(o.updates().into_iter().filter(|slot| parts.iter().all(|(s, _)| s != slot)));
        }
    }
    let of = |(slot, bytes): &(Slot, usize)| {
        let touched = parts.iter().find(|(s, _)| s == slot).map_or(*bytes, |(_, touched)| *touched);
        (touched.min(*bytes) * if twice.contains(slot) { 2 } else { 1 }) as u64
    };
    launch.operands().iter().map(of).sum()
}

/// The instructions that launch `i` belongs to; none for what the plan adds itself.
fn owners<'a>(instructions: &'a [Instruction], program: &Program, i: usize) -> Vec<&'a Instruction> {
    program.owners[i].iter().map(|o| &instructions[*o]).collect()
}

/// See [`Cost::bytes_moved`](super::Cost::bytes_moved).
pub(super) fn bytes_moved(instructions: &[Instruction], program: Option<&Program>) -> u64 {
    let Some(program) = program else {
        return instructions.iter().map(|i| i.operands.bytes()).sum();
    };
    let launches = program.launches.iter().enumerate();
    launches.map(|(i, launch)| launch_bytes(launch, owners(instructions, program, i))).sum()
}

impl Instruction {
    /// Multiply-adds, counted twice.
    fn flops(&self) -> u64 {
        let o = &self.operands;
        let needs_grad = |i: usize| o.input_grads.get(i).is_some_and(Option::is_some);
        let arg = |(i, shape): (usize, &_)| OperandInfo { shape: *shape, needs_grad: needs_grad(i) };
        let args: Vec<OperandInfo> = o.input_shapes.iter().enumerate().map(arg).collect();
        let macs = self.op.signature(&args).map(|s| match self.phase {
            Phase::Forward => s.macs_forward,
            Phase::Backward => s.macs_backward,
            Phase::Update => 0,
        });
        2 * macs.unwrap_or(0)
    }
}

impl<R: Real> Plan<R> {
    /// What a GPU holds while this plan runs, after those that found room before.
    pub fn held(&self, store: &Store<R>, room: &mut Room) -> Held {
        let launches = self.program.as_ref().map_or(&[][..], |p| &p.launches);
        room.take(store.buffer_sizes(), launches, self.cost.arena_bytes)
    }

    /// What every op of every part costs on `card`, in the order they first run; nothing for a plan of the CPU's.
    pub fn traffic(&self, card: &Card) -> Vec<Traffic> {
        let Some(program) = &self.program else { return Vec::new() };
        // Of each instruction, then of what is nobody's.
        let mut moved = vec![(0, 0); self.instructions.len() + 1];
        for (i, launch) in program.launches.iter().enumerate() {
            let owners = owners(&self.instructions, program, i);
            let bytes = launch_bytes(launch, owners.iter().copied());
            let places = &program.owners[i];
            let first = places.first().copied().unwrap_or(self.instructions.len());
            moved[first].0 += 1;
            // A launch that several share is as much each one's; the first takes what does not divide.
            let share = bytes / places.len().max(1) as u64;
            moved[first].1 += bytes - share * places.len() as u64;
            places.iter().for_each(|p| moved[*p].1 += share);
        }
        let mut rows: Vec<Traffic> = Vec::new();
        for (at, (launches, bytes_moved)) in moved.into_iter().enumerate() {
            let owner = self.instructions.get(at);
            let (part, op, phase) = match owner {
                Some(i) => (i.scope, i.op.name(), i.phase),
                None => ("", "plan", Phase::Update),
            };
            let minimal_bytes = owner.map_or(bytes_moved, |i| i.op.minimal_bytes(&i.operands));
            let flops = owner.map_or(0, Instruction::flops);
            let is_bf16 = owner.is_some_and(|i| i.operands.input_elems.first() == Some(&Elem::Bf16));
            let sum = Sum {
                launches,
                flops,
                bytes_moved,
                minimal_bytes,
                ratio: None,
                roofline_ms: 1e3 * card.least_seconds(minimal_bytes, flops, is_bf16),
                planned_ms: 1e3 * card.least_seconds(bytes_moved, flops, is_bf16),
            };
            let found = rows.iter().position(|r| (r.part, r.op, r.phase) == (part, op, phase));
            let place = found.unwrap_or_else(|| {
                rows.push(Traffic { part, op, phase, sum: Sum::default() });
                rows.len() - 1
            });
            rows[place].sum.add(&sum);
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

    /// Rows that learn, as a bf16 map `[2, 4, 4, 8]`; `layers` on it in the scope "toy"; a loss.
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

    /// x 512, w 2304, y 1024; then x 1024, w 512, y 1024: bytes of bf16. Both directions read and write the same sizes.
    #[test]
    fn two_convolutions_move_what_a_hand_counts() {
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
        // The parts are the whole, what the plan adds itself included.
        let rows = plan.traffic(&card);
        assert_eq!(rows.iter().map(|r| r.sum.bytes_moved).sum::<u64>(), plan.cost().bytes_moved);
        assert_eq!(rows.iter().map(|r| r.sum.launches).sum::<usize>(), plan.cost().launches);
        assert!(rows.iter().any(|r| r.op == "plan"));
        assert!(plan.launches().any(|(_, label)| label.starts_with("conv2d Backward (toy) of [")));
    }

    /// A map is 512 bytes, its mask 32, a filter 128 (its gradient, f32, 256).
    #[test]
    fn masks_residuals_and_learning_filters_count_in_the_least() {
        let filters = [(Shape::new(8, 1, 1, 8), Learn::Trainable), (Shape::new(8, 1, 1, 8), Learn::Frozen)];
        let relu = Conv2d { act: Act::Relu, ..Conv2d::new(1, 0) };
        let card = <&Card>::default();
        let unit = plan(&filters, |t, x, w| {
            let y = t.apply(relu, &[x, w[0]]).unwrap();
            t.apply(Conv2d { residual: true, ..relu }, &[y, w[1], x]).unwrap()
        });
        let least = |phase| row(&unit, card, "toy", "conv2d", phase).minimal_bytes;
        assert_eq!(least(Phase::Forward), (512 + 128 + 512 + 32) + (512 + 128 + 512 + 512 + 32));
        // The second writes the residual's gradient, which is its dz; the first adds to it, and its filter learns.
        let backward = (512 + 32 + 128 + 512) + (512 + 32 + 128 + 2 * 512 + 512 + 256);
        assert_eq!(least(Phase::Backward), backward);

        // An activation by itself is its neighbours' work, save that somebody reads the residual.
        let apart = plan(&filters, |t, x, w| {
            let y = t.apply(Conv2d::new(1, 0), &[x, w[0]]).unwrap();
            t.apply(crate::ops::layers::activation::Activation(Act::Relu), &[y, x]).unwrap()
        });
        assert_eq!(row(&apart, card, "toy", "activation", Phase::Forward).minimal_bytes, 512);
        assert_eq!(row(&apart, card, "toy", "activation", Phase::Backward).minimal_bytes, 0);
    }

    #[test]
    fn batch_statistics_read_twice_in_backward() {
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
    fn of_a_bank_only_the_rows_that_are_drawn_move() {
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
