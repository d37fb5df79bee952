//! A machine with two NICs of Intel's igb family, emulated, to run the switch in; and the far ends of their cables.
//!
//! ```no_run
//! use vswitch_tests::nic_host::NicHost;
//!
//! let mut host = NicHost::boot();
//! host.bind("vfio-pci");
//! host.start_switch();
//! host.vsctl("add-br br0");
//! ```
//!
//! The machine's image is that of `scripts/build-image nic-host` (or `$NIC_IMAGE`). What is under test is laid over it:
//! the programs, DPDK's drivers and all of their libraries, as this host has them; and in `/opt` what else is installed.

mod overlay;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use vm_harness::{Image, Vm, VmBuilder};

use crate::{prerequisites, programs, vm};
pub use wire::Wire;

/// PCI addresses of the two NICs in the machine.
pub const NICS: [&str; 2] = ["0000:01:00.0", "0000:02:00.0"];
/// Their own MAC addresses: the kernel gives them 10.0.0.16 and 10.0.0.17, by the last byte.
pub const MACS: [[u8; 6]; 2] = [[0x52, 0x54, 0, 0, 0, 16], [0x52, 0x54, 0, 0, 0, 17]];

/// `ovs-appctl` in the machine.
pub const APPCTL: &str = "OVS_RUNDIR=/run/dpdk-vswitchd ovs-appctl";

const MEMORY_MIB: u32 = 1024;
/// A boot, translated, with 60 MB to unpack, on a machine that has other work as well.
const BOOT: Duration = Duration::from_secs(120);
/// A command in the machine that starts or ends a switch.
const LIMIT: Duration = Duration::from_secs(60);

/// The machine, booted, and its two cables.
#[derive(Debug)]
pub struct NicHost {
    pub vm: Vm,
    pub wires: [Wire; 2],
    _image: TempDir,
}

impl NicHost {
    /// Boots it; the kernel's igb drives both NICs then.
    ///
    /// # Panics
    /// If QEMU, the image or a program are missing, or it does not come up.
    #[must_use]
    pub fn boot() -> NicHost {
        Self::boot_with(&[], with_nics)
    }

    /// Boots it, with its two NICs, under systemd: the host of a service that is not installed yet. The shim and testpmd, a guest
    /// without a VM, are there, too.
    ///
    /// # Panics
    /// As [`NicHost::boot`].
    #[must_use]
    pub fn boot_with_systemd() -> NicHost {
        prerequisites::program("dpdk-testpmd", "dpdk-dev");
        let more = [programs::shim(), "/usr/bin/dpdk-testpmd".into()];
        Self::boot_with(&more, |builder, wires| {
            with_nics(builder, wires).cmdline("systemd systemd.show_status=no systemd.log_target=journal")
        })
    }

    /// Boots it without NICs, but with two CPUs, each of them a NUMA node with memory of its own.
    ///
    /// # Panics
    /// As [`NicHost::boot`].
    #[must_use]
    pub fn boot_with_nodes() -> NicHost {
        Self::boot_with(&[], |builder, _| {
            let node = |n| {
                [
                    "-object".to_owned(),
                    format!("memory-backend-ram,id=node{n},size={}M", MEMORY_MIB / 2),
                    "-numa".to_owned(),
                    format!("node,nodeid={n},cpus={n},memdev=node{n}"),
                ]
            };
            builder.cpus(2).args(node(0)).args(node(1))
        })
    }

    fn boot_with(more: &[PathBuf], devices: impl FnOnce(VmBuilder, &[Wire; 2]) -> VmBuilder) -> NicHost {
        let directory = image(more);
        let wires = [0, 1].map(|n| Wire::new(directory.path(), n));
        let builder = vm_harness::Vm::builder("nic-host")
            .qemu(&vm::qemu())
            .image(&Image::at(directory.path()))
            .accel(vm::accel())
            .memory_mib(MEMORY_MIB);
        let builder = devices(builder, &wires);
        let mut vm = builder.spawn().unwrap_or_else(|e| panic!("{e}"));
        let time = vm.wait_boot(BOOT).unwrap_or_else(|e| panic!("{e}"));
        println!("nic-host: prompt after {:.1} s", time.as_secs_f64());
        NicHost {
            vm,
            wires,
            _image: directory,
        }
    }

    /// Runs `scripts/host-setup` in the machine; its exit code and output.
    #[track_caller]
    pub fn host_setup(&mut self, arguments: &str) -> (i32, String) {
        self.run(&format!("/opt/scripts/host-setup {arguments}"))
    }

    /// Takes both NICs from the kernel and gives them to `driver`, with the status before and after; and hugepages.
    ///
    /// # Panics
    /// If `scripts/host-setup` does not do it.
    #[track_caller]
    pub fn bind(&mut self, driver: &str) {
        // As a full modprobe does with vfio-pci.
        self.check("modprobe vfio_iommu_type1");
        // A NIC with an address is in use, and not taken away.
        self.check("ip address flush dev eth0; ip address flush dev eth1");
        let (_, status) = self.host_setup("--status");
        assert_eq!(status.matches("drv=igb").count(), 2);
        let [one, two] = NICS;
        let (code, _) = self.host_setup(&format!(
            "--hugepages 400 --bind {one} --bind {two} --driver {driver} --yes"
        ));
        assert_eq!(code, 0);
        let (_, status) = self.host_setup("--status");
        assert_eq!(status.matches(&format!("drv={driver}")).count(), 2);
    }

    /// Starts the switch in the background.
    ///
    /// # Panics
    /// If it does not get ready.
    #[track_caller]
    pub fn start_switch(&mut self) {
        self.check("dpdk-vswitchd --detach");
    }

    /// Runs `ovs-vsctl` in the machine.
    ///
    /// # Panics
    /// If it fails, or says that the switch could not do it.
    #[track_caller]
    pub fn vsctl(&mut self, arguments: &str) -> String {
        let text = self.check(&format!("OVS_RUNDIR=/run/dpdk-vswitchd ovs-vsctl {arguments}"));
        if text.contains("Error detected") {
            self.run("tail -n 20 /run/dpdk-vswitchd/dpdk-vswitchd.log");
            panic!("{text}");
        }
        text
    }

    /// Waits until column `column` of interface `interface` is `value`.
    ///
    /// # Panics
    /// If that does not come about.
    #[track_caller]
    pub fn wait_interface(&mut self, interface: &str, column: &str, value: &str) {
        let command = format!("OVS_RUNDIR=/run/dpdk-vswitchd ovs-vsctl get Interface {interface} {column}");
        let what = format!("{column} of {interface} is {value}");
        self.wait_for(&what, &command, |text| text.contains(value));
    }

    /// Plugs the cable of NIC `n` in (`up`), or pulls it.
    ///
    /// # Panics
    /// If QEMU refuses.
    #[track_caller]
    pub fn cable(&mut self, n: usize, up: bool) {
        self.monitor(&format!("set_link net{n} {}", if up { "on" } else { "off" }));
    }

    /// A line for QEMU's monitor.
    ///
    /// # Panics
    /// If it complains.
    #[track_caller]
    pub fn monitor(&mut self, line: &str) {
        let qmp = self.vm.qmp().unwrap_or_else(|e| panic!("{e}"));
        let said = qmp.human(line).unwrap_or_else(|e| panic!("{e}"));
        assert!(said.is_empty(), "{line}: {said}");
    }

    /// Runs `ovs-appctl` with `arguments` against the switch.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn appctl(&mut self, arguments: &str) -> String {
        self.check(&format!("{APPCTL} {arguments}"))
    }

    /// Runs `command` in the machine; its output, printed as well.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn check(&mut self, command: &str) -> String {
        let (code, text) = self.run(command);
        assert!(code == 0, "{command:?} ended with {code}");
        text
    }

    /// Runs `command` in the machine; its exit code and output, printed as well.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> (i32, String) {
        println!("# {command}");
        let output = self
            .vm
            .serial()
            .and_then(|serial| serial.run_for(command, LIMIT))
            .unwrap_or_else(|e| panic!("{e}"));
        println!("{}", output.text.trim_end());
        (output.code, output.text.trim_end().to_owned())
    }

    /// Runs `command` in the machine until its output holds for `good`.
    ///
    /// # Panics
    /// If that does not come about.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, command: &str, good: impl Fn(&str) -> bool) -> String {
        let until = std::time::Instant::now() + LIMIT;
        loop {
            let serial = self.vm.serial().unwrap_or_else(|e| panic!("{e}"));
            let output = serial.run(command).unwrap_or_else(|e| panic!("{e}"));
            if good(output.text.trim_end()) {
                return output.text.trim_end().to_owned();
            }
            assert!(
                std::time::Instant::now() < until,
                "it did not come about that {what}; {command:?} says {:?}",
                output.text
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The two NICs, on the cables `wires`, behind an IOMMU.
fn with_nics(mut builder: VmBuilder, wires: &[Wire; 2]) -> VmBuilder {
    // With two, QEMU 10.0 now and then fails an assertion on its memory map (iotlb_to_section).
    builder = builder.cpus(1).args([
        "-M",
        "q35,kernel-irqchip=split",
        "-device",
        "intel-iommu,intremap=on",
    ]);
    for (n, wire) in wires.iter().enumerate() {
        builder = builder.args(wire.netdev()).args([
            "-device".to_owned(),
            // A port of its own for each, so that it can be pulled out.
            format!("pcie-root-port,id=slot{n},chassis={n},addr={:#x}", 2 + n),
            "-device".to_owned(),
            nic(n),
        ]);
    }
    builder
}

/// QEMU's `-device` of NIC `n`.
#[must_use]
pub fn nic(n: usize) -> String {
    let mac = MACS[n].map(|b| format!("{b:02x}")).join(":");
    format!("igb,id=nic{n},netdev=net{n},bus=slot{n},mac={mac},romfile=")
}

/// The image with the programs under test, and `more`, in a directory of its own.
fn image(more: &[PathBuf]) -> TempDir {
    let base: PathBuf = match std::env::var_os("NIC_IMAGE") {
        Some(path) => path.into(),
        None => vm_harness::image::run_script("build-image", &["nic-host"])
            .unwrap_or_else(|e| {
                panic!(
                    "no image: {e}; run scripts/build-image nic-host, or name one by the variable NIC_IMAGE"
                )
            })
            .into(),
    };
    let directory = tempfile::Builder::new()
        .prefix("nic-host-")
        .tempdir()
        .expect("a directory under the temporary one");
    for file in ["vmlinux", "cmdline"] {
        std::os::unix::fs::symlink(base.join(file), directory.path().join(file))
            .expect("a link in an empty directory");
    }
    overlay::lay_over(&base.join("initrd"), more, &directory.path().join("initrd"));
    directory
}
