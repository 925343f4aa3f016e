//! What the system says of the machine.

/// Bytes of memory that are available on this machine, if the system reports them, as Linux does for the
/// whole machine.
pub fn available_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_says_how_much_memory_is_available() {
        let found = available_memory();
        assert_eq!(found.is_some(), std::path::Path::new("/proc/meminfo").exists());
        // A test that runs has a megabyte, and no machine has an exabyte.
        assert!(found.is_none_or(|bytes| (1 << 20..1 << 60).contains(&bytes)), "{found:?}");
    }
}
