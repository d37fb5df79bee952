//! `scripts/host-check`: what it finds on hosts of plain files, and that it finds its way on this one.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use vswitch_tests::fake_host::{FakeHost, Said, run, script};

/// The object that `--json` prints.
fn parsed(said: &Said) -> Value {
    assert_eq!(said.stderr, "");
    serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("{e}: {said:?}"))
}

/// State, text and fix of the check `id`.
#[track_caller]
fn check<'a>(report: &'a Value, id: &str) -> (&'a str, &'a str, &'a str) {
    let checks = report["checks"].as_array().expect("a list");
    let found = checks
        .iter()
        .find(|c| c["id"] == id)
        .unwrap_or_else(|| panic!("no {id} in {checks:#?}"));
    let field = |name: &str| found[name].as_str().unwrap_or_default();
    (field("state"), field("text"), field("fix"))
}

#[test]
fn a_good_host_is_ready_and_stays_as_it_is() {
    let host = FakeHost::new();
    let before = host.tree();
    let said = host.script("host-check", "--json");
    assert_eq!(said.status, 0, "{said:?}");
    let report = parsed(&said);
    assert_eq!((&report["format"], &report["ready"]), (&1.into(), &true.into()));
    assert_eq!(
        report["host"],
        serde_json::json!({"kernel": "6.1.0-fake", "cpu": "A \"CPU\" at 2 \\GHz", "cpus": 1, "memory_mib": 7812})
    );
    let faulty: Vec<_> = report["checks"]
        .as_array()
        .unwrap()
        .iter()
        // How much memory the test may lock is its own limit; this host has not 512 MiB of hugepages free
        .filter(|c| c["state"] != "ok" && c["id"] != "limits.memlock" && c["id"] != "hugepages")
        .collect();
    assert!(faulty.is_empty(), "{faulty:#?}");
    assert_eq!(
        report["hugepages"][1],
        serde_json::json!({"node": 1, "page_kb": 2048, "total": 100, "free": 60, "mount": "/dev/hugepages"})
    );
    assert_eq!(
        report["nics"][0],
        serde_json::json!({
            "address": "0000:00:1f.6", "name": "8086:1521", "driver": "e1000e", "interfaces": ["eth0"],
            "possible": ["vfio-pci", "uio_pci_generic"], "numa_node": 0, "iommu_group": 4,
            "in_use": "it carries the default route"
        })
    );
    assert_eq!(report["nics"][1]["in_use"], Value::Null);
    host.assert_is(&before, "it changes nothing");
}

#[test]
fn each_lack_is_named_with_the_way_to_mend_it() {
    type Prepare<'a> = &'a dyn Fn(&FakeHost);
    let drop_flag =
        |h: &FakeHost, flag: &str| h.write("proc/cpuinfo", &h.read("proc/cpuinfo").replace(flag, ""));
    let cases: &[(Prepare<'_>, &str, &str, &str, &str)] = &[
        (
            &|h| drop_flag(h, "sse4_2"),
            "cpu",
            "missing",
            "lacks sse4_2",
            "-cpu host",
        ),
        (
            &|h| drop_flag(h, "pdpe1gb"),
            "cpu.pages-1g",
            "warn",
            "1 GiB",
            "2 MiB",
        ),
        (
            &|h| drop_flag(h, "vmx"),
            "cpu.virtualization",
            "warn",
            "VT-x",
            "firmware",
        ),
        (
            &|h| h.write("sys/devices/system/cpu/isolated", "\n"),
            "cpu.isolated",
            "warn",
            "no CPU",
            "isolcpus=",
        ),
        (
            &|h| h.write("proc/sys/kernel/sched_autogroup_enabled", "1\n"),
            "cpu.sessions",
            "warn",
            "among sessions",
            "sysctl kernel.sched_autogroup_enabled=0",
        ),
        (
            &|h| h.write("boot/config-6.1.0-fake", "CONFIG_UNIX=y\n"),
            "kernel.HUGETLBFS",
            "missing",
            "not set",
            "CONFIG_HUGETLBFS",
        ),
        (
            &|h| {
                h.write(
                    "boot/config-6.1.0-fake",
                    "CONFIG_HUGETLBFS=y\nCONFIG_EVENTFD=y\nCONFIG_UNIX=y\n",
                )
            },
            "kernel.VFIO_PCI",
            "warn",
            "not set",
            "linux-image-amd64",
        ),
        (
            &|h| h.remove("boot"),
            "kernel.options",
            "warn",
            "can't be told",
            "",
        ),
        (
            &|h| h.remove("sys/bus/pci/drivers/vfio-pci"),
            "driver.vfio-pci",
            "warn",
            "has none",
            "cloud kernel",
        ),
        (
            &|h| h.remove("sys/kernel/iommu_groups"),
            "iommu",
            "warn",
            "none",
            "intel_iommu=on",
        ),
        (
            &|h| {
                h.remove("sys/kernel/iommu_groups");
                h.directory("sys/class/iommu/dmar0");
            },
            "iommu",
            "warn",
            "the kernel does not use it",
            "intel_iommu=on",
        ),
        (
            &|h| (0..2).for_each(|n| h.set_pages(n, 0)),
            "hugepages",
            "missing",
            "the switch needs 64 MiB",
            "host-setup --hugepages",
        ),
        (
            &|h| h.write("proc/mounts", ""),
            "hugepages.mount",
            "missing",
            "no hugetlbfs",
            "host-setup --hugepages 0",
        ),
        (
            &|h| h.remove("sys/devices/system/node"),
            "hugepages",
            "missing",
            "none",
            "CONFIG_HUGETLBFS",
        ),
        (
            &|h| h.remove("usr/lib"),
            "dpdk",
            "missing",
            "not installed",
            "apt install libdpdk-dev",
        ),
        (
            &|h| h.remove("usr/bin/ovsdb-server"),
            "program.ovsdb-server",
            "missing",
            "not",
            "openvswitch-common",
        ),
        (
            &|h| h.remove("dev/kvm"),
            "kvm",
            "warn",
            "no /dev/kvm",
            "modprobe kvm_intel",
        ),
        (
            &|h| h.remove("dev/vhost-net"),
            "vhost-net",
            "warn",
            "no /dev/vhost-net",
            "modprobe vhost_net",
        ),
        (
            &|h| h.remove("dev/net"),
            "tun",
            "warn",
            "no /dev/net/tun",
            "modprobe tun",
        ),
        (
            &|h| h.remove("sys/bus/pci/devices/0000:01:00.0/driver"),
            "nic.0000:01:00.0",
            "warn",
            "driver none",
            "--unbind",
        ),
        (
            &|h| {
                h.link(
                    "sys/bus/pci/devices/0000:01:00.0/driver",
                    "../../drivers/vfio-pci",
                );
                h.write("sys/bus/pci/devices/0000:01:00.0/numa_node", "1\n");
                h.set_pages(1, 0);
            },
            "nic.0000:01:00.0.numa",
            "warn",
            "NUMA node 1",
            "host-setup --hugepages 0,512",
        ),
    ];
    for (prepare, id, state, text, fix) in cases {
        let host = FakeHost::new();
        prepare(&host);
        let said = host.script("host-check", "--json");
        let report = parsed(&said);
        let found = check(&report, id);
        assert_eq!(found.0, *state, "{id}: {found:?}");
        assert!(found.1.contains(text) && found.2.contains(fix), "{id}: {found:?}");
        assert_eq!(said.status, i32::from(*state == "missing"), "{id}: {found:?}");
        assert_eq!(report["ready"], *state != "missing", "{id}");
    }
}

#[test]
fn a_nic_that_dpdk_drives_beside_the_kernel_is_not_to_be_bound() {
    let host = FakeHost::new();
    host.link("sys/bus/pci/devices/0000:01:00.0/driver", "../../drivers/mana");
    let report = parsed(&host.script("host-check", "--json"));
    let (state, text, fix) = check(&report, "nic.0000:01:00.0");
    assert_eq!((state, fix), ("ok", ""), "{text}");
    assert!(
        text.contains("DPDK works beside its kernel driver; do not bind"),
        "{text}"
    );
    assert!(!text.contains("--bind"), "{text}");
    assert_eq!(report["nics"][1]["possible"], serde_json::json!([]));
    assert!(
        check(&report, "nic.0000:01:00.1").1.contains("--bind"),
        "another NIC is"
    );
}

#[test]
fn a_container_without_anything_is_no_obstacle() {
    let host = FakeHost::empty();
    let said = host.script("host-check", "--json");
    assert_eq!(said.status, 1);
    let report = parsed(&said);
    assert_eq!(report["ready"], false);
    assert_eq!(check(&report, "kernel").0, "missing");
    assert!(report["nics"].as_array().unwrap().is_empty());
}

#[test]
fn this_host_is_told_in_lines_and_in_json() {
    let json = run(script("host-check").arg("--json"));
    let report = parsed(&json);
    let lines = run(&mut script("host-check"));
    assert_eq!(lines.stderr, "");
    assert_eq!(
        (lines.status, json.status),
        (0, 0),
        "what the tests need is there: {lines:?}"
    );
    for found in report["checks"].as_array().expect("a list") {
        let [id, state] = ["id", "state"].map(|f| found[f].as_str().expect("a string"));
        assert!(
            lines
                .stdout
                .lines()
                .any(|l| l.starts_with(state) && l[9..].starts_with(id)),
            "{id} is {state} in JSON, and in lines: {}",
            lines.stdout
        );
    }
    let nodes = report["hugepages"].as_array().expect("a list");
    assert!(
        nodes
            .iter()
            .any(|n| n["page_kb"] == 2048 && n["total"].as_u64() > Some(0)),
        "{nodes:?}"
    );
}

/// The tree says which Rust builds it.
#[test]
fn a_rust_that_is_missing_or_too_old_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let tell = |cargo: Option<&str>| {
        if let Some(version) = cargo {
            let file = dir.path().join("cargo");
            std::fs::write(&file, format!("#!/bin/sh\necho cargo {version}\n")).unwrap();
            std::fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
        }
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.path().display());
        let said = run(script("host-check")
            .arg("--json")
            .env("PATH", path)
            .env("CARGO_HOME", dir.path()));
        let report = parsed(&said);
        let (state, text, fix) = check(&report, "program.cargo");
        (state.to_owned(), format!("{text} {fix}"))
    };
    let (state, text) = tell(None);
    assert!(
        state == "warn" && text.contains("not installed") && text.contains("rustup"),
        "{text}"
    );
    let (state, text) = tell(Some("1.63.0"));
    assert!(
        state == "warn" && text.contains("1.63.0: too old") && text.contains("rustup update"),
        "{text}"
    );
    assert_eq!(tell(Some("1.999.0")).0, "ok");
}

#[test]
fn a_mistyped_option_is_refused() {
    let said = run(script("host-check").arg("--jsn"));
    assert_eq!(said.status, 2);
    assert!(said.stderr.contains("'--jsn'"), "{said:?}");
}
