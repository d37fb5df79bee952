//! A host's sysfs, procfs and `/etc` as plain files, for `scripts/host-check` and `scripts/host-setup` (`HOST_ROOT`).
//!
//! No kernel stands behind it: what is written to `bind` stays there, and no driver changes. So it shows what the
//! scripts decide and write, and how they take things back when the kernel does not do its part.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Temporary files, removed when dropped.
#[derive(Debug)]
pub struct FakeHost(TempDir);

/// What a script said, and its exit status.
#[derive(Debug)]
pub struct Said {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Everything below a directory: type, mode, owner and contents of each path.
pub type Tree = BTreeMap<PathBuf, String>;

const KERNEL: &str = "6.1.0-fake";

const CPU: &str = "processor\t: 0\nmodel name\t: A \"CPU\" at 2 \\GHz\n\
                   flags\t\t: lm sse sse2 pni ssse3 sse4_1 sse4_2 cx16 pdpe1gb vmx\n";

const OPTIONS: &str = "CONFIG_HUGETLBFS=y\nCONFIG_EVENTFD=y\nCONFIG_UNIX=y\nCONFIG_PROC_PAGE_MONITOR=y\n\
                       CONFIG_IOMMU_SUPPORT=y\nCONFIG_VFIO_PCI=m\nCONFIG_UIO_PCI_GENERIC=m\nCONFIG_KVM=m\nCONFIG_TUN=m\n\
                       CONFIG_VHOST_NET=m\nCONFIG_SECCOMP_FILTER=y\nCONFIG_SECURITY_LANDLOCK=y\n";

impl FakeHost {
    /// A host that lacks nothing. Two NUMA nodes with 100 hugepages of 2 MiB each, an IOMMU, vfio-pci in the kernel. `eth0` (0000:00:1f.6) carries
    /// the default route; `eth1` and `eth2` (0000:01:00.0 and .1) are an idle I350-T2.
    pub fn new() -> FakeHost {
        let host = FakeHost::empty();
        host.write("proc/sys/kernel/osrelease", KERNEL);
        host.write("proc/meminfo", "MemTotal: 8000000 kB\nHugepagesize:    2048 kB\n");
        host.write(
            "proc/mounts",
            "hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n",
        );
        host.write(
            "proc/net/route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
             eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
             eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n",
        );
        host.write("proc/cpuinfo", CPU);
        host.write(
            "proc/cmdline",
            "root=/dev/sda1 intel_iommu=on iommu=pt isolcpus=2-3\n",
        );
        host.write("sys/devices/system/cpu/isolated", "2-3\n");
        host.write(&format!("boot/config-{KERNEL}"), OPTIONS);
        host.write("usr/lib/x86_64-linux-gnu/librte_eal.so.23.0", "");
        for program in [
            "ovsdb-server",
            "ovsdb-tool",
            "ovs-vsctl",
            "ovs-appctl",
            "ip",
            "lspci",
        ] {
            host.write(&format!("usr/bin/{program}"), "");
            fs::set_permissions(
                host.path(&format!("usr/bin/{program}")),
                Permissions::from_mode(0o755),
            )
            .expect("ours to change");
        }
        for device in ["kvm", "vhost-net", "net/tun"] {
            host.write(&format!("dev/{device}"), "");
        }
        host.directory("dev/hugepages");
        host.directory("etc/systemd/system");
        host.write("etc/group", "root:x:0:\nhugetlbfs:x:4242:\n");
        for node in 0..2 {
            host.set_pages(node, 100);
            host.write(&pages_file(node).replace("nr_", "free_"), "60\n");
        }
        for driver in ["igb", "e1000e", "vfio-pci", "uio_pci_generic"] {
            host.write(&format!("sys/bus/pci/drivers/{driver}/bind"), "");
            host.write(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
        }
        host.nic("0000:00:1f.6", "eth0", "e1000e", 4);
        host.nic("0000:01:00.0", "eth1", "igb", 10);
        host.nic("0000:01:00.1", "eth2", "igb", 11);
        host
    }

    /// No file at all: a container without sysfs.
    pub fn empty() -> FakeHost {
        FakeHost(tempfile::tempdir().expect("the temporary directory can be written to"))
    }

    /// Adds a NIC with an interface, in an IOMMU group of its own.
    pub fn nic(&self, address: &str, interface: &str, driver: &str, group: u32) {
        let device = format!("sys/bus/pci/devices/{address}");
        self.write(&format!("{device}/class"), "0x020000\n");
        self.write(&format!("{device}/vendor"), "0x8086\n");
        self.write(&format!("{device}/device"), "0x1521\n");
        self.write(&format!("{device}/numa_node"), "0\n");
        self.write(&format!("{device}/driver_override"), "(null)\n");
        self.link(&format!("{device}/driver"), &format!("../../drivers/{driver}"));
        self.directory(&format!("{device}/net/{interface}"));
        self.directory(&format!("sys/class/net/{interface}"));
        self.link(
            &format!("sys/class/net/{interface}/device"),
            &format!("../../../bus/pci/devices/{address}"),
        );
        let group = format!("sys/kernel/iommu_groups/{group}");
        self.write(&format!("{group}/type"), "DMA-FQ\n");
        self.link(
            &format!("{group}/devices/{address}"),
            &format!("../../../../bus/pci/devices/{address}"),
        );
        self.link(
            &format!("{device}/iommu_group"),
            &format!("../../../../../{group}"),
        );
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// Writes a file in place of what was there.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("it lies in the host")).expect("ours to write");
        fs::write(&path, text).expect("ours to write");
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    pub fn directory(&self, path: &str) {
        fs::create_dir_all(self.path(path)).expect("ours to write");
    }

    pub fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("it lies in the host")).expect("ours to write");
        let _ = fs::remove_file(&path);
        symlink(target, path).expect("ours to write");
    }

    pub fn remove(&self, path: &str) {
        let path = self.path(path);
        let gone = if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        gone.expect("it was there");
    }

    pub fn pages(&self, node: u32) -> u64 {
        self.read(&pages_file(node)).trim().parse().expect("a number")
    }

    pub fn set_pages(&self, node: u32, pages: u64) {
        self.write(&pages_file(node), &pages.to_string());
    }

    /// `scripts/NAME`, to run on this host.
    pub fn command(&self, name: &str, arguments: &str) -> Command {
        let mut command = script(name);
        command
            .env("HOST_ROOT", self.0.path())
            .args(arguments.split_whitespace());
        command
    }

    /// Runs `scripts/NAME` on this host.
    pub fn script(&self, name: &str, arguments: &str) -> Said {
        run(&mut self.command(name, arguments))
    }

    pub fn setup(&self, arguments: &str) -> Said {
        self.script("host-setup", arguments)
    }

    /// All that is there now, but for the notes of host-setup.
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        walk(self.0.path(), self.0.path(), &mut tree);
        tree.retain(|path, _| !path.starts_with("var"));
        tree
    }

    /// # Panics
    /// If the host is not as it was: what is different.
    #[track_caller]
    pub fn assert_is(&self, before: &Tree, why: &str) {
        let now = self.tree();
        let paths = before.keys().chain(now.keys());
        let changed: Vec<_> = paths
            .filter(|p| before.get(*p) != now.get(*p))
            .map(|p| (p, before.get(p), now.get(p)))
            .collect();
        assert!(changed.is_empty(), "{why}: (path, before, now): {changed:#?}");
    }
}

impl Default for FakeHost {
    fn default() -> FakeHost {
        FakeHost::new()
    }
}

fn pages_file(node: u32) -> String {
    format!("sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages")
}

/// A script of this tree.
pub fn script(name: &str) -> Command {
    Command::new(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../scripts")
            .join(name),
    )
}

/// Runs `command` to its end, with no terminal.
///
/// # Panics
/// If it can't be started.
pub fn run(command: &mut Command) -> Said {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Said {
        status: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

fn walk(top: &Path, dir: &Path, tree: &mut Tree) {
    for entry in fs::read_dir(dir).expect("ours to read").flatten() {
        let path = entry.path();
        let meta = path.symlink_metadata().expect("it is there");
        let what = if meta.is_symlink() {
            format!("-> {}", fs::read_link(&path).expect("a link").display())
        } else if meta.is_dir() {
            walk(top, &path, tree);
            String::new()
        } else {
            fs::read_to_string(&path).expect("text")
        };
        let owner = format!("{:o} {}:{} ", meta.mode(), meta.uid(), meta.gid());
        tree.insert(path.strip_prefix(top).expect("below").to_owned(), owner + &what);
    }
}
