//! The kernels that belong to no op, and the bf16 copies that an optimiser's kernel keeps.

use super::machines::machines;
use crate::device::gpu::launch::{self, Launch};
use crate::device::gpu::target::Target;
use crate::device::memory::{ALIGN, Buffer, Mirrored};
use crate::device::{Slot, Space, StepState};
use crate::ops::Op;
use crate::ops::launch::late_sums::{self, Fold, LateSum};
use crate::ops::launch::launches::Launches;
use crate::ops::operands::{Operands, Write};
use crate::ops::operator::Operator;
use crate::tensor::{Elem, Shape};

/// One step of an optimiser whose operands come in groups of `group`, the parameter first, on tensors whose
/// bf16 copies something reads: only then does a machine keep one. The copies must follow.
pub fn check_bf16_copies(op: impl Into<Op>, group: usize) {
    let (op, counts) = (op.into(), [4099, 6]); // two chunks with a tail; a tail alone
    for mut machine in machines(Elem::Bf16) {
        let (mut slots, mut end) = (Vec::new(), 0);
        let mut take = |space: Space, count: usize| {
            let s = Slot { space, offset: end, bytes: count * 4 };
            end = (end + s.bytes).next_multiple_of(ALIGN);
            s
        };
        for count in counts {
            slots.extend((0..group).map(|_| take(Space::Store(0), count)));
        }
        let seen = counts.map(|count| take(Space::Arena, count));
        let mut store = [Buffer::with_bytes(end)];
        let all = store[0].bytes();
        store[0].get_mut::<f32>(0, all).iter_mut().zip(1..).for_each(|(v, i)| *v = 1.0 / i as f32);
        machine.reserve(end).unwrap();
        machine.push(&store, &mut [Mirrored::new(store[0].bytes())]).unwrap();
        let operands = Operands {
            input_shapes: slots.iter().map(|s| Shape::vector(s.bytes / 4)).collect(),
            input_elems: vec![Elem::F32; slots.len()],
            inputs: slots.clone(),
            ..Default::default()
        };
        let mut l = Launches::new(op.name(), &operands, &Target::h200(Elem::Bf16));
        op.launch_forward(&mut l).unwrap();
        let parameters: Vec<Slot> = slots.into_iter().step_by(group).collect();
        for (seen, p) in seen.iter().zip(&parameters) {
            let (one, count) = (launch::KernelArg::from(1i64), launch::KernelArg::from(p.bytes as i64 / 4));
            let (to, from) = (launch::KernelArg::Slot(*seen), launch::KernelArg::Bf16Copy(*p));
            l.launch("scatter_images<bf16>", 1, 32, 0, [to, from, one.clone(), one, count, l.step()])
                .unwrap();
        }
        let step = StepState { seed: 0, step: 0, lr: [0.01; 4] };
        let mut ready = machine.prepare(&l.list, |_| op.name().into()).unwrap();
        machine.run(&mut ready, &step).unwrap();
        for (seen, p) in seen.iter().zip(&parameters) {
            let after = machine.read(*p, Elem::F32).unwrap();
            assert!(
                after != store[0].get::<f32>(p.offset, p.bytes),
                "{}: the parameter stands still",
                op.name()
            );
            let rounded: Vec<f32> = after.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
            assert_eq!(machine.read(*seen, Elem::F32).unwrap(), rounded, "{}: the bf16 copy", op.name());
        }
    }
}

/// What the engine launches itself: constants and bf16 copies, whole packs and the elements after them.
#[test]
fn fills_and_casts() {
    for mut machine in machines(Elem::Bf16) {
        for count in [1usize, 8, 37, 8 * 32 * 3 + 5] {
            let slot =
                |i: usize, size: usize| Slot { space: Space::Arena, offset: i * 8192, bytes: count * size };
            let [constant, values, copy] = [slot(0, 4), slot(1, 4), slot(2, 2)];
            machine.reserve(3 * 8192).unwrap();
            let everything = Slot { space: Space::Arena, offset: 0, bytes: 3 * 8192 };
            machine.write(everything, &[0xFF; 3 * 8192]).unwrap();
            let x: Vec<f32> = (0..count).map(|i| (i as f32 - 11.3) / 7.0).collect();
            machine.write(values, bytemuck::cast_slice(&x)).unwrap();
            let of = launch::KernelArg::Slot;
            let launches = [
                ("fill", vec![of(constant), 1.5f32.into(), (count as i64).into()]),
                ("cast_bf16", vec![of(copy), of(values), (count as i64).into()]),
            ]
            .map(|(name, args)| Launch::new(name, [2, 1, 1], 32, 0, args).unwrap());
            let mut ready = machine.prepare(&launches, |_| "fills and casts".into()).unwrap();
            machine.run(&mut ready, &StepState::default()).unwrap();
            let rounded: Vec<f32> = x.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
            assert_eq!(machine.read(constant, Elem::F32).unwrap(), vec![1.5; count]);
            assert_eq!(machine.read(copy, Elem::Bf16).unwrap(), rounded);
            let mut bytes = vec![0; everything.bytes];
            machine.read_bytes(everything, &mut bytes).unwrap();
            for s in [constant, values, copy] {
                assert!(bytes[s.offset + s.bytes..(s.offset / 8192 + 1) * 8192].iter().all(|b| *b == 0xFF));
            }
        }
    }
}

/// A ring's row is the step's, whatever was written before.
#[test]
fn pushes_metrics_into_the_row_of_the_step() {
    for mut machine in machines(Elem::F32) {
        machine.reserve(1024).unwrap();
        let slots = [0, 64, 128].map(|offset| Slot { space: Space::Arena, offset, bytes: 4 });
        for step in 0..7u64 {
            for (i, s) in slots.iter().enumerate() {
                machine.write(*s, &(step as f32 + 10.0 * i as f32).to_le_bytes()).unwrap();
            }
            let scalars = launch::KernelArg::table(slots.map(|s| [launch::KernelArg::Slot(s)]).to_vec());
            let args =
                vec![launch::KernelArg::Ring, scalars, 3i32.into(), 4i32.into(), launch::KernelArg::Step];
            let launches = [Launch::new("push_metrics", [1, 1, 1], 64, 0, args).unwrap()];
            let mut ready = machine.prepare(&launches, |_| "metrics".into()).unwrap();
            machine.run(&mut ready, &StepState { step, ..Default::default() }).unwrap();
        }
        let expected: Vec<f32> = [4.0, 5.0, 6.0, 3.0].iter().flat_map(|s| [*s, s + 10.0, s + 20.0]).collect();
        assert_eq!(machine.ring(4, 3).unwrap(), expected);
    }
}

/// Gradients of several sizes, kinds and numbers of parts; one has the parts of two instructions. All values are multiples of
/// 1/64, so that every order of addition gives the same sum.
#[test]
fn adds_the_parts_of_gradients_after_backward() {
    let target = Target::h200(Elem::F32);
    // Elements, whether the gradient has a first term, and for each source its parts and the elements between them.
    let gradients: [(usize, Write, Fold, &[[usize; 2]]); 6] = [
        (5, Write::Set, Fold::Few, &[[3, 5]]),
        (4099, Write::Add, Fold::Few, &[[1, 4099]]),
        (4096, Write::Set, Fold::Few, &[[2, 4096], [4, 4096]]),
        (1, Write::Set, Fold::Many, &[[2, 2]]),
        (37, Write::Add, Fold::Many, &[[40, 74], [33, 74]]),
        (16, Write::Set, Fold::Many, &[[65, 32]]),
    ];
    for mut machine in machines(Elem::F32) {
        let (mut sums, mut end) = (Vec::new(), 0);
        let mut take = |count: usize| {
            let slot = Slot { space: Space::Arena, offset: end, bytes: 4 * count };
            end = (end + slot.bytes).next_multiple_of(ALIGN);
            slot
        };
        for (len, write, fold, sources) in gradients {
            let to = take(len);
            for (i, [count, stride]) in sources.iter().copied().enumerate() {
                let write = if i == 0 { write } else { Write::Add };
                sums.push(LateSum { to, write, parts: take(count * stride), len, stride, count, fold });
            }
        }
        machine.reserve(end).unwrap();
        let before: Vec<f32> = (0..end / 4).map(|i| (i * 37 % 129) as f32 / 64.0 - 1.0).collect();
        let everything = Slot { space: Space::Arena, offset: 0, bytes: end };
        machine.write(everything, bytemuck::cast_slice(&before)).unwrap();
        let mut expected = before.clone();
        for s in &sums {
            let (to, parts) = (s.to.offset / 4, s.parts.offset / 4);
            for i in 0..s.len {
                let sum: f32 = (0..s.count).map(|p| before[parts + p * s.stride + i]).sum();
                expected[to + i] = if s.write == Write::Add { expected[to + i] + sum } else { sum };
            }
        }
        let launches: Vec<Launch> =
            late_sums::launches(&sums, &target).unwrap().into_iter().map(|(launch, _)| launch).collect();
        assert_eq!(launches.len(), 2, "one for each kind");
        let mut ready = machine.prepare(&launches, |_| "late sums".into()).unwrap();
        machine.run(&mut ready, &StepState::default()).unwrap();
        assert!(machine.read(everything, Elem::F32).unwrap() == expected);
    }
}
