//! A device without threads, for tests that take its steps themselves.

use std::io;

use super::Device;
use crate::port::SwitchPort;
use crate::pump::Pump;

impl<P: SwitchPort + 'static> Device<P> {
    /// As [`Device::new`], but nothing moves until [`Device::settle`].
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn without_threads(port: u16, queues: u16) -> io::Result<Device<P>> {
        let pumps = (0..queues).map(|_| Pump::without_thread());
        Ok(Device::with_pumps(port, pumps.collect::<io::Result<_>>()?))
    }

    /// Lets every pump work until it would sleep. False: one still had something to do after `limit` steps.
    pub fn settle(&self, limit: usize) -> bool {
        self.pumps.iter().all(|pump| pump.settle(limit))
    }
}
