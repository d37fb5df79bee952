//! What the switch wants the database to show.
//!
//! The client writes the columns that differ from what the database holds. A row that is not mentioned here is left alone;
//! one that is mentioned but gone from the database is passed over.

use crate::{MacAddr, Uuid};
use std::collections::{BTreeMap, BTreeSet};

/// The state of the whole switch.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Status {
    /// The `next_cfg` of the configuration that is in force; `ovs-vsctl` without `--no-wait` waits for it.
    pub cur_cfg: i64,
    pub dpdk_version: Option<String>,
    pub dpdk_initialized: bool,
    pub datapath_types: BTreeSet<String>,
    pub iface_types: BTreeSet<String>,
    /// By the row's UUID, as are the others.
    pub bridges: BTreeMap<Uuid, BridgeStatus>,
    pub interfaces: BTreeMap<Uuid, InterfaceStatus>,
    pub mirrors: BTreeMap<Uuid, MirrorStatus>,
}

/// Columns of table `Bridge`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct BridgeStatus {
    /// 16 hex digits.
    pub datapath_id: Option<String>,
    /// OVS writes `<built-in>`.
    pub datapath_version: String,
}

/// Columns of table `Interface`. `None` and empty maps clear a column.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct InterfaceStatus {
    /// OpenFlow port number: 65534 for the bridge's own port, 1..=65279 for others, -1 with `error` on failure.
    pub ofport: Option<i64>,
    /// Shown by `ovs-vsctl show` and by the command that created the interface.
    pub error: Option<String>,
    pub admin_state: Option<LinkState>,
    pub link_state: Option<LinkState>,
    /// bit/s.
    pub link_speed: Option<i64>,
    pub duplex: Option<Duplex>,
    pub mac_in_use: Option<MacAddr>,
    /// Bytes.
    pub mtu: Option<i64>,
    /// Kernel interface index, 0..=4294967295.
    pub ifindex: Option<i64>,
    pub status: BTreeMap<String, String>,
    /// Paced by `other_config:stats-update-interval`.
    pub statistics: BTreeMap<String, i64>,
}

impl InterfaceStatus {
    /// An interface that could not be set up: `ofport` -1 and the reason.
    pub fn failed(reason: impl Into<String>) -> Self {
        InterfaceStatus {
            ofport: Some(-1),
            error: Some(reason.into()),
            ..Default::default()
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    Up,
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duplex {
    Half,
    Full,
}

/// Columns of table `Mirror`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct MirrorStatus {
    /// `tx_packets` and `tx_bytes`; paced like those of interfaces.
    pub statistics: BTreeMap<String, i64>,
}
