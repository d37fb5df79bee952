//! What was tried and what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::bystanders::Calm;
use crate::switch::Switch;
use crate::wait::{PATIENCE, within};

/// What is done to the switch and its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    KillLoaded,
    KillIdle,
    KillHolding,
    KillAttaching,
    Segv,
    Oom,
    StopKill,
    StopEvict,
    Stop,
    Detach,
    Hostile,
    Evicted,
    HalfOpen,
    ShimKill,
    ShimSegv,
    ShimStop,
    GuestKill,
    SwitchKill,
    SwitchRestart,
    Soak,
}

impl Deed {
    fn text(self) -> &'static str {
        match self {
            Deed::KillLoaded => "client at full load: SIGKILL",
            Deed::KillIdle => "client idle: SIGKILL",
            Deed::KillHolding => "client with mbufs in hand: SIGKILL",
            Deed::KillAttaching => "client within its attach: SIGKILL",
            Deed::Segv => "client: SIGSEGV",
            Deed::Oom => "client: out of memory",
            Deed::StopKill => "client: SIGSTOP, then SIGKILL",
            Deed::StopEvict => "client: SIGSTOP, its port deleted",
            Deed::Stop => "client: SIGSTOP, then SIGCONT",
            Deed::Detach => "client: leaves in order",
            Deed::Hostile => "hostile client: SIGKILL in the act",
            Deed::Evicted => "hostile client: put out by the switch",
            Deed::HalfOpen => "attach socket: half-open, garbage",
            Deed::ShimKill => "shim of a guest under load: SIGKILL",
            Deed::ShimSegv => "shim: SIGSEGV",
            Deed::ShimStop => "shim: SIGSTOP, then SIGCONT",
            Deed::GuestKill => "guest and shim: SIGKILL",
            Deed::SwitchKill => "switch under load: SIGKILL",
            Deed::SwitchRestart => "switch: restarts in a row",
            Deed::Soak => "random step, all counters as foretold",
        }
    }

    /// Does a process die of it by force?
    fn kills(self) -> bool {
        !matches!(
            self,
            Deed::Stop | Deed::Detach | Deed::HalfOpen | Deed::ShimStop | Deed::SwitchRestart | Deed::Soak
        )
    }
}

#[derive(Debug, Default)]
struct Row {
    tried: u64,
    survived: u64,
    /// From the death to the port being free for the next one, to the next one being attached, to frames flowing.
    granted: Vec<Duration>,
    attached: Vec<Duration>,
    flowing: Vec<Duration>,
}

#[derive(Debug, Default)]
struct Sums {
    rows: BTreeMap<Deed, Row>,
    /// Frames of bystanders, loads and guests that were checked.
    frames: u64,
    silence: Duration,
    quiet: u64,
    lost: i64,
}

/// The sums so far. Shared by all threads.
#[derive(Debug, Default)]
pub struct Record(Mutex<Sums>);

impl Record {
    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn row(&self, deed: Deed, change: impl FnOnce(&mut Row)) {
        change(self.sums().rows.entry(deed).or_default());
    }

    /// Something is about to be done.
    pub fn tried(&self, deed: Deed) {
        self.row(deed, |row| row.tried += 1);
    }

    /// It was done, and all is well.
    pub fn survived(&self, deed: Deed) {
        self.row(deed, |row| row.survived += 1);
    }

    /// The port was free for the next client, and the next one attached, so long after a death.
    pub fn attached_again(&self, deed: Deed, granted: Option<Duration>, attached: Duration) {
        self.row(deed, |row| {
            row.granted.extend(granted);
            row.attached.push(attached);
        });
    }

    /// Frames flowed again so long after a death.
    pub fn flowing_again(&self, deed: Deed, time: Duration) {
        self.row(deed, |row| row.flowing.push(time));
    }

    /// Frames came that were checked one by one.
    pub fn checked(&self, frames: u64) {
        self.sums().frames += frames;
    }

    /// How the bystanders fared.
    pub fn calm(&self, calm: Calm) {
        let mut sums = self.sums();
        sums.frames += calm.frames;
        sums.silence = sums.silence.max(calm.silence);
    }

    /// Nobody is attached: `free` mbufs must be free, exactly.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn quiet(&self, switch: &Switch, free: u64) {
        let mut seen = 0;
        let back = within(PATIENCE, || {
            seen = switch.free_mbufs();
            seen == free && switch.free_mbufs() == free
        });
        self.sums().quiet += 1;
        if !back {
            self.sums().lost += free.cast_signed() - seen.cast_signed();
            panic!("{seen} mbufs are free, not {free}:\n{}", switch.counters());
        }
    }

    /// Processes killed so far.
    pub fn kills(&self) -> u64 {
        let sums = self.sums();
        let killing = sums.rows.iter().filter(|(deed, _)| deed.kills());
        killing.map(|(_, row)| row.tried).sum()
    }

    /// How often `deed` was tried.
    pub fn times(&self, deed: Deed) -> u64 {
        self.sums().rows.get(&deed).map_or(0, |row| row.tried)
    }

    /// All mbufs lost so far.
    pub fn lost(&self) -> i64 {
        self.sums().lost
    }
}

/// Tenths of a millisecond; `-` where nothing was measured.
fn ms(time: Option<&Duration>) -> String {
    time.map_or_else(|| "-".into(), |t| format!("{:.1}", t.as_secs_f64() * 1000.0))
}

fn median(times: &mut [Duration]) -> Option<&Duration> {
    times.sort_unstable();
    times.get(times.len() / 2)
}

/// The table.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sums = self.sums();
        writeln!(
            f,
            "{:<38} {:>6} {:>8}   {:>17}   {:>17}   {:>17}",
            "", "", "", "port free", "attached again", "frames again"
        )?;
        writeln!(
            f,
            "{:<38} {:>6} {:>8}   {:>8} {:>8}   {:>8} {:>8}   {:>8} {:>8}",
            "what was done",
            "times",
            "survived",
            "median",
            "worst ms",
            "median",
            "worst ms",
            "median",
            "worst ms"
        )?;
        for (deed, row) in &mut sums.rows {
            writeln!(
                f,
                "{:<38} {:>6} {:>8}   {:>8} {:>8}   {:>8} {:>8}   {:>8} {:>8}",
                deed.text(),
                row.tried,
                row.survived,
                ms(median(&mut row.granted)),
                ms(row.granted.iter().max()),
                ms(median(&mut row.attached)),
                ms(row.attached.iter().max()),
                ms(median(&mut row.flowing)),
                ms(row.flowing.iter().max()),
            )?;
        }
        let killing = sums.rows.iter().filter(|(deed, _)| deed.kills());
        let kills: u64 = killing.map(|(_, row)| row.tried).sum();
        writeln!(f, "processes killed: {kills}")?;
        writeln!(
            f,
            "buffers lost: {} (the pool was counted at {} quiet points)",
            sums.lost, sums.quiet
        )?;
        writeln!(
            f,
            "frames checked one by one: {}; bystanders' longest silence {} ms",
            sums.frames,
            ms(Some(&sums.silence))
        )
    }
}
