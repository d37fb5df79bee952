//! An attach step by step, so that it can be broken off at each.

use std::path::Path;

use vswitch_common::eal::Eal;
use vswitch_common::port::message::Message;
use vswitch_tests::attach::{Answer, Raw};

use super::Words;
use super::attached::{Client, eal_args};

/// How far it is.
#[derive(Debug, Default)]
pub struct Steps {
    connection: Option<Raw>,
    prefix: String,
    _eal: Option<Eal>,
}

impl Client {
    /// `hello SOCKET PORT QUEUES NAME`: asks for a port.
    pub fn hello(&mut self, mut words: Words<'_>) -> Result<String, String> {
        let raw = Raw::connect(Path::new(words.next()?)).map_err(|e| e.to_string())?;
        raw.hello(words.number()?, words.number()?, words.next()?);
        self.steps.connection = Some(raw);
        Ok(String::new())
    }

    fn connection(&mut self) -> Result<&mut Raw, String> {
        self.steps
            .connection
            .as_mut()
            .ok_or_else(|| "no hello yet".into())
    }

    /// `turn`: waits for the turn to initialise EAL.
    pub fn turn(&mut self) -> Result<String, String> {
        match self.connection()?.answer() {
            Answer::Message(Message::Grant(grant)) => {
                self.steps.prefix = grant.file_prefix.get();
                Ok(self.steps.prefix.clone())
            }
            Answer::Message(Message::Refusal(refusal)) => Err(refusal.text.get()),
            other => Err(format!("{other:?}")),
        }
    }

    /// `eal`: initialises it.
    pub fn eal(&mut self) -> Result<String, String> {
        let mut args = eal_args();
        args.push("--proc-type=secondary".into());
        args.push(format!("--file-prefix={}", self.steps.prefix));
        self.steps._eal = Some(Eal::init("bare-client", &args).map_err(|e| e.to_string())?);
        Ok(String::new())
    }

    /// `ready`: says so, and reads no answer.
    pub fn ready(&mut self) -> Result<String, String> {
        match self.connection()?.ready() {
            true => Ok(String::new()),
            false => Err("the switch has closed the connection".into()),
        }
    }

    /// `again`: a second hello on the same connection.
    pub fn again(&mut self) -> Result<String, String> {
        self.connection()?.hello(1, 1, "again");
        Ok(String::new())
    }
}
