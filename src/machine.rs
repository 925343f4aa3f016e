//! What the system says of the machine.

use std::fs::read_to_string;
use std::path::Path;

/// Bytes of memory that this process may still take, if the system says so, as Linux does: the least of what is available
/// on the machine, of the limits that the process inherited (`ulimit -v` and `-d`), and of those of its control groups.
pub fn available_memory() -> Option<usize> {
    let text = |path: &str| read_to_string(path).unwrap_or_default();
    let (limits, status) = (text("/proc/self/limits"), text("/proc/self/status"));
    let machine = kilobytes(&text("/proc/meminfo"), "MemAvailable:");
    let own = [("Max address space", "VmSize:"), ("Max data size", "VmData:")].map(|(limit, used)| {
        let soft = limits.lines().find_map(|l| l.strip_prefix(limit))?.split_whitespace().next()?;
        Some(soft.parse::<usize>().ok()?.saturating_sub(kilobytes(&status, used)?))
    });
    let groups = of_groups(&text("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
    [machine, groups].into_iter().chain(own).flatten().min()
}

/// Bytes of the entry `name` of a text such as /proc/meminfo.
fn kilobytes(text: &str, name: &str) -> Option<usize> {
    let value = text.lines().find_map(|l| l.strip_prefix(name))?;
    value.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// Bytes that the control groups of `groups` (/proc/self/cgroup), mounted at `root`, may still take: the least of a
/// group and all groups above it. The files that a group has cached do not count, because the system drops them to make
/// room. `None` without a limit.
fn of_groups(groups: &str, root: &Path) -> Option<usize> {
    let of_line = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (root, files) = match controllers {
            // Version 2.
            "" => (root.to_path_buf(), ["memory.max", "memory.current", "inactive_file ", "active_file "]),
            _ if controllers.split(',').any(|c| c == "memory") => (
                root.join("memory"),
                [
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file ",
                    "total_active_file ",
                ],
            ),
            _ => return None,
        };
        let [limit, used, inactive, active] = files;
        let free = |group: &Path| {
            let group = root.join(group);
            let read = |file: &str| read_to_string(group.join(file)).ok();
            let number = |file: &str| read(file)?.trim().parse::<usize>().ok();
            let stat = read("memory.stat").unwrap_or_default();
            let entry = |name: &str| stat.lines().find_map(|l| l.strip_prefix(name)?.parse::<usize>().ok());
            let cached = [inactive, active].into_iter().filter_map(entry).sum();
            Some(number(limit)?.saturating_sub(number(used)?.saturating_sub(cached)))
        };
        // In a container, the path may be one outside of it, and its own group is mounted as the root.
        Path::new(path.trim_start_matches('/')).ancestors().filter_map(free).min()
    };
    groups.lines().filter_map(of_line).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn linux_says_how_much_memory_is_available() {
        let found = available_memory();
        assert_eq!(found.is_some(), Path::new("/proc/meminfo").exists());
        // A test that runs has a megabyte, and no machine has an exabyte.
        assert!(found.is_none_or(|bytes| (1 << 20..1 << 60).contains(&bytes)), "{found:?}");
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_above_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        let put = |group: &str, files: &[(&str, &str)]| {
            fs::create_dir_all(dir.path().join(group)).unwrap();
            files.iter().for_each(|(file, text)| fs::write(dir.path().join(group).join(file), text).unwrap());
        };
        let free = |groups: &str| of_groups(groups, dir.path());
        let (v2, v1) = ("0::/a/b\n", "9:name=systemd:/\n4:cpu,memory:/a/b\n0::/\n");
        assert_eq!((free(v2), free(v1), free("")), (None, None, None));
        put("a/b", &[("memory.max", "max\n"), ("memory.current", "10\n")]);
        assert_eq!(free(v2), None);
        put("a", &[("memory.max", "1000\n"), ("memory.current", "700\n")]);
        assert_eq!(free(v2), Some(300));
        // Of the 700, 500 are files that the system has cached.
        put("a", &[("memory.stat", "anon 200\ninactive_file 400\nactive_file 100\n")]);
        assert_eq!(free(v2), Some(800));
        put("a/b", &[("memory.max", "50\n"), ("memory.current", "60\n")]);
        assert_eq!(free(v2), Some(0));

        put("memory", &[("memory.limit_in_bytes", "900"), ("memory.usage_in_bytes", "100")]);
        put("memory", &[("memory.stat", "inactive_file 7\ntotal_inactive_file 30\n")]);
        assert_eq!(free(v1), Some(830), "the group's own folder is not mounted");
        put("memory/a/b", &[("memory.limit_in_bytes", "500"), ("memory.usage_in_bytes", "100")]);
        assert_eq!(free(v1), Some(400));
    }
}
