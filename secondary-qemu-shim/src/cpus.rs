//! Sets of CPUs, as `-c` masks and `-l` lists name them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// CPU numbers, in rising order.
pub type Cpus = BTreeSet<usize>;

/// Highest CPU number that a mask may name: what a `cpu_set_t` holds.
const LIMIT: usize = 1024;

/// Why a mask or a list is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpusError {
    #[error("{0:?} is no CPU mask (hexadecimal, as in -c 0x30)")]
    Mask(String),
    #[error("{0:?} is no CPU list (as in -l 4,5 or -l 4-7)")]
    List(String),
    #[error("{text:?} names CPU{s} {missing}, which this machine does not have; it has {online}", s = if missing.contains([',', '-']) { "s" } else { "" })]
    Missing {
        text: String,
        missing: String,
        online: String,
    },
}

/// The CPUs of a hexadecimal mask, with or without `0x`.
///
/// # Errors
/// It is no mask, or an empty one.
pub fn parse_mask(text: &str) -> Result<Cpus, CpusError> {
    let bad = || CpusError::Mask(text.to_owned());
    let digits = text
        .strip_prefix("0x")
        .or_else(|| text.strip_prefix("0X"))
        .unwrap_or(text);
    let mut cpus = Cpus::new();
    for (position, digit) in digits.chars().rev().enumerate() {
        let bits = digit.to_digit(16).ok_or_else(bad)?;
        cpus.extend(
            (0..4)
                .filter(|bit| bits >> bit & 1 != 0)
                .map(|bit| position * 4 + bit),
        );
    }
    if cpus.is_empty() || cpus.last().is_some_and(|&last| last >= LIMIT) {
        Err(bad())
    } else {
        Ok(cpus)
    }
}

/// The CPUs of a list such as `1,4-7`.
///
/// # Errors
/// It is no list, or an empty one.
pub fn parse_list(text: &str) -> Result<Cpus, CpusError> {
    let bad = || CpusError::List(text.to_owned());
    let mut cpus = Cpus::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| bad())?;
        let last: usize = last.trim().parse().map_err(|_| bad())?;
        if first > last || last >= LIMIT {
            return Err(bad());
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

/// A set as a list: `0-3,8`.
pub fn format(cpus: &Cpus) -> String {
    let mut text = String::new();
    let mut cpus = cpus.iter().copied().peekable();
    while let Some(first) = cpus.next() {
        let mut last = first;
        while cpus.next_if_eq(&(last + 1)).is_some() {
            last += 1;
        }
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a String does not fail.
        let _ = match last - first {
            0 => write!(text, "{comma}{first}"),
            _ => write!(text, "{comma}{first}-{last}"),
        };
    }
    text
}

/// Checks that every CPU that `text` named is one of `online`.
///
/// # Errors
/// Names those that are missing and those that exist.
pub fn check(text: &str, cpus: &Cpus, online: &Cpus) -> Result<(), CpusError> {
    let missing: Cpus = cpus.difference(online).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(CpusError::Missing {
        text: text.to_owned(),
        missing: format(&missing),
        online: format(online),
    })
}

/// The CPUs that are online.
pub fn online() -> Cpus {
    std::fs::read_to_string("/sys/devices/system/cpu/online")
        .ok()
        .and_then(|text| parse_list(text.trim()).ok())
        .unwrap_or_else(|| (0..std::thread::available_parallelism().map_or(1, usize::from)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn masks_as_the_paper_types_them() {
        assert_eq!(parse_mask("0x30"), Ok(Cpus::from([4, 5])));
        assert_eq!(parse_mask("2"), Ok(Cpus::from([1])));
        assert_eq!(
            parse_mask("0xF0000000000000000").map(|c| format(&c)),
            Ok("64-67".into())
        );
        for bad in ["", "0x", "0", "0xg", "-1", "0x 3"] {
            assert_eq!(parse_mask(bad), Err(CpusError::Mask(bad.into())));
        }
        assert!(parse_mask(&"f".repeat(300)).is_err());
    }

    #[test]
    fn lists() {
        assert_eq!(parse_list("1,4-6"), Ok(Cpus::from([1, 4, 5, 6])));
        for bad in ["", "4-", "6-4", "a", "1,,2", "99999999"] {
            assert_eq!(parse_list(bad), Err(CpusError::List(bad.into())));
        }
    }

    #[test]
    fn missing_cpus_are_named_with_those_that_exist() {
        let online = Cpus::from([0, 1]);
        let error = |mask: &str| {
            check(mask, &parse_mask(mask).unwrap(), &online)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            error("0x30"),
            "\"0x30\" names CPUs 4-5, which this machine does not have; it has 0-1"
        );
        assert_eq!(
            error("0x6"),
            "\"0x6\" names CPU 2, which this machine does not have; it has 0-1"
        );
        assert_eq!(check("0x2", &Cpus::from([1]), &online), Ok(()));
    }

    #[test]
    fn this_machine_has_cpus() {
        assert!(!online().is_empty());
    }

    proptest! {
        #[test]
        fn a_formatted_set_reads_back(cpus in proptest::collection::btree_set(0usize..200, 1..40)) {
            prop_assert_eq!(parse_list(&format(&cpus)), Ok(cpus));
        }
    }
}
