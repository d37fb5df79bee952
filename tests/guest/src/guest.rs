//! What tests do inside guests, with parsed results.

use crate::error::{Error, Result};
use crate::serial::{Serial, quote};
use std::time::{Duration, Instant};

/// The summary that `ping` prints.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PingStats {
    /// Requests sent.
    pub sent: u32,
    /// Answers received.
    pub received: u32,
    /// Answers that came more than once.
    pub duplicates: u32,
    /// Minimum, average and maximum round trip in milliseconds; `None` if nothing came back.
    pub rtt_ms: Option<(f64, f64, f64)>,
}

impl PingStats {
    /// Every request was answered, once.
    #[must_use]
    pub fn is_perfect(&self) -> bool {
        self.sent > 0 && self.received == self.sent && self.duplicates == 0
    }
}

/// A file that went from one guest to another.
#[derive(Debug, Clone, PartialEq)]
pub struct Copy {
    /// Its length.
    pub bytes: u64,
    /// How long the sender took, connection included.
    pub seconds: f64,
    /// SHA-256 of what was sent.
    pub sent_sha256: String,
    /// SHA-256 of what arrived.
    pub received_sha256: String,
}

impl Copy {
    /// What arrived is what was sent.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.sent_sha256 == self.received_sha256
    }
}

/// Pings `address` (IPv4 or IPv6) `count` times, 0.2 s apart. `options` go to ping(8) as they are, such as `-s 1472`.
pub fn ping(guest: &mut Serial, address: &str, count: u32, options: &str) -> Result<PingStats> {
    let command = format!("ping -n -q -i 0.2 -W 2 -c {count} {options} {}", quote(address));
    let limit = Duration::from_secs(15 + u64::from(count));
    let output = guest.run_for(&command, limit)?;
    parse_ping(&output.text)
}

/// Pings until an answer comes: the network may still be coming up.
pub fn wait_reachable(guest: &mut Serial, address: &str, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let output = guest.run(&format!("ping -n -q -W 1 -c 1 {}", quote(address)))?;
        if output.code == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::Timeout {
                what: format!("an answer of {address} to ping"),
                limit,
                seen: output.text,
            });
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Copies `mib` MiB of random bytes over TCP from `sender` to `receiver`, which is reached at `address`.
pub fn copy_file(
    sender: &mut Serial,
    receiver: &mut Serial,
    address: &str,
    mib: u32,
    limit: Duration,
) -> Result<Copy> {
    const PORT: u16 = 7000;
    sender.check_for(
        &format!("head -c {} /dev/urandom >/tmp/sent", u64::from(mib) << 20),
        limit,
    )?;
    receiver.check("rm -f /tmp/received /tmp/received.done")?;
    receiver.spawn(
        &format!("file-recv {PORT} /tmp/received; echo $? >/tmp/received.done"),
        "/tmp/received.log",
    )?;
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    let start = sender.check("cut -d' ' -f1 /proc/uptime")?;
    sender.check_for(&format!("file-send /tmp/sent {} {PORT}", quote(&host)), limit)?;
    let end = sender.check("cut -d' ' -f1 /proc/uptime")?;
    // The receiver ends when the connection does.
    receiver.check_for(
        "n=0; until [ -s /tmp/received.done ]; do sleep 0.05; n=$((n+1)); [ $n -lt 200 ] || break; done; \
         cat /tmp/received.log; [ \"$(cat /tmp/received.done)\" = 0 ]",
        limit,
    )?;
    let length = receiver.check("stat -c %s /tmp/received")?;
    let copy = Copy {
        bytes: parse(&length, "length of the received file")?,
        seconds: parse::<f64>(&end, "uptime")? - parse::<f64>(&start, "uptime")?,
        sent_sha256: sha256(sender, "/tmp/sent", limit)?,
        received_sha256: sha256(receiver, "/tmp/received", limit)?,
    };
    sender.check("rm -f /tmp/sent")?;
    receiver.check("rm -f /tmp/received /tmp/received.*")?;
    Ok(copy)
}

/// SHA-256 of a file in the guest.
pub fn sha256(guest: &mut Serial, file: &str, limit: Duration) -> Result<String> {
    let text = guest.check_for(&format!("sha256sum {}", quote(file)), limit)?;
    match text.split_whitespace().next() {
        Some(sum) if sum.len() == 64 => Ok(sum.to_owned()),
        _ => Err(Error::Parse {
            what: "sha256sum's output",
            text,
        }),
    }
}

/// Whether the guest sees a carrier on `interface`.
pub fn has_carrier(guest: &mut Serial, interface: &str) -> Result<bool> {
    Ok(guest
        .run(&format!("cat /sys/class/net/{interface}/carrier"))?
        .text
        .trim()
        == "1")
}

/// Waits until the guest's carrier on `interface` is (`up`) or is not there.
pub fn wait_carrier(guest: &mut Serial, interface: &str, up: bool, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    while has_carrier(guest, interface)? != up {
        if Instant::now() >= deadline {
            let seen = guest.run("ip -brief link")?.text;
            return Err(Error::Timeout {
                what: format!("carrier {up} on {interface}"),
                limit,
                seen,
            });
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn parse<T: std::str::FromStr>(text: &str, what: &'static str) -> Result<T> {
    text.trim().parse().map_err(|_| Error::Parse {
        what,
        text: text.into(),
    })
}

/// Reads the summary of iputils' ping.
fn parse_ping(text: &str) -> Result<PingStats> {
    let bad = || Error::Parse {
        what: "ping's summary",
        text: text.into(),
    };
    let line = text
        .lines()
        .find(|line| line.contains("packets transmitted"))
        .ok_or_else(bad)?;
    let number_before = |word: &str| {
        line.split(", ")
            .find_map(|part| part.strip_suffix(word))
            .and_then(|number| number.trim().parse().ok())
    };
    let rtt = text
        .lines()
        .find_map(|line| line.strip_prefix("rtt min/avg/max/mdev = "))
        .map(|rtt| {
            let mut values = rtt.split('/').map(str::parse);
            match (values.next(), values.next(), values.next()) {
                (Some(Ok(min)), Some(Ok(avg)), Some(Ok(max))) => Ok((min, avg, max)),
                _ => Err(bad()),
            }
        });
    Ok(PingStats {
        sent: number_before(" packets transmitted").ok_or_else(bad)?,
        received: number_before(" received").ok_or_else(bad)?,
        duplicates: line
            .split(", ")
            .find_map(|part| part.strip_prefix('+')?.strip_suffix(" duplicates"))
            .map_or(Ok(0), str::parse)
            .map_err(|_| bad())?,
        rtt_ms: rtt.transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_summaries() {
        let good = "PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.\n\n--- 10.0.0.1 ping statistics ---\n\
            3 packets transmitted, 3 received, 0% packet loss, time 402ms\n\
            rtt min/avg/max/mdev = 0.300/0.412/0.600/0.100 ms\n";
        let stats = parse_ping(good).unwrap();
        assert_eq!(
            (stats.sent, stats.received, stats.rtt_ms),
            (3, 3, Some((0.3, 0.412, 0.6)))
        );
        assert!(stats.is_perfect());

        let lost = "4 packets transmitted, 0 received, +4 errors, 100% packet loss, time 3060ms\npipe 4\n";
        let stats = parse_ping(lost).unwrap();
        assert_eq!((stats.sent, stats.received, stats.rtt_ms), (4, 0, None));
        assert!(!stats.is_perfect());

        let twice = "2 packets transmitted, 2 received, +1 duplicates, 0% packet loss, time 201ms\n\
            rtt min/avg/max/mdev = 1/2/3/0 ms\n";
        assert_eq!(parse_ping(twice).unwrap().duplicates, 1);
        assert!(!parse_ping(twice).unwrap().is_perfect());

        assert!(parse_ping("ping: connect: Network is unreachable\n").is_err());
    }
}
