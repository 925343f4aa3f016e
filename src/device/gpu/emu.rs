//! The emulator: the same kernels, compiled as C++, a fiber for every CUDA thread (`kernels/emu/`).

use super::block::{Address, Block};
use super::launch::Prepared;
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The emulator's settings.
pub struct Emu {
    /// In which order a block's threads run: 0 as released, 1 in reverse, from 2 on at random with that seed.
    order: i32,
    threads: i32,
    /// What all blocks together may take: `DFKA_EMU_MEMORY_MB`, for tests of what a small device says.
    total_bytes: usize,
}

/// Bytes of all blocks.
static USED: AtomicUsize = AtomicUsize::new(0);

#[cfg(has_emulator)]
mod ffi {
    use std::ffi::{c_char, c_int, c_uint, c_void};
    unsafe extern "C" {
        pub fn emu_launch(
            entry: crate::device::gpu::kernel::Entry,
            grid: *const c_uint,
            block: *const c_uint,
            dynamic_shared: usize,
            arguments: *mut *mut c_void,
            order: c_int,
            threads: c_int,
            error: *mut c_char,
            error_len: usize,
        ) -> c_int;
        pub fn emu_alloc(bytes: usize) -> *mut c_void;
        pub fn emu_free(memory: *mut c_void);
    }
}

#[cfg(has_emulator)]
impl Emu {
    pub fn open(order: i32) -> Result<Emu> {
        let limit = std::env::var("DFKA_EMU_MEMORY_MB").ok().and_then(|mb| mb.parse::<usize>().ok());
        let total_bytes = limit.map_or(usize::MAX, |mb| mb * 1_000_000);
        Ok(Emu { order, threads: rayon::current_num_threads() as i32, total_bytes })
    }
    /// Poisoned: 0xFF.. is NaN in every float type.
    pub fn allocate(&self, bytes: usize) -> Result<Block> {
        let (available, total) = self.memory();
        // SAFETY: plain allocation; null is checked.
        let p =
            if bytes <= available { unsafe { ffi::emu_alloc(bytes.max(1)) } } else { std::ptr::null_mut() };
        if p.is_null() {
            let mb = |b: usize| b as f64 / 1e6;
            return Err(Error::OutOfMemory(format!(
                "emulator: {:.0} MB more are needed, {:.0} of {:.0} MB are free",
                mb(bytes),
                mb(available),
                mb(total)
            )));
        }
        USED.fetch_add(bytes, Relaxed);
        fn free(address: Address, bytes: usize) {
            // SAFETY: `Block` frees once what `emu_alloc` gave.
            unsafe { ffi::emu_free(address as *mut _) };
            USED.fetch_sub(bytes, Relaxed);
        }
        Ok(Block { address: p as Address, bytes, free })
    }
    pub fn launch(&self, p: &Prepared) -> Result<()> {
        let entry =
            p.kernel.emulated.ok_or_else(|| Error::Run(format!("{} is not emulated", p.kernel.name)))?;
        let (mut arguments, mut message) = (p.pointers(), [0u8; 1024]);
        let block = [p.block, 1, 1];
        // SAFETY: number and kinds of the arguments were checked against the kernel's parameter list (`Launch::new`);
        // every pointer outlives the call, which returns when all blocks are done. Kernels write only through their
        // pointer arguments, into blocks of this machine's; that they stay inside is what the emulator is there to test.
        let failed = unsafe {
            ffi::emu_launch(
                entry,
                p.grid.as_ptr(),
                block.as_ptr(),
                p.shared as usize,
                arguments.as_mut_ptr(),
                self.order,
                self.threads,
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        if failed == 0 {
            return Ok(());
        }
        let end = message.iter().position(|b| *b == 0).unwrap_or(message.len());
        Err(Error::Run(format!("{}: {}", p.in_words(), String::from_utf8_lossy(&message[..end]))))
    }
    pub fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        // SAFETY: `Gpu::upload` checked the range, which lies in a live block.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }
    pub fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: `Gpu::download` checked the range, which lies in a live block.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }
}

/// A program that was built without a C++ compiler: opening says so, and nothing else can be reached.
#[cfg(not(has_emulator))]
impl Emu {
    pub fn open(_: i32) -> Result<Emu> {
        Err(Error::NoDevice(
            "the kernel emulator is not in this program: it was built without a C++ compiler (g++)".into(),
        ))
    }
    pub fn allocate(&self, _: usize) -> Result<Block> {
        Emu::open(self.order).map(|_| unreachable!("open fails"))
    }
    pub fn launch(&self, p: &Prepared) -> Result<()> {
        Err(Error::Run(format!("{} on {} threads: no emulator", p.in_words(), self.threads)))
    }
    pub fn upload(&self, _: Address, _: &[u8]) -> Result<()> {
        Ok(())
    }
    pub fn download(&self, _: Address, _: &mut [u8]) -> Result<()> {
        Ok(())
    }
}

impl Emu {
    /// Free and total bytes.
    pub fn memory(&self) -> (usize, usize) {
        (self.total_bytes.saturating_sub(USED.load(Relaxed)), self.total_bytes)
    }
    pub fn name(&self) -> String {
        format!("kernel emulator on {} CPU threads", self.threads)
    }
}
