//! What a Bridge row asks for, with the keys, ranges and defaults of Open vSwitch (ovs-vswitchd.conf.db(5)).

use std::fmt::Display;
use std::str::FromStr;

use vswitch_control::config::{BridgeConfig, FailMode};
use vswitch_control::{MacAddr, Uuid};

use super::unsupported;
use crate::datapath::mac_table::{DEFAULT_AGING, DEFAULT_SIZE, GREATEST_SIZE, LEAST_SIZE};

/// Seconds that a learned address can be kept.
const LEAST_AGING: u32 = 15;
const GREATEST_AGING: u32 = 3600;

/// What is configured of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Seconds until a learned address is forgotten.
    pub aging: u32,
    /// Addresses that the table has room for.
    pub table_size: usize,
    pub mac: MacAddr,
    /// 16 hexadecimal digits.
    pub datapath_id: String,
    /// Frames to the reserved addresses of IEEE 802.1D are forwarded.
    pub forward_reserved: bool,
}

impl Settings {
    /// Reads `bridge`. What is wrong in it is named, and the default, or the nearest that is possible, counts.
    pub fn of(bridge: &BridgeConfig) -> (Settings, Vec<String>) {
        let mut row = Row {
            bridge,
            complaints: Vec::new(),
        };
        let aging = row.number("mac-aging-time", LEAST_AGING, DEFAULT_AGING, GREATEST_AGING);
        let table_size = row.number("mac-table-size", LEAST_SIZE, DEFAULT_SIZE, GREATEST_SIZE);
        let mac = row.value("hwaddr", "the address of an interface", interface_mac);
        let mac = mac.unwrap_or_else(|| own_mac(bridge.uuid));
        let id = row.value(
            "datapath-id",
            "up to 16 hexadecimal digits other than 0",
            datapath_id,
        );
        let forward = row.value("forward-bpdu", "true or false", |text| text.parse().ok());
        if bridge.controller || bridge.fail_mode == Some(FailMode::Secure) {
            let text = "OpenFlow is not supported: controllers and fail_mode=secure have no effect, it forwards by \
                        learned addresses";
            row.complaints.push(text.to_owned());
        }
        if !["", "netdev", "dpdk"].contains(&bridge.datapath_type.as_str()) {
            row.complaints.push(format!(
                "datapath_type={}: this switch forwards in user space, as netdev does",
                bridge.datapath_type
            ));
        }
        row.complaints.extend(unsupported(&bridge.unsupported));
        let MacAddr([a, b, c, d, e, f]) = mac;
        let settings = Settings {
            aging,
            table_size,
            mac,
            datapath_id: format!(
                "{:016x}",
                id.unwrap_or_else(|| u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
            ),
            forward_reserved: forward.unwrap_or(false),
        };
        (settings, row.complaints)
    }
}

/// A row that is read, and what is wrong in it.
struct Row<'a> {
    bridge: &'a BridgeConfig,
    complaints: Vec<String>,
}

impl Row<'_> {
    /// The value of `other_config:KEY`, which has to be `wanted`. None: it is not there, or something else.
    fn value<T>(&mut self, key: &str, wanted: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.bridge.other_config.get(key)?;
        let value = parse(text);
        if value.is_none() {
            self.complaints.push(format!(
                "other_config:{key}={text} is not {wanted}; the default is used"
            ));
        }
        value
    }

    /// A number, as near to what is asked for as `least` and `greatest` let it be.
    fn number<T: Copy + Ord + FromStr + Display>(
        &mut self,
        key: &str,
        least: T,
        default: T,
        greatest: T,
    ) -> T {
        let wanted = format!("a number from {least} to {greatest}");
        let asked = self.value(key, &wanted, |text| text.parse::<T>().ok());
        let used = asked.unwrap_or(default).clamp(least, greatest);
        if let Some(asked) = asked.filter(|asked| *asked != used) {
            self.complaints.push(format!(
                "other_config:{key}={asked} is not {wanted}; {used} is used"
            ));
        }
        used
    }
}

/// The address in `text`, if an interface can have it: that of a single one.
pub fn interface_mac(text: &str) -> Option<MacAddr> {
    let mac: MacAddr = text.parse().ok()?;
    (mac.0[0] & 1 == 0 && mac.0 != [0; 6]).then_some(mac)
}

fn datapath_id(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let hexadecimal = digits.len() <= 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = u64::from_str_radix(digits, 16).ok()?;
    (hexadecimal && id != 0).then_some(id)
}

/// A locally administered address made of a row's id: the same for as long as the row is there.
pub fn own_mac(row: Uuid) -> MacAddr {
    let [.., a, b, c, d, e] = row.0.to_be_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(other_config: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        Settings::of(&BridgeConfig {
            uuid: Uuid(0x12_3456_789a),
            other_config: other_config.iter().map(own).collect(),
            ..BridgeConfig::default()
        })
    }

    fn default() -> Settings {
        Settings {
            aging: 300,
            table_size: 8192,
            mac: MacAddr([0x02, 0x12, 0x34, 0x56, 0x78, 0x9a]),
            datapath_id: "000002123456789a".into(),
            forward_reserved: false,
        }
    }

    #[test]
    fn a_bridge_is_as_its_row_says() {
        assert_eq!(of(&[]), (default(), Vec::new()));
        let (settings, complaints) = of(&[
            ("mac-aging-time", "15"),
            ("mac-table-size", "1000000"),
            ("hwaddr", "00:11:22:33:44:55"),
            ("forward-bpdu", "true"),
        ]);
        let mac = MacAddr([0, 0x11, 0x22, 0x33, 0x44, 0x55]);
        let expected = Settings {
            aging: 15,
            table_size: 1_000_000,
            mac,
            datapath_id: "0000001122334455".into(),
            forward_reserved: true,
        };
        assert_eq!((settings, complaints), (expected, Vec::new()));
        for (text, id) in [
            ("0000ABCD00000001", "0000abcd00000001"),
            ("0x1f", "000000000000001f"),
        ] {
            let (settings, complaints) = of(&[("datapath-id", text)]);
            assert_eq!((settings.datapath_id.as_str(), complaints), (id, Vec::new()));
        }
    }

    #[test]
    fn what_is_wrong_is_named_and_the_default_counts() {
        for (key, value) in [
            ("mac-aging-time", "long"),
            ("mac-aging-time", "-1"),
            ("mac-table-size", ""),
            ("hwaddr", "garbage"),
            ("hwaddr", "01:00:00:00:00:01"),
            ("hwaddr", "00:00:00:00:00:00"),
            ("datapath-id", "xyz"),
            ("datapath-id", "+1"),
            ("datapath-id", "0"),
            ("datapath-id", "00000000000000001"),
            ("forward-bpdu", "yes"),
        ] {
            let (settings, complaints) = of(&[(key, value)]);
            assert_eq!(settings, default(), "{key}={value}");
            let [complaint] = &complaints[..] else {
                panic!("{key}={value}: {complaints:?}")
            };
            assert!(
                complaint.starts_with(&format!("other_config:{key}={value} is not ")),
                "{complaint}"
            );
        }
    }

    #[test]
    fn numbers_out_of_range_are_named_and_the_nearest_count() {
        let (settings, complaints) = of(&[("mac-aging-time", "5"), ("mac-table-size", "99999999")]);
        assert_eq!((settings.aging, settings.table_size), (15, 1_000_000));
        assert_eq!(
            complaints,
            [
                "other_config:mac-aging-time=5 is not a number from 15 to 3600; 15 is used",
                "other_config:mac-table-size=99999999 is not a number from 10 to 1000000; 1000000 is used"
            ]
        );
    }

    /// Who sets it expects that nothing is forwarded.
    #[test]
    fn openflow_without_effect_is_named() {
        for (controller, fail_mode) in [(false, Some(FailMode::Secure)), (true, None)] {
            let (_, complaints) = Settings::of(&BridgeConfig {
                controller,
                fail_mode,
                ..BridgeConfig::default()
            });
            assert!(complaints.concat().contains("fail_mode=secure"), "{complaints:?}");
        }
    }

    #[test]
    fn a_datapath_in_the_kernel_is_not_to_be_had() {
        let of = |datapath_type: &str| {
            let (_, complaints) = Settings::of(&BridgeConfig {
                datapath_type: datapath_type.into(),
                ..BridgeConfig::default()
            });
            complaints
        };
        for own in ["", "netdev", "dpdk"] {
            assert!(of(own).is_empty(), "{own}");
        }
        let text = "datapath_type=system: this switch forwards in user space, as netdev does";
        assert_eq!(of("system"), [text]);
    }
}
