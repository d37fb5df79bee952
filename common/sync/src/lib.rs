//! Where processes and threads meet without a lock: few lines each, every ordering of which matters.
//!
//! | module | who meets |
//! |---|---|
//! | [`need_wakeup`] | a sleeper and those who bring it work |
//! | [`spsc`] | the two ends of a ring |
//! | [`seqlock`] | the writer of the stats segment and its readers |
//! | [`quiescence`] | the control thread, which replaces what PMD threads work by |
//! | [`gate`] | the control thread of a shim, which changes what a pump works on |
//!
//! They take atomics and locks from [`sync`]: the standard library's, or loom's under `--cfg loom`, where
//! `tests/models.rs` runs them through every interleaving and every reordering that the memory model allows. Where they
//! work on shared memory they borrow the atomics there.

pub mod gate;
pub mod need_wakeup;
pub mod quiescence;
pub mod seqlock;
pub mod spsc;
pub mod sync;
