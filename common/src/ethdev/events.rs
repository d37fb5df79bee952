//! What happens to devices by itself: links that come and go, devices that are pulled out.
//!
//! DPDK tells it on EAL's interrupt thread, which must not wait. So it is only noted here, and whoever listens is woken.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};

use dpdk_sys as sys;

use super::name_of;

/// Wakes whoever looks after the devices.
type Waker = Box<dyn Fn() + Send + Sync>;

static WAKER: OnceLock<Waker> = OnceLock::new();
/// Names of devices that are gone, or are to be let go, since the last look.
static REMOVED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// From now on `wake` is called, on EAL's interrupt thread, when a link changed or a device is removed. Once in a
/// process, when EAL runs. Without it links have to be polled, and a device that is pulled out is not noticed.
pub fn listen(wake: impl Fn() + Send + Sync + 'static) {
    if WAKER.set(Box::new(wake)).is_err() {
        return;
    }
    for event in [sys::RTE_ETH_EVENT_INTR_LSC, sys::RTE_ETH_EVENT_INTR_RMV] {
        let all = sys::RTE_ETH_ALL as u16;
        // SAFETY: a function that lives as long as the process, and is given nothing.
        let rc = unsafe { sys::rte_eth_dev_callback_register(all, event, Some(on_port), ptr::null_mut()) };
        complain("events of ports", rc);
    }
    // SAFETY: as above; no name stands for all devices.
    let rc = unsafe { sys::rte_dev_event_callback_register(ptr::null(), Some(on_device), ptr::null_mut()) };
    complain("events of devices", rc);
    // A device that is gone is still looked at until it is let go: that is made harmless.
    // SAFETY: starts EAL's own handling, by a signal handler for bus errors and the kernel's device events.
    let rc = unsafe {
        match sys::rte_dev_hotplug_handle_enable() {
            0 => sys::rte_dev_event_monitor_start(),
            rc => rc,
        }
    };
    complain("removal of devices", rc);
}

/// Names of the devices that were removed since the last call. They are to be let go soon: the kernel may wait for it.
pub fn take_removed() -> BTreeSet<String> {
    std::mem::take(&mut REMOVED.lock().unwrap_or_else(PoisonError::into_inner))
}

fn complain(what: &str, rc: c_int) {
    if rc != 0 {
        log::warn!("{what} can't be watched: {}", crate::eal::strerror(-rc));
    }
}

fn removed(name: String) {
    REMOVED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(name);
}

unsafe extern "C" fn on_port(port: u16, event: u32, _: *mut c_void, _: *mut c_void) -> c_int {
    if event == sys::RTE_ETH_EVENT_INTR_RMV {
        name_of(port).into_iter().for_each(removed);
    }
    WAKER.get().inspect(|wake| wake());
    0
}

unsafe extern "C" fn on_device(name: *const c_char, event: u32, _: *mut c_void) {
    if event == sys::RTE_DEV_EVENT_REMOVE && !name.is_null() {
        // SAFETY: DPDK names devices by NUL-terminated strings.
        removed(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned());
        WAKER.get().inspect(|wake| wake());
    }
}
