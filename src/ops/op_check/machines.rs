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

/// The orders to test: all, or those that `DFKA_TEST_ORDERS=0,3` names, where each is slow (under a
/// sanitizer). A GPU has an order of its own: for it only their number counts.
fn orders() -> Vec<i32> {
    let Ok(list) = std::env::var("DFKA_TEST_ORDERS") else { return ORDERS.into() };
    let number = |n: &str| ORDERS.into_iter().find(|o| o.to_string() == n.trim());
    let orders: Option<Vec<i32>> = list.split(',').map(number).collect();
    orders.unwrap_or_else(|| {
        panic!("DFKA_TEST_ORDERS={list}: expected some of {ORDERS:?}, with commas between")
    })
}

/// One machine for each order of the emulator's, or the named GPU twice (once if `DFKA_TEST_ORDERS` names one
/// order). None in a program without an emulator.
pub fn machines(map_dtype: Elem) -> Vec<Machine> {
    if let Some(index) = cuda_index() {
        let open = || Machine::new(Gpu::Cuda(cuda::Cuda::open(index).unwrap()), map_dtype).unwrap();
        return orders().iter().take(2).map(|_| open()).collect();
    }
    let open = |order: &i32| match emu::Emu::open(*order) {
        Ok(e) => Some(Machine::new(Gpu::Emu(e), map_dtype).unwrap()),
        Err(e) => {
            skipped(&e);
            None
        }
    };
    orders().iter().filter_map(open).collect()
}
