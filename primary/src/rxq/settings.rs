//! What the database says of receive queues: `other_config` of `Open_vSwitch` and of `Interface`, with the keys, ranges and
//! defaults of Open vSwitch (ovs-vswitchd.conf.db(5)).

use std::collections::BTreeMap;
use std::time::Duration;

use super::balance::AutoBalance;

/// How queues that are not pinned are dealt out (`pmd-rxq-assign`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// The heaviest first, to each thread in turn, there and back.
    #[default]
    Cycles,
    /// To each thread in turn.
    RoundRobin,
    /// The heaviest first, to the thread that has least to do.
    Group,
}

impl Algorithm {
    /// As the database has it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Cycles => "cycles",
            Algorithm::RoundRobin => "roundrobin",
            Algorithm::Group => "group",
        }
    }
}

/// The rules of an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub algorithm: Algorithm,
    /// A thread with pinned queues takes no others (`pmd-rxq-isolate`).
    pub isolate: bool,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            algorithm: Algorithm::default(),
            isolate: true,
        }
    }
}

const MINUTE: Duration = Duration::from_secs(60);

/// Reads `other_config` of `Open_vSwitch`. What is wrong in it is named, and the default counts.
pub fn of_switch(other_config: &BTreeMap<String, String>) -> (Policy, AutoBalance, Vec<String>) {
    let mut complaints = Vec::new();
    let mut complain = |key: &str, wanted: &str, instead: &str| {
        let value = &other_config[key];
        complaints.push(format!(
            "Open_vSwitch other_config:{key}={value} is not {wanted}; {instead} is used"
        ));
    };
    let text = |key: &str| other_config.get(key).map(String::as_str);

    let algorithm = match text("pmd-rxq-assign") {
        None | Some("cycles") => Algorithm::Cycles,
        Some("roundrobin") => Algorithm::RoundRobin,
        Some("group") => Algorithm::Group,
        Some(_) => {
            complain("pmd-rxq-assign", "cycles, roundrobin or group", "cycles");
            Algorithm::Cycles
        }
    };
    let mut boolean = |key: &str, default: bool| match text(key) {
        None => default,
        Some("true") => true,
        Some("false") => false,
        Some(_) => {
            complain(key, "true or false", if default { "true" } else { "false" });
            default
        }
    };
    let mut isolate = boolean("pmd-rxq-isolate", true);
    let enabled = boolean("pmd-auto-lb", false);
    let mut number = |key: &str, greatest: u64, default: u64| {
        let found = text(key).map(|t| t.parse().ok().filter(|n| *n <= greatest));
        found.unwrap_or(Some(default)).unwrap_or_else(|| {
            let wanted = format!("a number from 0 to {greatest}");
            complain(key, &wanted, &default.to_string());
            default
        })
    };
    let minutes = number("pmd-auto-lb-rebal-interval", 20_000, 1).max(1);
    let balance = AutoBalance {
        enabled,
        interval: MINUTE * minutes as u32,
        load: number("pmd-auto-lb-load-threshold", 100, 95),
        improvement: number("pmd-auto-lb-improvement-threshold", 100, 25),
    };
    if !isolate && algorithm != Algorithm::Group {
        isolate = true;
        complaints.push(
            "Open_vSwitch other_config:pmd-rxq-isolate=false needs pmd-rxq-assign=group; true is used".into(),
        );
    }
    (Policy { algorithm, isolate }, balance, complaints)
}

/// The longest sleep of an idle PMD thread, where `other_config` of `Open_vSwitch` gives one: `pmd-sleep-max`, or
/// `pmd-maxsleep` as Open vSwitch 3.1 calls it.
///
/// # Errors
/// What is wrong with it.
pub fn max_sleep(other_config: &BTreeMap<String, String>) -> Result<Option<Duration>, String> {
    let given = ["pmd-sleep-max", "pmd-maxsleep"].map(|key| other_config.get_key_value(key));
    let Some((key, text)) = given.into_iter().flatten().next() else {
        return Ok(None);
    };
    let us = text.parse().map_err(|_| {
        format!("Open_vSwitch other_config:{key}={text} is not a number of microseconds; the default is used")
    })?;
    Ok(Some(Duration::from_micros(us)))
}

/// The CPU that each receive queue is pinned to, from `pmd-rxq-affinity` of an `Interface`: `QUEUE:CPU,QUEUE:CPU,...`.
///
/// # Errors
/// What is wrong with the list, which then pins nothing.
pub fn affinity(other_config: &BTreeMap<String, String>) -> Result<BTreeMap<u16, usize>, String> {
    let Some(list) = other_config.get("pmd-rxq-affinity") else {
        return Ok(BTreeMap::new());
    };
    let pair = |text: &str| {
        let (queue, cpu) = text.split_once(':')?;
        Some((queue.trim().parse().ok()?, cpu.trim().parse().ok()?))
    };
    let pairs = list.split(',').filter(|text| !text.trim().is_empty()).map(pair);
    pairs.collect::<Option<_>>().ok_or_else(|| {
        format!(
            "other_config:pmd-rxq-affinity={list} is not a list QUEUE:CORE,QUEUE:CORE,...; none of its queues is pinned"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn the_defaults_are_those_of_open_vswitch() {
        let (policy, balance, complaints) = of_switch(&map(&[]));
        assert_eq!(policy, Policy::default());
        let expected = AutoBalance {
            enabled: false,
            interval: MINUTE,
            load: 95,
            improvement: 25,
        };
        assert_eq!((balance, complaints), (expected, Vec::new()));
    }

    #[test]
    fn values_count() {
        let (policy, balance, complaints) = of_switch(&map(&[
            ("pmd-rxq-assign", "group"),
            ("pmd-rxq-isolate", "false"),
            ("pmd-auto-lb", "true"),
            ("pmd-auto-lb-rebal-interval", "20000"),
            ("pmd-auto-lb-load-threshold", "70"),
            ("pmd-auto-lb-improvement-threshold", "0"),
        ]));
        assert_eq!((policy.algorithm, policy.isolate), (Algorithm::Group, false));
        assert_eq!((balance.enabled, balance.interval), (true, 20_000 * MINUTE));
        assert_eq!((balance.load, balance.improvement), (70, 0));
        assert!(complaints.is_empty(), "{complaints:?}");
        let (_, balance, _) = of_switch(&map(&[("pmd-auto-lb-rebal-interval", "0")]));
        assert_eq!(balance.interval, MINUTE);
    }

    #[test]
    fn what_is_wrong_is_named_and_the_default_counts() {
        for (key, value) in [
            ("pmd-rxq-assign", "random"),
            ("pmd-rxq-isolate", "no"),
            ("pmd-rxq-isolate", "false"),
            ("pmd-auto-lb", "on"),
            ("pmd-auto-lb-rebal-interval", "20001"),
            ("pmd-auto-lb-load-threshold", "101"),
            ("pmd-auto-lb-improvement-threshold", "-1"),
        ] {
            let (policy, balance, complaints) = of_switch(&map(&[(key, value)]));
            let (default_policy, default_balance, _) = of_switch(&map(&[]));
            assert_eq!(
                (policy, balance),
                (default_policy, default_balance),
                "{key}={value}"
            );
            let [complaint] = &complaints[..] else {
                panic!("{key}={value}: {complaints:?}")
            };
            assert!(
                complaint.contains(&format!("other_config:{key}={value}")),
                "{complaint}"
            );
        }
    }

    #[test]
    fn the_longest_sleep_is_a_number() {
        let of = |us| max_sleep(&map(&[("pmd-sleep-max", us)]));
        assert_eq!(max_sleep(&map(&[])), Ok(None));
        assert_eq!(of("0"), Ok(Some(Duration::ZERO)));
        assert_eq!(of("250"), Ok(Some(Duration::from_micros(250))));
        for bad in ["", "-1", "long", "1.5"] {
            let complaint = of(bad).unwrap_err();
            assert!(
                complaint.contains(&format!("pmd-sleep-max={bad} is not")),
                "{complaint}"
            );
        }
    }

    #[test]
    fn the_longest_sleep_goes_by_its_name_in_3_1_as_well() {
        let of = |pairs: &[(&str, &str)]| max_sleep(&map(pairs));
        assert_eq!(of(&[("pmd-maxsleep", "0")]), Ok(Some(Duration::ZERO)));
        let both = of(&[("pmd-maxsleep", "1"), ("pmd-sleep-max", "2")]);
        assert_eq!(both, Ok(Some(Duration::from_micros(2))));
        let complaint = of(&[("pmd-maxsleep", "long")]).unwrap_err();
        assert!(complaint.contains("pmd-maxsleep=long is not"), "{complaint}");
    }

    #[test]
    fn queues_and_the_cpus_they_are_pinned_to() {
        let of = |list| affinity(&map(&[("pmd-rxq-affinity", list)]));
        assert_eq!(affinity(&map(&[])), Ok(BTreeMap::new()));
        assert_eq!(of(""), Ok(BTreeMap::new()));
        assert_eq!(of("0:3, 1:7,3:8"), Ok(BTreeMap::from([(0, 3), (1, 7), (3, 8)])));
        for bad in ["0", "0:", ":1", "0:1,x:2", "0:-1", "0:1:2", "0=1"] {
            let complaint = of(bad).unwrap_err();
            assert!(
                complaint.contains(&format!("pmd-rxq-affinity={bad} ")),
                "{complaint}"
            );
        }
    }
}
