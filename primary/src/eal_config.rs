//! EAL's arguments, from the command line, the database and what the switch itself needs.

use std::path::{Path, PathBuf};

use crate::cpus;
use crate::memory::{self, Hugepages};
use crate::pmds::MAX_PMDS;

/// Where DPDK's mappings begin in every process: an address that no 64-bit process uses by chance, so that
/// secondaries find the same range free.
const BASE_ADDRESS: &str = "0x100000000000";

/// What the user says of EAL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Arguments before `--`.
    pub arguments: Vec<String>,
    /// other_config:dpdk-extra.
    pub extra: Option<String>,
    /// other_config:dpdk-socket-mem, MiB per NUMA node with commas.
    pub socket_mem: Option<String>,
    /// other_config:dpdk-lcore-mask, for the threads that do not forward.
    pub lcore_mask: Option<String>,
    /// There are NICs that can be given physical addresses only ([`crate::switch::pci::Pci::has_uio_nics`]).
    pub physical_addresses: bool,
}

impl Wishes {
    /// For an error: what the database asks for, which `ovs-vsctl` can't change where its server ends with the switch.
    pub fn from_database(&self) -> Option<String> {
        let keys = [
            ("dpdk-extra", &self.extra),
            ("dpdk-socket-mem", &self.socket_mem),
            ("dpdk-lcore-mask", &self.lcore_mask),
        ];
        let set = keys
            .iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", value.as_ref()?)));
        let set = set.reduce(|one, other| format!("{one}, {other}"))?;
        Some(format!(
            "other_config in the database has {set}; how to change that without the switch: docs/guide.md, \"Settings that \
             keep it from starting\""
        ))
    }
}

/// EAL's arguments, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EalConfig {
    pub arguments: Vec<String>,
    pub file_prefix: String,
    /// MiB of hugepages on NUMA node 0, 1, ...
    pub memory_by_node: Vec<u64>,
    /// That is all that was asked for, or the default.
    pub memory_is_ample: bool,
    /// CPUs that the whole process shall keep to, if the user says so (`-c`, `-l`).
    pub cpus: Option<Vec<usize>>,
}

/// Options of EAL that would break sharing memory with clients, and why.
const FORBIDDEN: &[(&str, &str)] = &[
    ("--in-memory", "clients could not map the memory"),
    ("--no-huge", "clients could not map the memory"),
    ("--no-shconf", "clients could not find the memory"),
    ("--huge-unlink", "clients could not map the memory"),
    (
        "--file-prefix",
        "each run-time directory (--rundir) has one of its own, by which clients and --show-stats find the switch",
    ),
    (
        "--lcores",
        "the switch maps lcores itself; use -l or -c for its CPUs, other_config:pmd-cpu-mask for PMD threads",
    ),
];

impl EalConfig {
    /// Puts the arguments together, for a switch in run-time directory `rundir` on a host with `pages`.
    ///
    /// # Errors
    /// An argument that can't be, or too few hugepages; in words for the user.
    pub fn new(wishes: &Wishes, rundir: &Path, pages: &[Hugepages]) -> Result<EalConfig, String> {
        let mut arguments = Vec::new();
        let file_prefix = default_prefix(rundir);
        let mut socket_mem = wishes.socket_mem.clone();
        let mut cpu_list = None;
        let extra = wishes
            .extra
            .iter()
            .flat_map(|e| e.split_whitespace())
            .map(str::to_owned);
        let mut words = wishes.arguments.iter().cloned().chain(extra);
        while let Some(word) = words.next() {
            let (name, mut value) = match word.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
                _ if word.starts_with('-') && !word.starts_with("--") && word.len() > 2 => {
                    (word[..2].to_owned(), Some(word[2..].to_owned()))
                }
                _ => (word.clone(), None),
            };
            // EAL takes an option that is cut short as well, as long as it is clear which one it is.
            let is_meant = |option: &str| name.len() > 2 && option.starts_with(&name);
            if let Some((_, why)) = FORBIDDEN.iter().find(|(option, _)| is_meant(option)) {
                return Err(format!("EAL argument {name} is not possible: {why}"));
            }
            let mut take = || {
                value
                    .take()
                    .or_else(|| words.next())
                    .ok_or_else(|| format!("{name} needs a value"))
            };
            match name.as_str() {
                "-c" => cpu_list = Some(cpus::parse_mask(&take()?).map_err(|e| format!("-c: {e}"))?),
                "-l" => cpu_list = Some(cpus::parse_list(&take()?).map_err(|e| format!("-l: {e}"))?),
                "-m" | "--socket-mem" => socket_mem = Some(take()?),
                "--proc-type" => match take()?.as_str() {
                    "primary" | "auto" => {}
                    other => return Err(format!("--proc-type={other}: the switch is the primary process")),
                },
                _ => arguments.push(word),
            }
        }

        let asked = socket_mem.as_deref().map(by_node).transpose()?;
        let memory_mb = memory::amount(pages, asked.as_deref())?;
        let memory_is_ample = asked.is_some() || memory_mb >= memory::DEFAULT_MB;
        let memory_by_node = asked.unwrap_or_else(|| {
            let (node, _) = memory::roomiest_node(pages);
            let others = std::iter::repeat_n(0, node);
            others.chain([memory_mb]).collect()
        });
        let list: Vec<String> = memory_by_node.iter().map(u64::to_string).collect();
        let per_node = list.join(",");
        let all = cpu_list.clone().unwrap_or_else(cpus::inherited);
        let control = match &wishes.lcore_mask {
            Some(mask) => cpus::parse_mask(mask).map_err(|e| format!("other_config:dpdk-lcore-mask: {e}"))?,
            None => all.clone(),
        };
        // Lcore 0 is the control thread; one more for each PMD thread there may ever be, placed when it starts.
        let workers = cpus::allowed().len().min(MAX_PMDS);
        let lcores: Vec<String> = std::iter::once(format!("0@({})", cpus::show(&control)))
            .chain((1..=workers).map(|id| format!("{id}@({})", cpus::show(&all))))
            .collect();
        let mut own = vec![
            format!("--lcores={}", lcores.join(",")),
            format!("--file-prefix={file_prefix}"),
            "--proc-type=primary".into(),
            // All memory at the start, and no more later: growing would need every client's consent.
            format!("--socket-mem={per_node}"),
            format!("--socket-limit={per_node}"),
        ];
        // It takes doing without signals and without flow rules for errors, which they are not.
        own.push("--log-level=pmd.net.tap:critical".into());
        if !arguments.iter().any(|a| a.starts_with("--base-virtaddr")) {
            own.push(format!("--base-virtaddr={BASE_ADDRESS}"));
        }
        if wishes.physical_addresses && !arguments.iter().any(|a| a.starts_with("--iova-mode")) {
            own.push("--iova-mode=pa".into());
        }
        if !has_device_list(&arguments) {
            // Without a list EAL would take every NIC that is bound to a DPDK driver.
            own.extend(["-a".to_owned(), "0000:00:00.0".to_owned()]);
        }
        own.extend(arguments);
        Ok(EalConfig {
            arguments: own,
            file_prefix,
            memory_by_node,
            memory_is_ample,
            cpus: cpu_list,
        })
    }
}

fn has_device_list(arguments: &[String]) -> bool {
    let lists = ["-a", "-b", "--allow", "--block", "--no-pci"];
    arguments.iter().any(|a| {
        lists
            .iter()
            .any(|l| a == l || (l.len() == 2 && a.starts_with(l)) || a.starts_with(&format!("{l}=")))
    })
}

fn by_node(list: &str) -> Result<Vec<u64>, String> {
    list.split(',')
        .map(|mb| {
            mb.trim()
                .parse::<u64>()
                .map_err(|_| format!("dpdk-socket-mem: '{list}' is not a list of MiB"))
        })
        .collect()
}

/// The file prefix of the switch in `rundir`: each directory has one of its own.
pub fn default_prefix(rundir: &Path) -> String {
    let path = rundir.canonicalize().unwrap_or_else(|_| rundir.to_owned());
    if path == Path::new(vswitch_common::rundir::DEFAULT) {
        return "dpdk-vswitchd".into();
    }
    // FNV-1a: the same in every build, as the reader of the counters may be another one.
    let hash = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("dvs-{hash:016x}")
}

/// Where EAL keeps the files of `prefix`, by its own rules (before it runs and can be asked).
pub fn runtime_dir(prefix: &str) -> PathBuf {
    runtime_base().join("dpdk").join(prefix)
}

/// The directory in which EAL makes its own, `dpdk`; what `RUNTIME_DIRECTORY` is for it.
pub fn runtime_base() -> PathBuf {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    variable("RUNTIME_DIRECTORY").unwrap_or_else(|| {
        if nix::unistd::getuid().is_root() {
            "/var/run".into()
        } else {
            variable("XDG_RUNTIME_DIR").unwrap_or_else(|| "/tmp".into())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &str, extra: &str) -> Result<EalConfig, String> {
        on_nodes(arguments, extra, vec![1024])
    }

    fn on_nodes(arguments: &str, extra: &str, free_by_node: Vec<u64>) -> Result<EalConfig, String> {
        let wishes = Wishes {
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
            extra: Some(extra.to_owned()),
            ..Wishes::default()
        };
        let pages = [Hugepages {
            size: 2 << 20,
            total: 1024,
            free: 1024,
            free_by_node,
            mount: Some("/dev/hugepages".into()),
        }];
        EalConfig::new(&wishes, Path::new("/run/dpdk-vswitchd"), &pages)
    }

    #[test]
    fn memory_comes_from_the_node_that_has_it() {
        let memory = |arguments, nodes| {
            let all = on_nodes(arguments, "", nodes).unwrap().arguments;
            all.iter()
                .find_map(|a| a.strip_prefix("--socket-mem=").map(str::to_owned))
        };
        assert_eq!(memory("", vec![24, 1000]).as_deref(), Some("0,512"));
        assert_eq!(memory("", vec![512, 512]).as_deref(), Some("512"));
        assert_eq!(memory("-m 0,100", vec![24, 1000]).as_deref(), Some("0,100"));
        let error = on_nodes("-m 100", "", vec![24, 1000]).unwrap_err();
        assert!(
            error.contains("48 MiB of hugepages are free on NUMA node 0"),
            "{error}"
        );
        assert_eq!(memory("-m 100,300", vec![512, 512]).as_deref(), Some("100,300"));
    }

    #[test]
    fn nothing_is_needed() {
        let c = config("", "").unwrap();
        assert_eq!(
            (c.file_prefix.as_str(), c.memory_by_node),
            ("dpdk-vswitchd", vec![512])
        );
        assert!(
            c.arguments.contains(&"--socket-limit=512".to_owned()),
            "{:?}",
            c.arguments
        );
        assert!(
            c.arguments
                .windows(2)
                .any(|w| w[0] == "-a" && w[1] == "0000:00:00.0")
        );
    }

    #[test]
    fn the_historic_arguments_are_taken() {
        let first = cpus::allowed()[0];
        let c = config(&format!("-c {:x} -n 4 --proc-type=primary", 1u64 << first), "").unwrap();
        assert_eq!(c.cpus, Some(vec![first]));
        assert!(
            c.arguments.windows(2).any(|w| w[0] == "-n" && w[1] == "4"),
            "{:?}",
            c.arguments
        );
        assert!(!c.arguments.iter().any(|a| a == "-c"));
    }

    #[test]
    fn database_and_command_line_add_up() {
        let c = config("--vdev=net_null0", "--socket-mem 128 -a 0000:01:00.0").unwrap();
        assert_eq!(c.memory_by_node, [128]);
        assert!(c.arguments.contains(&"--vdev=net_null0".to_owned()));
        assert_eq!(c.arguments.iter().filter(|a| *a == "-a").count(), 1);
    }

    #[test]
    fn what_the_database_asks_for_is_named() {
        assert_eq!(Wishes::default().from_database(), None);
        let wishes = Wishes {
            extra: Some("--in-memory".into()),
            lcore_mask: Some("0x2".into()),
            ..Wishes::default()
        };
        let text = wishes.from_database().unwrap();
        assert!(
            text.contains("dpdk-extra=--in-memory, dpdk-lcore-mask=0x2;"),
            "{text}"
        );
    }

    #[test]
    fn uio_is_given_physical_addresses() {
        let with = |arguments: &[&str]| {
            let wishes = Wishes {
                arguments: arguments.iter().map(|&a| a.to_owned()).collect(),
                socket_mem: Some("0".into()),
                physical_addresses: true,
                ..Wishes::default()
            };
            let config = EalConfig::new(&wishes, Path::new("/run/dpdk-vswitchd"), &[]).unwrap();
            let modes = config.arguments.iter().filter(|a| a.starts_with("--iova-mode"));
            modes.cloned().collect::<Vec<_>>()
        };
        assert_eq!(with(&[]), ["--iova-mode=pa"]);
        assert_eq!(with(&["--iova-mode=va"]), ["--iova-mode=va"]);
    }

    #[test]
    fn what_would_break_clients_is_refused() {
        for bad in [
            "--in-memory",
            "--in-mem",
            "--file=mine",
            "--no-huge",
            "--huge-unlink=always",
            "--lcores=0@1",
            "--file-prefix=mine",
            "--proc-type=secondary",
        ] {
            assert!(config(bad, "").is_err(), "{bad}");
        }
        assert!(config("-c", "").unwrap_err().contains("-c needs a value"));
        assert!(config("-l 4000", "").unwrap_err().contains("CPU 4000"));
        assert!(config("", "--socket-mem=lots").unwrap_err().contains("lots"));
    }

    #[test]
    fn each_directory_has_its_own_prefix() {
        assert_ne!(
            default_prefix(Path::new("/tmp/a")),
            default_prefix(Path::new("/tmp/b"))
        );
        assert!(default_prefix(Path::new("/tmp/a")).len() < 64);
    }
}
