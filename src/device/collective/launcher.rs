//! What a launcher says of this process in its environment.

/// A process of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Launched {
    /// From 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// How many of them run on this machine.
    pub local_size: usize,
    /// Whether the launcher is Open MPI's.
    pub is_open_mpi: bool,
}

/// The variables of a launcher: rank, number of processes, and how many there are on this machine.
const LAUNCHERS: [[&str; 3]; 3] = [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"],
    // srun with PMIx. A batch script itself has Slurm's variables too, but none of PMIx.
    ["PMIX_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"],
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
    LAUNCHERS.iter().enumerate().find_map(|(i, [rank, size, local])| {
        let (rank, size) = (number(rank)?, number(size)?);
        let local_size = number(local).unwrap_or(size).clamp(1, size.max(1));
        Some(Launched { rank, size, local_size, is_open_mpi: i == 0 })
    })
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
        let expected = Launched { rank: 1, size: 4, local_size: 4, is_open_mpi: true };
        assert_eq!(with(&open), Some(expected));
        let mpich = [("PMI_RANK", "0"), ("PMI_SIZE", "4"), ("MPI_LOCALNRANKS", "2")];
        let expected = Launched { rank: 0, size: 4, local_size: 2, is_open_mpi: false };
        assert_eq!(with(&mpich), Some(expected));
        let slurm =
            [("PMIX_RANK", "5"), ("SLURM_STEP_NUM_TASKS", "6"), ("SLURM_STEP_TASKS_PER_NODE", "2(x3)")];
        assert_eq!(with(&slurm).map(|l| (l.rank, l.size, l.local_size)), Some((5, 6, 2)));
    }

    #[test]
    fn a_plain_shell_and_a_batch_script_are_no_launch() {
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")]), None);
        assert_eq!(with(&[("PMI_RANK", "one"), ("PMI_SIZE", "2")]), None);
    }
}
