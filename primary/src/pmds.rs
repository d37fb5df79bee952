//! The PMD threads: EAL worker lcores, started, pinned and stopped as the configuration asks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vswitch_common::eal::Eal;
use vswitch_common::stats::{PortBlock, Segment, ThreadSnapshot};

use crate::cpus;
use crate::datapath::clock::{Clock, tsc};
use crate::datapath::ledger::Ledger;
use crate::datapath::pmd::{Control, Pmd};
use crate::datapath::snapshot::Publisher;

/// PMD threads at most.
pub const MAX_PMDS: usize = 16;

/// The running PMD threads.
#[derive(Debug)]
pub struct Pmds {
    eal: Eal,
    publisher: Arc<Publisher>,
    ledger: Arc<Ledger>,
    segment: Arc<Segment>,
    clock: Clock,
    lcores: Vec<u32>,
    /// Where a thread runs that is not pinned.
    cpus: Vec<usize>,
    running: Vec<Thread>,
}

#[derive(Debug)]
struct Thread {
    control: Arc<Control>,
    lcore: u32,
    cpu: Option<usize>,
    /// It is not on that CPU, and can't be brought there: that has been said.
    astray: bool,
    /// What it had counted when its statistics were cleared, and the timestamp counter of that moment.
    cleared: (ThreadSnapshot, u64),
}

impl Pmds {
    /// Takes EAL's worker lcores; none runs yet.
    pub fn new(
        eal: Eal,
        publisher: Arc<Publisher>,
        ledger: Arc<Ledger>,
        segment: Arc<Segment>,
        clock: Clock,
        cpus: Vec<usize>,
    ) -> Pmds {
        let lcores = eal.worker_lcores();
        Pmds {
            eal,
            publisher,
            ledger,
            segment,
            clock,
            lcores,
            cpus,
            running: Vec::new(),
        }
    }

    /// PMD threads that run.
    pub fn count(&self) -> usize {
        self.running.len()
    }

    /// What is wrong with one thread for each of `cpus`: they are more than there can be.
    pub fn complaint(&self, cpus: &[usize]) -> Option<String> {
        complaint(cpus, self.lcores.len())
    }

    /// The CPU that each running thread is pinned to.
    pub fn cpus(&self) -> Vec<Option<usize>> {
        self.running.iter().map(|t| t.cpu).collect()
    }

    /// What thread `thread` has counted, and others of that number before it.
    pub fn counters(&self, thread: usize) -> ThreadSnapshot {
        // Number 0 of the counters is the control thread.
        self.segment.thread(thread + 1)
    }

    /// What thread `thread` has counted since its statistics were cleared or it came to its CPU, and how long that is.
    pub fn statistics(&self, thread: usize) -> (ThreadSnapshot, Duration) {
        let (before, ticks) = &self.running[thread].cleared;
        let seconds = tsc().wrapping_sub(*ticks) as f64 / self.clock.hz() as f64;
        (
            self.counters(thread).since(before),
            Duration::from_secs_f64(seconds),
        )
    }

    /// Begins the statistics of thread `thread` anew.
    pub fn clear_statistics(&mut self, thread: usize) {
        self.running[thread].cleared = (self.counters(thread), tsc());
    }

    /// Kernel thread id of thread `thread`.
    pub fn tid(&self, thread: usize) -> Option<u32> {
        Some(self.running.get(thread)?.control.tid.load(Ordering::Acquire))
    }

    /// Brings pinned threads back to their CPUs. Until Linux 6.2 they lose them with any change of a CPU set, which may be another
    /// service's, and always as a CPU goes offline.
    pub fn keep_pinned(&mut self) {
        for (number, thread) in self.running.iter_mut().enumerate() {
            let (Some(cpu), tid) = (thread.cpu, thread.control.tid.load(Ordering::Acquire)) else {
                continue;
            };
            if cpus::of_thread(tid).is_ok_and(|set| set == [cpu]) {
                thread.astray = false;
                continue;
            }
            match cpus::pin(tid, &[cpu]) {
                Ok(()) => log::warn!("PMD thread {number} was taken off CPU {cpu}; it is back"),
                Err(e) if !thread.astray => {
                    log::error!("PMD thread {number} can't go back to CPU {cpu}: {e}; trying on");
                    thread.astray = true;
                }
                Err(_) => {}
            }
        }
    }

    /// Runs one thread on each of `cpus`, or of the first of them, if they are more than there can be threads; without a list, one
    /// thread that the kernel places.
    pub fn configure(&mut self, cpus: Option<&[usize]>) {
        let wanted: Vec<Option<usize>> = match cpus {
            Some(list) => list.iter().map(|&cpu| Some(cpu)).collect(),
            None => vec![None],
        };
        let wanted = &wanted[..wanted.len().min(self.lcores.len())];
        if self.running.iter().map(|t| t.cpu).eq(wanted.iter().copied()) {
            return;
        }
        while self.running.len() > wanted.len() {
            if let Some(thread) = self.running.pop() {
                self.join(thread);
            }
        }
        for (number, &cpu) in wanted.iter().enumerate() {
            if number >= self.running.len() {
                match self.start(number) {
                    Some(thread) => self.running.push(thread),
                    None => break,
                }
            }
            let thread = &mut self.running[number];
            let set = cpu.map_or_else(|| self.cpus.clone(), |c| vec![c]);
            if let Err(e) = cpus::pin(thread.control.tid.load(Ordering::Acquire), &set) {
                log::error!(
                    "PMD thread {number} can't be pinned to CPU {}: {e}",
                    cpus::show(&set)
                );
            }
            // Number 0 of the counters is the control thread.
            self.segment.set_cpu(number + 1, cpu);
            if std::mem::replace(&mut thread.cpu, cpu) != cpu {
                self.clear_statistics(number);
            }
        }
        self.segment.set_threads(self.running.len() + 1);
        log::info!("{} PMD thread(s) run", self.running.len());
    }

    fn start(&self, number: usize) -> Option<Thread> {
        let lcore = *self.lcores.get(number)?;
        // Number 0 of the counters is the control thread.
        let stats = PortBlock::claim(&self.segment, number + 1)?;
        let control = Arc::new(Control::default());
        let pmd = Pmd {
            thread: number,
            publisher: self.publisher.clone(),
            ledger: self.ledger.clone(),
            stats,
            clock: self.clock,
            control: control.clone(),
        };
        self.publisher.starting(number);
        if let Err(e) = self.eal.launch(lcore, Box::new(move || pmd.run())) {
            self.publisher.stopped(number);
            log::error!("PMD thread {number} does not start: {e}");
            return None;
        }
        while control.tid.load(Ordering::Acquire) == 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
        Some(Thread {
            control,
            lcore,
            cpu: None,
            astray: false,
            cleared: (self.counters(number), tsc()),
        })
    }

    fn join(&self, thread: Thread) {
        thread.control.stop.store(true, Ordering::Relaxed);
        (0..MAX_PMDS.min(self.lcores.len())).for_each(|n| self.publisher.wake(n).ring());
        self.eal.wait(thread.lcore);
    }

    /// Stops all of them.
    pub fn stop(&mut self) {
        while let Some(thread) = self.running.pop() {
            self.join(thread);
        }
    }

    /// Ends EAL, at the very last.
    pub fn into_eal(mut self) -> Eal {
        self.stop();
        self.eal
    }
}

fn complaint(cpus: &[usize], most: usize) -> Option<String> {
    let left_out = cpus.get(most..).filter(|list| !list.is_empty())?;
    Some(format!(
        "Open_vSwitch other_config:pmd-cpu-mask: {most} PMD threads are possible; there is none on CPU {}",
        cpus::show(left_out)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_that_get_no_thread_are_named() {
        assert_eq!(complaint(&[3, 4], 2), None);
        assert_eq!(complaint(&[], 2), None);
        let text = complaint(&[3, 4, 6, 9], 2).unwrap();
        assert!(
            text.ends_with("2 PMD threads are possible; there is none on CPU 6,9"),
            "{text}"
        );
    }
}
