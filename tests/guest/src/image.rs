//! Where the guest image and the QEMU binary are.

use crate::error::{Context, Error, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The directory `scripts/build-image` printed.
#[derive(Debug, Clone)]
pub struct Image {
    directory: PathBuf,
}

impl Image {
    /// An image that lies in `directory`.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// The image that `VM_IMAGE` names, else the one of this tree, built if it isn't there yet.
    pub fn find() -> Result<Self> {
        match std::env::var_os("VM_IMAGE") {
            Some(directory) => Ok(Self {
                directory: directory.into(),
            }),
            None => Ok(Self {
                directory: run_script("build-image", &[])?.into(),
            }),
        }
    }

    /// Kernel for `-kernel`. With a `screen` it starts through the BIOS: entered at once (PVH), which is faster, the
    /// kernel never learns that there is a VGA.
    #[must_use]
    pub fn kernel(&self, screen: bool) -> PathBuf {
        self.directory.join(if screen { "vmlinuz" } else { "vmlinux" })
    }

    /// Root file system for `-initrd`.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.directory.join("initrd")
    }

    /// Bootable disk for `-hda`.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk.qcow2")
    }

    /// Kernel command line for `-append`.
    pub fn cmdline(&self) -> Result<String> {
        let path = self.directory.join("cmdline");
        let text = std::fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }
}

/// The QEMU that `QEMU` names, else the patched one of this tree, built if it isn't there yet.
pub fn find_qemu() -> Result<PathBuf> {
    match std::env::var_os("QEMU") {
        Some(path) => Ok(path.into()),
        None => Ok(run_script("build-qemu", &[])?.into()),
    }
}

/// Runs a script of the tree and returns the last line of its standard output.
pub fn run_script(name: &str, arguments: &[&str]) -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../scripts")
        .join(name);
    let output = Command::new(&script)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context(|| format!("run {}", script.display()))?;
    let failed = || Error::Script {
        script: name.into(),
        status: output.status.to_string(),
    };
    if !output.status.success() {
        return Err(failed());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next_back().map(str::to_owned).ok_or_else(failed)
}
