//! The gates on machines that run kernels: the emulator, in several orders of a block's threads, and a GPU if
//! `DFKA_TEST_DEVICE=cuda` (or `cuda:N`) asks for one. Both store maps as f32 and as bf16.
//!
//! The tolerance calibrates itself: with `reference` the host's f64, and `naive` the host's f32 with stored tensors rounded
//! to the device's type, `max|device - reference| <= 2 max|naive - reference| + 4 eps max|reference|`.

use super::*;
use crate::device::gpu::launch::{self, Launch};
use crate::device::gpu::machine::Machine;
use crate::device::gpu::{Gpu, cuda, emu, skipped};
use crate::ops::launches::Launches;

/// Orders of the threads of a block: as released, in reverse, and at random. A missing barrier hides from the first two.
const ORDERS: [i32; 4] = [0, 1, 2, 3];

/// The index of the CUDA device that the tests are asked to use.
fn cuda_index() -> Option<usize> {
    let asked = std::env::var("DFKA_TEST_DEVICE").ok()?;
    let index = asked.strip_prefix("cuda")?.trim_start_matches(':');
    Some(if index.is_empty() { 0 } else { index.parse().expect("DFKA_TEST_DEVICE=cuda:N") })
}

/// The orders to test: all, or those that `DFKA_TEST_ORDERS=0,3` names, where each is slow (under a sanitizer).
fn orders() -> Vec<i32> {
    let Ok(list) = std::env::var("DFKA_TEST_ORDERS") else { return ORDERS.into() };
    let number = |n: &str| ORDERS.into_iter().find(|o| o.to_string() == n.trim());
    let orders: Option<Vec<i32>> = list.split(',').map(number).collect();
    orders.unwrap_or_else(|| {
        panic!("DFKA_TEST_ORDERS={list}: expected some of {ORDERS:?}, with commas between")
    })
}

/// The machines to test on: one an order of the emulator's, or the GPU that was asked for, twice.
fn machines(maps: Elem) -> Vec<Machine> {
    if let Some(index) = cuda_index() {
        let open = || Machine::new(Gpu::Cuda(cuda::Cuda::open(index).unwrap()), maps).unwrap();
        return vec![open(), open()];
    }
    let open = |order: &i32| match emu::Emu::open(*order) {
        Ok(e) => Some(Machine::new(Gpu::Emu(e), maps).unwrap()),
        Err(e) => {
            skipped(&e);
            None
        }
    };
    orders().iter().filter_map(open).collect()
}

/// Whether operand `i` is a tensor of the store, which a device keeps in f32 whatever its shape.
fn is_leaf(op: &Op, i: usize) -> bool {
    match op {
        Op::Conv2d(_) => i == 1 || i == 2,
        Op::GatherImages(_) | Op::ScatterImages(_) => i == 0,
        Op::Adam(_) => i % 4 != 1,
        Op::Sgd(_) => i % 3 != 1,
        _ => false,
    }
}

/// Whether operand `i` is f32 whatever its shape: a leaf, or the gradient of one.
fn is_f32(op: &Op, i: usize) -> bool {
    is_leaf(op, i) || matches!(op, Op::Adam(_) | Op::Sgd(_))
}

/// How one run of a case stores its operands.
#[derive(Clone)]
struct Storage {
    maps: Elem,
    inputs: Vec<Elem>,
    outputs: Vec<Elem>,
}

fn storages(case: &Case, sig: &Signature) -> Vec<Storage> {
    let storage = |maps: Elem, input: Elem| {
        let inputs: Vec<Elem> = case
            .inputs
            .iter()
            .enumerate()
            .map(|(i, (s, _))| if s.h() * s.w() > 1 && !is_f32(&case.op, i) { input } else { Elem::F32 })
            .collect();
        let outputs = sig.outputs.iter().map(|s| case.op.output_elem(*s, &inputs, maps)).collect();
        Storage { maps, inputs, outputs }
    };
    let mut all = vec![storage(Elem::F32, Elem::F32), storage(Elem::Bf16, Elem::Bf16)];
    if matches!(case.op, Op::BatchNorm(_)) {
        // Rows that a view made a map: f32 in, bf16 out.
        all.push(storage(Elem::Bf16, Elem::F32));
    }
    all
}

fn round(values: &[f64], elem: Elem) -> Vec<f64> {
    values
        .iter()
        .map(|v| match elem {
            Elem::F32 => f64::from(*v as f32),
            Elem::Bf16 => f64::from(half::bf16::from_f32(*v as f32).to_f32()),
        })
        .collect()
}

/// How a case's gradients are asked for.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Asked {
    write: Write,
    /// The output's gradient comes multiplied by the activation's slope, and gradients of inputs are to be multiplied by
    /// that of an activation in front of them, wherever the op says that it can.
    gates: bool,
}

impl From<Write> for Asked {
    fn from(write: Write) -> Asked {
        Asked { write, gates: false }
    }
}

/// The slope of the activation in front of an input, where the bit of its mask is not set.
const GATE_SLOPE: f32 = 0.25;

/// Bytes of the mask of a map, and which.
fn gate_mask(shape: Shape) -> Vec<u8> {
    let bytes = shape.elems() / shape.c() * shape.c().div_ceil(8);
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// What a mask multiplies element `i` by.
fn gate_value(mask: &[u8], c: usize, slope: f32, i: usize) -> f64 {
    let byte = mask[i / c * c.div_ceil(8) + i % c / 8];
    if byte >> (i % c % 8) & 1 == 1 { 1.0 } else { f64::from(slope) }
}

/// Runs the case's launches with a poisoned gap around every operand.
fn run_on(
    machine: &mut Machine,
    case: &Case,
    storage: &Storage,
    inputs: &[Vec<f64>],
    wants: &[bool],
    dy: &[Vec<f64>],
    asked: Asked,
) -> Result<Outcome> {
    let write = asked.write;
    let args: Vec<Arg> =
        case.inputs.iter().zip(wants).map(|((shape, _), w)| Arg { shape: *shape, wants: *w }).collect();
    let mut sig = case.op.signature(&args)?;
    case.op.device_extents(&args, storage.maps, &mut sig);
    let backward = wants.iter().any(|w| *w);
    let (mut ends, mut slots) = ([ALIGN; 2], Vec::new());
    let mut take = |bytes: usize, space: Space| {
        let end = &mut ends[usize::from(space == Space::Arena)];
        let s = Slot { space, offset: *end, bytes };
        *end = (*end + bytes).next_multiple_of(ALIGN) + ALIGN;
        slots.push(s);
        s
    };
    let arena = Space::Arena;
    let reals = |s: &Shape, e: Elem| s.elems() * e.bytes();
    let extent = |e: &Extent| match e {
        Extent::Reals(n) => n * 4,
        Extent::Bytes(n) => *n,
    };
    let place = |i: usize| if is_leaf(&case.op, i) { Space::Store(0) } else { arena };
    let forward = Operands {
        inputs: args
            .iter()
            .enumerate()
            .map(|(i, a)| take(reals(&a.shape, storage.inputs[i]), place(i)))
            .collect(),
        input_shapes: args.iter().map(|a| a.shape).collect(),
        outputs: sig.outputs.iter().zip(&storage.outputs).map(|(s, e)| take(reals(s, *e), arena)).collect(),
        output_shapes: sig.outputs.clone(),
        input_elems: storage.inputs.clone(),
        output_elems: storage.outputs.clone(),
        saved: if backward { sig.saved.iter().map(|e| take(extent(e), arena)).collect() } else { vec![] },
        scratch: sig.scratch_forward.iter().map(|e| take(extent(e), arena)).collect(),
        ..Default::default()
    };
    let back = backward.then(|| Operands {
        scratch: sig.scratch_backward.iter().map(|e| take(extent(e), arena)).collect(),
        output_grads: forward.outputs.iter().map(|s| Some(take(s.bytes, arena))).collect(),
        input_grads: args
            .iter()
            .enumerate()
            .map(|(i, a)| a.wants.then(|| (take(reals(&a.shape, storage.inputs[i]), arena), write)))
            .collect(),
        gates: args
            .iter()
            .enumerate()
            .map(|(i, a)| {
                let is_asked = asked.gates && a.wants && case.op.can_gate(i);
                is_asked.then(|| (take(gate_mask(a.shape).len(), arena), GATE_SLOPE))
            })
            .collect(),
        is_gated: asked.gates && case.op.gated().is_some(),
        ..forward.clone()
    });

    let mut store = [Buffer::with_bytes(ends[0])];
    store[0].fill(0xFF); // NaN in f32 and bf16
    for (s, v) in forward.inputs.iter().zip(inputs).filter(|(s, _)| s.space != arena) {
        store[0].get_mut::<f32>(s.offset, s.bytes).iter_mut().zip(v).for_each(|(a, b)| *a = *b as f32);
    }
    machine.reserve(ends[1])?;
    machine.push(&store, &mut [true])?;
    let poison = |machine: &Machine, s: Slot| machine.write(s, &vec![0xFF; s.bytes]);
    poison(machine, Slot { space: arena, offset: 0, bytes: machine.arena_bytes() })?;
    let load = |machine: &Machine, slot: Slot, elem: Elem, v: &[f64]| {
        let bytes: Vec<u8> = match elem {
            Elem::F32 => v.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
            Elem::Bf16 => v.iter().flat_map(|v| half::bf16::from_f32(*v as f32).to_le_bytes()).collect(),
        };
        machine.write(slot, &bytes)
    };
    let get = |machine: &Machine, slot: Slot, elem: Elem| -> Result<Vec<f64>> {
        Ok(machine.read(slot, elem)?.into_iter().map(f64::from).collect())
    };
    let execute = |machine: &mut Machine, launches: &[Launch]| {
        let mut ready = machine.prepare(launches, |_| case.op.name().into())?;
        machine.run(&mut ready, &case.step)
    };
    for (i, (s, v)) in forward.inputs.iter().zip(inputs).enumerate().filter(|(_, (s, _))| s.space == arena) {
        load(machine, *s, storage.inputs[i], v)?;
    }
    let mut l = Launches::new(case.op.name(), &forward, storage.maps);
    case.op.launch_forward(&mut l)?;
    execute(machine, &l.list)?;
    let outputs = forward
        .outputs
        .iter()
        .zip(&storage.outputs)
        .map(|(s, e)| get(machine, *s, *e))
        .collect::<Result<_>>()?;
    let updated = sig
        .updates
        .iter()
        .map(|i| get(machine, forward.inputs[*i], storage.inputs[*i]))
        .collect::<Result<_>>()?;
    // What the signature does not list as kept may be overwritten before backward runs.
    for (i, s) in forward.inputs.iter().enumerate() {
        if !sig.keeps_inputs.contains(&i) && s.space == arena {
            poison(machine, *s)?;
        }
    }
    let dropped = forward.outputs.iter().filter(|_| !sig.keeps_outputs).chain(&forward.scratch);
    dropped.copied().try_for_each(|s| poison(machine, s))?;
    let mut grads = vec![None; args.len()];
    if let Some(back) = &back {
        for (i, s) in back.output_grads.iter().flatten().enumerate() {
            let mut dy = dy[i].clone();
            if let Some(gated) = case.op.gated().filter(|_| asked.gates) {
                let mut mask = vec![0; back.saved[0].bytes];
                machine.read_bytes(back.saved[0], &mut mask)?;
                let c = sig.outputs[i].c();
                dy.iter_mut().enumerate().for_each(|(e, v)| *v *= gate_value(&mask, c, gated.slope, e));
            }
            load(machine, *s, storage.outputs[i], &dy)?;
        }
        for (i, gate) in back.gates.iter().enumerate() {
            if let Some((s, _)) = gate {
                machine.write(*s, &gate_mask(args[i].shape))?;
            }
        }
        for (i, grad) in back.input_grads.iter().enumerate() {
            if let Some((s, Write::Add)) = grad {
                let base: Vec<f64> = (0..args[i].shape.elems()).map(|i| (i % 5) as f64 - 2.0).collect();
                load(machine, *s, storage.inputs[i], &base)?;
            }
        }
        let mut l = Launches::new(case.op.name(), back, storage.maps);
        case.op.launch_backward(&mut l)?;
        execute(machine, &l.list)?;
        for (i, grad) in back.input_grads.iter().enumerate() {
            if let Some((s, _)) = grad {
                grads[i] = Some(get(machine, *s, storage.inputs[i])?);
            }
        }
    }
    // Everything between slots must still be poison.
    for (space, end) in [(Space::Store(0), ends[0]), (arena, ends[1])] {
        let mut all = vec![0u8; end];
        machine.read_bytes(Slot { space, offset: 0, bytes: end }, &mut all)?;
        let inside = |s: &&Slot| s.space == space;
        slots.iter().filter(inside).for_each(|s| all[s.offset..s.offset + s.bytes].fill(0xFF));
        if let Some(at) = all.iter().position(|b| *b != 0xFF) {
            let message =
                format!("{}: wrote outside its operands, at byte {at} of {space:?}", case.op.name());
            return Err(Error::Run(message));
        }
    }
    Ok(Outcome { outputs, updated, grads })
}

/// The self-calibrated comparison.
fn compare_calibrated(what: &str, device: &[f64], naive: &[f64], reference: &[f64], eps: f64) {
    assert_eq!(device.len(), reference.len(), "{what}: length");
    let largest = |v: &mut dyn Iterator<Item = f64>| v.fold(0.0f64, |m, v| m.max(v.abs()));
    let scale = largest(&mut reference.iter().copied());
    let naive_off = largest(&mut naive.iter().zip(reference).map(|(a, b)| a - b));
    let bound = 2.0 * naive_off + 4.0 * eps * scale;
    for (i, (d, r)) in device.iter().zip(reference).enumerate() {
        assert!(
            (d - r).abs() <= bound,
            "{what}[{i}]: expected {r}, found {d} (the host's naive result: {}): off by {:.3e}, allowed {bound:.3e}",
            naive[i],
            (d - r).abs()
        );
    }
}

/// Runs the gates that a machine can fail: value, set and add, canaries, nothing left unwritten, bitwise repeat.
pub fn check(case: &Case, dy: &[Vec<f64>]) {
    let args: Vec<Arg> =
        case.inputs.iter().zip(&case.wants).map(|((shape, _), w)| Arg { shape: *shape, wants: *w }).collect();
    let sig = case.op.signature(&args).unwrap();
    for storage in storages(case, &sig) {
        let op = format!("{} ({} maps)", case.op.name(), storage.maps);
        // Inputs that every party can represent; parameters too, since kernels may read their bf16 copies.
        let inputs: Vec<_> = case.inputs.iter().map(|(_, v)| round(v, storage.maps)).collect();
        let dy: Vec<_> = dy.iter().zip(&storage.outputs).map(|(v, e)| round(v, *e)).collect();
        let eps = |e: Elem| if e == Elem::F32 { f64::from(f32::EPSILON) } else { 2f64.powi(-7) };
        let mut first: Option<Outcome> = None;
        for (turn, machine) in machines(storage.maps).iter_mut().enumerate() {
            let mut on = |wants: &[bool], asked: Asked| {
                run_on(machine, case, &storage, &inputs, wants, &dy, asked)
                    .unwrap_or_else(|e| panic!("{op}: {e}"))
            };
            let set = on(&case.wants, Write::Set.into());
            if let Some(first) = &first {
                assert!(set.bits() == first.bits(), "{op}: turn {turn} of the same launches gave other bits");
                continue;
            }
            let none = on(&vec![false; args.len()], Write::Set.into());
            let forward = |o: &Outcome| Outcome { grads: vec![], ..o.clone() }.bits();
            assert!(
                forward(&none) == forward(&set),
                "{op}: forward alone gives other bits than before backward"
            );
            let mut outcomes = vec![(set.clone(), Asked::from(Write::Set))];
            if case.wants.contains(&true) {
                outcomes.push((on(&case.wants, Write::Add.into()), Write::Add.into()));
            }
            let can_gate = (0..args.len()).any(|i| args[i].wants && case.op.can_gate(i));
            if can_gate || (case.op.gated().is_some() && case.wants.contains(&true)) {
                let gated = [Write::Set, Write::Add].map(|write| Asked { write, gates: true });
                outcomes.extend(gated.map(|asked| (on(&case.wants, asked), asked)));
            }
            for (device, asked) in outcomes {
                let write = asked.write;
                let reference = run::<f64>(case, &inputs, &case.wants, &dy, write);
                let naive = run::<f32>(case, &inputs, &case.wants, &dy, write);
                for (i, e) in storage.outputs.iter().enumerate() {
                    let naive = round(&naive.outputs[i], *e);
                    let what = format!("{op}: output {i}");
                    compare_calibrated(&what, &device.outputs[i], &naive, &reference.outputs[i], eps(*e));
                }
                for (i, input) in sig.updates.iter().enumerate() {
                    let e = storage.inputs[*input];
                    let what = format!("{op}: updated input {input}");
                    compare_calibrated(
                        &what,
                        &device.updated[i],
                        &naive.updated[i],
                        &reference.updated[i],
                        eps(e),
                    );
                }
                for (i, e) in storage.inputs.iter().enumerate() {
                    let (Some(d), Some(n), Some(r)) =
                        (&device.grads[i], &naive.grads[i], &reference.grads[i])
                    else {
                        continue;
                    };
                    // A parameter's gradient is f32, but what it sums up came through maps.
                    let e = if is_leaf(&case.op, i) { storage.maps } else { *e };
                    let what = format!("{op}: gradient {i}, {asked:?}");
                    let (mut n, mut r) = (n.clone(), r.clone());
                    if asked.gates && case.op.can_gate(i) {
                        let (mask, c) = (gate_mask(args[i].shape), args[i].shape.c());
                        let gate = |v: &mut Vec<f64>| {
                            v.iter_mut()
                                .enumerate()
                                .for_each(|(e, v)| *v *= gate_value(&mask, c, GATE_SLOPE, e));
                        };
                        [&mut n, &mut r].into_iter().for_each(gate);
                    }
                    compare_calibrated(&what, d, &round(&n, e), &r, eps(e));
                }
            }
            first = Some(set);
        }
    }
}

impl Outcome {
    /// For comparisons that tell NaN from NaN.
    fn bits(&self) -> Vec<u64> {
        let grads = self.grads.iter().flatten();
        self.outputs.iter().chain(&self.updated).chain(grads).flatten().map(|v| v.to_bits()).collect()
    }
}

/// One step of an optimiser whose operands come in groups of `group`, the parameter first, on tensors whose bf16 copies
/// something reads: only then does a machine keep one. The copies must follow.
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
        machine.push(&store, &mut [true]).unwrap();
        let operands = Operands {
            input_shapes: slots.iter().map(|s| Shape::vector(s.bytes / 4)).collect(),
            input_elems: vec![Elem::F32; slots.len()],
            inputs: slots.clone(),
            ..Default::default()
        };
        let mut l = Launches::new(op.name(), &operands, Elem::Bf16);
        op.launch_forward(&mut l).unwrap();
        let parameters: Vec<Slot> = slots.into_iter().step_by(group).collect();
        for (seen, p) in seen.iter().zip(&parameters) {
            let (one, count) = (launch::Arg::from(1i64), launch::Arg::from(p.bytes as i64 / 4));
            let (to, from) = (launch::Arg::Slot(*seen), launch::Arg::Shadow(*p));
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
            let of = launch::Arg::Slot;
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
            let scalars = launch::Arg::table(slots.map(|s| [launch::Arg::Slot(s)]).to_vec());
            let args = vec![launch::Arg::Ring, scalars, 3i32.into(), 4i32.into(), launch::Arg::Step];
            let launches = [Launch::new("push_metrics", [1, 1, 1], 64, 0, args).unwrap()];
            let mut ready = machine.prepare(&launches, |_| "metrics".into()).unwrap();
            machine.run(&mut ready, &StepState { step, ..Default::default() }).unwrap();
        }
        let expected: Vec<f32> = [4.0, 5.0, 6.0, 3.0].iter().flat_map(|s| [*s, s + 10.0, s + 20.0]).collect();
        assert_eq!(machine.ring(4, 3).unwrap(), expected);
    }
}
