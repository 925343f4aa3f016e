//! What a launcher says of this process in its environment.

/// A process of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launched {
    /// From 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// From 0, among those of this machine.
    pub local_rank: usize,
    /// How many of them run on this machine.
    pub local_size: usize,
    /// Who has started it.
    pub launcher: Launcher,
}

/// A program that starts the processes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// Open MPI's `mpirun`.
    OpenMpi,
    /// Another MPI's `mpirun`, or Slurm's `srun` with PMIx.
    Mpi,
    /// PyTorch's `torchrun`, also where `srun` or `mpirun` has started it. It brings no library that moves data.
    Torchrun,
}

/// What torchrun tells its own processes only: `RANK` and `WORLD_SIZE` are in many environments.
const OF_TORCHRUN: &str = "TORCHELASTIC_RUN_ID";

/// The variables of a launcher: rank, number of processes, rank on this machine, and how many there are on this machine.
const LAUNCHERS: [(Launcher, [&str; 4]); 4] = [
    (Launcher::Torchrun, ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]),
    (
        Launcher::OpenMpi,
        [
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ],
    ),
    (Launcher::Mpi, ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]),
    // srun with PMIx. A batch script itself has Slurm's variables too, but none of PMIx.
    (Launcher::Mpi, ["PMIX_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"]),
];

/// This process as its launcher sees it; `None` if none has started it.
pub fn launched() -> Option<Launched> {
    of(|name| std::env::var(name).ok())
}

fn of(variable: impl Fn(&str) -> Option<String>) -> Option<Launched> {
    // Slurm writes "2(x3)" for two tasks on each of three machines.
    let number = |name: &str| -> Option<usize> {
        let text = variable(name)?;
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..digits].parse().ok()
    };
    LAUNCHERS.iter().find_map(|(launcher, [rank, size, local_rank, local_size])| {
        let (rank, size) = (number(rank)?, number(size)?);
        if *launcher == Launcher::Torchrun && variable(OF_TORCHRUN).is_none() {
            return None;
        }
        // srun's own interface of MPI (pmi2) says nothing of the machine.
        let or_slurms = |name: &str, slurms: &str| number(name).or_else(|| number(slurms));
        let local_size = or_slurms(local_size, "SLURM_STEP_TASKS_PER_NODE");
        let local_size = local_size.unwrap_or(size).clamp(1, size.max(1));
        let local_rank = or_slurms(local_rank, "SLURM_LOCALID").unwrap_or(rank % local_size);
        Some(Launched { rank, size, local_rank, local_size, launcher: *launcher })
    })
}

/// Where NCCL is to listen on rank 0 of torchrun's processes, unless `NCCL_COMM_ID` says where: at torchrun's address, one
/// port above torchrun's own.
pub(super) fn meeting_place() -> Option<String> {
    let variable = |name: &str| std::env::var(name).ok();
    let launched = launched().filter(|l| l.launcher == Launcher::Torchrun && l.size > 1);
    match variable("NCCL_COMM_ID") {
        Some(_) => None,
        None => launched.and_then(|_| place(&variable("MASTER_ADDR")?, &variable("MASTER_PORT")?)),
    }
}

fn place(address: &str, port: &str) -> Option<String> {
    let port: u16 = port.parse().ok()?;
    let next = port.checked_add(1).unwrap_or(port - 1);
    // An address of IPv6 has colons of its own.
    Some(if address.contains(':') { format!("[{address}]:{next}") } else { format!("{address}:{next}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Option<Launched> {
        of(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn each_launcher_has_variables_of_its_own() {
        let open = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")];
        let expected =
            Launched { rank: 1, size: 4, local_rank: 1, local_size: 4, launcher: Launcher::OpenMpi };
        assert_eq!(with(&open), Some(expected));
        let mpich =
            [("PMI_RANK", "2"), ("PMI_SIZE", "4"), ("MPI_LOCALNRANKS", "2"), ("MPI_LOCALRANKID", "0")];
        let expected = Launched { rank: 2, size: 4, local_rank: 0, local_size: 2, launcher: Launcher::Mpi };
        assert_eq!(with(&mpich), Some(expected));
        let slurm = [
            ("PMIX_RANK", "5"),
            ("SLURM_STEP_NUM_TASKS", "6"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x3)"),
        ];
        let found = with(&slurm).map(|l| (l.rank, l.size, l.local_rank, l.local_size));
        assert_eq!(found, Some((5, 6, 1, 2)));
        let torchrun = [
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("TORCHELASTIC_RUN_ID", "none"),
            ("PMI_RANK", "0"), // of the srun that has started torchrun
            ("PMI_SIZE", "1"),
        ];
        let expected =
            Launched { rank: 3, size: 4, local_rank: 1, local_size: 2, launcher: Launcher::Torchrun };
        assert_eq!(with(&torchrun), Some(expected));
        assert_eq!(with(&torchrun[..4]), None, "anybody's variables");
    }

    #[test]
    fn a_plain_shell_and_a_batch_script_are_no_launch() {
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")]), None);
        assert_eq!(with(&[("PMI_RANK", "one"), ("PMI_SIZE", "2")]), None);
    }

    #[test]
    fn nccl_meets_one_port_above_torchruns() {
        assert_eq!(place("10.0.0.1", "29500").as_deref(), Some("10.0.0.1:29501"));
        assert_eq!(place("fe80::1", "65535").as_deref(), Some("[fe80::1]:65534"));
        assert_eq!(place("host", "none"), None);
    }
}
