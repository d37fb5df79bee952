//! Clients of the switch: real ones that move frames, and mere holders of ports.

use anyhow::bail;
use dpdk_vswitchd::cpus;
use vswitch_common::port::message::Message;
use vswitch_tests::attach::{Answer, Raw};
use vswitch_tests::{Bare, Switch};

use crate::peer::SWITCHING_CPU;

/// A client process on `port` that keeps off the CPU that switches.
pub fn attach(switch: &Switch, port: u16) -> Bare {
    off_the_switching_cpu(|| Bare::attached(switch, port))
}

/// Runs `start`, whose child processes keep off the CPU that switches, if there is another.
pub fn off_the_switching_cpu<R>(start: impl FnOnce() -> R) -> R {
    let all = cpus::inherited();
    let others: Vec<usize> = all.iter().copied().filter(|&cpu| cpu != SWITCHING_CPU).collect();
    if others.is_empty() || cpus::pin(0, &others).is_err() {
        return start();
    }
    let result = start();
    // It was on these a moment ago.
    let _ = cpus::pin(0, &all);
    result
}

/// A client that moves nothing: the switch keeps rings and empty mbufs for it, and polls it, as for any. It is no process
/// of its own, so there may be many. Detached when dropped.
#[derive(Debug)]
pub struct Idle(Raw);

impl Idle {
    /// Attaches to `port`.
    ///
    /// # Errors
    /// The switch does not let it.
    pub fn attach(switch: &Switch, port: u16) -> anyhow::Result<Idle> {
        let mut raw = Raw::connect(&switch.attach_socket())?;
        raw.hello(port, 1, "idle");
        loop {
            match raw.answer() {
                // It maps nothing, so there is no EAL to start.
                Answer::Message(Message::Grant(_)) => raw.ready(),
                Answer::Message(Message::Attached(_)) => return Ok(Idle(raw)),
                Answer::Message(Message::Refusal(refusal)) => bail!("{}", refusal.text.get()),
                other => bail!("port {port}: {other:?}"),
            };
        }
    }
}

impl Drop for Idle {
    /// Who only hangs up is waited for until its process has ended.
    fn drop(&mut self) {
        self.0.detach();
    }
}
