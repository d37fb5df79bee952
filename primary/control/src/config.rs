//! What the database asks of the switch: a plain snapshot of the rows that matter.
//!
//! Every list is sorted by name, so that equal databases give equal values whatever the order in which rows arrived.
//! A value outside its range (only possible with a foreign schema) counts as not set.

use crate::Uuid;
use std::collections::BTreeMap;
use std::time::Duration;

/// The whole configuration (table `Open_vSwitch` and what it reaches).
#[derive(Clone, Debug, PartialEq, Default)]
pub struct SwitchConfig {
    /// `other_config`: `dpdk-extra`, `dpdk-socket-mem`, `pmd-cpu-mask`, `stats-update-interval`, ...
    pub other_config: BTreeMap<String, String>,
    /// `next_cfg`: publish it as [`crate::status::Status::cur_cfg`] once this configuration is in force.
    pub next_cfg: i64,
    pub bridges: Vec<BridgeConfig>,
}

/// One bridge (table `Bridge`).
#[derive(Clone, Debug, PartialEq, Default)]
pub struct BridgeConfig {
    pub uuid: Uuid,
    pub name: String,
    /// As written by the user: `""`, `dpdk`, `netdev`, `system`, ...
    pub datapath_type: String,
    pub other_config: BTreeMap<String, String>,
    pub fail_mode: Option<FailMode>,
    /// It names OpenFlow controllers.
    pub controller: bool,
    /// Columns with a value that asks for what the switch does not have.
    pub unsupported: Vec<&'static str>,
    pub ports: Vec<PortConfig>,
    pub mirrors: Vec<MirrorConfig>,
}

/// A mirror (table `Mirror`). Ports are named.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct MirrorConfig {
    pub uuid: Uuid,
    pub name: String,
    pub select_all: bool,
    pub select_src_port: Vec<String>,
    pub select_dst_port: Vec<String>,
    /// VLANs, ascending; empty: all.
    pub select_vlan: Vec<u16>,
    pub output_port: Option<String>,
    pub output_vlan: Option<u16>,
    /// Bytes of a frame at most, 14..=65535.
    pub snaplen: Option<u16>,
    /// Columns with a value that asks for what the switch does not have.
    pub unsupported: Vec<&'static str>,
}

/// What a bridge does while no controller is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailMode {
    Standalone,
    Secure,
}

/// One port (table `Port`): VLAN settings, and one interface or several of a bond.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct PortConfig {
    pub name: String,
    /// Access or native VLAN, 0..=4095.
    pub tag: Option<u16>,
    /// VLANs carried, ascending; empty: all.
    pub trunks: Vec<u16>,
    pub vlan_mode: Option<VlanMode>,
    /// Columns with a value that asks for what the switch does not have.
    pub unsupported: Vec<&'static str>,
    pub interfaces: Vec<InterfaceConfig>,
}

/// `Port.vlan_mode`. When it is not set, a port with a `tag` is an access port, one without a trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VlanMode {
    Access,
    Trunk,
    NativeTagged,
    NativeUntagged,
    Dot1qTunnel,
}

/// One interface (table `Interface`).
#[derive(Clone, Debug, PartialEq, Default)]
pub struct InterfaceConfig {
    pub uuid: Uuid,
    pub name: String,
    /// The `type` column: `""`, `internal`, `dpdk`, `dpdkr`, `tap`, ...
    pub kind: String,
    pub options: BTreeMap<String, String>,
    /// Address asked for, as written by the user.
    pub mac: Option<String>,
    /// Bytes.
    pub mtu_request: Option<i64>,
    /// 1..=65279.
    pub ofport_request: Option<u16>,
    /// 1..=65279: the number that the row says it has, to be kept where nothing else is asked for.
    pub ofport: Hint<u16>,
    pub other_config: BTreeMap<String, String>,
    /// kbit/s; 0: no limit.
    pub ingress_policing_rate: i64,
    /// kbit; 0: the default.
    pub ingress_policing_burst: i64,
    /// Thousand packets/s; 0: no limit.
    pub ingress_policing_kpkts_rate: i64,
    /// Thousand packets; 0: the default.
    pub ingress_policing_kpkts_burst: i64,
    /// Columns with a value that asks for what the switch does not have.
    pub unsupported: Vec<&'static str>,
}

/// What the switch itself has written to the database before. It asks for nothing, so it makes no two configurations differ.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint<T>(pub Option<T>);

impl<T> PartialEq for Hint<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Statistics are not written more often than this, whatever `stats-update-interval` says.
pub const MIN_STATS_INTERVAL: Duration = Duration::from_millis(5000);

/// How often statistics are written, by `stats-update-interval` in milliseconds.
///
/// # Errors
/// It is no number; [`MIN_STATS_INTERVAL`] counts.
pub fn stats_interval(other_config: &BTreeMap<String, String>) -> Result<Duration, String> {
    let Some(text) = other_config.get("stats-update-interval") else {
        return Ok(MIN_STATS_INTERVAL);
    };
    let ms = text.trim().parse::<u32>().map_err(|_| {
        format!(
            "Open_vSwitch other_config:stats-update-interval={text} is not a number of milliseconds; {} is used",
            MIN_STATS_INTERVAL.as_millis()
        )
    })?;
    Ok(MIN_STATS_INTERVAL.max(Duration::from_millis(ms.into())))
}

impl SwitchConfig {
    /// Every interface of every bridge.
    pub fn interfaces(&self) -> impl Iterator<Item = (&BridgeConfig, &PortConfig, &InterfaceConfig)> {
        self.bridges.iter().flat_map(|b| {
            b.ports
                .iter()
                .flat_map(move |p| p.interfaces.iter().map(move |i| (b, p, i)))
        })
    }
}
