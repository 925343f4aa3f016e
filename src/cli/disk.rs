//! Space on the disk.

use std::path::Path;

/// Bytes that this user may still write to the file system of a folder, which need not exist yet: then its nearest
/// folder above counts. `None` where the system does not say.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let whole = std::path::absolute(folder).ok()?;
    let there = whole.ancestors().find(|path| path.exists())?;
    let found = rustix::fs::statvfs(there).ok()?;
    Some(found.f_frsize * found.f_bavail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_yet_has_the_space_of_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        let free = free_bytes(&dir.path().join("runs/demo-seed0")).unwrap();
        assert!(free > 0 && free_bytes(Path::new("runs/demo-seed0")).is_some());
    }
}
