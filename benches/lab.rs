//! The ladder of the convolution's kernels (kernels/lab/conv2d/README.md), every rung on every hot shape:
//! `cargo bench --bench lab -- [--device cuda|emu] [--filter TEXT]`.
//!
//! The shapes have most of the multiply-adds and bytes of two ResNet-101 teachers at batch 64 and 224x224. A
//! time is the median of 20 launches, each from a cold L2 (five times its bytes are written before it). The share of the
//! roof is the least time that 790 TFLOP/s and 4.3 TB/s (assumed for an H200, see below) allow, divided by
//! the time. `emu` runs tiny shapes once, to show that the bench runs.

#[path = "common/rungs.rs"]
mod rungs;

use dfka_engine::device::{Choice, StepState};
use dfka_engine::error::{Error, Result};
use dfka_engine::tensor::Elem;
use rungs::{Problem, RUNGS};

/// How many times the L2's size is written before each launch.
const FLUSHED_L2S: usize = 5;
const REPEATS: usize = 20;
/// Assumed until a card is measured: about 80 % of the 989 TFLOP/s and 90 % of the 4.8 TB/s of an H200's
/// data sheet, which large products and copies usually reach.
const FLOPS: f64 = 790e12;
const BYTES: f64 = 4.3e12;

/// Size, channels, taps, stride, whether a residual is added.
const SHAPES: [(usize, [usize; 2], usize, usize, bool); 13] = [
    (56, [64, 64], 1, 1, false),
    (56, [64, 64], 3, 1, false),
    (56, [64, 256], 1, 1, true),
    (56, [256, 64], 1, 1, false),
    (28, [128, 128], 3, 1, false),
    (28, [128, 512], 1, 1, true),
    (14, [256, 256], 3, 1, false),
    (14, [256, 1024], 1, 1, true),
    (14, [1024, 256], 1, 1, false),
    (14, [512, 1024], 1, 1, false),
    (7, [512, 512], 3, 1, false),
    (7, [512, 2048], 1, 1, true),
    (56, [128, 128], 3, 2, false),
];

fn main() -> Result<()> {
    let (mut device, mut filter) = (Choice::Cuda(0), String::new());
    // Cargo adds `--bench` to the arguments.
    let mut words = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_default();
        match (word.as_str(), value.as_str()) {
            ("--device", "cuda") => device = Choice::Cuda(0),
            ("--device", "emu") => device = Choice::Emu,
            ("--filter", _) => filter = value,
            _ => {
                let usage = "expected [--device cuda|emu] [--filter TEXT]";
                return Err(Error::Usage(format!("{word} {value}: {usage}")));
            }
        }
    }
    let is_emulated = device == Choice::Emu;
    let images = if is_emulated { 1 } else { 64 };
    for (size, channels, taps, stride, adds) in SHAPES {
        for (members, is_gradient) in [(2, false), (8, false), (2, true), (8, true)] {
            let (size, channels, members) = match is_emulated {
                true => (size.min(9), channels.map(|c| c.min(128)), members.min(2)),
                false => (size, channels, members),
            };
            let p = Problem {
                members,
                images,
                size,
                channels,
                taps,
                stride,
                adds,
                is_gradient,
                channel_stats: false,
            };
            let [c, k] = channels;
            let product = if is_gradient { "input gradient" } else { "forward" };
            let name =
                format!("{product}, {members} x {taps}x{taps} {c} -> {k} at {size}x{size}, stride {stride}");
            if name.contains(&filter) && !(is_gradient && stride > 1) {
                measure(&name, &p, device, is_emulated)?;
            }
        }
    }
    Ok(())
}

fn measure(name: &str, p: &Problem, device: Choice, is_emulated: bool) -> Result<()> {
    let least = (p.flops() / FLOPS).max(p.bytes() / BYTES);
    println!(
        "\n{name}: {:.1} GFLOP, {:.1} MB, {:.1} us at the roof",
        p.flops() / 1e9,
        p.bytes() / 1e6,
        least * 1e6
    );
    println!("{:24} {:>9} {:>9} {:>9} {:>10}", "rung", "us", "TFLOP/s", "GB/s", "% of roof");
    let Some(mut machine) = device.machine(Elem::Bf16)? else {
        return Err(Error::Usage("the ladder runs on cuda or emu".into()));
    };
    let (operands, bytes) = p.operands();
    machine.reserve(bytes)?;
    // Bytes that are small bf16 and f32 numbers of either sign.
    let noise: Vec<u8> = (0..bytes)
        .map(|i| if i % 2 == 1 { 0x3c | (i * 7 / 3 % 2 * 128) as u8 } else { (i * 31 / 7) as u8 })
        .collect();
    for o in &operands {
        for slot in [o.x, o.filter, o.bias, o.residual, o.y, o.mask] {
            machine.write(slot, &noise[..slot.bytes])?;
        }
    }
    let flush =
        machine.gpu.allocate(if is_emulated { 1 << 16 } else { FLUSHED_L2S * machine.gpu.l2_bytes() })?;
    for rung in &RUNGS {
        let Some(launch) = rung.launch(p, &operands, machine.target.multiprocessors)? else { continue };
        let repeats = if is_emulated { 1 } else { REPEATS };
        let ready = machine.prepare(&vec![launch; repeats + 1], |_| rung.name.into())?;
        let mut ms = machine.time(&ready, &StepState::default(), &flush)?;
        // The first launch loads the module.
        ms.remove(0);
        ms.sort_by(f32::total_cmp);
        let seconds = f64::from(ms[ms.len() / 2]).max(1e-6) * 1e-3;
        println!(
            "{:24} {:>9.1} {:>9.1} {:>9.0} {:>10.1}",
            rung.name,
            seconds * 1e6,
            p.flops() / seconds / 1e12,
            p.bytes() / seconds / 1e9,
            100.0 * least / seconds
        );
    }
    Ok(())
}
