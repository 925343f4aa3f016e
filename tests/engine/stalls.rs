//! Cycles of the wgmma convolutions' epilogues, from their machine code: each instruction carries the number of cycles
//! until the next one may issue, and the scoreboards that it waits for (control bits of SASS since Volta). The forecast
//! that chooses a launch's tile must agree with them, and they must not grow.

use crate::kernels::{is_compiled, nvdisasm};
use dfka_engine::device::gpu::source::runs_on;
use dfka_engine::device::gpu::{KERNELS, MODULES};
use dfka_engine::ops::layers::conv2d;
use std::process::Command;

/// Assumed cycles of an instruction whose result arrives after a variable time; published measurements of the
/// architecture, to which a card will add its own. Other instructions: 20.
const LATENCIES: [(&str, usize); 8] = [
    ("SHFL", 23),
    ("LDS", 23),
    ("LDC", 38),
    ("ULDC", 12),
    ("R2UR", 12),
    ("MUFU", 18),
    ("F2I", 18),
    ("I2F", 18),
];
/// Of a global load that finds its line in the L1, or in the L2.
const L1: usize = 38;
const L2: usize = 270;

/// One instruction, with its control bits.
struct Instruction {
    /// The labels before it.
    labels: Vec<String>,
    text: String,
    /// Cycles until the next instruction of the warp.
    stall: usize,
    /// The scoreboards that it releases once its result is there, and once its operands are read; 7 means none.
    writes: usize,
    reads: usize,
    /// The scoreboards that it waits for, as bits.
    waits: usize,
}

impl Instruction {
    /// Without the predicate.
    fn words(&self) -> &str {
        if self.text.starts_with('@') { self.text.split_once(' ').unwrap().1 } else { &self.text }
    }
    fn is(&self, op: &str) -> bool {
        self.words().starts_with(op)
    }
    /// The label that a conditional branch goes to: `@!P0 BRA `(.L_x_7)`.
    fn branches_to(&self) -> Option<&str> {
        self.text.strip_prefix('@')?.split_once(" BRA `(")?.1.strip_suffix(')')
    }
    fn latency(&self, of_load: usize) -> usize {
        if self.is("LDG") {
            return of_load;
        }
        LATENCIES.iter().find(|(op, _)| self.is(op)).map_or(20, |(_, cycles)| *cycles)
    }
}

/// The instructions of one function in what `nvdisasm -hex` prints: each has its address, its text and its 128 bits, over two
/// lines.
fn instructions(code: &str) -> Vec<Instruction> {
    let mut found: Vec<Instruction> = Vec::new();
    let (mut low, mut labels) = (true, Vec::new());
    for line in code.lines() {
        if let Some(label) = line.trim().strip_suffix(':') {
            labels.push(label.to_string());
        }
        let comments: Vec<&str> = line.split("/*").skip(1).filter_map(|c| c.split("*/").next()).collect();
        let Some(bits) = comments.last().and_then(|c| c.trim().strip_prefix("0x")) else { continue };
        let Ok(bits) = u64::from_str_radix(bits, 16) else { continue };
        if low {
            let text = line.split("*/").nth(1).unwrap().split(';').next().unwrap().trim().to_string();
            let labels = std::mem::take(&mut labels);
            found.push(Instruction { labels, text, stall: 0, writes: 7, reads: 7, waits: 0 });
        } else {
            let control = (bits >> 41) as usize;
            let last = found.last_mut().unwrap();
            last.stall = control & 15;
            (last.writes, last.reads, last.waits) = (control >> 5 & 7, control >> 8 & 7, control >> 11 & 63);
        }
        low = !low;
    }
    assert!(low && !found.is_empty(), "code without its bits");
    found
}

/// Number of instructions, and cycles that one warp alone takes for them, one after the other.
fn simulate<'i>(path: impl Iterator<Item = &'i Instruction>, of_load: usize) -> (usize, usize) {
    let (mut now, mut count, mut cleared) = (0, 0, [0; 8]);
    for i in path {
        let waited = (0..6).filter(|b| i.waits >> b & 1 == 1).map(|b| cleared[b]).max();
        now = now.max(waited.unwrap_or(0));
        if i.writes != 7 {
            cleared[i.writes] = cleared[i.writes].max(now + i.latency(of_load));
        }
        if i.reads != 7 {
            cleared[i.reads] = cleared[i.reads].max(now + 12);
        }
        now += i.stall.max(1);
        count += 1;
    }
    (count, now)
}

/// The instructions that write a whole tile. The path for the last tile tests each row, so its 128-bit stores lie in
/// regions where threads diverge (BSSY): the whole tile's path is the longest series of such stores outside of them. Its
/// branches over stores are taken, because no pre-activation is kept.
fn writes_a_whole_tile(code: &[Instruction]) -> Vec<&Instruction> {
    let mut series: Vec<Vec<usize>> = vec![vec![]];
    for (index, i) in code.iter().enumerate() {
        if i.is("BSSY") {
            series.push(vec![]);
        } else if i.is("STG.E.128") {
            series.last_mut().unwrap().push(index);
        }
    }
    let stores = series.into_iter().max_by_key(Vec::len).unwrap();
    let begins = |i: &Instruction| {
        i.is("BSYNC") || i.is("BSSY") || i.is("BAR.SYNC") || i.is("WARPGROUP.DEPBAR.LE gsb0, 0x0")
    };
    let (first, last) = (code[..stores[0]].iter().rposition(begins).unwrap(), *stores.last().unwrap());
    let (mut path, mut at) = (Vec::new(), first);
    while at <= last {
        path.push(&code[at]);
        let target = code[at].branches_to();
        let to = target.and_then(|label| code.iter().position(|i| i.labels.iter().any(|l| l == label)));
        let skips = |to: &usize| at < *to && *to <= last && code[at..*to].iter().any(|i| i.is("STG.E.128"));
        at = to.filter(skips).unwrap_or(at + 1);
    }
    path
}

/// The instructions of a whole tile's channel statistics: from the end of the product to the second barrier after it.
fn takes_statistics(code: &[Instruction]) -> &[Instruction] {
    let first = code.iter().rposition(|i| i.is("WARPGROUP.DEPBAR.LE gsb0, 0x0")).unwrap();
    let barriers = code.iter().enumerate().filter(|(index, i)| *index > first && i.is("BAR.SYNC"));
    let last = barriers.map(|(index, _)| index).nth(1).expect("two barriers behind the product");
    // The path for the last tile divides by numbers of rows; a whole tile's are constants.
    assert!(code[first..=last].iter().all(|i| !i.is("MUFU")), "not the path for a whole tile");
    &code[first..=last]
}

/// Most cycles of a whole tile's rows, of the rows with a residual from the L2, and of channel statistics, for one warp.
const MOST: [(&str, usize, usize, usize); 8] = [
    ("conv2d_fwd_wgmma<128, 128>", 3200, 3500, 1100),
    ("conv2d_fwd_wgmma<128, 64>", 1600, 1800, 700),
    ("conv2d_fwd_wgmma_cooperative<192, 256>", 3500, 5300, 0),
    ("conv2d_dgrad_wgmma<128, 128>", 3200, 3600, 0),
    ("conv2d_dgrad_wgmma<128, 64>", 1600, 1800, 0),
    ("conv2d_dgrad_wgmma_cooperative<192, 256>", 3800, 5700, 0),
    ("conv2d_dgrad_statistics_wgmma<128, 128>", 4100, 5200, 0),
    ("conv2d_dgrad_statistics_wgmma<128, 64>", 2200, 2750, 0),
];

#[test]
fn epilogues_take_the_cycles_that_the_forecast_assumes() {
    if !is_compiled() {
        return;
    }
    let Some(nvdisasm) = nvdisasm() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for (m, module) in MODULES.iter().enumerate().filter(|(_, m)| m.stem.starts_with("conv2d_")) {
        for image in module.images.iter().filter(|image| image.target == "sm_90a") {
            let file = folder.path().join(format!("{}.cubin", module.stem));
            std::fs::write(&file, image.cubin).unwrap();
            let out = Command::new(&nvdisasm).args(["-c", "-hex"]).arg(&file).output().unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            let text = String::from_utf8(out.stdout).unwrap();
            for kernel in
                KERNELS.iter().filter(|k| k.module == m && k.needs_90a && runs_on(true, image.target))
            {
                let Some((_, rows, with_residual, stats)) = MOST.iter().find(|most| most.0 == kernel.name)
                else {
                    continue;
                };
                let code = text.split_once(&format!(".text.{}:", kernel.symbol)).unwrap().1;
                let code = instructions(code.split(".section").next().unwrap());
                let path = writes_a_whole_tile(&code);
                let near = simulate(path.iter().copied(), L1).1;
                let (count, far) = simulate(path.iter().copied(), L2);
                println!("{}: {count} instructions, {near} cycles, {far} with a residual", kernel.name);
                assert!(near <= *rows && far <= *with_residual, "{}: {near}, {far} cycles", kernel.name);

                let forecast = conv2d::forecasts().find(|f| kernel.name.ends_with(&f.suffix)).unwrap();
                let agrees = |forecast: usize, found: usize| forecast.abs_diff(found) * 10 <= found;
                let write = far.max(count * forecast.warps);
                let adds_gradient = kernel.name.contains("_statistics_");
                let expected = forecast.write + if adds_gradient { forecast.gradient } else { 0 };
                assert!(agrees(expected, write), "{}: {expected} forecast, {write}", kernel.name);
                if *stats > 0 {
                    let found = simulate(takes_statistics(&code).iter(), L1).1;
                    println!("{}: {found} cycles of channel statistics", kernel.name);
                    assert!(found <= *stats, "{}: {found} cycles", kernel.name);
                    assert!(
                        agrees(forecast.stats, found),
                        "{}: {} forecast, {found}",
                        kernel.name,
                        forecast.stats
                    );
                }
                seen += 1;
            }
        }
    }
    assert_eq!(seen, MOST.len());
}
