//! The machines to test on: the emulator, in several orders of a block's threads, or a GPU if
//! `DFKA_TEST_DEVICE=cuda` (or `cuda:N`) names one.

use crate::device::gpu::machine::Machine;
use crate::device::gpu::target::Target;
use crate::device::gpu::{Gpu, cuda, emu, skipped};
use crate::tensor::Elem;
use std::io::Write;
use std::sync::OnceLock;

/// Orders of the threads of a block: as released, in reverse, and at random. A missing barrier hides from the
/// first two.
const ORDERS: [i32; 4] = [0, 1, 2, 3];

/// The index of the CUDA device that `DFKA_TEST_DEVICE` names.
fn cuda_index() -> Option<usize> {
    let asked = std::env::var("DFKA_TEST_DEVICE").ok()?;
    let index = asked.strip_prefix("cuda")?.trim_start_matches(':');
    Some(if index.is_empty() { 0 } else { index.parse().expect("DFKA_TEST_DEVICE=cuda:N") })
}

/// A target whose launches the GPU under test can do: its capability and shared memory, the target's number of
/// multiprocessors. The emulator runs those of every target.
pub fn within_reach(target: Target) -> Target {
    static DEVICE: OnceLock<Option<Target>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| {
        let device = Gpu::Cuda(cuda::Cuda::open(cuda_index()?).unwrap().into());
        let found = device.target(Elem::F32);
        if !found.wgmma {
            let message = "SKIPPED: kernels with wgmma, which need compute capability 9.0, on";
            writeln!(std::io::stderr(), "{message} {}", device.name()).expect("standard error is open");
        }
        Some(found)
    });
    match device {
        None => target,
        Some(device) => Target {
            capability: device.capability,
            shared_bytes: device.shared_bytes.min(target.shared_bytes),
            wgmma: device.wgmma && target.wgmma,
            library_matmul: device.library_matmul,
            ..target
        },
    }
}

/// One machine for each order of the emulator's, or the named GPU twice. None in a program without an
/// emulator.
pub fn machines(map_dtype: Elem) -> Vec<Machine> {
    if let Some(index) = cuda_index() {
        let open = || Machine::new(Gpu::Cuda(cuda::Cuda::open(index).unwrap().into()), map_dtype).unwrap();
        return vec![open(), open()];
    }
    let open = |order: &i32| match emu::Emu::open(*order) {
        Ok(e) => Some(Machine::new(Gpu::Emu(e), map_dtype).unwrap()),
        Err(e) => {
            skipped(&e);
            None
        }
    };
    ORDERS.iter().filter_map(open).collect()
}
