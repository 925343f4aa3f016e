//! The rungs of kernels/lab/conv2d/, and the production kernels that came from them, against the definition
//! of a convolution: grouped launches, rows that fill no whole number of tiles, and every order of a block's
//! threads. Runs on the emulator.

#[path = "../../benches/common/rungs.rs"]
#[allow(dead_code)] // the bench uses more of it
mod rungs;

use crate::common::skipped;
use dfka_engine::device::gpu::Gpu;
use dfka_engine::device::gpu::emu::Emu;
use dfka_engine::device::gpu::machine::Machine;
use dfka_engine::device::{Slot, StepState};
use dfka_engine::tensor::Elem;
use rungs::{Operands, Problem, RUNGS, SLOPE, STATS_ROWS};

/// Numbers from -1 to 1 that are exact in bf16.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 2654435761 + seed * 40503) / 65536 % 129) as f32 / 64.0 - 1.0).collect()
}

fn load(machine: &Machine, slot: Slot, elem: Elem, values: &[f32]) {
    let bytes: Vec<u8> = match elem {
        Elem::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Elem::Bf16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
    };
    machine.write(slot, &bytes).unwrap();
}

/// The expected output of one convolution of the group: forward after the activation, backward after the
/// mask.
fn expected(p: &Problem, [x, filter, bias, added, dz]: [&[f32]; 5], mask: &[u8]) -> Vec<f32> {
    let ([c, k], [size, out]) = (p.channels, [p.size, p.out()]);
    let at = |n: usize, a: usize, b: usize, side: usize| (n * side + a) * side + b;
    let mut y: Vec<f32> = if p.adds { added.to_vec() } else { vec![0.0; added.len()] };
    for n in 0..p.images {
        for (a, b) in (0..out).flat_map(|a| (0..out).map(move |b| (a, b))) {
            for (r, s) in (0..p.taps).flat_map(|r| (0..p.taps).map(move |s| (r, s))) {
                let (h, w) =
                    ((a * p.stride + r).wrapping_sub(p.pad()), (b * p.stride + s).wrapping_sub(p.pad()));
                if h >= size || w >= size {
                    continue;
                }
                let (pixel, window) = (at(n, h, w, size) * c, at(n, a, b, out) * k);
                for o in 0..k {
                    let f = &filter[((o * p.taps + r) * p.taps + s) * c..][..c];
                    if p.is_gradient {
                        let dz = dz[window + o];
                        y[pixel..pixel + c].iter_mut().zip(f).for_each(|(y, f)| *y += dz * f);
                    } else {
                        y[window + o] += x[pixel..pixel + c].iter().zip(f).map(|(x, f)| x * f).sum::<f32>();
                    }
                }
            }
        }
    }
    if p.is_gradient {
        let is_set = |i: usize| mask[i / 8] >> (i % 8) & 1 == 1;
        return y.iter().enumerate().map(|(i, v)| if is_set(i) { *v } else { v * SLOPE }).collect();
    }
    y.iter().enumerate().map(|(i, v)| v + bias[i % k]).map(|v| if v > 0.0 { v } else { v * SLOPE }).collect()
}

/// Checks the partial channel statistics: for every 128 pixels and each channel, the mean of the activation's
/// input and the sum of squared distances from it.
fn check_channel_stats(p: &Problem, found: &[f32], y: &[f32]) {
    let (k, pixels) = (p.channels[1], p.pixels()[1]);
    let before = |m: usize, c: usize| {
        f64::from(y[m * k + c]) / if y[m * k + c] > 0.0 { 1.0 } else { f64::from(SLOPE) }
    };
    for (part, first) in (0..pixels).step_by(STATS_ROWS).enumerate() {
        let rows = first..(first + STATS_ROWS).min(pixels);
        for c in 0..k {
            let n = rows.len() as f64;
            let mean = rows.clone().map(|m| before(m, c)).sum::<f64>() / n;
            let square = rows.clone().map(|m| (before(m, c) - mean).powi(2)).sum::<f64>();
            let at = |i: usize| f64::from(found[(2 * part + i) * k + c]);
            let what = format!("part {part}, channel {c}: mean {mean} {}, squares {square} {}", at(0), at(1));
            assert!((at(0) - mean).abs() < 1e-4 && (at(1) - square).abs() < 1e-4 * square.max(1.0), "{what}");
        }
    }
}

fn check(machine: &mut Machine, p: &Problem, order: i32) {
    let (operands, bytes) = p.operands();
    machine.reserve(bytes).unwrap();
    let count = |slot: Slot| slot.bytes / 2;
    let values: Vec<[Vec<f32>; 5]> = operands
        .iter()
        .enumerate()
        .map(|(i, o)| {
            let added = if p.is_gradient { o.x } else { o.residual };
            [count(o.x), count(o.filter), o.bias.bytes / 4, count(added), count(o.y)]
                .map(|n| numbers(n, 7 * i + n))
        })
        .collect();
    let masks: Vec<Vec<u8>> =
        operands.iter().map(|o| (0..o.mask.bytes).map(|i| (i * 37 + i / 11) as u8).collect()).collect();
    let wanted: Vec<Vec<f32>> = values
        .iter()
        .zip(&masks)
        .map(|(v, mask)| expected(p, std::array::from_fn(|i| v[i].as_slice()), mask))
        .collect();
    let mut ran = 0;
    // Launched for two multiprocessors, so that persistent blocks take several tiles each.
    for rung in &RUNGS {
        let Some(launch) = rung.launch(p, &operands, 2).unwrap() else { continue };
        let output = |o: &Operands| if p.is_gradient { o.x } else { o.y };
        for ((o, [x, filter, bias, added, dz]), mask) in operands.iter().zip(&values).zip(&masks) {
            load(machine, o.x, Elem::Bf16, x);
            load(machine, o.filter, Elem::Bf16, filter);
            load(machine, o.bias, Elem::F32, bias);
            load(machine, o.residual, Elem::Bf16, if p.is_gradient { dz } else { added });
            load(machine, o.y, Elem::Bf16, dz);
            machine.write(o.mask, mask).unwrap();
            if p.adds && p.is_gradient {
                load(machine, o.x, Elem::Bf16, added);
            }
        }
        let mut ready = machine.prepare(&[launch], |_| rung.name.into()).unwrap();
        machine.run(&mut ready, &StepState::default()).unwrap();
        for (member, (o, wanted)) in operands.iter().zip(&wanted).enumerate() {
            let found = machine.read(output(o), Elem::Bf16).unwrap();
            let mut bits = vec![0; o.mask.bytes];
            machine.read_bytes(o.mask, &mut bits).unwrap();
            for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                let what = format!("rung {}, order {order}, member {member}, element {i}", rung.name);
                // Half a unit in the last place of bf16, plus the effect of adding in another order.
                let allowed = wanted.abs() / 256.0 + 1e-3;
                assert!((found - wanted).abs() <= allowed, "{what}: expected {wanted}, found {found}");
                let bit = bits[i / 8] >> (i % 8) & 1 == 1;
                assert!(p.is_gradient || wanted.abs() < 1e-3 || bit == (*wanted > 0.0), "{what}: bit {bit}");
            }
        }
        for (o, wanted) in operands.iter().zip(&wanted).filter(|_| p.channel_stats) {
            check_channel_stats(p, &machine.read(o.channel_stats, Elem::F32).unwrap(), wanted);
        }
        ran += 1;
    }
    assert!(ran >= if p.channel_stats { 2 } else { 4 }, "{ran} rungs");
}

#[test]
fn every_rung_computes_the_convolution() {
    let forward = Problem {
        members: 3,
        images: 2,
        size: 11,
        channels: [64, 192],
        taps: 3,
        stride: 1,
        adds: true,
        is_gradient: false,
        channel_stats: false,
    };
    let problems = [
        forward,
        Problem { members: 2, channels: [192, 320], taps: 1, adds: false, ..forward },
        Problem { size: 12, stride: 2, ..forward },
        Problem { adds: false, channel_stats: true, ..forward },
        // Warps, and a warpgroup's lower 64 rows, without a pixel: 25 pixels, and 41 after a whole tile of 128.
        Problem { images: 1, size: 5, adds: false, channel_stats: true, ..forward },
        Problem { images: 1, size: 13, adds: false, channel_stats: true, ..forward },
        Problem { is_gradient: true, ..forward },
        Problem { members: 2, channels: [320, 128], taps: 1, is_gradient: true, adds: false, ..forward },
    ];
    for order in 0..4 {
        let mut machine = match Emu::open(order) {
            Ok(e) => Machine::new(Gpu::Emu(e), Elem::Bf16).unwrap(),
            Err(e) => return skipped(&e.to_string()),
        };
        problems.iter().for_each(|p| check(&mut machine, p, order));
    }
}
