//! The switch as a service of systemd: in a machine in QEMU, installed as the guide says, with a guest and a NIC.

use std::time::Duration;

use vswitch_tests::Frame;
use vswitch_tests::frames::mac;
use vswitch_tests::nic_host::{NICS, NicHost};

const GUIDE: &str = include_str!("../../docs/guide.md");
const HOST_SETUP: &str = "/usr/local/lib/dpdk-vswitch/scripts/host-setup";
/// A guest without a VM, as libvirt starts a QEMU: it is no root's, and its files are the group's to write.
const GUEST: &str = "[Service]
User=libvirt-qemu
UMask=002
ExecStart=/usr/bin/dpdk-testpmd --no-huge -m 64 --no-pci --single-file-segments --no-telemetry --lcores=0@0,1@0 \
     --vdev=net_virtio_user0,path=/run/vhost-user/vm1.sock,server=1,queue_size=256 -- --no-mlockall --total-num-mbufs=2048 \
     --forward-mode=macswap --port-topology=loop --stats-period=3600";

/// Between a question to the guest and the next, of which this many are asked.
const PATIENCE: Duration = Duration::from_millis(500);
const TRIES: usize = 60;

#[test]
fn a_service_from_its_installation_to_its_end() {
    let mut host = NicHost::boot_with_systemd();
    installed(&mut host);
    configured(&mut host);
    its_log_has_each_line_once(&mut host);
    killed(&mut host);
    restarted(&mut host);
    stopped(&mut host);
}

/// The commands of the guide's section on services, with the programs where this machine has them.
fn commands() -> impl Iterator<Item = String> {
    let section = GUIDE.split("\n## As a service\n").nth(1);
    let block = section.and_then(|text| text.split("```\n").nth(1));
    block
        .expect("the section begins with the commands")
        .lines()
        .filter(|line| !line.starts_with("cargo "))
        .map(|line| line.replace("target/release/", "/usr/bin/"))
}

/// Hugepages and NICs are prepared by a unit of their own, with options as the user gave them.
fn installed(host: &mut NicHost) {
    host.check("mkdir /etc/default && echo 'EAL_ARGUMENTS=-m 256' >/etc/default/dpdk-vswitchd");
    for command in commands() {
        if command.starts_with("systemctl ") {
            // A NIC with an address is in use, and not taken away. And as a full modprobe does with vfio-pci.
            host.check("ip address flush dev eth0; ip address flush dev eth1; modprobe vfio_iommu_type1");
            let [one, two] = NICS;
            host.check(&format!(
                "{HOST_SETUP} --hugepages 340 --bind {one} --bind {two} --at-boot --yes"
            ));
        }
        host.check(&format!("cd /opt && {command}"));
    }
    let state = host.check("systemctl is-active dpdk-vswitchd dpdk-vswitch-host");
    assert_eq!(state, "active\nactive");
    let at_boot = host.check("systemctl is-enabled dpdk-vswitchd dpdk-vswitch-host");
    assert_eq!(at_boot, "enabled\nenabled");
}

/// A bridge, a NIC on VFIO, a guest behind a shim that is a service as well; and the bridge's interface in the kernel.
fn configured(host: &mut NicHost) {
    host.vsctl("add-br br0 -- set Bridge br0 datapath_type=dpdk");
    host.wait_interface("br0", "status:backend", "vhost-net");
    host.vsctl("add-port br0 dpdkr1 -- set Interface dpdkr1 type=dpdkr");
    let nic = NICS[0];
    host.vsctl(&format!(
        "add-port br0 nic0 -- set Interface nic0 type=dpdk options:dpdk-devargs={nic}"
    ));
    host.wait_interface("nic0", "link_state", "up");
    host.check("systemctl start dpdk-qemu-shim@1");
    host.check(&format!(
        "echo '{GUEST}' >/etc/systemd/system/guest.service && systemctl start guest"
    ));
    the_guest_answers(host);
}

/// What comes by the cable goes through the switch to the guest, which sends it back.
fn the_guest_answers(host: &mut NicHost) {
    let request = Frame::marked(mac(9), mac(1), 1, 100);
    let answer = |f: &Frame| f.bytes[..6] == mac(1) && f.bytes[6..12] == mac(9);
    let wire = &host.wires[0];
    wire.drain();
    let answered = (0..TRIES).any(|_| {
        wire.send(&request);
        wire.receive_where(PATIENCE, answer).is_some()
    });
    if !answered {
        host.run("journalctl -n 80 -u dpdk-vswitchd -u dpdk-qemu-shim@1 -u guest; ls -la /run/vhost-user");
        panic!("no answer from the guest");
    }
}

/// DPDK writes to syslog as well if it is left alone. And a shim says nothing as long as all is well.
fn its_log_has_each_line_once(host: &mut NicHost) {
    let doubled = host.run("journalctl -q -o cat -t dpdk-vswitchd _TRANSPORT=syslog");
    assert_eq!(doubled.1, "");
    let text = host.check("journalctl -q -o cat -u dpdk-vswitchd");
    assert!(text.contains("|daemon|INFO|ready"), "{text}");
    let shim = host.run("journalctl -q -o cat -t dpdk-qemu-shim");
    assert_eq!(shim.1, "");
}

/// Whoever is killed is there again, and all goes on.
fn killed(host: &mut NicHost) {
    for unit in ["dpdk-vswitchd", "dpdk-qemu-shim@1"] {
        let before = main_pid(host, unit);
        host.check(&format!("systemctl kill -s KILL --kill-whom=main {unit}"));
        the_guest_answers(host);
        assert_ne!(main_pid(host, unit), before);
    }
}

fn main_pid(host: &mut NicHost, unit: &str) -> String {
    host.check(&format!("systemctl show -P MainPID {unit}"))
}

fn restarted(host: &mut NicHost) {
    host.check("systemctl restart dpdk-vswitchd");
    the_guest_answers(host);
}

/// Nothing is left but the configuration. The shim waits for the next start.
fn stopped(host: &mut NicHost) {
    host.check("systemctl stop dpdk-vswitchd");
    host.check("systemctl show -P Result dpdk-vswitchd | grep -qx success");
    let (_, left) = host.run("ls /dev/hugepages /run/dpdk-vswitchd");
    assert!(left.contains("/run/dpdk-vswitchd: No such file"), "{left}");
    assert!(!left.contains("map_"), "{left}");
    host.check("systemctl start dpdk-vswitchd");
    the_guest_answers(host);
    assert_eq!(host.check("systemctl --failed --plain --no-legend"), "");
}
