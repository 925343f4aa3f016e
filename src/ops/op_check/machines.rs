//! The machines to test on: the emulator, in several orders of a block's threads, or a GPU if
//! `DFKA_TEST_DEVICE=cuda` (or `cuda:N`) names one.

use crate::device::gpu::machine::Machine;
use crate::device::gpu::{Gpu, cuda, emu, skipped};
use crate::tensor::Elem;

/// Orders of the threads of a block: as released, in reverse, and at random. A missing barrier hides from the
/// first two.
const ORDERS: [i32; 4] = [0, 1, 2, 3];

/// The index of the CUDA device that `DFKA_TEST_DEVICE` names.
fn cuda_index() -> Option<usize> {
    let asked = std::env::var("DFKA_TEST_DEVICE").ok()?;
    let index = asked.strip_prefix("cuda")?.trim_start_matches(':');
    Some(if index.is_empty() { 0 } else { index.parse().expect("DFKA_TEST_DEVICE=cuda:N") })
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
