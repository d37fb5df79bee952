//! Starts a QEMU on the guest image, and ends it.

use crate::error::{Context, Error, Result, tail};
use crate::image::{Image, find_qemu};
use crate::qmp::Qmp;
use crate::rfb;
use crate::serial::Serial;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How QEMU runs the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accel {
    /// By translation: works everywhere.
    #[default]
    Tcg,
    /// By the host's CPU.
    Kvm,
}

impl Accel {
    /// What works on this host, found out by a short real boot (`scripts/probe-accel`). The variable `ACCEL`
    /// (`kvm` or `tcg`) overrides.
    pub fn probe(qemu: &Path) -> Result<Self> {
        let found = match std::env::var("ACCEL") {
            Ok(value) if value != "auto" => value,
            _ => crate::image::run_script("probe-accel", &[&qemu.to_string_lossy()])?,
        };
        match found.as_str() {
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(Error::Parse {
                what: "accelerator (kvm or tcg)",
                text: found,
            }),
        }
    }

    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
        }
    }
}

/// What the guest starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Boot {
    /// Kernel and initrd, given to QEMU: a few seconds.
    #[default]
    Kernel,
    /// The disk image through the BIOS, as in the by-hand tour.
    Disk,
}

/// Collects what a VM is to be; [`VmBuilder::spawn`] starts it.
#[derive(Debug, Clone)]
pub struct VmBuilder {
    name: String,
    qemu: Option<PathBuf>,
    image: Option<Image>,
    accel: Accel,
    boot: Boot,
    memory_mib: u32,
    cpus: u32,
    cmdline: String,
    eal: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    vnc: bool,
}

impl VmBuilder {
    /// The QEMU binary; by default [`find_qemu`]'s.
    #[must_use]
    pub fn qemu(mut self, path: &Path) -> Self {
        self.qemu = Some(path.into());
        self
    }

    /// The guest image; by default [`Image::find`]'s.
    #[must_use]
    pub fn image(mut self, image: &Image) -> Self {
        self.image = Some(image.clone());
        self
    }

    /// How to run the guest's code (default: TCG).
    #[must_use]
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = accel;
        self
    }

    /// What to start from (default: kernel and initrd).
    #[must_use]
    pub fn boot(mut self, boot: Boot) -> Self {
        self.boot = boot;
        self
    }

    /// Guest memory (default: 512 MiB).
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Virtual CPUs (default: 2).
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// More words for the kernel command line ([`Boot::Kernel`] only), such as `ip4=10.0.1.7/24`.
    #[must_use]
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline.push(' ');
        self.cmdline.push_str(words);
        self
    }

    /// EAL arguments, for the patched QEMU: they go before `--`.
    #[must_use]
    pub fn eal<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.eal.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// A NIC: `-netdev BACKEND,id=ID -device virtio-net-pci,netdev=ID,mac=MAC,romfile=[,DEVICE OPTIONS]`.
    ///
    /// `backend` is what stands before the id, such as `dpdk,port=2` or `socket,connect=127.0.0.1:9999`.
    #[must_use]
    pub fn nic(self, id: &str, backend: &str, mac: &str, device_options: &str) -> Self {
        // No boot ROM: nobody boots from the network, and it takes half a second to say so.
        let mut device = format!("virtio-net-pci,netdev={id},mac={mac},romfile=");
        if !device_options.is_empty() {
            device.push(',');
            device.push_str(device_options);
        }
        self.args([
            "-netdev".to_owned(),
            format!("{backend},id={id}"),
            "-device".to_owned(),
            device,
        ])
    }

    /// A NIC on a port of the switch; the MAC is `00:00:00:00:00:NN` with the port's number, so the guest is
    /// `10.0.0.PORT`.
    #[must_use]
    pub fn port(self, port: u8) -> Self {
        let id = format!("net{port}");
        self.nic(
            &id,
            &format!("dpdk,port={port}"),
            &format!("00:00:00:00:00:{port:02x}"),
            "",
        )
    }

    /// More QEMU arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// An environment variable of QEMU, which it hands on to its shims.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Gives the VM a screen and a VNC server for it (default: none, which boots faster).
    #[must_use]
    pub fn vnc(mut self, wanted: bool) -> Self {
        self.vnc = wanted;
        self
    }

    /// Starts QEMU. Returns as soon as it runs; the guest boots meanwhile (see [`Vm::wait_boot`]).
    pub fn spawn(self) -> Result<Vm> {
        let qemu = match &self.qemu {
            Some(path) => path.clone(),
            None => find_qemu()?,
        };
        let image = match &self.image {
            Some(image) => image.clone(),
            None => Image::find()?,
        };
        let directory = tempfile::Builder::new()
            .prefix("vm-")
            .tempdir()
            .context(|| "make a directory for a VM".into())?;
        let arguments = self.command_line(&image, directory.path())?;
        let log = directory.path().join("stderr");
        let stderr = File::create(&log).context(|| format!("create {}", log.display()))?;
        let child = Command::new(&qemu)
            .args(&arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .context(|| format!("run {}", qemu.display()))?;
        let mut command = vec![qemu.display().to_string()];
        command.extend(arguments);
        Ok(Vm {
            name: self.name,
            child,
            directory,
            serial: None,
            qmp: None,
            command,
            started: Instant::now(),
        })
    }

    fn command_line(&self, image: &Image, directory: &Path) -> Result<Vec<String>> {
        let mut line = self.eal.clone();
        if !line.is_empty() {
            line.push("--".into());
        }
        let mut add = |words: &[&str]| line.extend(words.iter().map(|&word| word.to_owned()));
        let socket = |name: &str| format!("unix:{},server=on,wait=off", directory.join(name).display());
        add(&[
            "-nodefaults",
            "-vga",
            "std",
            "-no-user-config",
            "-snapshot",
            "-name",
            &self.name,
        ]);
        add(&self.accel.arguments());
        add(&["-m", &self.memory_mib.to_string(), "-smp", &self.cpus.to_string()]);
        match self.boot {
            Boot::Kernel => add(&[
                "-kernel",
                &image.kernel(self.vnc).to_string_lossy(),
                "-initrd",
                &image.initrd().to_string_lossy(),
                "-append",
                &format!("{}{}", image.cmdline()?, self.cmdline),
            ]),
            Boot::Disk => add(&["-boot", "c", "-hda", &image.disk().to_string_lossy()]),
        }
        add(&["-serial", &socket("serial"), "-qmp", &socket("qmp")]);
        if self.vnc {
            add(&["-vnc", &format!("unix:{}", directory.join("vnc").display())]);
        } else {
            add(&["-display", "none"]);
        }
        line.extend(self.arguments.iter().cloned());
        Ok(line)
    }
}

/// A running VM. Dropping it kills QEMU and removes its sockets.
#[derive(Debug)]
pub struct Vm {
    name: String,
    child: Child,
    directory: TempDir,
    serial: Option<Serial>,
    qmp: Option<Qmp>,
    command: Vec<String>,
    started: Instant,
}

const CONNECT: Duration = Duration::from_secs(10);

impl Vm {
    /// A VM of this name, not started yet.
    #[must_use]
    pub fn builder(name: &str) -> VmBuilder {
        VmBuilder {
            name: name.into(),
            qemu: None,
            image: None,
            accel: Accel::default(),
            boot: Boot::default(),
            memory_mib: 512,
            cpus: 2,
            cmdline: String::new(),
            eal: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            vnc: false,
        }
    }

    /// The VM's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The command that was run, word by word.
    #[must_use]
    pub fn command(&self) -> &[String] {
        &self.command
    }

    /// Waits for the guest's prompt and returns how long that took since QEMU's start.
    pub fn wait_boot(&mut self, limit: Duration) -> Result<Duration> {
        let outcome = self.serial().and_then(|serial| serial.wait_prompt(limit));
        match outcome {
            Ok(()) => Ok(self.started.elapsed()),
            Err(e) => Err(self.explain(e)),
        }
    }

    /// The guest's serial console.
    pub fn serial(&mut self) -> Result<&mut Serial> {
        if self.serial.is_none() {
            let connected = Serial::connect(&self.directory.path().join("serial"), CONNECT);
            self.serial = Some(connected.map_err(|e| self.explain(e))?);
        }
        self.serial.as_mut().ok_or(Error::Closed("the serial console"))
    }

    /// QEMU's monitor.
    pub fn qmp(&mut self) -> Result<&mut Qmp> {
        if self.qmp.is_none() {
            let connected = Qmp::connect(&self.directory.path().join("qmp"), CONNECT);
            self.qmp = Some(connected.map_err(|e| self.explain(e))?);
        }
        self.qmp.as_mut().ok_or(Error::Closed("QMP"))
    }

    /// A new VNC connection to the guest's screen and keyboard.
    pub fn vnc(&mut self) -> Result<rfb::Client> {
        let address = rfb::Address::Unix(self.directory.path().join("vnc"));
        rfb::Client::connect(&address, CONNECT).map_err(|e| self.explain(e))
    }

    /// What QEMU (and the shims it started) wrote to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        let bytes = std::fs::read(self.directory.path().join("stderr")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The directory of the VM's sockets and of its log.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// QEMU's exit status, if it has ended.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context(|| "wait for QEMU".into())
    }

    /// Waits until QEMU ends by itself.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exit_status()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(Error::Timeout {
                    what: "the end of QEMU".into(),
                    limit,
                    seen: tail(&self.stderr()),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends QEMU in an orderly way and returns its standard error.
    pub fn shut_down(mut self) -> Result<String> {
        self.qmp()?.quit()?;
        self.wait_exit(Duration::from_secs(10))?;
        Ok(self.stderr())
    }

    /// Kills QEMU without warning, as a crash would end it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context(|| "kill QEMU".into())?;
        self.child.wait().context(|| "wait for QEMU".into()).map(drop)
    }

    /// If QEMU has ended, that is the reason for any failure to talk to it.
    fn explain(&mut self, error: Error) -> Error {
        match self.child.try_wait() {
            Ok(Some(status)) => Error::QemuExited {
                status: status.to_string(),
                stderr: tail(&self.stderr()),
            },
            _ => error,
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}: standard error of QEMU ---\n{}", self.name, self.stderr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_follows_the_paper() {
        let image = Image::at(Path::new("/image"));
        let builder = Vm::builder("Client 2")
            .boot(Boot::Disk)
            .eal(["-c", "0x2", "--proc-type=secondary"])
            .port(10);
        let line = builder.command_line(&image, Path::new("/run")).unwrap().join(" ");
        assert!(line.starts_with("-c 0x2 --proc-type=secondary -- "), "{line}");
        assert!(line.contains("-boot c -hda /image/disk.qcow2"), "{line}");
        let nic = "-netdev dpdk,port=10,id=net10 -device virtio-net-pci,netdev=net10,mac=00:00:00:00:00:0a,romfile=";
        assert!(line.ends_with(nic), "{line}");
    }

    #[test]
    fn a_qemu_that_ends_is_reported_with_its_words() {
        let mut vm = Vm::builder("x")
            .qemu(Path::new("/bin/false"))
            .image(&Image::at(Path::new("/")))
            .boot(Boot::Disk);
        vm.arguments.clear();
        let mut vm = vm.spawn().unwrap();
        vm.wait_exit(Duration::from_secs(5)).unwrap();
        let error = vm.explain(Error::Closed("QMP"));
        assert!(matches!(error, Error::QemuExited { .. }), "{error}");
    }
}
