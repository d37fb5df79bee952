//! The backend against a real driver: DPDK's virtio-user in testpmd, which sends back every frame it receives.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::eal_args::EalArgs;
use crate::pump::testing::Loopback;

/// testpmd with one virtio-user port whose frontend listens at `socket`. Ends when dropped.
struct Testpmd(Child);

impl Testpmd {
    fn start(socket: &Path, queues: u16, options: &str) -> Testpmd {
        let prefix = format!("shim-test-{}-{queues}{}", std::process::id(), options.len());
        let vdev = format!(
            "net_virtio_user0,path={},server=1,queues={queues},queue_size=256{options}",
            socket.display()
        );
        // Memory in memfds: the test needs no hugepages, and takes none from others.
        let child = Command::new("dpdk-testpmd")
            .args([
                "--no-huge",
                "-m",
                "256",
                "--no-pci",
                "--no-telemetry",
                "--single-file-segments",
                "-l",
                "0,1",
            ])
            .args(["--file-prefix", &prefix, "--vdev", &vdev, "--"])
            // EAL's files go where the socket is, and away with it.
            .env("RUNTIME_DIRECTORY", socket.parent().unwrap())
            .args([
                "--auto-start",
                "--forward-mode=io",
                "--port-topology=loop",
                "--total-num-mbufs=4096",
            ])
            .args([
                format!("--rxq={queues}"),
                format!("--txq={queues}"),
                "--stats-period=60".into(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("dpdk-testpmd is installed (on Debian: apt install dpdk-dev)");
        Testpmd(child)
    }

    fn output(mut self) -> String {
        let _ = self.0.kill();
        let stderr = self.0.stderr.take().map(BufReader::new);
        stderr
            .into_iter()
            .flat_map(|r| r.lines().map_while(Result::ok))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves a device for the frontend at `socket` until told to stop.
struct Server {
    device: Arc<Mutex<Device<Loopback>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(socket: &Path, ports: &[Loopback]) -> Server {
        let device = Arc::new(Mutex::new(
            Device::new(1, ports.len() as u16, &EalArgs::default()).unwrap(),
        ));
        device.lock().unwrap().attach(ports.to_vec());
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (socket, device, stop) = (socket.to_owned(), Arc::clone(&device), Arc::clone(&stop));
            move || {
                let stream = loop {
                    match UnixStream::connect(&socket) {
                        Ok(stream) => break stream,
                        Err(_) if stop.load(Ordering::Relaxed) => return,
                        Err(_) => std::thread::sleep(Duration::from_millis(20)),
                    }
                };
                let mut connection = Connection::new(stream, Arc::clone(&device)).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let mut fds = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
                    if poll(&mut fds, PollTimeout::from(20u8)).unwrap() > 0 && connection.handle().is_err() {
                        break;
                    }
                }
                device.lock().unwrap().disconnect();
            }
        });
        Server {
            device,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.device.lock().unwrap().detach();
    }
}

fn frame(index: usize) -> Vec<u8> {
    let len = 60 + index * 37 % 1455;
    let mut bytes: Vec<u8> = (0..len).map(|i| (i * 31 + index) as u8).collect();
    bytes[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    bytes[14..22].copy_from_slice(&(index as u64).to_be_bytes());
    bytes
}

/// Sends `count` frames through `port` and expects all of them back, in order and unaltered.
fn bounce(port: &Loopback, count: usize) -> Result<(), String> {
    let (mut sent, mut got) = (0, 0);
    let mut last = Instant::now();
    // testpmd drops what comes before it forwards, so the first frame is sent until it comes back.
    loop {
        port.deliver(&frame(0));
        std::thread::sleep(Duration::from_millis(20));
        if !port.collect().is_empty() {
            break;
        }
        if last.elapsed() > Duration::from_secs(30) {
            return Err("testpmd never sent a frame back".into());
        }
    }
    std::thread::sleep(Duration::from_millis(100));
    port.collect();
    last = Instant::now();
    while got < count {
        while sent < count && sent - got < 200 {
            port.deliver(&frame(sent));
            sent += 1;
        }
        for bytes in port.collect() {
            if bytes != frame(got) {
                return Err(format!(
                    "frame {got} came back altered or out of order: {} bytes",
                    bytes.len()
                ));
            }
            got += 1;
            last = Instant::now();
        }
        if last.elapsed() > Duration::from_secs(10) {
            return Err(format!("{got} of {count} frames came back"));
        }
        std::thread::yield_now();
    }
    Ok(())
}

fn run(queues: u16, options: &str, count: usize) {
    run_restarting(queues, options, count, 0);
}

/// The backend is replaced by another one `restarts` times.
fn run_restarting(queues: u16, options: &str, count: usize, restarts: usize) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vhost.sock");
    let testpmd = Testpmd::start(&socket, queues, options);
    for round in 0..=restarts {
        let ports: Vec<Loopback> = (0..queues).map(|_| Loopback::new(600)).collect();
        let server = Server::start(&socket, &ports);
        for (queue, port) in ports.iter().enumerate() {
            if let Err(why) = bounce(port, count) {
                drop(server);
                panic!("round {round}, queue {queue}: {why}\n{}", testpmd.output());
            }
        }
    }
}

#[test]
fn testpmd_sends_every_frame_back() {
    run(1, ",in_order=0", 20_000);
}

#[test]
fn testpmd_with_two_queue_pairs() {
    run(2, "", 5_000);
}

#[test]
fn testpmd_without_mergeable_buffers() {
    run(1, ",mrg_rxbuf=0", 5_000);
}

#[test]
fn testpmd_with_packed_rings() {
    run(1, ",packed_vq=1,in_order=0", 20_000);
}

#[test]
fn testpmd_in_order() {
    run(1, ",in_order=1", 20_000);
}

#[test]
fn testpmd_with_packed_rings_in_order() {
    run(2, ",packed_vq=1,in_order=1", 10_000);
}

#[test]
fn testpmd_with_packed_rings_without_mergeable_buffers() {
    run(1, ",packed_vq=1,in_order=0,mrg_rxbuf=0", 5_000);
}

#[test]
fn testpmd_sees_another_backend_take_over() {
    run_restarting(1, ",packed_vq=0", 2_000, 2);
    run_restarting(1, ",packed_vq=1", 2_000, 2);
}
