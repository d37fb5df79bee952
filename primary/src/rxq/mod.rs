//! Which PMD thread polls which receive queue, as Open vSwitch decides it: pinned queues first, the others by what they
//! cost. Knows neither ports nor DPDK.
//!
//! | module | what is in it |
//! |---|---|
//! | [`settings`] | what the database says of it |
//! | [`usage`] | what queues and threads have cost in the last minute |
//! | [`assign`] | the queues of each thread |
//! | [`balance`] | whether another assignment would be worth it |

pub mod assign;
pub mod balance;
pub mod settings;
pub mod usage;
