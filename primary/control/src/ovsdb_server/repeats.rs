//! What a program repeats while its cause lasts, told once.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Without it for so long a complaint is over, and its return is worth another line.
const OVER: Duration = Duration::from_secs(60);

/// What was said of late, and when last.
#[derive(Debug, Default)]
pub(super) struct Repeats(HashMap<String, Instant>);

impl Repeats {
    /// Is `line`, said at `now`, something new? Its stamp (time and number) does not count.
    pub(super) fn is_news(&mut self, line: &str, now: Instant) -> bool {
        self.0.retain(|_, seen| now.duration_since(*seen) < OVER);
        self.0.insert(without_stamp(line).to_owned(), now).is_none()
    }
}

/// `2026-11-24T02:27:13Z|00004|ovsdb_server|ERR|...` from the module on; another line as it is.
fn without_stamp(line: &str) -> &str {
    let mut parts = line.splitn(3, '|');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(number), Some(rest)) if number.bytes().all(|b| b.is_ascii_digit()) => rest,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_news_once_while_it_lasts() {
        let start = Instant::now();
        let mut repeats = Repeats::default();
        let mut news = |second, line: &str| repeats.is_news(line, start + Duration::from_secs(second));
        assert!(news(
            0,
            "2026-11-24T02:00:00Z|00003|ovsdb_server|ERR|write failed"
        ));
        assert!(news(0, "2026-11-24T02:00:00Z|00004|ovsdb_log|WARN|write failed"));
        assert!((1..500).all(|n| !news(
            n,
            &format!("2026-11-24T02:00:01Z|{n:05}|ovsdb_server|ERR|write failed")
        )));
        assert!(!news(
            558,
            "2026-11-24T02:10:00Z|00999|ovsdb_server|ERR|write failed"
        ));
        assert!(
            news(618, "2026-11-24T02:11:00Z|01000|ovsdb_server|ERR|write failed"),
            "after a minute without"
        );
        assert!(news(618, "a line of another kind") && !news(619, "a line of another kind"));
        assert!(news(619, "a|b|c") && news(619, "x|b|c"), "no stamp");
    }
}
