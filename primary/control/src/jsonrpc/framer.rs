//! Cuts a byte stream into JSON objects.
//!
//! Only brackets and strings are looked at while bytes arrive, each byte once, so that a message that trickles in costs
//! no more than one that comes whole. `serde_json` then judges the complete text.

use serde_json::Value;

/// What a peer may make us hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one message.
    pub max_bytes: usize,
    /// Brackets open at once; `serde_json` itself stops at 127.
    pub max_depth: usize,
}

/// Why a stream cannot be read any further. The connection is of no more use after one.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a message starts with byte {0:#04x} instead of \"{{\"")]
    NotAnObject(u8),
    #[error("a message is longer than {0} bytes")]
    TooLong(usize),
    #[error("a message is nested deeper than {0} levels")]
    TooDeep(usize),
    #[error("a message is not valid JSON: {0}")]
    Syntax(#[from] serde_json::Error),
}

/// Incremental reader: [`push`](Framer::push) bytes, take messages with [`next`](Framer::next) until it gives `None`.
#[derive(Debug)]
pub struct Framer {
    limits: Limits,
    buffer: Vec<u8>,
    /// Where the message being scanned begins.
    start: usize,
    /// The next byte to scan.
    scanned: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Framer {
    pub fn new(limits: Limits) -> Self {
        Framer {
            limits,
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            depth: 0,
            in_string: false,
            escaped: false,
        }
    }

    /// Adds bytes as they came from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// True while a message has begun and is not complete.
    pub fn is_mid_message(&self) -> bool {
        self.depth > 0
    }

    /// The next complete message; `None` when more bytes are needed.
    #[allow(clippy::should_implement_trait)] // an iterator would end at the first None
    pub fn next(&mut self) -> Result<Option<Value>, FrameError> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            if self.depth == 0 {
                match byte {
                    b' ' | b'\t' | b'\r' | b'\n' => {
                        self.scanned += 1;
                        self.start = self.scanned;
                        continue;
                    }
                    b'{' => {}
                    other => return Err(FrameError::NotAnObject(other)),
                }
            }
            self.scanned += 1;
            if self.scanned - self.start > self.limits.max_bytes {
                return Err(FrameError::TooLong(self.limits.max_bytes));
            }
            if self.step(byte)? {
                let text = &self.buffer[self.start..self.scanned];
                let value = serde_json::from_slice(text)?;
                self.start = self.scanned;
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Takes note of one byte inside a message; true when it closes the message.
    fn step(&mut self, byte: u8) -> Result<bool, FrameError> {
        if self.in_string {
            if self.escaped {
                self.escaped = false;
            } else if byte == b'\\' {
                self.escaped = true;
            } else if byte == b'"' {
                self.in_string = false;
            }
            return Ok(false);
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => {
                self.depth += 1;
                if self.depth > self.limits.max_depth {
                    return Err(FrameError::TooDeep(self.limits.max_depth));
                }
            }
            b'}' | b']' => {
                self.depth -= 1;
                return Ok(self.depth == 0);
            }
            _ => {}
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const LIMITS: Limits = Limits {
        max_bytes: 4096,
        max_depth: 16,
    };

    fn drain(framer: &mut Framer) -> Result<Vec<Value>, FrameError> {
        let mut out = Vec::new();
        while let Some(value) = framer.next()? {
            out.push(value);
        }
        Ok(out)
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[\\PC\"\\\\{}\\[\\]\n]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z\"\\\\{}]{0,5}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn messages_survive_any_split(
            values in prop::collection::vec(any_json().prop_map(|v| json!({"m": v})), 1..6),
            cuts in prop::collection::vec(1usize..20, 1..40),
            gap in "[ \t\r\n]{0,3}",
        ) {
            let text: String = values.iter().map(|v| format!("{gap}{v}")).collect();
            let mut framer = Framer::new(LIMITS);
            let mut out = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                let n = (*cut).min(rest.len());
                framer.push(&rest[..n]);
                rest = &rest[n..];
                out.extend(drain(&mut framer)?);
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(out, values);
            prop_assert!(!framer.is_mid_message());
        }

        #[test]
        fn garbage_never_panics_and_never_piles_up(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..40)
        ) {
            let mut framer = Framer::new(LIMITS);
            for chunk in chunks {
                framer.push(&chunk);
                if drain(&mut framer).is_err() {
                    break;
                }
                prop_assert!(framer.buffer.len() - framer.start <= LIMITS.max_bytes);
            }
        }

        #[test]
        fn json_like_garbage_never_panics(text in "[{}\\[\\]\",:\\\\a0 ]{0,400}") {
            let mut framer = Framer::new(LIMITS);
            framer.push(text.as_bytes());
            let _ = drain(&mut framer);
        }
    }

    #[test]
    fn each_limit_has_its_error() {
        let run = |bytes: &[u8]| {
            let mut framer = Framer::new(LIMITS);
            framer.push(bytes);
            drain(&mut framer).map_err(|e| e.to_string())
        };
        assert_eq!(
            run(b"[1]"),
            Err("a message starts with byte 0x5b instead of \"{\"".into())
        );
        assert_eq!(
            run("{\"a\":".repeat(17).as_bytes()),
            Err("a message is nested deeper than 16 levels".into())
        );
        let long = format!("{{\"a\":\"{}", "x".repeat(5000));
        assert_eq!(
            run(long.as_bytes()),
            Err("a message is longer than 4096 bytes".into())
        );
        assert!(run(b"{\"a\":]").unwrap_err().contains("not valid JSON"));
        assert!(run(b"{\"a\":\"\xff\"}").unwrap_err().contains("not valid JSON"));
        assert_eq!(run(b"{\"a\":\"}\\\"{\"}"), Ok(vec![json!({"a": "}\"{"})]));
    }
}
