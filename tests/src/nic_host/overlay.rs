//! The programs under test as a second cpio archive behind an image's own: the kernel unpacks one over the other.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::programs;

/// DPDK's plugins that the machine needs: the pool, the buses, the drivers of NICs and of ports in the kernel.
const PLUGINS: &[&str] = &[
    "mempool_ring",
    "bus_pci",
    "bus_vdev",
    "net_e1000",
    "net_virtio",
    "net_tap",
];

/// Writes `initrd` with the programs, and `more` of them, laid over it to `target`.
///
/// # Panics
/// If a file or a tool is missing.
pub fn lay_over(initrd: &Path, more: &[PathBuf], target: &Path) {
    let root = tempfile::tempdir().expect("a temporary directory");
    let root = root.path();
    let mut sources = vec![];
    for program in [programs::released_switch(), programs::bare_client()]
        .iter()
        .chain(more)
    {
        let name = program.file_name().expect("a program has a name");
        install(program, &root.join("usr/bin").join(name));
        sources.push(program.clone());
    }
    for plugin in plugins() {
        install_plugin(root, &plugin);
        sources.push(plugin);
    }
    for library in libraries(&sources) {
        // /lib is a link to /usr/lib in the image; /lib64 is a directory.
        let name = library.file_name().expect("a library has a name");
        match library.starts_with("/lib64") {
            true => install(&library, &root.join("lib64").join(name)),
            false => install(&library, &root.join("usr/lib/x86_64-linux-gnu").join(name)),
        }
    }
    shipped(&root.join("opt"));
    fs::copy(initrd, target).unwrap_or_else(|e| panic!("{}: {e}", initrd.display()));
    append(root, target);
}

/// What is installed beside the programs, scripts and units, below `target`.
fn shipped(target: &Path) {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for directory in [
        "scripts",
        "scripts/lib",
        "packaging/systemd",
        "packaging/tmpfiles.d",
    ] {
        fs::create_dir_all(target.join(directory)).expect("a directory in a new tree");
        let entries = fs::read_dir(tree.join(directory)).unwrap_or_else(|e| panic!("{directory}: {e}"));
        for file in entries.flatten().filter(|entry| entry.path().is_file()) {
            fs::copy(file.path(), target.join(directory).join(file.file_name()))
                .unwrap_or_else(|e| panic!("{}: {e}", file.path().display()));
        }
    }
}

/// Where the file at `path` on this host goes below `root`.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").expect("an absolute path"))
}

/// Appends the tree `root` to `target` in the kernel's format.
fn append(root: &Path, target: &Path) {
    let archive = File::options().append(true).open(target).expect("just written");
    let mut find = Command::new("find")
        .arg(".")
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .expect("find runs");
    let names = find.stdout.take().expect("a pipe");
    let status = Command::new("cpio")
        .args(["--quiet", "-o", "-H", "newc", "-R", "0:0"])
        .current_dir(root)
        .stdin(names)
        .stdout(archive)
        .status()
        .unwrap_or_else(|e| panic!("cpio: {e}; install the package cpio"));
    assert!(
        status.success() && find.wait().is_ok_and(|s| s.success()),
        "cpio failed"
    );
}

/// DPDK's plugins and what belongs to them, in the directory where `librte_eal` looks for them.
fn plugins() -> Vec<PathBuf> {
    let directory = fs::read_dir("/usr/lib/x86_64-linux-gnu/dpdk")
        .expect("DPDK's drivers are installed")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.join("librte_bus_pci.so").exists())
        .expect("DPDK's drivers are in a directory of their own");
    PLUGINS
        .iter()
        .map(|name| directory.join(format!("librte_{name}.so")))
        .collect()
}

/// All libraries that `files` need, as the loader finds them.
fn libraries(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let output = Command::new("ldd").args(files).output().expect("ldd runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("not found"), "{text}");
    text.lines()
        .flat_map(|line| line.split_whitespace())
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(PathBuf::from)
        .collect()
}

/// Puts a plugin among the libraries, and a link to it where EAL looks. As a file of its own it would be loaded beside the
/// library that other plugins need, and both would register the same things.
fn install_plugin(root: &Path, plugin: &Path) {
    let name = fs::read_link(plugin).expect("a plugin is a link to its library");
    let library = Path::new("/usr/lib/x86_64-linux-gnu").join(name);
    install(plugin, &inside(root, &library));
    let link = inside(root, plugin);
    fs::create_dir_all(link.parent().expect("not the root")).expect("a directory in a new tree");
    std::os::unix::fs::symlink(library, link).expect("a link in a new tree");
}

/// Puts `file` where it is wanted, without its debug information.
fn install(file: &Path, target: &Path) {
    let directory = target.parent().expect("not the root");
    fs::create_dir_all(directory).expect("a directory in a new tree");
    let status = Command::new("strip")
        .args(["--strip-debug", "-o"])
        .args([target, file])
        .status()
        .expect("strip runs");
    assert!(status.success(), "strip {}", file.display());
    fs::set_permissions(target, fs::Permissions::from_mode(0o755)).expect("a file of ours");
}
