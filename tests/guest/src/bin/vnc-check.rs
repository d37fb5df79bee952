//! Types a command on a guest's keyboard through VNC and reads the answer from the pixels of its screen.

use anyhow::{Context, bail};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vm_harness::rfb::{Address, Client};
use vm_harness::text::Font;

/// Types a command on a guest's keyboard through VNC and reads the answer from the pixels of its screen.
///
/// Prints the screen's text. Exit code: 0 if the expected text came, 1 if not.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// VNC server: HOST:PORT, :DISPLAY or unix:PATH
    #[arg(long)]
    vnc: Address,
    /// Text to type; Return is pressed at its end
    #[arg(long = "type", value_name = "TEXT")]
    text: Option<String>,
    /// Text that has to appear below the typed line (anywhere, if nothing is typed), as whole words: "0% loss" is
    /// not in "100% loss"
    #[arg(long, value_name = "TEXT")]
    expect: Option<String>,
    /// Seconds to wait for the prompt, and then for the expected text
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    /// Where to save the picture of the screen
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    /// What the line ends with when the guest is ready for typing
    #[arg(long, default_value = "#", value_name = "TEXT")]
    prompt: String,
    /// Don't print the screen's text
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("vnc-check: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<bool> {
    let limit = Duration::from_secs(args.timeout);
    let font = Font::of_this_host()?;
    let mut client = Client::connect(&args.vnc, limit)?;

    if let Some(text) = &args.text {
        let ready = |lines: &[String]| {
            lines
                .iter()
                .rfind(|l| !l.is_empty())
                .is_some_and(|l| l.ends_with(&args.prompt))
        };
        let (lines, is_ready) = watch(&mut client, &font, limit, ready)?;
        if !is_ready {
            finish(args, &mut client, &lines)?;
            bail!("no prompt within {} s", args.timeout);
        }
        // A clear screen: what is found on it then is the answer, and there is room for it.
        client.type_text("clear\n").context("clear the screen")?;
        watch(&mut client, &font, limit, |lines| {
            lines.iter().filter(|l| !l.is_empty()).count() == 1 && ready(lines)
        })?;
        client.type_text(text)?;
        client.type_text("\n")?;
    }

    let arrived = |lines: &[String]| {
        let skip = usize::from(args.text.is_some());
        match &args.expect {
            Some(expected) => has_words(&answer(lines, skip, args.text.as_deref()), expected),
            None => true,
        }
    };
    let (lines, found) = watch(&mut client, &font, limit, arrived)?;
    finish(args, &mut client, &lines)?;
    if !found {
        eprintln!(
            "vnc-check: {:?} did not appear within {} s",
            args.expect.as_deref().unwrap_or(""),
            args.timeout
        );
    }
    Ok(found)
}

/// Whether `text` contains `words`, not as a part of longer words or numbers.
fn has_words(text: &str, words: &str) -> bool {
    let joins = |a: Option<char>, b: Option<char>| {
        a.is_some_and(char::is_alphanumeric) && b.is_some_and(char::is_alphanumeric)
    };
    text.match_indices(words).any(|(at, found)| {
        let before = text.get(..at).and_then(|t| t.chars().next_back());
        let after = text.get(at + found.len()..).and_then(|t| t.chars().next());
        !joins(before, words.chars().next()) && !joins(words.chars().next_back(), after)
    })
}

/// The screen as one text, rows joined: what the guest wrote may wrap at the right edge. The typed line, at the
/// top, is left out: it may well contain the expected text.
fn answer(lines: &[String], skip: usize, typed: Option<&str>) -> String {
    // A typed line longer than the screen takes more rows.
    const COLUMNS: usize = 80;
    let prompt = lines
        .first()
        .and_then(|line| line.find('#'))
        .map_or(0, |at| at + 2);
    let rows = typed.map_or(skip, |text| {
        (prompt + text.chars().count()).div_ceil(COLUMNS).max(skip)
    });
    lines.iter().skip(rows).fold(String::new(), |mut all, line| {
        all.push_str(line);
        // A full row goes on in the next one.
        if line.chars().count() < COLUMNS {
            all.push('\n');
        }
        all
    })
}

/// Looks at the screen until `done` or until the time is over; returns the last text, and whether it was `done`.
fn watch(
    client: &mut Client,
    font: &Font,
    limit: Duration,
    done: impl Fn(&[String]) -> bool,
) -> anyhow::Result<(Vec<String>, bool)> {
    let deadline = Instant::now() + limit;
    loop {
        let lines = font.read(client.grab()?);
        if done(&lines) {
            return Ok((lines, true));
        }
        if Instant::now() >= deadline {
            return Ok((lines, false));
        }
        std::thread::sleep(Duration::from_millis(150));
    }
}

fn finish(args: &Args, client: &mut Client, lines: &[String]) -> anyhow::Result<()> {
    if let Some(path) = &args.png {
        client.last().save_png(path)?;
    }
    if !args.quiet {
        let used = lines
            .iter()
            .rposition(|line| !line.is_empty())
            .map_or(0, |last| last + 1);
        for line in lines.iter().take(used) {
            println!("{line}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|&line| line.to_owned()).collect()
    }

    #[test]
    fn the_typed_line_is_no_answer() {
        let screen = lines(&["client1:~# echo OK", ""]);
        assert!(!answer(&screen, 1, Some("echo OK")).contains("OK"));
        let screen = lines(&["client1:~# echo OK", "OK"]);
        assert!(answer(&screen, 1, Some("echo OK")).contains("OK"));
    }

    #[test]
    fn words_are_whole() {
        assert!(has_words("3 received, 0% packet loss, time", "0% packet loss"));
        assert!(!has_words("0 received, 100% packet loss, time", "0% packet loss"));
        assert!(has_words("100% packet loss\n0% packet loss", "0% packet loss"));
        assert!(!has_words("OKAY", "OK"));
        assert!(has_words("OK", "OK"));
    }

    #[test]
    fn wrapped_lines_are_joined() {
        let command = format!("echo {}", "x".repeat(80));
        let long = format!("client1:~# {command}");
        let screen = lines(&[&long[..80], &long[80..], &"y".repeat(80), "yz"]);
        let answer = answer(&screen, 1, Some(&command));
        assert!(!answer.contains('x'), "{answer}");
        assert!(answer.contains(&format!("{}z", "y".repeat(81))));
    }
}
