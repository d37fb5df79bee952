//! `scripts/host-setup`: what it decides and writes, on a host of plain files; and real hugepages.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use nix::pty::openpty;
use vswitch_tests::fake_host::{FakeHost, run, script};
use vswitch_tests::prerequisites;

/// What makes a host one on which something has to be refused.
type Prepare<'a> = &'a dyn Fn(&FakeHost);

const PAGES: &str = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages";
const UNIT: &str = "etc/systemd/system/dpdk-vswitch-host.service";

#[test]
fn a_dry_run_shows_the_plan_and_changes_nothing() {
    let host = FakeHost::new();
    let before = host.tree();
    let said =
        host.setup("--hugepages 512,1024 --group hugetlbfs --bind eth1 --bind 01:00.1 --at-boot --dry-run");
    assert_eq!(said.status, 0, "{said:?}");
    for line in [
        "hugepages of 2048kB on NUMA node 0: 256 (now 100)",
        "hugepages of 2048kB on NUMA node 1: 512 (now 100)",
        "owner and mode of /dev/hugepages: 0:4242:1770",
        "NIC 0000:01:00.0 '8086:1521' (eth1): from igb to vfio-pci",
        "NIC 0000:01:00.1 '8086:1521' (eth2): from igb to vfio-pci",
        "owner and mode of /dev/vfio/11: 0:4242:660",
        "write /etc/systemd/system/dpdk-vswitch-host.service",
    ] {
        assert!(said.stdout.contains(line), "no '{line}' in {}", said.stdout);
    }
    host.assert_is(&before, "a dry run");
}

#[test]
fn hugepages_group_and_unit_are_set_and_taken_back_exactly() {
    let host = FakeHost::new();
    let before = host.tree();
    let said = host.setup("--hugepages 512,100 --group hugetlbfs --at-boot --yes");
    assert_eq!(said.status, 0, "{said:?}");
    // Never lowered: 100 MiB are 50 pages, and 100 were there
    assert_eq!((host.pages(0), host.pages(1)), (256, 100));
    let unit = host.read(UNIT);
    assert!(
        unit.contains("scripts/host-setup --yes --keep-going --hugepages 512,100 --group hugetlbfs\n"),
        "{unit}"
    );
    assert_eq!(
        host.read("etc/systemd/system/multi-user.target.wants/dpdk-vswitch-host.service"),
        unit
    );

    let again = host.setup("--hugepages 512,100 --group hugetlbfs --yes");
    assert!(again.stdout.contains("Nothing to do"), "{again:?}");
    assert_eq!(host.setup("--hugepages 1024 --yes").status, 0);
    assert_eq!(host.pages(0), 512);

    let shown = host.setup("--undo --dry-run");
    assert!(shown.stdout.contains("node 0: 100 back"), "{shown:?}");
    assert_eq!(host.pages(0), 512);
    let said = host.setup("--undo --yes");
    assert_eq!(said.status, 0, "{said:?}");
    host.assert_is(&before, "everything was taken back");
    assert!(!host.path("var/lib/dpdk-vswitch-host").exists());
    assert_eq!(
        host.setup("--undo --yes").status,
        0,
        "a second time there is nothing to do"
    );
}

/// The options in the unit's command.
fn at_boot(host: &FakeHost) -> String {
    let unit = host.read(UNIT);
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart="));
    let options = command.and_then(|c| c.split_once("/scripts/host-setup --yes --keep-going "));
    options.expect("a command of host-setup").1.to_owned()
}

#[test]
fn what_the_unit_does_at_boot_is_kept_by_later_runs() {
    let host = FakeHost::new();
    host.write(
        UNIT,
        include_str!("../../packaging/systemd/dpdk-vswitch-host.service"),
    );
    assert_eq!(at_boot(&host), "--hugepages 512");
    for address in ["0000:01:00.0", "0000:01:00.1"] {
        host.link(
            &format!("sys/bus/pci/devices/{address}/driver"),
            "../../drivers/vfio-pci",
        );
    }
    let run = |arguments: &str| host.setup(&format!("{arguments} --at-boot --yes"));
    let (one, two) = ("--bind 0000:01:00.0", "--bind 0000:01:00.1");
    for (arguments, options) in [
        ("--bind eth1", format!("--hugepages 512 {one}")),
        ("--bind 01:00.1", format!("--hugepages 512 {one} {two}")),
        ("--hugepages 1024", format!("--hugepages 1024 {one} {two}")),
        (
            "--group hugetlbfs",
            format!("--hugepages 1024 --group hugetlbfs {one} {two}"),
        ),
    ] {
        let said = run(arguments);
        assert_eq!(said.status, 0, "{arguments}: {said:?}");
        assert_eq!(at_boot(&host), options, "{arguments}");
        let shown = format!("/scripts/host-setup --yes --keep-going {options}\n");
        assert!(said.stdout.contains("At each boot: /"), "{arguments}: {said:?}");
        assert!(said.stdout.contains(&shown), "{arguments}: {said:?}");
    }
    let again = run("--bind eth1 --bind 01:00.0");
    assert!(again.stdout.contains("Nothing to do"), "{again:?}");

    // What one command can't do, or nobody can tell, is refused
    host.write("sys/bus/pci/devices/0000:01:00.0/iommu_group/type", "identity\n");
    let said = run("--bind eth1 --driver uio_pci_generic --dry-run");
    assert!(said.stderr.contains("gives 0000:01:00.1 to vfio-pci"), "{said:?}");
    let unit = host.read(UNIT);
    // A card that is no longer in the machine can be taken out
    host.write(UNIT, &unit.replace(two, &format!("--bind 0000:09:00.0 {two}")));
    let said = run("--unbind 0000:09:00.0");
    assert_eq!((said.status, host.read(UNIT)), (0, unit.clone()), "{said:?}");
    host.write(UNIT, &unit.replace(two, "--bind eth7"));
    let said = run("--bind eth1");
    assert!(said.stderr.contains("no interface 'eth7'"), "{said:?}");
    assert!(said.stderr.contains("PCI address there"), "{said:?}");
    host.write(UNIT, &unit.replace("--yes", "--force"));
    let said = run("--bind eth1");
    assert!(said.stderr.contains("has '--force'"), "{said:?}");
    host.write(UNIT, &unit.replace(two, "--bind=eth2"));

    // Given back
    for address in ["0000:01:00.0", "0000:01:00.1"] {
        host.link(
            &format!("sys/bus/pci/devices/{address}/driver"),
            "../../drivers/igb",
        );
    }
    assert_eq!(run("--unbind eth2").status, 0);
    assert_eq!(
        at_boot(&host),
        format!("--hugepages 1024 --group hugetlbfs {one}")
    );
    let unit = host.read(UNIT);
    host.write(UNIT, &unit.replace("--hugepages 1024 --group hugetlbfs ", ""));
    let said = run("--unbind eth1");
    assert!(said.stdout.contains("At each boot: nothing"), "{said:?}");
    assert!(!host.path(UNIT).exists(), "nothing is left to do at boot");
}

/// At boot a card that is gone costs neither the hugepages nor the other NICs.
#[test]
fn what_can_be_done_is_done_where_asked() {
    let host = FakeHost::new();
    let asked = "--hugepages 512 --bind 0000:09:00.0 --bind eth1 --yes";
    let before = host.tree();
    let said = host.setup(asked);
    assert_eq!(said.status, 2, "{said:?}");
    host.assert_is(&before, "all or nothing without it");

    let said = host.setup(&format!("{asked} --keep-going"));
    assert_eq!(said.status, 1, "{said:?}");
    // The first is not there; the tree has no kernel that would bind the other
    for text in [
        "left out: there is no PCI device 0000:09:00.0",
        "vfio-pci did not take 0000:01:00.0",
        "Nothing more was changed",
    ] {
        assert!(said.stderr.contains(text), "{text}: {said:?}");
    }
    assert_eq!(host.pages(0), 256, "{said:?}");
    assert_eq!(host.setup("--undo --yes").status, 0);
    assert_eq!(host.pages(0), 100);
}

#[test]
fn pages_of_others_stay() {
    let host = FakeHost::new();
    assert_eq!(host.setup("--hugepages 512 --yes").status, 0);
    host.set_pages(0, 300);
    assert_eq!(host.setup("--undo --yes").status, 0);
    assert_eq!(host.pages(0), 144, "156 were ours, 44 somebody else's");

    // A reboot took them: nothing is left to take back
    assert_eq!(host.setup("--hugepages 512 --yes").status, 0);
    host.set_pages(0, 0);
    assert_eq!(host.setup("--undo --yes").status, 0);
    assert_eq!(host.pages(0), 144);
}

#[test]
fn a_bind_that_fails_undoes_the_whole_run() {
    let host = FakeHost::new();
    let said = host.setup("--hugepages 512 --bind eth1 --yes");
    assert_eq!(said.status, 1, "{said:?}");
    assert!(
        said.stderr.contains("vfio-pci did not take 0000:01:00.0"),
        "{said:?}"
    );
    assert!(said.stderr.contains("Nothing was changed"), "{said:?}");
    assert_eq!(
        host.read("sys/bus/pci/drivers/igb/unbind"),
        "0000:01:00.0",
        "the kernel was asked"
    );
    assert_eq!(host.read("sys/bus/pci/drivers/vfio-pci/bind"), "0000:01:00.0");
    assert_eq!(
        host.read("sys/bus/pci/devices/0000:01:00.0/driver_override"),
        "\n"
    );
    assert_eq!(host.pages(0), 100);
    assert!(!host.path("var/lib/dpdk-vswitch-host/changes").exists());
}

#[test]
fn a_run_that_was_killed_is_taken_back() {
    let host = FakeHost::new();
    host.set_pages(0, 400);
    host.write(
        "var/lib/dpdk-vswitch-host/under-way",
        &format!("pages\t{PAGES}\t100\t400\nfile\t/etc/never-written\t-\t=x\\n\n"),
    );
    let refused = host.setup("--hugepages 2048 --yes");
    assert_eq!(refused.status, 2);
    assert!(refused.stderr.contains("host-setup --undo"), "{refused:?}");
    let said = host.setup("--undo --yes");
    assert_eq!(said.status, 0, "{said:?}");
    assert_eq!(host.pages(0), 100);
}

/// A power cut during a boot must not cost all boots after it the hugepages.
#[test]
fn at_boot_it_goes_on_where_a_run_was_cut_off() {
    let host = FakeHost::new();
    host.write(
        "var/lib/dpdk-vswitch-host/under-way",
        &format!("pages\t{PAGES}\t100\t400\nfile\t/etc/never-written\t-\t"),
    );
    let said = host.setup("--hugepages 512 --keep-going --yes");
    assert_eq!(said.status, 0, "{said:?}");
    assert_eq!(host.pages(0), 256);
    assert!(!host.path("var/lib/dpdk-vswitch-host/under-way").exists());
    let said = host.setup("--undo --yes");
    assert_eq!((said.status, host.pages(0)), (0, 100), "{said:?}");
}

#[test]
fn it_asks_before() {
    let host = FakeHost::new();
    let said = host.setup("--hugepages 512");
    assert_eq!(said.status, 2, "no terminal, no --yes");
    assert!(said.stderr.contains("--yes"), "{said:?}");
    assert_eq!(host.pages(0), 100);
    for (answer, status, pages) in [("", 1, 100), ("n", 1, 100), ("yes", 0, 256)] {
        let terminal = openpty(None, None).unwrap();
        writeln!(fs::File::from(terminal.master.try_clone().unwrap()), "{answer}").unwrap();
        let output = host
            .command("host-setup", "--hugepages 512")
            .stdin(terminal.slave)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("node 0: 256 (now 100)"), "{answer:?}: {said}");
        assert_eq!(
            (output.status.code(), host.pages(0)),
            (Some(status), pages),
            "{answer:?}: {said}"
        );
    }
}

#[test]
fn nics_that_the_host_uses_are_refused() {
    fn stacked(host: &FakeHost, lower: &str, upper: &str) {
        host.directory(&format!("sys/class/net/{upper}"));
        host.link(
            &format!("sys/class/net/{lower}/upper_{upper}"),
            &format!("../{upper}"),
        );
    }
    fn route(host: &FakeHost, interface: &str) {
        host.write(
            "proc/net/route",
            &format!(
                "Iface\tDestination\n{interface}\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
            ),
        );
    }
    let cases: &[(&str, Prepare<'_>, &str)] = &[
        (
            "IPv4 default route",
            &|h| route(h, "eth1"),
            "it carries the default route",
        ),
        (
            "IPv6 default route",
            &|h| {
                let zeros = "0".repeat(32);
                h.write(
                    "proc/net/ipv6_route",
                    &format!(
                        "{zeros} 00 {zeros} 00 fe80{} 00000400 1 0 00450003     eth1\n",
                        &zeros[4..]
                    ),
                );
            },
            "it carries the default route",
        ),
        (
            "IPv4 address",
            &|h| {
                h.write(
                    "proc/net/route",
                    "Iface\neth1\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n",
                )
            },
            "it has the address in 192.168.2.0",
        ),
        (
            "IPv6 address",
            &|h| {
                h.write(
                    "proc/net/if_inet6",
                    "fd000000000000000000000000000002 02 40 00 80     eth1\n",
                )
            },
            "it has the address fd00:0000",
        ),
        (
            "a connection over a link-local address",
            &|h| {
                h.write(
                    "proc/net/if_inet6",
                    "fe80000000000000021b21fffe010203 02 40 20 80     eth1\n",
                );
                h.write(
                    "proc/net/tcp6",
                    "  sl  local_address\n   1: 000080FE00000000FF211B02030201FE:0016 \
                     000080FE000000000000000001000000:C001 01 00000000:00000000\n",
                );
            },
            "a TCP connection runs over its address fe80:",
        ),
        ("a bridge", &|h| stacked(h, "eth1", "br0"), "br0 stands on it"),
        (
            "a bond with a VLAN with the default route",
            &|h| {
                stacked(h, "eth1", "bond0");
                stacked(h, "bond0", "bond0.7");
                route(h, "bond0.7");
            },
            "bond0 stands on it, and bond0.7 stands on it, and bond0.7 carries the default route",
        ),
        (
            "another network namespace",
            &|h| h.remove("sys/bus/pci/devices/0000:01:00.0/net/eth1"),
            "no interface of it is in sight",
        ),
        (
            "virtual functions",
            &|h| h.write("sys/bus/pci/devices/0000:01:00.0/sriov_numvfs", "2\n"),
            "virtual functions, which would vanish",
        ),
    ];
    for (what, prepare, reason) in cases {
        let host = FakeHost::new();
        prepare(&host);
        let before = host.tree();
        let said = host.setup("--hugepages 512 --bind 0000:01:00.0 --yes");
        assert_eq!(said.status, 2, "{what}: {said:?}");
        assert!(said.stderr.contains("0000:01:00.0"), "{what}: {said:?}");
        assert!(said.stderr.contains(reason), "{what}: {said:?}");
        host.assert_is(&before, what);
    }
    // A link-local address alone is on every interface that is up
    let host = FakeHost::new();
    host.write(
        "proc/net/if_inet6",
        "fe80000000000000021b21fffe010203 02 40 20 80     eth1\n",
    );
    assert_eq!(host.setup("--bind eth1 --dry-run").status, 0);
}

#[test]
fn what_vfio_and_uio_cannot_do_is_refused_before_the_driver_is_gone() {
    let cases: &[(&str, Prepare<'_>, &str, &str)] = &[
        (
            "no IOMMU",
            &|h| h.remove("sys/bus/pci/devices/0000:01:00.0/iommu_group"),
            "--bind eth1",
            "stays with igb: vfio-pci can't take it, for no IOMMU covers it",
        ),
        (
            "a group of two",
            &|h| {
                h.write("sys/bus/pci/devices/0000:01:00.3/class", "0x010000\n");
                h.link("sys/bus/pci/devices/0000:01:00.3/driver", "../../drivers/ahci");
                h.link(
                    "sys/kernel/iommu_groups/10/devices/0000:01:00.3",
                    "../../../../bus/pci/devices/0000:01:00.3",
                );
            },
            "--bind eth1",
            "shares its IOMMU group 10 with 0000:01:00.3 (ahci)",
        ),
        (
            "a NIC that DPDK drives beside the kernel",
            &|h| {
                h.link(
                    "sys/bus/pci/devices/0000:01:00.0/driver",
                    "../../drivers/mlx5_core",
                )
            },
            "--bind eth1",
            "0000:01:00.0 (eth1) stays with mlx5_core: DPDK works beside that driver, and not without it",
        ),
        (
            "uio under a translating IOMMU",
            &|_| (),
            "--bind eth1 --driver uio_pci_generic",
            "boot with iommu=pt",
        ),
        (
            "no module",
            &|h| h.remove("sys/bus/pci/drivers/vfio-pci"),
            "--bind eth1",
            "this kernel (6.1.0-fake) has no vfio-pci",
        ),
        (
            "in use by a process",
            &|h| {
                h.link(
                    "sys/bus/pci/devices/0000:01:00.0/driver",
                    "../../drivers/vfio-pci",
                );
                h.write("dev/vfio/10", "");
                h.write("proc/77/comm", "dpdk-vswitchd\n");
                h.link("proc/77/fd/9", "../../../dev/vfio/10");
            },
            "--unbind 0000:01:00.0",
            "process 77 (dpdk-vswitchd) has",
        ),
        (
            "an unknown interface",
            &|_| (),
            "--bind eth7",
            "NICs here: 0000:00:1f.6 (eth0), 0000:01:00.0 (eth1)",
        ),
        (
            "an unknown address",
            &|_| (),
            "--bind 0000:07:00.0",
            "there is no PCI device 0000:07:00.0 here",
        ),
        (
            "a virtual interface",
            &|h| h.directory("sys/class/net/br0"),
            "--bind br0",
            "br0 is no NIC",
        ),
        (
            "a disk",
            &|h| h.write("sys/bus/pci/devices/0000:02:00.0/class", "0x010802\n"),
            "--bind 0000:02:00.0",
            "is no network device",
        ),
        (
            "both ways",
            &|_| (),
            "--bind eth1 --unbind 0000:01:00.0",
            "named by --bind and by --unbind",
        ),
        (
            "an unknown node",
            &|_| (),
            "--hugepages 8,8,8",
            "there is no NUMA node 2 here; there are: 0 1",
        ),
        (
            "an unknown group",
            &|_| (),
            "--group nix",
            "groupadd --system nix",
        ),
        (
            "no pages of 1 GiB",
            &|_| (),
            "--hugepages 1024 --page-size 1G",
            "no hugepages of 1048576 kB",
        ),
        ("words for a number", &|_| (), "--hugepages 1G", "not '1G'"),
        (
            "an unknown driver",
            &|_| (),
            "--bind eth1 --driver igb",
            "DPDK knows vfio-pci",
        ),
        (
            "an unknown option",
            &|_| (),
            "--force",
            "unknown argument '--force'",
        ),
    ];
    for (what, prepare, arguments, reason) in cases {
        let host = FakeHost::new();
        prepare(&host);
        let before = host.tree();
        let said = host.setup(&format!("{arguments} --yes"));
        assert_eq!(said.status, 2, "{what}: {said:?}");
        assert!(said.stderr.contains(reason), "{what}: {said:?}");
        host.assert_is(&before, what);
    }
    // All of a group at once is fine, and so is uio where the IOMMU does not translate
    let host = FakeHost::new();
    host.write("sys/bus/pci/devices/0000:01:00.0/iommu_group/type", "identity\n");
    let said = host.setup("--bind eth1 --driver uio_pci_generic --dry-run");
    assert_eq!(said.status, 0, "{said:?}");
    host.link(
        "sys/kernel/iommu_groups/10/devices/0000:01:00.1",
        "../../../../bus/pci/devices/0000:01:00.1",
    );
    let said = host.setup("--bind eth1 --bind eth2 --dry-run");
    assert_eq!(said.status, 0, "{said:?}");
}

#[test]
fn status_has_the_form_of_dpdks_own_tool() {
    let host = FakeHost::new();
    host.link(
        "sys/bus/pci/devices/0000:01:00.1/driver",
        "../../drivers/vfio-pci",
    );
    host.remove("sys/bus/pci/devices/0000:01:00.1/net/eth2");
    let said = host.setup("--status");
    assert_eq!(
        said.stdout,
        "Network devices using a driver for DPDK\n\
         =======================================\n\
         0000:01:00.1 '8086:1521' drv=vfio-pci unused=uio_pci_generic\n\n\
         Network devices using a kernel driver\n\
         =====================================\n\
         0000:00:1f.6 '8086:1521' if=eth0 drv=e1000e unused=vfio-pci,uio_pci_generic *Active*\n\
         0000:01:00.0 '8086:1521' if=eth1 drv=igb unused=vfio-pci,uio_pci_generic\n\n\
         Network devices without a driver\n\
         ================================\n\
         <none>\n"
    );
}

/// The kernel's own files, with notes in a directory of the test.
#[test]
fn real_hugepages_are_added_and_given_back() {
    prerequisites::hugepages(2);
    let host = FakeHost::empty();
    symlink("/sys", host.path("sys")).unwrap();
    symlink("/proc", host.path("proc")).unwrap();
    let count = || -> u64 { std::fs::read_to_string(PAGES).unwrap().trim().parse().unwrap() };
    let before = count();
    let said = host.setup(&format!("--hugepages {} --yes", (before + 2) * 2));
    assert_eq!(said.status, 0, "{said:?}");
    assert_eq!(count(), before + 2);
    let said = host.setup("--undo --yes");
    assert_eq!(said.status, 0, "{said:?}");
    assert_eq!(count(), before);
}

#[test]
fn the_help_names_every_option() {
    let said = run(script("host-setup").arg("--help"));
    assert_eq!(said.status, 0);
    for option in [
        "--hugepages",
        "--bind",
        "--unbind",
        "--driver",
        "--at-boot",
        "--keep-going",
        "--undo",
        "--status",
        "--dry-run",
    ] {
        assert!(said.stdout.contains(option), "{option}");
    }
}
