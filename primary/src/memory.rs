//! Hugepages: how many there are, how much the switch takes, and what to say when there are none.

use std::cmp::Reverse;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use vswitch_common::mempool::BYTES_PER_MBUF;
use vswitch_common::port::QUOTA;

/// MiB taken by default, if the host has them.
pub const DEFAULT_MB: u64 = 512;
/// MiB below which the switch does not start.
const LEAST_MB: u64 = 64;

/// Hugepages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hugepages {
    /// Bytes of a page.
    pub size: u64,
    /// All that are reserved, whoever uses them.
    pub total: u64,
    pub free: u64,
    /// Free ones by NUMA node; empty where the kernel tells of no nodes.
    pub free_by_node: Vec<u64>,
    /// Where a hugetlbfs of that size is mounted that this process may write to.
    pub mount: Option<PathBuf>,
}

/// What the host has, smaller pages first.
pub fn hugepages() -> Vec<Hugepages> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let Ok(entries) = fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let mut pages: Vec<Hugepages> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kb: u64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let count = |file: &str| -> Option<u64> {
                let text = fs::read_to_string(entry.path().join(file)).ok()?;
                text.trim().parse().ok()
            };
            Some(Hugepages {
                size: kb << 10,
                total: count("nr_hugepages")?,
                // Some of the free ones may be promised to others' mappings.
                free: count("free_hugepages")?.saturating_sub(count("resv_hugepages").unwrap_or(0)),
                free_by_node: free_by_node(Path::new("/sys/devices/system/node"), kb),
                mount: mount_points(&mounts, Some(kb << 10)).find(|m| may_write(m)),
            })
        })
        .collect();
    pages.sort_by_key(|p| p.size);
    pages
}

/// Free hugepages of `kb` KiB on node 0, 1, ..., as the kernel lists them in `dir`.
fn free_by_node(dir: &Path, kb: u64) -> Vec<u64> {
    let mut free = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let node: Option<usize> = name
            .to_str()
            .and_then(|name| name.strip_prefix("node")?.parse().ok());
        let file = format!("hugepages/hugepages-{kb}kB/free_hugepages");
        let count = fs::read_to_string(entry.path().join(file));
        if let (Some(node), Some(count)) = (node, count.ok().and_then(|text| text.trim().parse().ok())) {
            free.resize(free.len().max(node + 1), 0);
            free[node] = count;
        }
    }
    free
}

fn may_write(dir: &Path) -> bool {
    access(dir, AccessFlags::W_OK).is_ok()
}

/// Every hugetlbfs in `mounts` (the text of /proc/mounts), of pages of `size` bytes if that is given.
fn mount_points(mounts: &str, size: Option<u64>) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(move |line| {
        let mut fields = line.split(' ');
        let (_, point, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let page = options
            .split(',')
            .find_map(|o| o.strip_prefix("pagesize="))
            .unwrap_or("2M");
        let bytes = match page.split_at_checked(page.len().checked_sub(1)?)? {
            (n, "M") => n.parse::<u64>().ok()? << 20,
            (n, "G") => n.parse::<u64>().ok()? << 30,
            _ => page.parse().ok()?,
        };
        (kind == "hugetlbfs" && size.is_none_or(|s| s == bytes)).then(|| PathBuf::from(point))
    })
}

/// Every hugetlbfs. All of them: EAL may have been told which one to take (--huge-dir).
pub fn mounts() -> impl Iterator<Item = PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    mount_points(&mounts, None).collect::<Vec<_>>().into_iter()
}

/// The NUMA node to take memory from where the user names none, and the MiB it has: the first that has enough, or else the most.
pub fn roomiest_node(pages: &[Hugepages]) -> (usize, u64) {
    (0..nodes(pages))
        .map(|node| (node, usable_mb_of(pages, node)))
        .min_by_key(|&(_, mb)| Reverse(mb.min(DEFAULT_MB)))
        .unwrap_or((0, usable_mb(pages)))
}

fn nodes(pages: &[Hugepages]) -> usize {
    pages.iter().map(|p| p.free_by_node.len()).max().unwrap_or(0)
}

fn usable_mb_of(pages: &[Hugepages], node: usize) -> u64 {
    let of = |p: &Hugepages| p.free_by_node.get(node).map_or(0, |free| (free * p.size) >> 20);
    pages.iter().filter(|p| p.mount.is_some()).map(of).sum()
}

fn usable_mb(pages: &[Hugepages]) -> u64 {
    let usable = pages.iter().filter(|p| p.mount.is_some());
    usable.map(|p| (p.free * p.size) >> 20).sum()
}

/// MiB of hugepages to take: `asked` of each node as the user says, else the default or what there is on one node.
///
/// # Errors
/// There are too few, or no hugetlbfs is mounted: what to do about it.
pub fn amount(pages: &[Hugepages], asked: Option<&[u64]>) -> Result<u64, String> {
    let sum = asked.map(|list| list.iter().sum());
    let amount = amount_in_all(pages, sum)?;
    for (node, &need) in asked.unwrap_or_default().iter().enumerate().take(nodes(pages)) {
        let usable = usable_mb_of(pages, node);
        if usable < need {
            return Err(format!(
                "{usable} MiB of hugepages are free on NUMA node {node}, {need} MiB are needed there; reserve some in \
                 /sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages"
            ));
        }
    }
    Ok(amount)
}

fn amount_in_all(pages: &[Hugepages], asked: Option<u64>) -> Result<u64, String> {
    let usable = match asked {
        Some(_) => usable_mb(pages),
        // What is free on a node may be promised to others; only of all nodes together is it known how much.
        None => roomiest_node(pages).1.min(usable_mb(pages)),
    };
    let unmounted: u64 = pages
        .iter()
        .filter(|p| p.mount.is_none())
        .map(|p| (p.free * p.size) >> 20)
        .sum();
    let need = asked.unwrap_or(LEAST_MB);
    if usable >= need {
        return Ok(asked.unwrap_or(usable.min(DEFAULT_MB)));
    }
    if usable + unmounted >= need {
        return Err(format!(
            "{unmounted} MiB of hugepages are free but there is no hugetlbfs for them that this user may write to; mount \
             one (as root): mkdir -p /dev/hugepages && mount -t hugetlbfs nodev /dev/hugepages; or let this user's group \
             use the one that is mounted: scripts/host-setup --group GROUP"
        ));
    }
    let want = asked.unwrap_or(DEFAULT_MB);
    // The number to write counts those that others use as well.
    let taken: u64 = pages
        .iter()
        .filter(|p| p.size == 2 << 20)
        .map(|p| p.total.saturating_sub(p.free))
        .sum();
    Err(format!(
        "{usable} MiB of hugepages are free, {need} MiB are needed; reserve some with: echo {} > \
         /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        taken + want.div_ceil(2) + 8
    ))
}

/// The pools to make of so many MiB on node 0, 1, ...: node and mbufs of each. What is too little for the share of one
/// client is left to rings and devices.
pub fn pools(mb_by_node: &[u64]) -> impl Iterator<Item = (usize, u32)> {
    let all = mb_by_node.iter().map(|&mb| mbufs(mb)).enumerate();
    all.filter(|&(_, mbufs)| mbufs >= QUOTA)
}

/// Mbufs for `mb` MiB of hugepages: the larger part, the rest is rings, devices and EAL.
pub fn mbufs(mb: u64) -> u32 {
    let bytes = (mb << 20) * 3 / 4;
    // One less than a power of two uses a mempool's ring best, but memory is what counts here.
    u32::try_from(bytes / BYTES_PER_MBUF as u64).unwrap_or(u32::MAX)
}

/// Removes the hugepage files of EAL file prefix `prefix`, which EAL leaves behind. How many there were.
pub fn remove_files(prefix: &str) -> usize {
    let wanted = format!("{prefix}map_");
    mounts().map(|mount| remove_matching(&mount, &wanted)).sum()
}

fn remove_matching(dir: &Path, prefix: &str) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let ours = |name: &OsStr| name.as_encoded_bytes().starts_with(prefix.as_bytes());
    entries
        .flatten()
        .filter(|entry| ours(&entry.file_name()) && fs::remove_file(entry.path()).is_ok())
        .count()
}

/// Processes that still map removed hugepage files of EAL file prefix `prefix`: clients of a switch that is dead.
pub fn holders(prefix: &str) -> Vec<i32> {
    let wanted = format!("/{prefix}map_");
    let stale = |maps: String| {
        maps.lines()
            .any(|l| l.ends_with("(deleted)") && l.contains(&wanted))
    };
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|dir| {
            let pid = dir.file_name().to_str()?.parse().ok()?;
            fs::read_to_string(dir.path().join("maps"))
                .is_ok_and(stale)
                .then_some(pid)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(free: u64, mounted: bool) -> Vec<Hugepages> {
        vec![Hugepages {
            size: 2 << 20,
            total: free,
            free,
            free_by_node: Vec::new(),
            mount: mounted.then(|| "/dev/hugepages".into()),
        }]
    }

    #[test]
    fn takes_what_is_there_up_to_the_default() {
        assert_eq!(amount(&pages(1024, true), None), Ok(512));
        assert_eq!(amount(&pages(100, true), None), Ok(200));
        assert_eq!(amount(&pages(1024, true), Some(&[1500])), Ok(1500));
    }

    /// EAL is asked for memory node by node: what all of them have together is no use.
    #[test]
    fn takes_memory_from_one_node() {
        let mut two = pages(300, true);
        two[0].free_by_node = vec![100, 200];
        assert_eq!(roomiest_node(&two), (1, 400));
        assert_eq!(amount(&two, None), Ok(400));
        two[0].free_by_node = vec![300, 500];
        assert_eq!(roomiest_node(&two), (0, 600));
        assert_eq!(amount(&two, None), Ok(512));
        two[0].free = 800;
        assert_eq!(amount(&two, Some(&[300, 300])), Ok(600));
        let error = amount(&two, Some(&[601])).unwrap_err();
        assert!(
            error.contains("600 MiB of hugepages are free on NUMA node 0, 601 MiB"),
            "{error}"
        );
        // Pages that others were promised are free on their nodes still.
        two[0].free = 100;
        assert_eq!(amount(&two, None), Ok(200));
        two[0].free_by_node = vec![10, 10];
        assert!(amount(&two, None).is_err());
        two[0].mount = None;
        two[0].free_by_node = vec![500, 500];
        assert_eq!(roomiest_node(&two).1, 0);
    }

    #[test]
    fn free_pages_as_the_kernel_lists_them() {
        let dir = tempfile::tempdir().unwrap();
        for (node, free) in [("node0", "3\n"), ("node2", "5\n")] {
            let pages = dir.path().join(node).join("hugepages/hugepages-2048kB");
            fs::create_dir_all(&pages).unwrap();
            fs::write(pages.join("free_hugepages"), free).unwrap();
        }
        assert_eq!(free_by_node(dir.path(), 2048), [3, 0, 5]);
        assert!(free_by_node(dir.path(), 1 << 20).is_empty());
    }

    #[test]
    fn says_what_to_do() {
        assert!(
            amount(&pages(0, true), None)
                .unwrap_err()
                .contains("nr_hugepages")
        );
        assert!(
            amount(&pages(100, true), Some(&[512]))
                .unwrap_err()
                .contains("echo 264 >")
        );
        let mut shared = pages(100, true);
        shared[0].total = 300;
        assert!(amount(&shared, Some(&[512])).unwrap_err().contains("echo 464 >"));
        assert!(
            amount(&pages(100, false), None)
                .unwrap_err()
                .contains("mount -t hugetlbfs")
        );
    }

    #[test]
    fn a_pool_on_each_node_with_memory() {
        let of = |mb_by_node: &[u64]| pools(mb_by_node).collect::<Vec<_>>();
        assert_eq!(of(&[512]), [(0, 157_286)]);
        assert_eq!(of(&[0, 64]), [(1, 19_660)]);
        assert_eq!(of(&[64, 2, 512]), [(0, 19_660), (2, 157_286)]);
        assert_eq!(of(&[0, 4]), []);
    }

    #[test]
    fn finds_mounts_by_page_size() {
        let mounts = "none / ext4 rw 0 0\nnodev /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n\
                      x /mnt/huge hugetlbfs rw,pagesize=1024M 0 0\n";
        let found = |mounts, size| -> Vec<PathBuf> { mount_points(mounts, size).collect() };
        assert_eq!(found(mounts, Some(2 << 20)), [PathBuf::from("/dev/hugepages")]);
        assert_eq!(found(mounts, Some(1 << 30)), [PathBuf::from("/mnt/huge")]);
        assert_eq!(found(mounts, None).len(), 2);
        assert_eq!(
            found("n /h hugetlbfs rw 0 0\n", Some(2 << 20)),
            [PathBuf::from("/h")]
        );
    }
}
