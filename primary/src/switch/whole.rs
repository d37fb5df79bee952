//! What `other_config` of `Open_vSwitch` asks for without effect: for ever, or until the switch starts again.

use std::collections::BTreeMap;

use super::unsupported;

type OtherConfig = BTreeMap<String, String>;

/// Keys that EAL is started with.
const AT_START: [&str; 3] = ["dpdk-extra", "dpdk-lcore-mask", "dpdk-socket-mem"];

/// Keys that count at once; `dpdk-init`, which Open vSwitch needs to take DPDK, goes without saying here.
const AT_ONCE: &[&str] = &[
    "dpdk-init",
    "pmd-auto-lb",
    "pmd-auto-lb-improvement-threshold",
    "pmd-auto-lb-load-threshold",
    "pmd-auto-lb-rebal-interval",
    "pmd-cpu-mask",
    "pmd-maxsleep",
    "pmd-rxq-assign",
    "pmd-rxq-isolate",
    "pmd-sleep-max",
    "stats-update-interval",
];

/// Keys of Open vSwitch, and what does the same here.
const INSTEAD: &[(&str, &str)] = &[
    (
        "dpdk-alloc-mem",
        "dpdk-alloc-mem (set dpdk-socket-mem, MiB for each NUMA node)",
    ),
    (
        "dpdk-hugepage-dir",
        "dpdk-hugepage-dir (set dpdk-extra=\"--huge-dir DIR\")",
    ),
];

/// What the switch was started with.
#[derive(Debug)]
pub struct Started([Option<String>; AT_START.len()]);

impl Started {
    pub fn with(other_config: &OtherConfig) -> Started {
        Started(AT_START.map(|key| setting(other_config, key)))
    }

    /// Names the keys that now say something else.
    pub fn differs(&self, other_config: &OtherConfig) -> Vec<String> {
        let changed = AT_START
            .iter()
            .zip(&self.0)
            .filter(|(key, then)| setting(other_config, key) != **then);
        changed
            .map(|(key, _)| {
                format!("Open_vSwitch other_config:{key} counts from the next start of the switch")
            })
            .collect()
    }
}

/// The value of `key`; an empty one is none.
pub fn setting(other_config: &OtherConfig, key: &str) -> Option<String> {
    other_config.get(key).cloned().filter(|value| !value.is_empty())
}

/// Names the keys that the switch does not know, if there are any. One that is `false` asks for nothing.
pub fn unknown(other_config: &OtherConfig) -> Option<String> {
    let known = |key: &str| AT_START.contains(&key) || AT_ONCE.contains(&key);
    let keys = other_config
        .iter()
        .filter(|(key, value)| !known(key) && *value != "false");
    let named = keys.map(|(key, _)| {
        let instead = INSTEAD.iter().find(|(theirs, _)| theirs == key);
        instead.map_or(key.as_str(), |(_, text)| *text)
    });
    let text = unsupported(&named.collect::<Vec<_>>())?;
    Some(format!("Open_vSwitch other_config: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> OtherConfig {
        let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn keys_that_the_switch_does_not_know_are_named() {
        assert_eq!(unknown(&map(&[])), None);
        let own = [AT_ONCE, &AT_START].concat();
        assert_eq!(
            unknown(&own.iter().map(|&key| (key.into(), "x".into())).collect()),
            None
        );
        assert_eq!(unknown(&map(&[("hw-offload", "false")])), None);
        let text = unknown(&map(&[
            ("hw-offload", "true"),
            ("dpdk-init", "true"),
            ("pmd-cpu-msak", "0x3"),
        ]));
        assert_eq!(
            text.as_deref(),
            Some("Open_vSwitch other_config: not supported and without effect: hw-offload, pmd-cpu-msak")
        );
        let text = unknown(&map(&[("dpdk-hugepage-dir", "/mnt"), ("x", "1")])).unwrap();
        assert!(
            text.ends_with(": dpdk-hugepage-dir (set dpdk-extra=\"--huge-dir DIR\"), x"),
            "{text}"
        );
    }

    #[test]
    fn what_counts_at_the_start_only_is_named_while_it_differs() {
        let first = map(&[("dpdk-socket-mem", "512"), ("dpdk-extra", "")]);
        let started = Started::with(&first);
        let none = Vec::<String>::new();
        assert_eq!(started.differs(&first), none);
        assert_eq!(started.differs(&map(&[("dpdk-socket-mem", "512")])), none);
        let named =
            |key: &str| format!("Open_vSwitch other_config:{key} counts from the next start of the switch");
        assert_eq!(started.differs(&map(&[])), [named("dpdk-socket-mem")]);
        assert_eq!(
            started.differs(&map(&[
                ("dpdk-socket-mem", "1024"),
                ("dpdk-lcore-mask", "2"),
                ("pmd-cpu-mask", "3")
            ])),
            [named("dpdk-lcore-mask"), named("dpdk-socket-mem")]
        );
    }
}
