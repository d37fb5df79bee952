//! The commands a server knows.

use super::reply::Reply;
use crate::vlog::Levels;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The text to print, or the error text; a missing line end is added on the way out for errors.
pub type CommandResult = Result<String, String>;

type Immediate = Box<dyn Fn(&[String]) -> CommandResult + Send>;
type Deferred = Box<dyn Fn(Vec<String>, Reply) + Send>;

enum Handler {
    Immediate(Immediate),
    Deferred(Deferred),
}

struct Command {
    usage: String,
    min_args: usize,
    /// `None`: any number.
    max_args: Option<usize>,
    handler: Handler,
}

/// Commands by name. `list-commands` and `version` are always there.
pub struct Registry {
    commands: BTreeMap<String, Command>,
}

impl Registry {
    /// `version` is what the command `version` prints, without the line end.
    pub fn new(version: &str) -> Self {
        let mut registry = Registry {
            commands: BTreeMap::new(),
        };
        let version = format!("{version}\n");
        registry.command("version", "", 0, Some(0), move |_| Ok(version.clone()));
        // Answered in `dispatch`, which sees the whole table.
        registry.command("list-commands", "", 0, Some(0), |_| Ok(String::new()));
        registry
    }

    /// Adds a command that answers at once. It runs on the server's thread: anything slow belongs in [`deferred`](Self::deferred).
    pub fn command<F>(
        &mut self,
        name: &str,
        usage: &str,
        min_args: usize,
        max_args: Option<usize>,
        handler: F,
    ) where
        F: Fn(&[String]) -> CommandResult + Send + 'static,
    {
        self.insert(
            name,
            usage,
            min_args,
            max_args,
            Handler::Immediate(Box::new(handler)),
        );
    }

    /// Adds a command whose handler hands the [`Reply`] to another thread. Other clients are served meanwhile.
    pub fn deferred<F>(
        &mut self,
        name: &str,
        usage: &str,
        min_args: usize,
        max_args: Option<usize>,
        handler: F,
    ) where
        F: Fn(Vec<String>, Reply) + Send + 'static,
    {
        self.insert(
            name,
            usage,
            min_args,
            max_args,
            Handler::Deferred(Box::new(handler)),
        );
    }

    /// Adds `vlog/list`, `vlog/set` and `vlog/reopen` on these levels.
    pub fn vlog(&mut self, levels: &Levels) {
        let l = levels.clone();
        self.command("vlog/list", "", 0, Some(0), move |_| Ok(l.list()));
        let l = levels.clone();
        self.command(
            "vlog/set",
            "{spec | PATTERN:destination:pattern}",
            1,
            None,
            move |specs| {
                specs
                    .iter()
                    .try_for_each(|spec| l.set(spec))
                    .map(|()| String::new())
                    .map_err(|e| e.to_string())
            },
        );
        let l = levels.clone();
        self.command("vlog/reopen", "", 0, Some(0), move |_| {
            l.reopen().map(|()| String::new()).map_err(|e| e.to_string())
        });
    }

    fn insert(
        &mut self,
        name: &str,
        usage: &str,
        min_args: usize,
        max_args: Option<usize>,
        handler: Handler,
    ) {
        self.commands.insert(
            name.to_owned(),
            Command {
                usage: usage.to_owned(),
                min_args,
                max_args,
                handler,
            },
        );
    }

    /// Runs one command; the answer goes to `reply`, now or later. The wording of errors is OVS's.
    pub(super) fn dispatch(&self, name: &str, args: Vec<String>, reply: Reply) {
        let Some(command) = self.commands.get(name) else {
            return reply.err(format!(
                "\"{name}\" is not a valid command (use \"list-commands\" to see a list of valid commands)"
            ));
        };
        if args.len() < command.min_args {
            return reply.err(format!(
                "\"{name}\" command requires at least {} arguments",
                command.min_args
            ));
        }
        if let Some(max) = command.max_args.filter(|max| args.len() > *max) {
            return reply.err(format!("\"{name}\" command takes at most {max} arguments"));
        }
        match &command.handler {
            _ if name == "list-commands" => reply.ok(self.list()),
            Handler::Immediate(handler) => reply.send(handler(&args)),
            Handler::Deferred(handler) => handler(args, reply),
        }
    }

    /// The text of `list-commands`.
    fn list(&self) -> String {
        let mut text = String::from("The available commands are:\n");
        for (name, command) in &self.commands {
            let _ = writeln!(text, "  {name:<23} {}", command.usage);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(registry: &Registry, name: &str, args: &[&str]) -> CommandResult {
        let (reply, answer) = Reply::for_test();
        registry.dispatch(name, args.iter().map(|s| s.to_string()).collect(), reply);
        answer.recv().unwrap()
    }

    fn registry() -> Registry {
        let mut registry = Registry::new("switch 1");
        registry.command("one/arg", "[name]", 1, Some(1), |args| {
            Ok(format!("<{}>", args[0]))
        });
        registry.deferred("later", "", 0, None, |args, reply| {
            std::thread::spawn(move || reply.ok(args.join(",")));
        });
        registry.deferred("forgets", "", 0, None, |_, reply| drop(reply));
        registry
    }

    #[test]
    fn argument_counts_are_checked_in_ovs_words() {
        let r = registry();
        assert_eq!(run(&r, "one/arg", &["x"]), Ok("<x>".into()));
        assert_eq!(
            run(&r, "one/arg", &[]),
            Err("\"one/arg\" command requires at least 1 arguments".into())
        );
        assert_eq!(
            run(&r, "version", &["x"]),
            Err("\"version\" command takes at most 0 arguments".into())
        );
        assert!(
            run(&r, "nope", &[])
                .unwrap_err()
                .starts_with("\"nope\" is not a valid command (use")
        );
    }

    #[test]
    fn answers_may_come_later_and_forgotten_ones_are_errors() {
        let r = registry();
        assert_eq!(run(&r, "later", &["a", "b"]), Ok("a,b".into()));
        assert!(run(&r, "forgets", &[]).is_err());
    }

    #[test]
    fn list_commands_has_the_layout_of_ovs() {
        assert_eq!(
            run(&registry(), "list-commands", &[]).unwrap(),
            "The available commands are:\n\
             \x20 forgets                 \n\
             \x20 later                   \n\
             \x20 list-commands           \n\
             \x20 one/arg                 [name]\n\
             \x20 version                 \n"
        );
    }
}
