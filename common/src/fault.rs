//! Places where a test has this process die: the steps of attach, detach, and of each ring operation, at which a kill
//! could hurt the others most.
//!
//! Compiled in by the feature `fault-points`, which only the tests' package turns on; without it [`point`] is
//! nothing at all. The environment says where: `VSWITCH_FAULT=NAME` or `VSWITCH_FAULT=NAME@N`, for the N-th time that
//! the process comes by.

/// A step at which a process can be made to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Client: connected to the attach socket, nothing said yet.
    Connected,
    /// Client: hello sent.
    HelloSent,
    /// Client: its turn to initialise EAL.
    Granted,
    /// Client: EAL initialised, the switch not told.
    EalUp,
    /// Client: the switch told so.
    ReadySent,
    /// Client: the answer read, its rings not touched.
    Answered,
    /// Client: about to say that it has stopped.
    Detaching,
    /// Client: the switch told that it has stopped.
    DetachSent,
    /// Ring: entries written, the index not moved.
    EntriesWritten,
    /// Ring: index moved, the peer not woken.
    EntriesPublished,
    /// Ring: entries read, the index not moved.
    EntriesRead,
    /// Ring: index moved, nothing done yet with what was read.
    EntriesTaken,
    /// Shim: chains taken from a virtqueue, not one copied.
    ChainsTaken,
    /// Shim: used elements written, the used index not moved.
    UsedWritten,
    /// Shim: used index moved, descriptors still marked as in flight, the guest not interrupted.
    UsedPublished,
    /// Shim: the frontend's queue set up, not running.
    QueueReady,
    /// Switch: a client told that its turn has come.
    TurnGiven,
    /// Switch: PMD threads work on a client's rings, and it has just got their addresses.
    AttachAnswered,
    /// Switch: PMD threads have left a dead client's rings, its mbufs are not taken back.
    ReleaseUnpublished,
    /// Switch: a dead client's mbufs are taken back.
    Reclaimed,
    /// Switch: EAL runs, nothing is set up.
    SwitchEalUp,
    /// Switch: a new configuration is in force, the database not told.
    Configured,
}

impl Point {
    /// All of them.
    pub const ALL: [Point; 22] = [
        Point::Connected,
        Point::HelloSent,
        Point::Granted,
        Point::EalUp,
        Point::ReadySent,
        Point::Answered,
        Point::Detaching,
        Point::DetachSent,
        Point::EntriesWritten,
        Point::EntriesPublished,
        Point::EntriesRead,
        Point::EntriesTaken,
        Point::ChainsTaken,
        Point::UsedWritten,
        Point::UsedPublished,
        Point::QueueReady,
        Point::TurnGiven,
        Point::AttachAnswered,
        Point::ReleaseUnpublished,
        Point::Reclaimed,
        Point::SwitchEalUp,
        Point::Configured,
    ];

    /// Its name in `VSWITCH_FAULT`: that of the variant.
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// The environment variable that names the point.
pub const VARIABLE: &str = "VSWITCH_FAULT";

/// Dies here if the environment says so.
#[cfg(not(feature = "fault-points"))]
#[inline(always)]
pub fn point(_: Point) {}

#[cfg(feature = "fault-points")]
pub use armed::point;

#[cfg(feature = "fault-points")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{Point, VARIABLE};

    /// Where to die, and how often to come by before that.
    #[derive(Debug)]
    struct Armed {
        point: Point,
        left: AtomicU64,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    fn from_environment() -> Option<Armed> {
        let value = std::env::var(VARIABLE).ok()?;
        let (name, times) = value.split_once('@').unwrap_or((&value, "1"));
        let point = Point::ALL.into_iter().find(|p| p.name() == name);
        let (Some(point), Ok(times @ 1..)) = (point, times.parse()) else {
            panic!(
                "{VARIABLE}={value}: NAME or NAME@N is needed, NAME one of {:?}",
                Point::ALL
            );
        };
        Some(Armed {
            point,
            left: AtomicU64::new(times),
        })
    }

    /// Dies here if the environment says so.
    #[inline]
    pub fn point(here: Point) {
        if let Some(armed) = ARMED.get_or_init(from_environment)
            && armed.point == here
            && armed.left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            die();
        }
    }

    /// Ends this very instant: no unwinding, no clean-up, no system call that a sandbox could refuse.
    #[cold]
    fn die() -> ! {
        // SAFETY: an undefined instruction raises SIGILL, which nobody handles; nothing comes after it.
        unsafe { core::arch::asm!("ud2", options(noreturn)) }
    }
}
