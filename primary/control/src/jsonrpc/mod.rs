//! JSON-RPC 1.0 as OVSDB (RFC 7047 section 4) and unixctl speak it: objects back to back on a stream, without separators.

mod framer;
mod message;

pub use framer::{FrameError, Framer, Limits};
pub use message::{Message, MessageError};
