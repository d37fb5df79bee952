//! SPECIFICATION.md names only tests that exist, and each of its promises has one or says that it is pending.

use std::fs;
use std::path::Path;

#[test]
fn every_promise_names_its_tests() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(top.join("SPECIFICATION.md")).unwrap();
    let mut promises = 0;
    for section in text.split("\n## ").skip(1) {
        let (title, body) = section.split_once('\n').unwrap();
        for (at, promise) in split(body).into_iter().enumerate() {
            promises += 1;
            let number = format!("{}. ", at + 1);
            assert!(
                promise.starts_with(&number),
                "{title}: not number {number}: {promise}"
            );
            let tests: Vec<_> = promise
                .split('`')
                .skip(1)
                .step_by(2)
                .filter_map(|code| code.split_once("::"))
                .collect();
            let excused = promise.contains("**Pending**") || promise.contains("Same tests as ");
            assert!(!tests.is_empty() || excused, "{title}: no test: {promise}");
            for (file, test) in tests {
                let source = fs::read_to_string(top.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
                let function = source
                    .split(&format!("fn {test}("))
                    .next()
                    .filter(|before| before.len() < source.len());
                let before = function.unwrap_or_else(|| panic!("{title}: {file} has no test {test}"));
                assert!(
                    before.trim_end().ends_with("#[test]"),
                    "{file}: {test} is no test"
                );
            }
        }
    }
    assert!(promises > 40, "{promises}");
}

/// The numbered items of a section, each with its continuation lines.
fn split(body: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for line in body.lines() {
        if line.starts_with(|c: char| c.is_ascii_digit()) {
            items.push(line.to_owned());
        } else if let Some(item) = items.last_mut() {
            item.push('\n');
            item.push_str(line);
        }
    }
    items
}
