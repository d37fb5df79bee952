//! The EAL arguments before `--`, as the user typed them for QEMU.
//!
//! `-c`, `-l` and `--lcores` give the CPUs of the pump threads. What the switch decides (process type, file prefix)
//! is checked and left out; what would take the process out of the switch's memory is refused; the rest goes to EAL.

use crate::cpus::{self, Cpus, CpusError};

/// The user's EAL arguments, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EalArgs {
    /// CPUs for the pump threads; none: wherever the kernel likes.
    pub cpus: Option<Cpus>,
    /// A `--file-prefix`, which has to be the switch's own.
    pub file_prefix: Option<String>,
    /// What is passed on.
    pub rest: Vec<String>,
}

/// Why they can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EalArgsError {
    #[error("EAL option {0} needs a value")]
    NoValue(String),
    #[error(
        "EAL option --proc-type={0}: a VM's port is a secondary of the switch, only secondary (or auto) will do"
    )]
    ProcType(String),
    #[error("EAL option {0} would keep this process out of the switch's memory, and can't be used here")]
    Detached(String),
    #[error("EAL option -c/-l: {0}")]
    Cpus(#[from] CpusError),
    #[error("EAL option --lcores={0}: give plain CPUs, as in -l 4,5")]
    Lcores(String),
    #[error("{0:?} before the -- is no EAL option")]
    NotAnOption(String),
}

/// Options that place threads which a shim does not have.
const WITHOUT_EFFECT: &[&str] = &["main-lcore"];

/// Options that break what DPDK processes have to agree on.
const DETACHING: &[&str] = &[
    "in-memory",
    "no-huge",
    "huge-unlink",
    "no-shconf",
    "base-virtaddr",
    "legacy-mem",
];

/// Short options with a value, and long ones whose value may stand apart.
const SHORT_WITH_VALUE: &str = "clnmrbadsS";
const LONG_WITH_VALUE: &[&str] = &[
    "lcores",
    "proc-type",
    "file-prefix",
    "base-virtaddr",
    "main-lcore",
    "mbuf-pool-ops-name",
    "block",
    "allow",
    "vdev",
    "iova-mode",
    "syslog",
    "log-level",
    "trace",
    "trace-dir",
    "trace-bufsz",
    "trace-mode",
    "force-max-simd-bitwidth",
    "socket-mem",
    "socket-limit",
    "huge-dir",
    "vfio-intr",
    "vfio-vf-token",
];

impl EalArgs {
    /// Checks `args` on a machine with the CPUs `online`.
    ///
    /// # Errors
    /// Names the option that can't be used, and why.
    pub fn parse(args: &[String], online: &Cpus) -> Result<EalArgs, EalArgsError> {
        let mut parsed = EalArgs::default();
        let mut args = args.iter().map(String::as_str);
        while let Some(arg) = args.next() {
            let mut value_of = |given: Option<&str>| -> Result<String, EalArgsError> {
                given
                    .or_else(|| args.next())
                    .map(str::to_owned)
                    .ok_or_else(|| EalArgsError::NoValue(arg.to_owned()))
            };
            if let Some(long) = arg.strip_prefix("--") {
                let (name, given) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v)));
                let name = in_full(name);
                let value = if LONG_WITH_VALUE.contains(&name) {
                    Some(value_of(given)?)
                } else {
                    given.map(str::to_owned)
                };
                parsed.long(arg, name, value, online)?;
            } else if let Some(short) = arg.strip_prefix('-').and_then(|rest| rest.chars().next()) {
                let attached = Some(&arg[1 + short.len_utf8()..]).filter(|rest| !rest.is_empty());
                let value = if SHORT_WITH_VALUE.contains(short) {
                    Some(value_of(attached)?)
                } else {
                    None
                };
                parsed.short(arg, short, value, online)?;
            } else {
                return Err(EalArgsError::NotAnOption(arg.to_owned()));
            }
        }
        Ok(parsed)
    }

    fn long(
        &mut self,
        arg: &str,
        name: &str,
        value: Option<String>,
        online: &Cpus,
    ) -> Result<(), EalArgsError> {
        match (name, value) {
            ("proc-type", Some(kind)) if kind != "secondary" && kind != "auto" => {
                Err(EalArgsError::ProcType(kind))
            }
            ("proc-type", _) => Ok(()),
            ("file-prefix", prefix) => {
                self.file_prefix = prefix;
                Ok(())
            }
            ("lcores", Some(list)) => {
                let cpus = cpus::parse_list(&list).map_err(|_| EalArgsError::Lcores(list.clone()))?;
                self.set_cpus(&list, cpus, online)
            }
            (name, _) if WITHOUT_EFFECT.contains(&name) => Ok(()),
            (name, _) if DETACHING.contains(&name) => Err(EalArgsError::Detached(format!("--{name}"))),
            (name, Some(value)) => {
                self.rest.push(format!("--{name}={value}"));
                Ok(())
            }
            (_, None) => {
                self.rest.push(arg.to_owned());
                Ok(())
            }
        }
    }

    fn short(
        &mut self,
        arg: &str,
        name: char,
        value: Option<String>,
        online: &Cpus,
    ) -> Result<(), EalArgsError> {
        match (name, value) {
            ('c', Some(mask)) => self.set_cpus(&mask, cpus::parse_mask(&mask)?, online),
            ('l', Some(list)) => self.set_cpus(&list, cpus::parse_list(&list)?, online),
            // Service cores.
            ('s' | 'S', _) => Ok(()),
            (name, Some(value)) => {
                self.rest.extend([format!("-{name}"), value]);
                Ok(())
            }
            (_, None) => {
                self.rest.push(arg.to_owned());
                Ok(())
            }
        }
    }

    fn set_cpus(&mut self, text: &str, cpus: Cpus, online: &Cpus) -> Result<(), EalArgsError> {
        cpus::check(text, &cpus, online)?;
        self.cpus = Some(cpus);
        Ok(())
    }

    /// The CPU of pump `index`: the set's CPUs in turn.
    pub fn cpu_of(&self, index: usize) -> Option<usize> {
        let cpus = self.cpus.as_ref()?;
        cpus.iter().copied().cycle().nth(index)
    }
}

/// The option that EAL takes `name` for: it may be cut short, as long as it is clear which one it is.
fn in_full(name: &str) -> &str {
    let all = [LONG_WITH_VALUE, DETACHING, WITHOUT_EFFECT].concat();
    let mut meant: Vec<&str> = all
        .into_iter()
        .filter(|option| option.starts_with(name))
        .collect();
    meant.dedup();
    match meant[..] {
        [option] => option,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<EalArgs, EalArgsError> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        EalArgs::parse(&args, &(0..8).collect())
    }

    #[test]
    fn the_papers_line() {
        let args = parse("-c 0x30 -n 4 --proc-type=secondary").unwrap();
        assert_eq!(args.cpus, Some(Cpus::from([4, 5])));
        assert_eq!(args.rest, ["-n", "4"]);
        assert_eq!([0, 1, 2].map(|i| args.cpu_of(i)), [Some(4), Some(5), Some(4)]);
    }

    #[test]
    fn nothing_is_fine() {
        assert_eq!(parse(""), Ok(EalArgs::default()));
        assert_eq!(EalArgs::default().cpu_of(0), None);
    }

    #[test]
    fn every_way_to_write_a_value() {
        for line in ["-c0x2", "-c 2", "-l1", "-l 1", "--lcores=1", "--lcores 1"] {
            assert_eq!(parse(line).unwrap().cpus, Some(Cpus::from([1])), "{line}");
        }
        assert_eq!(
            parse("--proc-type secondary --file-prefix sw")
                .unwrap()
                .file_prefix
                .as_deref(),
            Some("sw")
        );
        assert_eq!(
            parse("--log-level lib.eal:debug -v").unwrap().rest,
            ["--log-level=lib.eal:debug", "-v"]
        );
    }

    #[test]
    fn what_breaks_multi_process_is_refused_by_name() {
        assert_eq!(
            parse("--proc-type=primary"),
            Err(EalArgsError::ProcType("primary".into()))
        );
        for option in [
            "--in-memory",
            "--no-huge",
            "--huge-unlink",
            "--huge-unlink=always",
            "--base-virtaddr=0x1000",
        ] {
            let error = parse(option).unwrap_err().to_string();
            assert!(error.contains(option.split('=').next().unwrap()), "{error}");
        }
    }

    /// EAL would take the first for `--in-memory`, and fail for want of the CPU and of service cores.
    #[test]
    fn options_cut_short_and_those_for_other_threads() {
        assert_eq!(
            parse("--in-mem"),
            Err(EalArgsError::Detached("--in-memory".into()))
        );
        assert_eq!(
            parse("--proc=primary"),
            Err(EalArgsError::ProcType("primary".into()))
        );
        let args = parse("-l 4,5 --main-lcore 4 -s 0x10 -S 4 --no-pci").unwrap();
        assert_eq!(args.rest, ["--no-pci"]);
    }

    #[test]
    fn other_mistakes_are_named() {
        assert_eq!(parse("-c"), Err(EalArgsError::NoValue("-c".into())));
        assert_eq!(
            parse("--lcores=(0-1)@2"),
            Err(EalArgsError::Lcores("(0-1)@2".into()))
        );
        assert_eq!(parse("port 3"), Err(EalArgsError::NotAnOption("port".into())));
        assert!(parse("-c 0x100").unwrap_err().to_string().contains("it has 0-7"));
    }
}
