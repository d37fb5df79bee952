//! What an Interface row limits its traffic to: ingress policing as Open vSwitch has it, and the storm limit.

use vswitch_control::config::InterfaceConfig;

use crate::datapath::limit::{Limits, Rate};

/// Burst of `ingress_policing_rate` where none is given, in kbit, and of `ingress_policing_kpkts_rate`, in thousand
/// packets: Open vSwitch's own.
const DEFAULT_KBIT: i64 = 8000;
const DEFAULT_KPKTS: i64 = 16;
/// A storm limit's burst by default is what it lets in within this part of a second, or a few frames.
const STORM_BURST_PART: u64 = 10;
const LEAST_STORM_BURST: u64 = 16;
/// Frames a second that no port reaches: more is a typing error.
const GREATEST: u64 = 1_000_000_000;

/// The limits of `interface`, and what is wrong with the row: what is wrong does not limit.
pub fn of(interface: &InterfaceConfig) -> (Limits, Option<String>) {
    let policing = |rate: i64, burst: i64, default: i64, unit: u64| {
        let of_unit = |n: i64| u64::try_from(n).unwrap_or(0).saturating_mul(unit);
        (rate > 0).then(|| Rate {
            per_second: of_unit(rate),
            burst: of_unit(if burst > 0 { burst } else { default }),
        })
    };
    let (storm, complaint) = match storm(interface) {
        Ok(storm) => (storm, None),
        Err(text) => (None, Some(text)),
    };
    let limits = Limits {
        bytes: policing(
            interface.ingress_policing_rate,
            interface.ingress_policing_burst,
            DEFAULT_KBIT,
            1000 / 8,
        ),
        frames: policing(
            interface.ingress_policing_kpkts_rate,
            interface.ingress_policing_kpkts_burst,
            DEFAULT_KPKTS,
            1000,
        ),
        storm,
    };
    (limits, complaint)
}

fn storm(interface: &InterfaceConfig) -> Result<Option<Rate>, String> {
    let number = |key: &str| -> Result<Option<u64>, String> {
        let Some(text) = interface.other_config.get(key) else {
            return Ok(None);
        };
        let number = text.parse().ok().filter(|n| (1..=GREATEST).contains(n));
        number.map(Some).ok_or_else(|| {
            format!(
                "other_config:{key}={text} is not a number from 1 to {GREATEST}; the port has no storm limit \
                 (remove the key if it shall have none)"
            )
        })
    };
    let (limit, burst) = (number("storm-limit")?, number("storm-burst")?);
    match limit {
        Some(per_second) => Ok(Some(Rate {
            per_second,
            burst: burst.unwrap_or((per_second / STORM_BURST_PART).max(LEAST_STORM_BURST)),
        })),
        None if burst.is_some() => Err("other_config:storm-burst has no effect without storm-limit".into()),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(other_config: &[(&str, &str)]) -> InterfaceConfig {
        InterfaceConfig {
            other_config: other_config
                .iter()
                .map(|&(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            ..InterfaceConfig::default()
        }
    }

    fn rate(per_second: u64, burst: u64) -> Option<Rate> {
        Some(Rate { per_second, burst })
    }

    #[test]
    fn policing_has_the_units_and_defaults_of_open_vswitch() {
        assert_eq!(of(&interface(&[])), (Limits::default(), None));
        let mut row = interface(&[]);
        row.ingress_policing_rate = 10_000;
        row.ingress_policing_kpkts_burst = 5;
        let bytes = rate(1_250_000, 1_000_000);
        assert_eq!(
            of(&row).0,
            Limits {
                bytes,
                ..Limits::default()
            }
        );
        row.ingress_policing_burst = 800;
        row.ingress_policing_kpkts_rate = 3;
        let limits = of(&row).0;
        assert_eq!(
            (limits.bytes, limits.frames),
            (rate(1_250_000, 100_000), rate(3_000, 5_000))
        );
        row.ingress_policing_kpkts_burst = 0;
        assert_eq!(of(&row).0.frames, rate(3_000, 16_000));
    }

    #[test]
    fn a_storm_limit_and_its_burst() {
        let storm = |config: &[(&str, &str)]| of(&interface(config)).0.storm;
        assert_eq!(storm(&[("storm-limit", "1000")]), rate(1000, 100));
        assert_eq!(storm(&[("storm-limit", "1")]), rate(1, 16));
        assert_eq!(
            storm(&[("storm-limit", "1000"), ("storm-burst", "1")]),
            rate(1000, 1)
        );
    }

    #[test]
    fn a_bad_value_is_named_and_does_not_limit() {
        for (key, value) in [
            ("storm-limit", "many"),
            ("storm-limit", "0"),
            ("storm-limit", "-1"),
            ("storm-limit", ""),
            ("storm-limit", "1000000001"),
            ("storm-burst", "1.5"),
        ] {
            let (limits, complaint) = of(&interface(&[("storm-limit", "10"), (key, value)]));
            assert_eq!(limits, Limits::default());
            assert!(complaint.is_some_and(|c| c.contains(&format!("other_config:{key}={value} is not"))));
        }
        assert!(
            of(&interface(&[("storm-burst", "5")]))
                .1
                .is_some_and(|c| c.contains("storm-limit"))
        );
    }
}
