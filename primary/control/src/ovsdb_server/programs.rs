//! Finds Open vSwitch's programs and schema, and runs the former.

use super::error::SupervisorError;
use super::process::child_setup;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Directories beside `PATH` in which daemons lie.
const SBIN: [&str; 4] = ["/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/bin"];
const SCHEMAS: [&str; 2] = [
    "/usr/share/openvswitch/vswitch.ovsschema",
    "/usr/local/share/openvswitch/vswitch.ovsschema",
];

/// Looks in `PATH`, then where daemons lie.
pub(super) fn find(program: &'static str) -> Result<PathBuf, SupervisorError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(SBIN.iter().map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file());
    found.ok_or(SupervisorError::NoProgram(program))
}

/// `$OVS_PKGDATADIR/vswitch.ovsschema`, or where packages put it.
pub(super) fn find_schema() -> Result<PathBuf, SupervisorError> {
    let from_environment =
        std::env::var_os("OVS_PKGDATADIR").map(|dir| PathBuf::from(dir).join("vswitch.ovsschema"));
    let candidates = from_environment
        .into_iter()
        .chain(SCHEMAS.iter().map(PathBuf::from));
    candidates
        .into_iter()
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| SupervisorError::NoSchema(PathBuf::from(SCHEMAS[0])))
}

/// Runs a program to its end.
pub(super) fn run(program: &Path, args: &[&std::ffi::OsStr]) -> Result<Output, SupervisorError> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    child_setup(&mut command);
    command.output().map_err(|cause| SupervisorError::Run {
        program: program.to_owned(),
        cause,
    })
}

/// The lines that OVS's programs print on standard error, without their own name in front, as one line.
pub(super) fn complaint(program: &str, stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let prefix = format!("{program}: ");
    let lines = text
        .lines()
        .map(|line| line.strip_prefix(&prefix).unwrap_or(line).trim());
    let joined = lines
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    if joined.is_empty() {
        "no reason given".into()
    } else {
        joined
    }
}

/// The version of Open vSwitch that a program belongs to (`... (Open vSwitch) 3.1.0`).
pub(super) fn version(program: &Path) -> Option<String> {
    let output = run(program, &["--version".as_ref()]).ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .next()?
        .split("(Open vSwitch) ")
        .nth(1)
        .map(|v| v.trim().to_owned())
}
