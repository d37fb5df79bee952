//! The stock tools, against this switch.

use std::process::{Command, Output, Stdio};

use super::Switch;

/// A tool that hangs is ended after this; a switch answers at once.
const LIMIT: &str = "20";

impl Switch {
    /// Runs `program` with OVS_RUNDIR set to this switch's.
    pub fn tool(&self, program: &str, args: &[&str]) -> Output {
        Command::new("timeout")
            .args([LIMIT, program])
            .args(args)
            .env("OVS_RUNDIR", self.rundir())
            .env("OVS_DBDIR", self.rundir())
            .stdin(Stdio::null())
            .output()
            .expect("coreutils are installed")
    }

    /// Runs `program`, which must succeed without a word on standard error; its standard output.
    ///
    /// # Panics
    /// If it fails or complains.
    #[track_caller]
    pub fn tool_ok(&self, program: &str, args: &[&str]) -> String {
        let output = self.tool(program, args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && stderr.is_empty(),
            "{program} {args:?}: {} {stderr}",
            output.status
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `ovs-vsctl` with the words of `line`.
    ///
    /// # Panics
    /// If it fails or complains.
    #[track_caller]
    pub fn vsctl(&self, line: &str) -> String {
        self.tool_ok("ovs-vsctl", &line.split_whitespace().collect::<Vec<_>>())
    }

    /// What `ovs-vsctl` with the words of `line` says on standard error, where complaint is what is expected.
    pub fn vsctl_complaint(&self, line: &str) -> String {
        let output = self.tool("ovs-vsctl", &line.split_whitespace().collect::<Vec<_>>());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// `ovs-appctl` with the words of `line`.
    ///
    /// # Panics
    /// If it fails or complains.
    #[track_caller]
    pub fn appctl(&self, line: &str) -> String {
        self.tool_ok("ovs-appctl", &line.split_whitespace().collect::<Vec<_>>())
    }

    /// Value of a column, without the quotes of a string.
    #[track_caller]
    pub fn get(&self, table: &str, record: &str, column: &str) -> String {
        let text = self.tool_ok("ovs-vsctl", &["get", table, record, column]);
        text.trim().trim_matches('"').to_owned()
    }

    /// Adds bridge `name` with a client ring port `dpdkrN` for each of `ports`.
    ///
    /// # Panics
    /// If the host has an interface of that name, and not by another switch: tests would take it for the bridge's.
    #[track_caller]
    pub fn add_bridge(&self, name: &str, ports: &[u16]) {
        let interface = std::path::Path::new("/sys/class/net").join(name);
        assert!(
            !interface.exists() || interface.join("tun_flags").exists(),
            "this host has an interface {name}, as the tests' bridge"
        );
        let mut line = format!("add-br {name} -- set Bridge {name} datapath_type=dpdk");
        for port in ports {
            line += &format!(" -- add-port {name} dpdkr{port} -- set Interface dpdkr{port} type=dpdkr");
        }
        self.vsctl(&line);
    }
}
