//! NVRTC, NVIDIA's run-time compiler. It is found and opened at run time, so that neither a build nor a
//! program needs CUDA installed. The build script compiles with it; a program that was built without it
//! compiles each module at the first launch of one of its kernels.

use libloading::{Library, Symbol};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// A header as kernels include it, and its text.
pub type Header = (String, String);

/// The options that every kernel is compiled with, beside its target. `-v` makes ptxas report registers and
/// spills.
pub const OPTIONS: [&str; 3] = ["--std=c++17", "-lineinfo", "--ptxas-options=-v"];

/// A source file compiled for one target.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Machine code for the target.
    pub cubin: Vec<u8>,
    /// Assembly that newer devices' drivers compile; ends with NUL, as the driver expects.
    pub ptx: Vec<u8>,
    /// The mangled name of each instance, in the order asked for.
    pub symbols: Vec<String>,
    /// The compiler's log, which has ptxas's report on registers and spills of each kernel.
    pub log: String,
}

/// An opened compiler.
pub struct Nvrtc {
    library: Library,
    /// Kept open: NVRTC opens it by bare name when it compiles, and finds the copy that is already loaded.
    _builtins: Option<Library>,
    /// The library's file.
    pub path: PathBuf,
}

type Program = *mut c_void;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type GetSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;

/// Folders that may hold NVRTC: those that the user names in `DFKA_NVRTC_DIR`, `CUDA_PATH` and `CUDA_HOME`
/// first, then the usual places.
pub fn folders() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = env::var_os("DFKA_NVRTC_DIR").map(PathBuf::from).into_iter().collect();
    let roots = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let installed = glob("/usr/local", "cuda").into_iter().chain([PathBuf::from("/opt/cuda")]);
    for root in roots.chain(installed) {
        found.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|sub| root.join(sub)));
    }
    found.extend(env::split_paths(&env::var_os("LD_LIBRARY_PATH").unwrap_or_default()));
    // Python wheels install it in `site-packages/nvidia/<name>/lib`. The name is `cuda_nvrtc` for CUDA 12 and `cu13`
    // for CUDA 13. `glob` returns CUDA 12's first; more drivers run its code.
    let environment = env::var_os("VIRTUAL_ENV").map(PathBuf::from);
    let home = env::var_os("HOME").map(|h| PathBuf::from(h).join(".local"));
    for root in environment.into_iter().chain([".venv".into()]).chain(home) {
        for python in glob(root.join("lib"), "python3") {
            found.extend(glob(python.join("site-packages/nvidia"), "").into_iter().map(|d| d.join("lib")));
        }
    }
    found.extend(["/usr/lib/x86_64-linux-gnu", "/usr/lib64"].map(PathBuf::from));
    found
}

/// The NVRTC of each folder that has one; at least one.
fn files() -> Result<Vec<PathBuf>, String> {
    let folders = folders();
    let found: Vec<PathBuf> =
        folders.iter().filter_map(|d| glob(d, "libnvrtc.so").into_iter().next()).collect();
    if found.is_empty() {
        return Err(format!(
            "no libnvrtc.so in {} folders (DFKA_NVRTC_DIR, CUDA_PATH, /usr/local/cuda*, LD_LIBRARY_PATH, Python \
             wheels' nvidia/*/lib)",
            folders.len()
        ));
    }
    Ok(found)
}

/// Entries of `folder` whose name begins with `prefix`, in reverse alphabetical order, so that of two
/// versions the newer usually comes first.
fn glob(folder: impl AsRef<Path>, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let begins = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
    let mut found: Vec<PathBuf> = entries.filter(begins).collect();
    found.sort();
    found.reverse();
    found
}

impl Nvrtc {
    /// Opens the first NVRTC there is.
    ///
    /// Errors: none found (with the number of folders looked into), or one that does not open.
    pub fn open() -> Result<Nvrtc, String> {
        Nvrtc::open_file(files()?.swap_remove(0))
    }

    /// Opens the first NVRTC whose code a driver runs that supports this CUDA version (`12080` for 12.8): its own
    /// major version or an older one.
    ///
    /// Errors: those of [`Nvrtc::open`]; only newer ones, by version and file.
    pub fn open_for(driver: i32) -> Result<Nvrtc, String> {
        let mut newer = Vec::new();
        for file in files()? {
            let found = Nvrtc::open_file(file)?;
            let (major, minor) = found.version()?;
            if major <= driver / 1000 {
                return Ok(found);
            }
            newer.push(format!("NVRTC {major}.{minor} in {}", found.path.display()));
        }
        let (major, minor) = (driver / 1000, driver % 1000 / 10);
        Err(format!("found only {}, and the driver supports CUDA {major}.{minor}", newer.join(" and ")))
    }

    fn open_file(path: PathBuf) -> Result<Nvrtc, String> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let open = |path: &Path| {
            // SAFETY: loading a library runs its initialisers; NVRTC's only set up their own tables.
            unsafe { Library::new(path) }.map_err(|e| {
                // As `device::loader::words`, which the build script, where this file is compiled too, does not have.
                let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
                format!("{}: {why}", path.display())
            })
        };
        let builtins = glob(folder, "libnvrtc-builtins.so").into_iter().find_map(|p| open(&p).ok());
        Ok(Nvrtc { library: open(&path)?, _builtins: builtins, path })
    }

    fn function<T>(&self, name: &CStr) -> Result<Symbol<'_, T>, String> {
        // SAFETY: every caller names an NVRTC function together with its type in nvrtc.h, which has not
        // changed since CUDA 11.1.
        unsafe { self.library.get(name.to_bytes_with_nul()) }
            .map_err(|e| format!("{}: {e}", self.path.display()))
    }

    /// The compiler's version, major and minor.
    pub fn version(&self) -> Result<(i32, i32), String> {
        let version: Symbol<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int> =
            self.function(c"nvrtcVersion")?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to live integers.
        match unsafe { version(&mut major, &mut minor) } {
            0 => Ok((major, minor)),
            code => Err(format!("nvrtcVersion: error {code}")),
        }
    }

    /// Compiles all `instances` of the kernels in `source` for `target`, such as `sm_90a`.
    ///
    /// Errors: a source that the compiler refuses, with its log; a function that the library does not have.
    pub fn compile(
        &self,
        name: &str,
        source: &str,
        headers: &[Header],
        instances: &[String],
        target: &str,
    ) -> Result<Compiled, String> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        let create: Symbol<Create> = self.function(c"nvrtcCreateProgram")?;
        let destroy: Symbol<unsafe extern "C" fn(*mut Program) -> c_int> =
            self.function(c"nvrtcDestroyProgram")?;
        let add: Symbol<unsafe extern "C" fn(Program, *const c_char) -> c_int> =
            self.function(c"nvrtcAddNameExpression")?;
        let run: Symbol<unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int> =
            self.function(c"nvrtcCompileProgram")?;
        let lowered: Symbol<unsafe extern "C" fn(Program, *const c_char, *mut *const c_char) -> c_int> =
            self.function(c"nvrtcGetLoweredName")?;

        let text = |s: &str| CString::new(s).map_err(|_| format!("{name}: a NUL in the source"));
        let (source, file) = (text(source)?, text(name)?);
        let bodies = headers.iter().map(|h| text(&h.1)).collect::<Result<Vec<_>, _>>()?;
        let names = headers.iter().map(|h| text(&h.0)).collect::<Result<Vec<_>, _>>()?;
        let wanted = instances.iter().map(|i| text(i)).collect::<Result<Vec<_>, _>>()?;
        let architecture = format!("--gpu-architecture={target}");
        let options = OPTIONS.iter().copied().chain([architecture.as_str()]);
        let options = options.map(&text).collect::<Result<Vec<_>, _>>()?;
        let pointers = |v: &[CString]| v.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: all strings and arrays outlive the calls; the program is destroyed once, after its last
        // use.
        unsafe {
            let (bodies, names, options) = (pointers(&bodies), pointers(&names), pointers(&options));
            let count = headers.len() as c_int;
            match create(&mut program, source.as_ptr(), file.as_ptr(), count, bodies.as_ptr(), names.as_ptr())
            {
                0 => {}
                code => return Err(format!("{name}: nvrtcCreateProgram: error {code}")),
            }
            wanted.iter().for_each(|w| {
                add(program, w.as_ptr());
            });
            let code = run(program, options.len() as c_int, options.as_ptr());
            let log = self.text(program, c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")?;
            let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_string();
            let result = if code != 0 {
                Err(format!("{name} for {target}: {log}"))
            } else {
                let symbol = |w: &CString| {
                    let mut p = std::ptr::null();
                    match lowered(program, w.as_ptr(), &mut p) {
                        0 => Ok(CStr::from_ptr(p).to_string_lossy().into_owned()),
                        code => Err(format!("{name}: no instance {}: error {code}", w.to_string_lossy())),
                    }
                };
                let symbols = wanted.iter().map(symbol).collect::<Result<Vec<_>, _>>();
                let cubin = self.text(program, c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN");
                let ptx = self.text(program, c"nvrtcGetPTXSize", c"nvrtcGetPTX");
                symbols.and_then(|symbols| Ok(Compiled { cubin: cubin?, ptx: ptx?, symbols, log }))
            };
            destroy(&mut program);
            result
        }
    }

    fn text(&self, program: Program, size: &CStr, get: &CStr) -> Result<Vec<u8>, String> {
        let (read_size, read): (Symbol<GetSize>, Symbol<Get>) = (self.function(size)?, self.function(get)?);
        let mut bytes = 0;
        // SAFETY: `program` is alive; the buffer has the size that the compiler asked for.
        unsafe {
            let mut code = read_size(program, &mut bytes);
            let mut out = vec![0u8; bytes];
            if code == 0 && bytes > 0 {
                code = read(program, out.as_mut_ptr().cast());
            }
            match code {
                0 => Ok(out),
                code => Err(format!("{}: error {code}", get.to_string_lossy())),
            }
        }
    }
}
