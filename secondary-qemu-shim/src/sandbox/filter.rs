//! The tables of system calls, compiled for the kernel.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::syscalls::{self, Argument, Entry};

/// Two filters, both in force: the kernel takes the stricter answer.
#[derive(Debug)]
pub(super) struct Filters {
    /// Ends the process for what no shim does.
    pub fatal: BpfProgram,
    /// Refuses what is not listed. Installed last, as it does not allow to install another.
    pub allowed: BpfProgram,
}

impl Filters {
    /// For this process; `connects`: it may have to connect to its frontend again.
    pub(super) fn new(connects: bool) -> Result<Filters, BackendError> {
        let mut allowed = rules(&[syscalls::ALLOWED, syscalls::ALLOWED_LEGACY])?;
        if connects {
            allowed.append(&mut rules(&[syscalls::ALLOWED_TO_CONNECT])?);
        }
        // Of all processes abort() may signal only this one.
        let own = Argument {
            index: 0,
            mask: u64::from(u32::MAX),
            value: u64::from(std::process::id()),
        };
        allowed.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![condition(&own)?])?]);
        let fatal = rules(&[syscalls::FATAL, syscalls::FATAL_LEGACY])?;
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        Ok(Filters {
            fatal: compile(fatal, SeccompAction::Allow, SeccompAction::KillProcess)?,
            allowed: compile(allowed, refuse, SeccompAction::Allow)?,
        })
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(tables: &[&[Entry]]) -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    for entry in tables.iter().copied().flatten() {
        let rule = rules.entry(entry.call).or_default();
        if !entry.when.is_empty() {
            let conditions = entry.when.iter().map(condition).collect::<Result<_, _>>()?;
            rule.push(SeccompRule::new(conditions)?);
        }
    }
    Ok(rules)
}

fn condition(argument: &Argument) -> Result<SeccompCondition, BackendError> {
    // Every flag and command is in the lower half, the only one that the kernel looks at.
    let compare = SeccompCmpOp::MaskedEq(argument.mask);
    SeccompCondition::new(argument.index, SeccompCmpArgLen::Dword, compare, argument.value)
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    matches: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, matches, arch)?.try_into()
}
