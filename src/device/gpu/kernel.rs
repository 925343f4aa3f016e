//! The table of kernels, which the build script writes from `kernels/**/*.cu`.

use super::source::Parameter;
use crate::error::{Error, Result};
use std::ffi::c_void;

/// One source file, `kernels/**/<stem>.cu`.
pub struct Module {
    /// The file's name without its extension.
    pub stem: &'static str,
    /// The file's text.
    pub source: &'static str,
    /// What it was compiled to, oldest target first; empty when the program was built without NVRTC.
    pub images: &'static [Image],
}

/// A module compiled for one target.
pub struct Image {
    /// As NVRTC spells it: `sm_80`, `sm_90a`.
    pub target: &'static str,
    /// Machine code for the target.
    pub cubin: &'static [u8],
    /// Assembly, which drivers of newer devices compile; ends with NUL.
    pub ptx: &'static [u8],
}

/// One launchable kernel.
pub struct Kernel {
    /// As its `INSTANCE` line spells it: `max_pool_fwd<float, 4>`.
    pub name: &'static str,
    /// Index into [`MODULES`].
    pub module: usize,
    /// Its mangled name; empty when the program was built without NVRTC.
    pub symbol: &'static str,
    /// Most threads of a block.
    pub threads: u32,
    /// Whether there is machine code for sm_90a only.
    pub needs_90a: bool,
    /// Its parameter list, which launches are checked against.
    pub parameters: &'static [Parameter<&'static str>],
    /// Registers, spilled bytes and static shared bytes for each of the module's images; zeros for an image
    /// without it.
    pub figures: &'static [[u32; 3]],
    /// The kernel as the emulator runs it; none when the program was built without a C++ compiler.
    pub emulated: Option<Entry>,
}

/// An emulated kernel: takes one pointer to each argument.
pub type Entry = unsafe extern "C" fn(*mut *mut c_void);

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

impl Kernel {
    /// The name and the parameters of what a library does in place of a kernel.
    pub(super) const fn of_library(
        name: &'static str,
        parameters: &'static [Parameter<&'static str>],
    ) -> Kernel {
        Kernel {
            name,
            module: 0,
            symbol: "",
            threads: 1,
            needs_90a: false,
            parameters,
            figures: &[],
            emulated: None,
        }
    }
    /// The kernel of that name.
    ///
    /// Errors: no `INSTANCE` line has the name. The message lists the instances of the same kernel.
    pub fn find(name: &str) -> Result<&'static Kernel> {
        KERNELS.iter().find(|k| k.name == name).ok_or_else(|| {
            let base = name.split('<').next().unwrap_or(name);
            let near: Vec<_> =
                KERNELS.iter().map(|k| k.name).filter(|n| n.split('<').next() == Some(base)).collect();
            Error::Run(match near.as_slice() {
                [] => format!("no kernel {name}"),
                near => format!("no kernel {name}; its instances are: {}", near.join(", ")),
            })
        })
    }
}

/// Whether every module has machine code for `target`, or is compiled at its first launch.
pub fn is_compiled_for(target: &str) -> bool {
    MODULES.iter().all(|m| m.images.is_empty() || m.images.iter().any(|i| i.target == target))
}
