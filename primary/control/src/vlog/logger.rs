//! The `log` back end: OVS's line format on standard error or in a file.

use super::levels::Levels;
use super::spec::{Destination, level_name};
use log::{Log, Metadata, Record, SetLoggerError};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes the lines that [`Levels`] lets through, as `2026-01-02T03:04:05.678Z|module|INFO|text`.
#[derive(Debug)]
pub struct Logger {
    levels: Levels,
}

impl Logger {
    pub fn new(levels: Levels) -> Self {
        Logger { levels }
    }

    /// Makes this the process's logger.
    pub fn install(levels: Levels) -> Result<(), SetLoggerError> {
        let max = levels.max();
        log::set_boxed_logger(Box::new(Logger::new(levels)))?;
        log::set_max_level(max);
        Ok(())
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let module = module_of(record.target());
        let level = record.level();
        let mut table = self.levels.lock();
        let destination = match table.file {
            Some(_) => Destination::File,
            None => Destination::Console,
        };
        if level > table.level(module, destination) {
            return;
        }
        #[expect(clippy::disallowed_methods, reason = "the date of a line in the log")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut line = utc(now.as_secs());
        let name = level_name(level.to_level_filter());
        let _ = writeln!(
            line,
            ".{:03}Z|{module}|{name}|{}",
            now.subsec_millis(),
            record.args()
        );
        // A log that cannot be written must not stop the switch.
        if let Some(out) = &mut table.file {
            let _ = out.write_all(line.as_bytes());
            return;
        }
        drop(table);
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// The module a log target belongs to.
fn module_of(target: &str) -> &str {
    let mut parts = target.split("::");
    let first = parts.next().unwrap_or(target);
    parts.next().unwrap_or(first)
}

/// Seconds since 1970 as `2026-01-02T03:04:05`, in UTC (proleptic Gregorian calendar, years counted from 1 March).
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let from_year_0 = days + 719_468;
    let (era, day) = (from_year_0 / 146_097, from_year_0 % 146_097);
    let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (h, m, s) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{h:02}:{m:02}:{s:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use log::{Level, LevelFilter};

    #[test]
    fn with_a_file_its_levels_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let levels = Levels::new(LevelFilter::Info, &["bridge"]);
        levels.log_to(path.clone(), |_| Ok(()));
        levels.set("bridge:file:warn").unwrap();
        levels.reopen().unwrap();
        let logger = Logger::new(levels);
        for (level, target, text) in [
            (Level::Info, "x::bridge", "quiet"),
            (Level::Warn, "x::bridge", "loud"),
            (Level::Info, "x::port", "other"),
        ] {
            let mut record = Record::builder();
            record.level(level).target(target);
            logger.log(&record.args(format_args!("{text}")).build());
        }
        let log = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = log
            .lines()
            .filter_map(|line| line.split_once("Z|"))
            .map(|l| l.1)
            .collect();
        assert_eq!(lines, ["bridge|WARN|loud", "port|INFO|other"]);
    }

    #[test]
    fn dates() {
        assert_eq!(utc(0), "1970-01-01T00:00:00");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00");
        assert_eq!(utc(1_767_225_599), "2025-12-31T23:59:59");
        assert_eq!(utc(4_107_542_400), "2100-03-01T00:00:00");
    }

    #[test]
    fn modules() {
        assert_eq!(module_of("dpdk_vswitchd::bridge::table"), "bridge");
        assert_eq!(module_of("dpdk_vswitchd"), "dpdk_vswitchd");
        assert_eq!(module_of("unixctl"), "unixctl");
        assert_eq!(module_of(""), "");
    }
}
