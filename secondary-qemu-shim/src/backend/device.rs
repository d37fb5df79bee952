//! The device: settings of every virtqueue, the guest's memory, the pumps, and the switch's queue pairs they use.

use std::io;
use std::sync::Arc;

use vswitch_common::fault::{self, Point};

use super::features::LOG_ALL;
use super::vring::{Direction, Vring, for_pump};
use crate::eal_args::EalArgs;
use crate::guest_memory::{DirtyLog, GuestMemory, SharedTable};
use crate::net_header::Features;
use crate::port::SwitchPort;
use crate::pump::{Lane, Pump, Seat, State};
use crate::virtqueue::{Ring, UsedLog, Virtqueue};

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("starting the thread of a queue pair: {0}")]
    Pump(io::Error),
}

/// What the frontend's inflight region is laid out for.
#[derive(Debug, Clone)]
pub struct Inflight {
    pub table: Arc<SharedTable>,
    pub queue_size: u16,
}

/// A virtio-net device with a pump for each queue pair.
#[derive(Debug)]
pub struct Device<P> {
    port: u16,
    pub(super) pumps: Vec<Pump<P>>,
    pub(super) vrings: Vec<Vring>,
    pub(super) features: u64,
    pub(super) memory: Option<Arc<GuestMemory>>,
    pub(super) log: Option<Arc<DirtyLog>>,
    pub(super) inflight: Option<Inflight>,
    /// Rings that have stopped, of which the frontend is being told where.
    pub(super) handed_over: Vec<Ring>,
    attached: bool,
    /// The pump that has the switch's queue pair, by queue pair.
    seated: Vec<usize>,
}

impl<P: SwitchPort + 'static> Device<P> {
    /// A device with `queues` queue pairs that serves port `port`; its pumps run where `eal` says.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn new(port: u16, queues: u16, eal: &EalArgs) -> Result<Device<P>, DeviceError> {
        let pumps = (0..usize::from(queues))
            .map(|q| Pump::start(&format!("pump-{q}"), eal.cpu_of(q)))
            .collect::<io::Result<Vec<_>>>()
            .map_err(DeviceError::Pump)?;
        Ok(Device::with_pumps(port, pumps))
    }

    /// A device whose queue pairs `pumps` serve.
    pub(super) fn with_pumps(port: u16, pumps: Vec<Pump<P>>) -> Device<P> {
        let vrings = (0..2 * pumps.len()).map(|_| Vring::default()).collect();
        Device {
            port,
            pumps,
            vrings,
            features: 0,
            memory: None,
            log: None,
            inflight: None,
            handed_over: Vec::new(),
            attached: false,
            seated: Vec::new(),
        }
    }

    /// Queue pairs.
    pub fn queues(&self) -> usize {
        self.pumps.len()
    }

    /// Has the frontend started a virtqueue, and not stopped it since?
    pub fn has_started(&self) -> bool {
        self.vrings.iter().any(|vring| vring.started)
    }

    /// The switch's queue pairs are here: frames flow.
    pub fn attach(&mut self, ports: Vec<P>) {
        for (queue, (pump, port)) in self.pumps.iter().zip(ports).enumerate() {
            pump.change(|state| {
                state.seats = vec![Seat::new(queue, port)];
                state.unplugged = false;
            });
        }
        self.seated = (0..self.pumps.len()).collect();
        self.attached = true;
        self.reseat();
    }

    /// The switch is gone: nothing of it is touched any more.
    pub fn detach(&mut self) {
        for pump in &self.pumps {
            pump.change(State::unseat);
        }
        self.attached = false;
    }

    /// Without a switch: lets the guest's frames go (true), or keeps them in the virtqueue for the switch that is
    /// about to answer.
    pub fn set_unplugged(&mut self, unplugged: bool) {
        for pump in &self.pumps {
            pump.change(|state| state.unplugged = unplugged);
        }
    }

    /// The frontend is gone: every virtqueue stops, and nothing it said is valid any more.
    pub fn disconnect(&mut self) {
        for index in 0..self.vrings.len() {
            self.stop(index);
        }
        self.vrings.iter_mut().for_each(|vring| *vring = Vring::default());
        self.features = 0;
        self.memory = None;
        self.log = None;
        self.inflight = None;
        self.handed_over.clear();
        self.reseat();
    }

    /// The frontend has its answer.
    pub(super) fn answered(&mut self) {
        self.handed_over.drain(..).for_each(|mut ring| ring.hand_over());
    }

    fn change<R>(&self, index: usize, change: impl FnOnce(&mut State<P>, Direction) -> R) -> R {
        let (pair, direction) = Vring::place(index);
        self.pumps[pair].change(|state| change(state, direction))
    }

    /// Changes the running lane of virtqueue `index`, if there is one.
    pub(super) fn change_lane(&self, index: usize, change: impl FnOnce(&mut Lane<Ring>)) {
        self.change(index, |state, direction| {
            if let Some(lane) = lane_of(state, direction) {
                change(lane);
            }
        });
    }

    fn logs(&self) -> Option<Arc<DirtyLog>> {
        self.log.clone().filter(|_| self.features & LOG_ALL != 0)
    }

    fn used_log(&self, index: usize) -> Option<UsedLog> {
        Some(UsedLog {
            log: self.logs()?,
            guest: self.vrings[index].log_used?,
        })
    }

    fn name(&self, index: usize) -> String {
        let (pair, direction) = Vring::place(index);
        let direction = if direction == Direction::Receive {
            "receive"
        } else {
            "transmit"
        };
        format!("port {}, queue pair {pair}, {direction}", self.port)
    }

    /// Starts virtqueue `index`, which has its kick descriptor. What the guest made unusable stays stopped.
    pub(super) fn start(&mut self, index: usize) {
        let name = self.name(index);
        let vring = &self.vrings[index];
        let (Some(memory), Some(addresses)) = (&self.memory, vring.addresses) else {
            log::error!(
                "{name}: the frontend starts the virtqueue without memory or sound addresses; it stays stopped"
            );
            return;
        };
        let features = Features::new(self.features);
        let Some(mut queue) = Ring::new(features.layout(), memory, addresses, vring.size, vring.base) else {
            log::error!(
                "{name}: a ring of {} at {addresses:x?}, to go on at {:#x}, is not in guest memory; it stays stopped",
                vring.size,
                vring.base
            );
            return;
        };
        queue.set_features(features.ring());
        queue.set_log(self.used_log(index));
        if let Some(Inflight { table, queue_size }) = &self.inflight {
            queue.set_inflight(table, index, *queue_size);
        }
        if queue.base() != vring.base {
            log::info!(
                "{name}: goes on at {:#x}, not at {:#x} as told",
                queue.base(),
                vring.base
            );
        }
        fault::point(Point::QueueReady);
        queue.suppress_kicks();
        let lane = Lane {
            name,
            queue,
            memory: Arc::clone(memory),
            features,
            enabled: vring.enabled,
            given_up: false,
            log: self.logs(),
            kick: for_pump(vring.kick.as_ref()),
            call: for_pump(vring.call.as_ref()),
            err: for_pump(vring.err.as_ref()),
            fault: None,
        };
        // A backend that was killed may have owed the guest an interrupt; one too many does no harm.
        if let Some(call) = &lane.call {
            call.signal();
        }
        log::debug!(
            "{}: starts at {:#x}, {} entries",
            lane.name,
            lane.queue.base(),
            lane.queue.size()
        );
        self.change(index, |state, direction| *slot_of(state, direction) = Some(lane));
        self.vrings[index].running = true;
        self.reseat();
    }

    /// Stops virtqueue `index`; its base is then where it stopped. Its ring, if it ran.
    pub(super) fn stop(&mut self, index: usize) -> Option<Ring> {
        let lane = self.change(index, |state, direction| {
            if direction == Direction::Receive {
                state.forget_frames();
            }
            slot_of(state, direction).take()
        });
        let vring = &mut self.vrings[index];
        vring.started = false;
        vring.running = false;
        vring.kick = None;
        let lane = lane?;
        vring.base = lane.queue.base();
        log::debug!("{}: stopped at {:#x}", lane.name, vring.base);
        self.reseat();
        Some(lane.queue)
    }

    /// Enables or disables virtqueue `index`.
    pub(super) fn enable(&mut self, index: usize, enabled: bool) {
        self.vrings[index].enabled = enabled;
        self.change(index, |state, direction| {
            if direction == Direction::Receive && !enabled {
                state.forget_frames();
            }
            if let Some(lane) = lane_of(state, direction) {
                lane.given_up =
                    direction == Direction::Transmit && !enabled && (lane.enabled || lane.given_up);
                lane.enabled = enabled;
            }
        });
        self.reseat();
    }

    /// Gives every running lane the present logs: they, or the wish for them, changed.
    pub(super) fn refresh_logs(&self) {
        (0..self.vrings.len()).for_each(|index| self.refresh_log(index));
    }

    /// The same for virtqueue `index` alone.
    pub(super) fn refresh_log(&self, index: usize) {
        let (log, used) = (self.logs(), self.used_log(index));
        self.change_lane(index, |lane| {
            lane.log = log;
            lane.queue.set_log(used);
        });
    }

    /// Replaces the memory table, under running virtqueues too. A virtqueue that is not in the new one stops.
    pub(super) fn set_memory(&mut self, memory: GuestMemory) {
        let memory = Arc::new(memory);
        self.memory = Some(Arc::clone(&memory));
        for index in 0..self.vrings.len() {
            let Some(addresses) = self.vrings[index].addresses else {
                continue;
            };
            let name = self.name(index);
            let (base, running) = self.change(index, |state, direction| {
                let slot = slot_of(state, direction);
                let base = slot.as_ref().map(|lane| lane.queue.base());
                *slot = slot.take().and_then(|lane| {
                    let Some(queue) = lane.queue.moved(&memory, addresses) else {
                        log::error!("{name}: the new memory table does not hold the ring; it stops");
                        return None;
                    };
                    Some(Lane {
                        queue,
                        memory: Arc::clone(&memory),
                        ..lane
                    })
                });
                (base, slot.is_some())
            });
            let vring = &mut self.vrings[index];
            // Where it stands if it has just stopped.
            vring.base = base.unwrap_or(vring.base);
            vring.running = running;
        }
        self.reseat();
    }

    /// Puts the switch's queue pairs where the guest listens: each to its own pump, or, where the guest does not
    /// receive on that one, to one of those it does receive on. Nothing sent to the port gets stuck.
    fn reseat(&mut self) {
        let used = |queue: usize, direction| self.vrings[Vring::index(queue, direction)].is_used();
        let queues = 0..self.pumps.len();
        let receives: Vec<usize> = queues.clone().filter(|&q| used(q, Direction::Receive)).collect();
        let target = |queue: usize| {
            let stays = receives.is_empty() || receives.contains(&queue) || used(queue, Direction::Transmit);
            if stays {
                queue
            } else {
                receives[queue % receives.len()]
            }
        };
        let targets: Vec<usize> = queues.map(target).collect();
        // Each look at a pump makes it pause.
        if !self.attached || targets == self.seated {
            return;
        }
        let mut seats: Vec<(usize, Seat<P>)> = self
            .pumps
            .iter()
            .flat_map(|pump| pump.change(State::unseat))
            .map(|seat| (seat.queue(), seat))
            .collect();
        seats.sort_by_key(|&(queue, _)| queue);
        for (queue, seat) in seats {
            let target = targets[queue];
            self.pumps[target].change(|state| {
                state.seats.push(seat);
                // The pump's own queue pair comes first: it takes the guest's frames.
                state
                    .seats
                    .sort_by_key(|seat| (seat.queue() != target, seat.queue()));
            });
        }
        self.seated = targets;
    }
}

fn slot_of<P>(state: &mut State<P>, direction: Direction) -> &mut Option<Lane<Ring>> {
    match direction {
        Direction::Receive => &mut state.rx,
        Direction::Transmit => &mut state.tx,
    }
}

fn lane_of<P>(state: &mut State<P>, direction: Direction) -> Option<&mut Lane<Ring>> {
    slot_of(state, direction).as_mut()
}
