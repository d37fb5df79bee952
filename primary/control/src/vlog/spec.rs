//! The argument of `vlog/set`: words for a module, a destination and a level, in any order.

use log::LevelFilter;

/// Where log lines go. The order is that of `vlog/list`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    Console,
    Syslog,
    File,
}

/// How many destinations there are.
pub(super) const DESTINATIONS: usize = 3;

impl Destination {
    pub(super) fn index(self) -> usize {
        match self {
            Destination::Console => 0,
            Destination::Syslog => 1,
            Destination::File => 2,
        }
    }

    fn parse(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "console" => Some(Destination::Console),
            "syslog" => Some(Destination::Syslog),
            "file" => Some(Destination::File),
            _ => None,
        }
    }
}

/// Why log levels could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum VlogError {
    #[error("no destination, level, or module \"{0}\"")]
    UnknownWord(String),
    #[error("setting the {0} of log lines is not supported")]
    NotSupported(&'static str),
    #[error("cannot open log file {path}: {cause}")]
    File { path: String, cause: std::io::Error },
    /// In the words of OVS, as far as they go.
    #[error("Logging to file not configured: without --detach the log goes to the console")]
    NoFile,
}

/// What a spec asks for. `None`: every one of its kind.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) module: Option<String>,
    pub(super) destination: Option<Destination>,
    pub(super) level: LevelFilter,
}

impl Spec {
    /// Words are separated by colons or spaces. Without a level, the level is debug, as in OVS.
    pub(super) fn parse(text: &str, is_module: impl Fn(&str) -> bool) -> Result<Self, VlogError> {
        let mut words = text.split([':', ' ', ',']).filter(|w| !w.is_empty()).peekable();
        match words.peek().map(|w| w.to_ascii_uppercase()).as_deref() {
            Some("PATTERN") => return Err(VlogError::NotSupported("pattern")),
            Some("FACILITY") => return Err(VlogError::NotSupported("facility")),
            _ => {}
        }
        let mut spec = Spec {
            module: None,
            destination: None,
            level: LevelFilter::Debug,
        };
        for word in words {
            if word.eq_ignore_ascii_case("any") {
                continue;
            } else if let Some(destination) = Destination::parse(word) {
                spec.destination = Some(destination);
            } else if let Some(level) = parse_level(word) {
                spec.level = level;
            } else if is_module(word) {
                spec.module = Some(word.to_owned());
            } else {
                return Err(VlogError::UnknownWord(word.to_owned()));
            }
        }
        Ok(spec)
    }
}

/// OVS's names, and those of the `log` crate. `emer` has no counterpart and means errors.
fn parse_level(word: &str) -> Option<LevelFilter> {
    Some(match word.to_ascii_lowercase().as_str() {
        "off" => LevelFilter::Off,
        "emer" | "err" | "error" => LevelFilter::Error,
        "warn" => LevelFilter::Warn,
        "info" => LevelFilter::Info,
        "dbg" | "debug" => LevelFilter::Debug,
        "trace" => LevelFilter::Trace,
        _ => return None,
    })
}

/// OVS's name for a level.
pub(super) fn level_name(level: LevelFilter) -> &'static str {
    match level {
        LevelFilter::Off => "OFF",
        LevelFilter::Error => "ERR",
        LevelFilter::Warn => "WARN",
        LevelFilter::Info => "INFO",
        LevelFilter::Debug => "DBG",
        LevelFilter::Trace => "TRACE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_in_any_order() {
        let is_module = |w: &str| w == "bridge";
        let parse = |t: &str| Spec::parse(t, is_module).map(|s| (s.module, s.destination, s.level));
        let bridge = Some("bridge".to_owned());
        assert_eq!(parse("info").unwrap(), (None, None, LevelFilter::Info));
        assert_eq!(
            parse("ANY:file:dbg").unwrap(),
            (None, Some(Destination::File), LevelFilter::Debug)
        );
        assert_eq!(
            parse("warn bridge").unwrap(),
            (bridge.clone(), None, LevelFilter::Warn)
        );
        assert_eq!(parse("bridge").unwrap(), (bridge, None, LevelFilter::Debug));
        assert_eq!(
            parse("foo").unwrap_err().to_string(),
            "no destination, level, or module \"foo\""
        );
        assert!(parse("PATTERN:file:%m").is_err());
    }
}
