//! NICs and vdevs behind ports: found, started, started anew with other options, and let go when they are pulled out.

use std::sync::Arc;
use std::time::Duration;

use vswitch_common::ethdev::{self, Ethdev, EthdevError, Setup};

use super::kernel::explain_devargs;
use super::kind::{DeviceName, Kind};
use super::netdevs;
use super::pci::{self, Pci};
use super::{Backend, Switch};
use crate::datapath::port::{EthdevIo, PortIndex};

impl Switch {
    /// Attaches a device and starts it.
    pub(super) fn start_device(
        &mut self,
        name: &DeviceName,
        setup: &Setup,
        index: PortIndex,
    ) -> Result<Backend, String> {
        let devargs = self.find_device(name)?;
        let device = devargs.split(',').next().unwrap_or_default();
        let taken = |s: &&super::PortState| matches!(&s.backend, Backend::Ethdev { io, .. } if io.device.device() == device);
        if let Some(other) = self.ports.values().find(taken) {
            return Err(format!("device '{device}' is interface {}'s already", other.name));
        }
        let address = pci::address(device);
        if address.is_some() {
            ethdev::enable_vfio();
        }
        let opened = attach(&devargs).map_err(|e| {
            // DPDK's own text is "Operation not permitted" or the like; the kernel knows more.
            let complaint = address.and_then(|address| Pci::default().complaint(&address));
            complaint.unwrap_or_else(|| explain_devargs(&devargs, e))
        })?;
        let backend = self
            .run_device(opened, setup, index)
            .map_err(|e| explain_devargs(&devargs, e))?;
        if let DeviceName::Number(number) = name {
            self.numbered.insert(*number, devargs);
        }
        Ok(backend)
    }

    /// DPDK's name of a device.
    fn find_device(&self, name: &DeviceName) -> Result<String, String> {
        let number = match name {
            DeviceName::Devargs(devargs) => return Ok(devargs.clone()),
            DeviceName::Number(number) => *number,
        };
        // Others may have another number since: a NIC was pulled out, or bound.
        if let Some(device) = self.numbered.get(&number) {
            return Ok(device.clone());
        }
        if !self.first_devices.is_empty() {
            let device = self.first_devices.iter().find(|(port, _)| *port == number);
            let count = self.first_devices.len();
            return device.map(|(_, name)| name.clone()).ok_or_else(|| {
                format!(
                    "there is no DPDK port {number} ({count} found at start-up); bind the NIC to vfio-pci \
                     (scripts/host-setup --bind NIC) and name it by -a or dpdk-extra, or set options:dpdk-devargs"
                )
            });
        }
        // EAL was told of no device: then the number counts those that it would have found.
        let nics = Pci::default().dpdk_nics();
        let count = nics.len();
        nics.into_iter().nth(number.into()).ok_or_else(|| {
            format!(
                "there is no DPDK port {number} ({count} NICs are bound to a DPDK driver); run: \
                 scripts/host-setup --bind NIC"
            )
        })
    }

    fn run_device(
        &self,
        mut device: Ethdev,
        setup: &Setup,
        index: PortIndex,
    ) -> Result<Backend, EthdevError> {
        let in_use = Setup {
            tx_queues: setup.tx_queues.max(self.parts.pmds.count() as u16),
            ..*setup
        };
        device.start(&in_use, self.parts.ledger.pool_on(device.node()))?;
        Ok(Backend::Ethdev {
            index,
            link: device.link(),
            io: Arc::new(EthdevIo::new(device)),
            setup: *setup,
        })
    }

    /// Starts the device of port `name` anew, with other options.
    pub(super) fn restart_device(&mut self, name: &str, setup: Setup) {
        let Some((index, io)) = self.take_device(name, "it is being set up anew") else {
            return;
        };
        let result = match unshare(io) {
            Some(io) => self
                .run_device(io.device, &setup, index)
                .map_err(|e| e.to_string()),
            None => Err("it is still in use; remove the port and add it again".to_owned()),
        };
        let Some(state) = self.ports.get_mut(name) else {
            return;
        };
        match result {
            Ok(backend) => {
                if let Backend::Ethdev { io, .. } = &backend {
                    state.mtu = io.device.mtu();
                }
                state.backend = backend;
                log::info!("bridge {}: port {name} has new options", state.bridge);
                for text in state.shortfalls() {
                    log::warn!("{}{text}", state.who());
                }
            }
            Err(e) => {
                log::warn!("bridge {}: port {name}: {e}", state.bridge);
                state.backend = Backend::Failed(e);
                self.forget_port(index);
            }
        }
    }

    /// Takes the device of port `name` away; no thread uses it any more. The port has failed then, by `why`.
    fn take_device(&mut self, name: &str, why: &str) -> Option<(PortIndex, Arc<EthdevIo>)> {
        let backend = &mut self.ports.get_mut(name)?.backend;
        if !matches!(backend, Backend::Ethdev { .. }) {
            return None;
        }
        let Backend::Ethdev { index, io, .. } = std::mem::replace(backend, Backend::Failed(why.to_owned()))
        else {
            return None;
        };
        self.publish();
        Some((index, io))
    }

    /// Links that came or went: when the driver tells so, and once a second for those that don't.
    pub fn look_at_links(&mut self) {
        let mut changed = false;
        for state in self.ports.values_mut() {
            if let Backend::Ethdev { io, link, .. } = &mut state.backend {
                let seen = io.device.link();
                if seen != *link {
                    log::info!("{}: link {}", state.name, if seen.up { "up" } else { "down" });
                    *link = seen;
                    changed = true;
                }
            }
        }
        if changed {
            self.describe_ports();
        }
    }

    /// Has a device come since ports were last set up, while one waits for its device: a NIC that was bound to a DPDK driver, or an
    /// interface of the host? Call it now and then.
    pub fn has_new_devices(&mut self) -> bool {
        let waits = |state: &&super::PortState| {
            matches!(state.kind, Kind::Ethdev { .. } | Kind::Netdev)
                && matches!(state.backend, Backend::Failed(_))
        };
        let waiting: Vec<_> = self.ports.values().filter(waits).collect();
        if waiting.is_empty() {
            return false;
        }
        let present = present(waiting.iter().map(|state| (state.name.as_str(), &state.kind)));
        // One that was pulled out is a new one when it comes back.
        self.devices_tried.retain(|device| present.contains(device));
        present.iter().any(|device| !self.devices_tried.contains(device))
    }

    /// Lets go of devices that are gone.
    pub(super) fn drop_removed_devices(&mut self) {
        let removed = ethdev::events::take_removed();
        let is_gone = |state: &&super::PortState| matches!(&state.backend, Backend::Ethdev { io, .. } if removed.contains(io.device.device()));
        let gone: Vec<String> = self
            .ports
            .values()
            .filter(is_gone)
            .map(|state| state.name.clone())
            .collect();
        for name in gone {
            self.let_device_go(&name);
        }
    }

    /// Lets a device go that was pulled out, or that the kernel wants back.
    fn let_device_go(&mut self, name: &str) {
        let Some((index, io)) = self.take_device(name, "its device was removed") else {
            return;
        };
        self.forget_port(index);
        let device = io.device.device().to_owned();
        let why = format!(
            "device {device} was removed; it is taken again when it is back and bound to a DPDK driver"
        );
        log::warn!("{name}: {why}");
        if let Some(io) = unshare(io) {
            io.device.surrender();
        }
        if let Some(state) = self.ports.get_mut(name) {
            state.backend = Backend::Failed(why);
        }
    }
}

/// NICs that are bound to a DPDK driver, and those of the host's interfaces that are wanted as ports.
pub(super) fn present<'a>(wanted: impl IntoIterator<Item = (&'a str, &'a Kind)>) -> Vec<String> {
    let mut present = Pci::default().dpdk_nics();
    let netdevs = wanted.into_iter().filter(|(_, kind)| **kind == Kind::Netdev);
    present.extend(netdevs.filter_map(|(name, _)| netdevs::presence(name)));
    present
}

/// Attaches a device, as [`Ethdev::attach`] does.
pub(super) fn attach(devargs: &str) -> Result<Ethdev, EthdevError> {
    // Hot-plug asks every secondary whose socket it finds, and clients have nothing to say to it.
    ethdev::leave_ipc(&ethdev::eal_runtime_dir());
    Ethdev::attach(devargs)
}

/// The device alone. The last snapshot that had it is gone, or about to be.
fn unshare(mut io: Arc<EthdevIo>) -> Option<EthdevIo> {
    for _ in 0..1000 {
        match Arc::try_unwrap(io) {
            Ok(io) => return Some(io),
            Err(shared) => io = shared,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}
