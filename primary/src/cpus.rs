//! CPU sets: masks and lists as EAL and Open vSwitch write them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The CPUs of a hexadecimal mask such as `0x6`, in rising order.
///
/// # Errors
/// It is no mask, or none of its CPUs may be used by this process.
pub fn parse_mask(text: &str) -> Result<Vec<usize>, String> {
    let digits = text.trim().trim_start_matches("0x").trim_start_matches("0X");
    let mut cpus = Vec::new();
    for (place, digit) in digits.chars().rev().enumerate() {
        let bits = digit
            .to_digit(16)
            .ok_or_else(|| format!("'{text}' is not a hexadecimal CPU mask"))?;
        cpus.extend(
            (0..4)
                .filter(|bit| bits & 1 << bit != 0)
                .map(|bit| place * 4 + bit),
        );
    }
    check(cpus, text)
}

/// The CPUs of a list such as `1,3-5`, in rising order.
///
/// # Errors
/// As [`parse_mask`].
pub fn parse_list(text: &str) -> Result<Vec<usize>, String> {
    let cpus = list(text).ok_or_else(|| format!("'{text}' is not a list of CPUs such as 1,3-5"))?;
    check(cpus, text)
}

fn list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |s: &str| s.trim().parse::<usize>().ok().filter(|&n| n < 4096);
        cpus.extend(number(first)?..=number(last)?);
    }
    Some(cpus)
}

fn check(mut cpus: Vec<usize>, text: &str) -> Result<Vec<usize>, String> {
    cpus.sort_unstable();
    cpus.dedup();
    let present = allowed();
    match cpus.iter().find(|cpu| !present.contains(cpu)) {
        Some(cpu) => Err(format!(
            "'{text}' names CPU {cpu}, but this process may use only {}",
            show(&present)
        )),
        None if cpus.is_empty() => Err(format!("'{text}' names no CPU")),
        None => Ok(cpus),
    }
}

/// CPUs that threads of this process may be pinned to: all of its cpuset. The process itself is kept off those that the kernel
/// was told to isolate (`isolcpus=`), which PMD threads are to have, and perhaps off others (`taskset`, systemd's `CPUAffinity=`).
pub fn allowed() -> Vec<usize> {
    affinities().allowed.clone()
}

/// CPUs for what is not pinned: those that this process was started on.
pub fn inherited() -> Vec<usize> {
    affinities().inherited.clone()
}

#[derive(Debug)]
struct Affinities {
    inherited: Vec<usize>,
    allowed: Vec<usize>,
}

fn affinities() -> &'static Affinities {
    // Taken once, before any thread was pinned.
    static AFFINITIES: OnceLock<Affinities> = OnceLock::new();
    AFFINITIES.get_or_init(|| {
        let inherited = of_thread(0).unwrap_or_else(|_| vec![0]);
        // The kernel takes of all CPUs what the cpuset has.
        let all: Vec<usize> = (0..CpuSet::count()).collect();
        let allowed = pin(0, &all).and_then(|()| of_thread(0));
        if let Err(e) = pin(0, &inherited) {
            log::warn!("this thread's CPUs can't be set: {e}");
        }
        Affinities {
            allowed: allowed.unwrap_or_else(|_| inherited.clone()),
            inherited,
        }
    })
}

/// The CPUs that thread `tid` may run on; 0: this one.
///
/// # Errors
/// There is no such thread.
pub fn of_thread(tid: u32) -> nix::Result<Vec<usize>> {
    sched_getaffinity(Pid::from_raw(tid as i32)).map(|set| members(&set).collect())
}

fn members(set: &CpuSet) -> impl Iterator<Item = usize> {
    (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false))
}

/// The NUMA node of `cpu`; 0 where the kernel tells of none.
pub fn node(cpu: usize) -> usize {
    static NODES: OnceLock<HashMap<usize, usize>> = OnceLock::new();
    let nodes = NODES.get_or_init(|| nodes(Path::new("/sys/devices/system/node")));
    nodes.get(&cpu).copied().unwrap_or(0)
}

/// The node of each CPU, as the kernel lists them in `dir`.
fn nodes(dir: &Path) -> HashMap<usize, usize> {
    let mut nodes = HashMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("node")?.parse().ok());
        let cpus = std::fs::read_to_string(entry.path().join("cpulist"));
        if let (Some(number), Some(cpus)) = (number, cpus.ok().and_then(|text| list(&text))) {
            nodes.extend(cpus.into_iter().map(|cpu| (cpu, number)));
        }
    }
    nodes
}

/// The NUMA node of the CPUs that process `pid` may use, if they are of one.
pub fn node_of_process(pid: i32) -> Option<usize> {
    let set = sched_getaffinity(Pid::from_raw(pid)).ok()?;
    let mut nodes = members(&set).map(node);
    let first = nodes.next()?;
    nodes.all(|node| node == first).then_some(first)
}

/// Pins thread `tid` (0: the calling one) to `cpus`.
pub fn pin(tid: u32, cpus: &[usize]) -> nix::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu)?;
    }
    sched_setaffinity(Pid::from_raw(tid as i32), &set)
}

/// `cpus` as a list, such as `0,1`.
pub fn show(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_as_the_kernel_lists_them() {
        let dir = tempfile::tempdir().unwrap();
        for (name, cpus) in [
            ("node0", "0-1,4\n"),
            ("node1", "2\n"),
            ("node2", "\n"),
            ("possible", "0-2\n"),
        ] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("cpulist"), cpus).unwrap();
        }
        assert_eq!(nodes(dir.path()), HashMap::from([(0, 0), (1, 0), (4, 0), (2, 1)]));
        assert_eq!(nodes(&dir.path().join("none")), HashMap::new());
        let own = node(allowed()[0]);
        if allowed().iter().all(|&cpu| node(cpu) == own) {
            assert_eq!(node_of_process(std::process::id() as i32), Some(own));
        }
        assert_eq!(node_of_process(i32::MAX), None);
    }

    /// As a service is on a host with `isolcpus=`.
    #[test]
    fn a_cpu_that_the_process_was_not_started_on_may_be_named() {
        pin(0, &(0..CpuSet::count()).collect::<Vec<_>>()).unwrap();
        let all = of_thread(0).unwrap();
        pin(0, &all[..1]).unwrap();
        assert_eq!((allowed(), inherited()), (all.clone(), all[..1].to_vec()));
        assert_eq!(of_thread(0).unwrap(), all[..1]);
        assert_eq!(parse_list(&show(&all)), Ok(all));
    }

    #[test]
    fn masks_and_lists() {
        let first = allowed()[0];
        assert_eq!(parse_mask(&format!("0x{:x}", 1u64 << first)), Ok(vec![first]));
        assert_eq!(parse_list(&format!("{first},{first}-{first}")), Ok(vec![first]));
        assert!(parse_mask("0xz").unwrap_err().contains("'0xz'"));
        assert!(parse_mask("0").unwrap_err().contains("names no CPU"));
        assert!(parse_list("1-").unwrap_err().contains("not a list"));
        assert!(parse_list("4000").unwrap_err().contains("CPU 4000"));
    }
}
