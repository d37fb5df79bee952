//! NICs on the PCI bus as the kernel sees them: which driver has them, and what to do if it is the wrong one.

use std::fs;
use std::path::{Path, PathBuf};

use vswitch_common::ethdev;

/// Kernel drivers that hand a device to user space.
const DPDK_DRIVERS: &[&str] = &["vfio-pci", "uio_pci_generic", "igb_uio"];
/// Those of them that leave the IOMMU alone.
const UIO_DRIVERS: &[&str] = &["uio_pci_generic", "igb_uio"];
/// Kernel drivers that DPDK's work beside, and not without, with the library of DPDK's (scripts/lib/nics.sh).
const SHARED_DRIVERS: &[(&str, &str)] = &[
    ("mlx5_core", "librte_net_mlx5"),
    ("mlx4_core", "librte_net_mlx4"),
    ("mana", "librte_net_mana"),
];
/// PCI class of Ethernet controllers.
const ETHERNET: &str = "0x0200";

/// The PCI bus, by its place in sysfs.
#[derive(Debug, Clone)]
pub struct Pci {
    devices: PathBuf,
}

impl Default for Pci {
    fn default() -> Pci {
        Pci {
            devices: "/sys/bus/pci/devices".into(),
        }
    }
}

impl Pci {
    /// The kernel driver of the device at `address`.
    pub fn driver(&self, address: &str) -> Option<String> {
        let link = fs::read_link(self.devices.join(address).join("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    /// Are there NICs bound to a UIO driver? They know physical addresses only, and EAL, which is told of no device at
    /// its start, would choose virtual ones where there is an IOMMU.
    pub fn has_uio_nics(&self) -> bool {
        let nics = self.dpdk_nics();
        nics.iter().any(|address| self.has_driver(address, UIO_DRIVERS))
    }

    fn has_driver(&self, address: &str, drivers: &[&str]) -> bool {
        self.driver(address)
            .is_some_and(|driver| drivers.contains(&driver.as_str()))
    }

    /// NICs that a kernel driver hands to user space, in the order of their addresses.
    pub fn dpdk_nics(&self) -> Vec<String> {
        let mut nics: Vec<String> = fs::read_dir(&self.devices)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| is_ethernet(&entry.path()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|address| self.has_driver(address, DPDK_DRIVERS))
            .collect();
        nics.sort();
        nics
    }

    /// Why DPDK could not attach the device at `address`, and what helps, as far as the kernel knows.
    pub fn complaint(&self, address: &str) -> Option<String> {
        if !self.devices.join(address).exists() {
            return Some(format!(
                "there is no PCI device {address}; scripts/host-setup --status lists the NICs"
            ));
        }
        if self.has_driver(address, UIO_DRIVERS) && !ethdev::uses_physical_addresses() {
            return Some(format!(
                "{address} was bound to a UIO driver after the switch had started; start the switch again, or bind it to \
                 vfio-pci: scripts/host-setup --bind {address}"
            ));
        }
        let driver = self.driver(address);
        let shared = |(kernel, _): &&(&str, &str)| driver.as_deref() == Some(*kernel);
        if let Some((kernel, library)) = SHARED_DRIVERS.iter().find(shared) {
            return Some(format!(
                "{address} could not be attached: DPDK works beside its kernel driver {kernel} and needs {library} for \
                 it, and libibverbs with its kernel modules (rdma-core)"
            ));
        }
        let state = match driver {
            Some(driver) if DPDK_DRIVERS.contains(&driver.as_str()) => return None,
            Some(driver) => format!("is bound to the kernel's driver {driver}"),
            None => "is bound to no driver".to_owned(),
        };
        Some(format!(
            "{address} {state}, DPDK needs vfio-pci; run: scripts/host-setup --bind {address}"
        ))
    }
}

fn is_ethernet(device: &Path) -> bool {
    fs::read_to_string(device.join("class")).is_ok_and(|class| class.starts_with(ETHERNET))
}

/// `text` as the kernel writes a PCI address, if it is one: `0000:01:00.0`, where `01:00.0` is enough.
pub fn address(text: &str) -> Option<String> {
    let (front, function) = text.split_once('.')?;
    let mut parts: Vec<&str> = front.split(':').collect();
    if parts.len() == 2 {
        parts.insert(0, "0");
    }
    let [domain, bus, device] = parts[..] else {
        return None;
    };
    let hex = |text: &str, most: u32| {
        let valid = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
        u32::from_str_radix(text, 16).ok().filter(|n| valid && *n <= most)
    };
    Some(format!(
        "{:04x}:{:02x}:{:02x}.{}",
        hex(domain, u32::MAX)?,
        hex(bus, 0xff)?,
        hex(device, 0x1f)?,
        hex(function, 7)?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn addresses_short_and_long() {
        for text in ["01:00.0", "0000:01:00.0", "0:1:0.0"] {
            assert_eq!(address(text).as_deref(), Some("0000:01:00.0"), "{text}");
        }
        assert_eq!(address("0001:AF:1f.7").as_deref(), Some("0001:af:1f.7"));
        for text in [
            "net_pcap0",
            "eth0.1",
            "01:00",
            "01:00.8",
            "01:20.0",
            "+1:00.0",
            "1:2:3:4.0",
            "",
        ] {
            assert_eq!(address(text), None, "{text}");
        }
    }

    #[test]
    fn each_state_is_named() {
        let sysfs = tempfile::tempdir().unwrap();
        let pci = Pci {
            devices: sysfs.path().into(),
        };
        for (device, class, driver) in [
            ("0000:02:00.1", "0x020000\n", Some("vfio-pci")),
            ("0000:02:00.0", "0x020000\n", Some("uio_pci_generic")),
            ("0000:01:00.0", "0x020000\n", Some("igb")),
            ("0000:03:00.0", "0x020000\n", None),
            ("0000:04:00.0", "0x030000\n", Some("vfio-pci")),
            ("0000:05:00.0", "0x020000\n", Some("mlx5_core")),
        ] {
            let path = sysfs.path().join(device);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("class"), class).unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../bus/pci/drivers/{driver}"), path.join("driver")).unwrap();
            }
        }
        assert_eq!(pci.dpdk_nics(), ["0000:02:00.0", "0000:02:00.1"]);
        assert!(pci.has_uio_nics());
        assert_eq!(pci.complaint("0000:02:00.1"), None);
        let complaint = |address| pci.complaint(address).unwrap();
        assert!(complaint("0000:01:00.0").contains("driver igb, DPDK needs"));
        assert!(complaint("0000:01:00.0").ends_with("scripts/host-setup --bind 0000:01:00.0"));
        assert!(complaint("0000:03:00.0").contains("no driver"));
        assert!(
            complaint("0000:05:00.0")
                .contains("beside its kernel driver mlx5_core and needs librte_net_mlx5")
        );
        assert!(!complaint("0000:05:00.0").contains("--bind"));
        assert!(complaint("0000:09:00.0").contains("no PCI device 0000:09:00.0"));
    }
}
