//! What the scripts change on a machine meanwhile, and put back.

use std::fs;
use std::path::Path;
use std::process::Command;

use vswitch_tests::fake_host::{Said, run};

/// Runs bash on `text`, with the shared part of the scripts, whose scratch directories are in `tmp`. What it mounts is its own.
fn script(tmp: &Path, text: &str) -> Said {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let start = "set -euo pipefail; scratch_name=try; . \"$top/scripts/lib/scratch.sh\"";
    run(Command::new("unshare")
        .args(["--mount", "bash", "-c", &format!("{start}\n{text}")])
        .env("top", top)
        .env("TMPDIR", tmp))
}

/// The next run puts right what one that was killed has left, and leaves alone one that is under way.
#[test]
fn what_a_killed_run_has_changed_is_put_back_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let tmp = dir.path().join("with a blank");
    fs::create_dir(&tmp).unwrap();
    let made = tmp.join("made");
    let make = "undo_note file \"$TMPDIR/made\"; touch \"$TMPDIR/made\"";
    script(&tmp, &format!("{make}; kill -KILL $$"));
    assert!(made.exists() && fs::read_dir(&tmp).unwrap().count() == 2);
    let said = script(&tmp, "true");
    assert!(said.status == 0 && said.stdout.contains("was killed"), "{said:?}");
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0, "{said:?}");

    let again = "bash -euo pipefail -c 'scratch_name=other; . \"$top/scripts/lib/scratch.sh\"'";
    let said = script(&tmp, &format!("{make}; {again}; [ -e \"$TMPDIR/made\" ]"));
    assert!(
        said.status == 0 && !said.stdout.contains("was killed"),
        "{said:?}"
    );
    assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0, "{said:?}");
}

/// While packages are installed no service starts; who forbids that in general still does so afterwards.
#[test]
fn a_policy_on_services_stays_as_it_was() {
    let tmp = tempfile::tempdir().unwrap();
    // apt-get looks whether services may start
    let bin = tmp.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let text = "mount -t tmpfs none /usr/sbin
        printf '#!/bin/sh\\n/usr/sbin/policy-rc.d >/dev/null || echo $? >>\"$TMPDIR/seen\"\\n' >\"$TMPDIR/bin/apt-get\"
        chmod 755 \"$TMPDIR/bin/apt-get\"
        PATH=$TMPDIR/bin:$PATH
        need_packages none:/nonexistent
        [ ! -e /usr/sbin/policy-rc.d ]
        printf '#!/bin/sh\\nexit 7\\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
        need_packages none:/nonexistent
        grep -q 'exit 7' /usr/sbin/policy-rc.d";
    let said = script(tmp.path(), text);
    assert_eq!(said.status, 0, "{said:?}");
    let seen = fs::read_to_string(tmp.path().join("seen")).unwrap();
    let seen: Vec<&str> = seen.lines().collect();
    assert!(seen.contains(&"101") && seen.last() == Some(&"7"), "{seen:?}");
}

/// A disk that the build would fill is named before it begins.
#[test]
fn a_disk_too_small_for_the_build_is_named() {
    let tmp = tempfile::tempdir().unwrap();
    let text = "mkdir \"$TMPDIR/disk\"
        mount -t tmpfs -o size=8m none \"$TMPDIR/disk\"
        export CARGO_TARGET_DIR=$TMPDIR/disk/target
        need_disk 8
        mkdir \"$CARGO_TARGET_DIR\"
        need_disk 32
        rmdir \"$CARGO_TARGET_DIR\"
        need_disk 9";
    let said = script(tmp.path(), text);
    assert_eq!(said.status, 1, "{said:?}");
    let free = format!(
        "FAILED: the disk of {}/disk has only 8 MiB free, 9 are needed",
        tmp.path().display()
    );
    assert!(said.stdout.contains(&free), "{said:?}");
}
