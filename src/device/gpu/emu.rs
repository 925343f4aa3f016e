//! The emulator: the same kernels compiled as C++, with a fiber for every CUDA thread (`kernels/emu/`).

use super::block::{Address, Block};
use super::launch::Prepared;
#[cfg(has_emulator)]
use super::launch::{Exchange, LibraryCall};
#[cfg(has_emulator)]
use crate::device::collective;
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The emulator and its settings.
pub struct Emu {
    /// The order in which a block's threads run: 0 as they are released, 1 in reverse, from 2 on at random
    /// with that seed.
    order: i32,
    threads: i32,
    /// Bytes that all allocations together may take: `DFKA_EMU_MEMORY_MB`, with which tests emulate a small
    /// device.
    total_bytes: usize,
}

/// Bytes of all live allocations, of every emulator in the process.
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
    /// An emulator that runs a block's threads in this order: 0 as they are released, 1 in reverse, from 2
    /// on at random with that seed.
    ///
    /// Errors: the program was built without a C++ compiler.
    pub fn open(order: i32) -> Result<Emu> {
        let limit = std::env::var("DFKA_EMU_MEMORY_MB").ok().and_then(|mb| mb.parse::<usize>().ok());
        let total_bytes = limit.map_or(usize::MAX, |mb| mb * 1_000_000);
        Ok(Emu { order, threads: rayon::current_num_threads() as i32, total_bytes })
    }
    /// Allocates memory filled with 0xFF, which is NaN in every float type.
    ///
    /// Errors: out of memory, with the bytes asked for and the bytes free.
    pub fn allocate(&self, bytes: usize) -> Result<Block> {
        let (available, total) = self.memory();
        // SAFETY: allocates memory or returns null, which is checked.
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
            // SAFETY: allocated by `emu_alloc`, freed once by `Block`.
            unsafe { ffi::emu_free(address as *mut _) };
            USED.fetch_sub(bytes, Relaxed);
        }
        Ok(Block { address: p as Address, bytes, free })
    }
    /// Runs a kernel to its end.
    ///
    /// Errors: what the emulator found wrong (an access out of bounds, a deadlock), with the launch in
    /// words.
    pub fn launch(&self, p: &Prepared) -> Result<()> {
        if let Some(LibraryCall::Exchange(exchange)) = p.library {
            return self.exchange(exchange, p);
        }
        let entry =
            p.kernel.emulated.ok_or_else(|| Error::Run(format!("{} is not emulated", p.kernel.name)))?;
        let (mut arguments, mut message) = (p.pointers(), [0u8; 1024]);
        let block = [p.block, 1, 1];
        // SAFETY: number and kinds of the arguments were checked against the kernel's parameter list
        // (`Launch::new`); every pointer outlives the call, which returns when all blocks have finished.
        // Kernels write only through their pointer arguments, to allocations of this machine; the emulator
        // checks that they stay inside.
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
    /// Exchanges data with the other ranks, whose emulators are at the same place of the step.
    ///
    /// Errors: no other ranks.
    fn exchange(&self, exchange: Exchange, p: &Prepared) -> Result<()> {
        let ranks = collective::current()
            .ok_or_else(|| Error::Run(format!("{}: there are no other ranks", p.in_words())))?;
        let (to, from, bytes) = (p.cell(0), p.cell(1), p.cell(2) as usize);
        let parts = if exchange == Exchange::AllGather { ranks.size() } else { 1 };
        assert!(bytes * parts <= p.cell(3) as usize, "an exchange past the end of its slot");
        // SAFETY: both slots lie in live blocks of this machine (`Machine::resolve`) and do not overlap, because the plan
        // gives each buffer of an instruction its own place; no kernel runs.
        let (from, to) = unsafe {
            (
                std::slice::from_raw_parts(from as *const u8, bytes),
                std::slice::from_raw_parts_mut(to as *mut u8, bytes * parts),
            )
        };
        match exchange {
            Exchange::AllToAll => ranks.all_to_all(from, to),
            Exchange::AllGather => ranks.all_gather(from, to),
        }
        Ok(())
    }
    /// Copies to an address; the range must lie in a live block.
    ///
    /// Errors: none.
    pub fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        // SAFETY: `Gpu::upload` checked the range, which lies in a live block.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }
    /// Copies from an address; the range must lie in a live block.
    ///
    /// Errors: none.
    pub fn download(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: `Gpu::download` checked the range, which lies in a live block.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }
}

/// In a program that was built without a C++ compiler `open` always fails, so that no other method can be
/// called.
#[cfg(not(has_emulator))]
impl Emu {
    /// Errors: always.
    pub fn open(_: i32) -> Result<Emu> {
        Err(Error::NoDevice(
            "the kernel emulator is not in this program: it was built without a C++ compiler (g++)".into(),
        ))
    }
    /// Errors: always.
    pub fn allocate(&self, _: usize) -> Result<Block> {
        Emu::open(self.order).map(|_| unreachable!("open fails"))
    }
    /// Errors: always.
    pub fn launch(&self, p: &Prepared) -> Result<()> {
        Err(Error::Run(format!("{} on {} threads: no emulator", p.in_words(), self.threads)))
    }
    /// Does nothing.
    pub fn upload(&self, _: Address, _: &[u8]) -> Result<()> {
        Ok(())
    }
    /// Does nothing.
    pub fn download(&self, _: Address, _: &mut [u8]) -> Result<()> {
        Ok(())
    }
}

impl Emu {
    /// Free and total bytes.
    pub fn memory(&self) -> (usize, usize) {
        (self.total_bytes.saturating_sub(USED.load(Relaxed)), self.total_bytes)
    }
    /// The emulator's name, with its number of threads.
    pub fn name(&self) -> String {
        format!("kernel emulator on {} CPU threads", self.threads)
    }
}
