//! cuBLASLt's time for the products of 1x1 convolutions and linear layers, beside that of our kernels.
//!
//! It computes the bare product, into a matrix that it does not read: what follows the sums in our kernels is left out, and so
//! is adding to an earlier gradient. The members of a grouped launch are a batch, each with operands of its own. A weight gradient is
//! whole, while ours may be in parts, which `conv2d_sum_parts` adds in a launch of its own. Of the library's algorithms those
//! that round parts of a sum, or add them in place, are not used, as nowhere in the program.

use super::{Args, Report, Row, flushed};
use dfka_engine::device::Choice;
use dfka_engine::device::gpu::cuda::Cuda;
use dfka_engine::device::gpu::launch::{KernelArg, Launch, Matmul, THREADS};
use dfka_engine::device::gpu::pointer::Pointer;
use dfka_engine::device::gpu::{Block, Gpu};
use dfka_engine::device::memory::{Slot, Space};
use dfka_engine::error::Result;
use half::bf16;

/// Times of a product.
const REPEATS: usize = 20;

/// The library on the device that is measured.
pub struct Yardstick {
    gpu: Gpu,
    name: String,
    /// Values for operands, which are not all zero because a card multiplies zeros with less power. As f32 they are values of
    /// the same size.
    values: Vec<bf16>,
}

impl Yardstick {
    /// Opens the library. None without a CUDA device or without the library, with a line that says so.
    ///
    /// Errors: the device cannot be opened again.
    pub fn open(choice: Choice) -> Result<Option<Yardstick>> {
        let Choice::Cuda(index) = choice else { return Ok(None) };
        let device = match Cuda::open(index)?.with_cublaslt() {
            Ok(device) => device,
            Err(e) => {
                println!("\nno times of cuBLASLt: {e}");
                return Ok(None);
            }
        };
        let name = device.cublaslt_name().unwrap_or_default();
        let value =
            |i: u32| bf16::from_f32((i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0);
        Ok(Some(Yardstick { gpu: Gpu::Cuda(device.into()), name, values: (0..1 << 22).map(value).collect() }))
    }

    /// The library's version and file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Times the products of a step, and prints them beside our times.
    pub fn measure(&mut self, report: &mut Report, args: &Args) {
        let flush = flushed(args, self.gpu.l2_bytes());
        let fits = |r: &Row| [report.name, r.kernel, &r.label].iter().any(|text| text.contains(&args.filter));
        let rows = report.rows.iter_mut().filter(|r| fits(r));
        println!("\n{}: products of matrices, us, and by {}", report.name, self.name);
        println!("{:>6} {:>9} {:>9} {:>6}  kernel: op", "times", "ours", "cuBLASLt", "ratio");
        for row in rows {
            let Some(product) = row.product else { continue };
            match self.time(product, flush) {
                Ok(mut ms) => {
                    ms.sort_by(f32::total_cmp);
                    let us = f64::from(ms[ms.len() / 2]) * 1e3;
                    row.cublaslt_us = Some(us);
                    let (times, ours, ratio) = (row.launches, row.median_us, row.median_us / us.max(1e-3));
                    println!(
                        "{times:>6} {ours:>9.1} {us:>9.1} {ratio:>6.2}  {}: {:.110}",
                        row.kernel, row.label
                    );
                }
                Err(e) => println!("{product:?}: not timed: {e}"),
            }
        }
    }

    /// Milliseconds of a product, each time after `flush` bytes were written, as before each of our launches.
    ///
    /// Errors: out of memory; a product that the library does not compute.
    fn time(&self, product: Matmul, flush: usize) -> Result<Vec<f32>> {
        let blocks = product.bytes().into_iter().chain([flush]).map(|bytes| self.gpu.allocate(bytes));
        let blocks: Vec<Block> = blocks.collect::<Result<_>>()?;
        blocks[..3].iter().try_for_each(|block| self.fill(block))?;
        let slot = |i: usize| Slot { space: Space::Store(i as u32), offset: 0, bytes: blocks[i].bytes };
        let mut address = |arg: &KernelArg| match arg {
            KernelArg::Slot(Slot { space: Space::Store(i), .. }) => Ok(blocks[*i as usize].address),
            other => unreachable!("both launches have slots of the store and numbers: {other:?}"),
        };
        let launch = Launch::of_matmul(product, [0, 1, 2].map(|i| Pointer::Slot(slot(i))))?;
        let launch = self.gpu.prepare(&launch, "cuBLASLt".into(), &mut address)?;
        let elements = (flush / size_of::<f32>()) as i64;
        let grid = [(flush / (16 * THREADS as usize)).clamp(1, 1 << 12) as u32, 1, 1];
        let args = vec![KernelArg::Slot(slot(3)), 0.0f32.into(), elements.into()];
        let overwrite = Launch::new("fill", grid, THREADS, 0, args)?;
        let overwrite = self.gpu.prepare(&overwrite, "cache flush".into(), &mut address)?;
        // The first call loads the library's kernel.
        self.gpu.launch(&launch)?;
        let one = |_| {
            self.gpu.launch(&overwrite)?;
            self.gpu.time(&launch)
        };
        (0..REPEATS).map(one).collect()
    }

    fn fill(&self, block: &Block) -> Result<()> {
        let values: &[u8] = bytemuck::cast_slice(&self.values);
        for offset in (0..block.bytes).step_by(values.len()) {
            self.gpu.upload(block, offset, &values[..values.len().min(block.bytes - offset)])?;
        }
        Ok(())
    }
}
