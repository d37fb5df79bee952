//! vhost-user messages, one method each. What is wrong with a message ends the connection (`Err`), never the process.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};

use super::Device;
use super::device::Inflight;
use super::features::{FEATURES, PROTOCOL, PROTOCOL_FEATURES};
use super::vring::for_pump;
use crate::guest_memory::{DirtyLog, GuestMemory, MapError, RegionSpec, SharedTable};
use crate::net_header::Features;
use crate::port::SwitchPort;
use crate::virtqueue::{Layout, RingAddresses};

fn mapping(why: MapError) -> Error {
    Error::ReqHandlerError(std::io::Error::other(why))
}

/// The descriptor of an event, which must not be a file's: signalling would write into that, wherever it stands.
fn event(fd: Option<File>) -> Result<Option<File>> {
    match &fd {
        Some(file) if file.metadata().map_err(Error::ReqHandlerError)?.is_file() => Err(Error::InvalidParam),
        _ => Ok(fd),
    }
}

impl<P: SwitchPort + 'static> Device<P> {
    fn index(&self, index: u32) -> Result<usize> {
        let index = index as usize;
        if index < self.vrings.len() {
            Ok(index)
        } else {
            Err(Error::InvalidParam)
        }
    }

    fn layout(&self) -> Layout {
        Features::new(self.features).layout()
    }

    /// The frontend told addresses of virtqueue `index` that no ring can have: it does not start.
    pub(super) fn misplace(&mut self, index: u32) -> Result<()> {
        let index = self.index(index)?;
        self.vrings[index].addresses = None;
        Ok(())
    }

    fn reset(&mut self) {
        for index in 0..self.vrings.len() {
            self.stop(index);
            self.enable(index, false);
        }
    }
}

impl<P: SwitchPort + 'static> VhostUserBackendReqHandlerMut for Device<P> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        self.features = 0;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        if features & PROTOCOL == 0 {
            // Without that bit there is no message to enable a ring by.
            for index in 0..self.vrings.len() {
                self.enable(index, true);
            }
        }
        // LOG_ALL comes and goes while the rings run.
        self.refresh_logs();
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let specs = regions
            .iter()
            .zip(files)
            .map(|(region, file)| RegionSpec {
                guest: region.guest_phys_addr,
                frontend: region.user_addr,
                size: region.memory_size,
                offset: region.mmap_offset,
                file,
            })
            .collect();
        self.set_memory(GuestMemory::map(specs).map_err(mapping)?);
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let index = self.index(index)?;
        // The guest's word, which a frontend hands on as it is: with a size that none can have, the ring does not start.
        self.vrings[index].size = u16::try_from(num).unwrap_or(0);
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let index = self.index(index)?;
        let vring = &mut self.vrings[index];
        vring.log_used = flags
            .contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG)
            .then_some(log);
        vring.addresses = Some(RingAddresses {
            descriptors: descriptor,
            available,
            used,
        });
        // A running ring does not move; this is how the log of its used part is switched on and off.
        self.refresh_log(index);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let index = self.index(index)?;
        if self.layout() == Layout::Split && base > u16::MAX.into() {
            return Err(Error::InvalidParam);
        }
        self.vrings[index].base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let at = self.index(index)?;
        let ring = self.stop(at);
        self.handed_over.extend(ring);
        Ok(VhostUserVringState::new(index, self.vrings[at].base))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(index.into())?;
        self.vrings[index].kick = event(fd)?;
        if self.vrings[index].started {
            let kick = for_pump(self.vrings[index].kick.as_ref());
            self.change_lane(index, |lane| lane.kick = kick);
        } else {
            self.vrings[index].started = true;
            self.start(index);
        }
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(index.into())?;
        self.vrings[index].call = event(fd)?;
        let call = for_pump(self.vrings[index].call.as_ref());
        self.change_lane(index, |lane| {
            // What was signalled on the old descriptor may have been lost.
            if let Some(call) = &call {
                call.signal();
            }
            lane.call = call;
        });
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(index.into())?;
        self.vrings[index].err = event(fd)?;
        let err = for_pump(self.vrings[index].err.as_ref());
        self.change_lane(index, |lane| lane.err = err);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !PROTOCOL_FEATURES.bits() != 0 {
            return Err(Error::InvalidParam);
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        // For a network device this is the number of queue pairs.
        Ok(self.queues() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = self.index(index)?;
        self.enable(index, enable);
        Ok(())
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let VhostUserInflight {
            num_queues,
            queue_size,
            ..
        } = *wanted;
        let layout = self.layout();
        if usize::from(num_queues) > self.vrings.len() || !layout.allows(queue_size) {
            return Err(Error::InvalidParam);
        }
        let size = layout.inflight_len(queue_size) * u64::from(num_queues);
        let fd = memfd_create(c"dpdk-qemu-shim-inflight", MFdFlags::MFD_CLOEXEC)
            .map_err(|_| Error::MemFdCreateError)?;
        let mut file = File::from(fd);
        // Written, not truncated: a call that could shorten the switch's hugepage files is not allowed here.
        io::copy(&mut io::repeat(0).take(size), &mut file).map_err(|_| Error::FileTruncateError)?;
        let told = VhostUserInflight {
            mmap_size: size,
            mmap_offset: 0,
            num_queues,
            queue_size,
        };
        self.set_inflight_fd(&told, file.try_clone().map_err(Error::ReqHandlerError)?)?;
        Ok((told, file))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        // It holds words that are stored at once.
        if !inflight.mmap_offset.is_multiple_of(8) {
            return Err(Error::InvalidParam);
        }
        let table = SharedTable::map(&file, inflight.mmap_offset, inflight.mmap_size).map_err(mapping)?;
        self.inflight = Some(Inflight {
            table: Arc::new(table),
            queue_size: inflight.queue_size,
        });
        Ok(())
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let table = SharedTable::map(&file, log.mmap_offset, log.mmap_size).map_err(mapping)?;
        self.log = Some(Arc::new(DirtyLog::new(table)));
        self.refresh_logs();
        Ok(())
    }

    // What follows needs protocol features that are not offered.

    fn get_config(&mut self, _offset: u32, _size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(Error::InvalidOperation("the config space is the frontend's"))
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("the config space is the frontend's"))
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("this is a network device"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("no shared objects"))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(Error::InvalidOperation("no memory slots"))
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _fd: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        Err(Error::InvalidOperation("no memory slots"))
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(Error::InvalidOperation("no memory slots"))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("no device state"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("no device state"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory regions"))
    }
}
