//! Launchers of several ranks: those of the folders in `DFKA_TEST_MPI`, separated by colons, or the one of `PATH`. Each is
//! tried with every interface that its library has. Without any, tests say that they are skipped; with `DFKA_REQUIRE_MPI`
//! they fail.

use super::{Lab, executable, skipped};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A launcher, and the library that the program is to open, where it is not to find one by itself.
pub struct Mpi {
    launcher: PathBuf,
    library: Option<PathBuf>,
}

impl Mpi {
    /// All that are installed.
    pub fn all() -> Vec<Mpi> {
        let named =
            std::env::var_os("DFKA_TEST_MPI").or_else(|| std::env::var_os("PATH")).unwrap_or_default();
        let launchers = std::env::split_paths(&named).map(|bin| bin.join("mpirun"));
        let mut all = Vec::new();
        for launcher in launchers.filter(|l| l.exists()) {
            // MPICH has its own interface in one library, and that of MPI 5 in another, which the program prefers.
            let of_mpich = launcher.with_file_name("../lib/libmpi.so.12");
            all.push(Mpi { launcher: launcher.clone(), library: None });
            if of_mpich.exists() {
                all.push(Mpi { launcher, library: Some(of_mpich) });
            }
        }
        if all.is_empty() {
            assert!(std::env::var_os("DFKA_REQUIRE_MPI").is_none(), "no mpirun in DFKA_TEST_MPI or PATH");
            skipped("no mpirun in DFKA_TEST_MPI or PATH, so nothing runs on several ranks");
        }
        all
    }
    pub fn first() -> Option<Mpi> {
        Mpi::all().into_iter().next()
    }

    /// The command that starts a program on this many ranks. There may be more ranks than processors, and the user may be
    /// root, as in a container.
    pub fn command(&self, program: impl AsRef<OsStr>, ranks: usize, args: &[&str]) -> Command {
        let mut c = Command::new(&self.launcher);
        c.arg("-np").arg(ranks.to_string()).arg(program).args(args);
        let folders = [self.launcher.parent().unwrap().to_path_buf()];
        let path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
        c.env("PATH", std::env::join_paths(folders.into_iter().chain(path)).unwrap());
        for (name, value) in [
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
            ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ] {
            c.env(name, value);
        }
        if let Some(library) = &self.library {
            c.env("DFKA_MPI", library);
        }
        c
    }
    /// Our program in the lab's folder.
    pub fn program(&self, lab: &Lab, ranks: usize, args: &[&str]) -> Command {
        let mut c = self.command(executable(), ranks, args);
        c.current_dir(lab.path("."));
        c
    }
    pub fn call(&self, lab: &Lab, ranks: usize, args: &[&str]) -> Output {
        self.program(lab, ranks, args).output().unwrap()
    }
}
