//! Compiles every kernel below `kernels/` twice: for GPUs through NVRTC, and for the CPU emulator through
//! g++. Neither CUDA nor a GPU is needed: without NVRTC the sources are embedded and compiled at first use;
//! without a C++ compiler there is no emulator. `DFKA_REQUIRE_NVRTC=1` and `DFKA_REQUIRE_EMU=1` make their
//! absence an error.
//!
//! `DFKA_CUDA_TARGETS` (default `sm_80,sm_90a`) names the devices to compile for. Other devices get the
//! assembly (PTX) of the first target without an `a`, which their drivers compile.
//! `DFKA_EMU=off` leaves out the emulator although there is a compiler; scripts/fuzz.sh sets it, which halves
//! its build time.
//!
//! Both compilers' results stay in OUT_DIR. After a change in one kernel only its file is compiled again,
//! after a change in a header the files that include it, and after a change in comments none, unless it moves
//! lines.

#[path = "build/emulator.rs"]
mod emulator;
#[path = "build/gpu.rs"]
mod gpu;
#[path = "src/device/gpu/nvrtc.rs"]
#[allow(dead_code)] // the program uses more of it
mod nvrtc;
#[path = "build/parallel.rs"]
mod parallel;
#[path = "build/revision.rs"]
mod revision;
#[path = "src/device/gpu/source.rs"]
mod source;
#[path = "build/sources.rs"]
mod sources;
#[path = "build/table.rs"]
mod table;

use std::env;
use std::path::PathBuf;

/// Every environment variable that changes what is built.
const SWITCHES: [&str; 10] = [
    "DFKA_EMU",
    "DFKA_REQUIRE_NVRTC",
    "DFKA_REQUIRE_EMU",
    "DFKA_CUDA_TARGETS",
    "DFKA_NVRTC_DIR",
    "CXX",
    "CUDA_PATH",
    "CUDA_HOME",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
];

fn main() {
    // Cargo runs the script again when the script itself or a file that it includes has changed.
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rustc-check-cfg=cfg(has_emulator)");
    SWITCHES.iter().for_each(|s| println!("cargo:rerun-if-env-changed={s}"));
    revision::set();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let kernels = sources::Sources::read();
    let compiled = gpu::compile(&kernels, &out);
    let emulated = emulator::build(&kernels, &out);
    sources::write(&out.join("kernels.rs"), table::table(&kernels, &compiled, emulated));
}
