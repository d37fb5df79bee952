//! A VNC client: RFB 3.8 (RFC 6143) over TCP or a Unix socket.
//!
//! Written here rather than taken from crates.io. The crate `vnc` is unmaintained (2019, with old `flate2` and
//! `octavo`), `vnc-rs` is asynchronous and would bring tokio into every test. What is needed is small: no
//! authentication, raw pixels, a resizable desktop, key events.

use crate::error::{Context, Error, Result};
use crate::serial::connect_unix;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Picture of a guest's screen, pixels as `0x00RRGGBB`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Framebuffer {
    width: usize,
    height: usize,
    pixels: Vec<u32>,
}

impl Framebuffer {
    /// A black picture.
    #[must_use]
    pub fn new(width: usize, height: usize) -> Self {
        Self {
            width,
            height,
            pixels: vec![0; width * height],
        }
    }

    /// Width in pixels.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixel at column `x` of row `y`; `None` outside of the picture.
    #[must_use]
    pub fn pixel(&self, x: usize, y: usize) -> Option<u32> {
        if x < self.width {
            self.pixels.get(y * self.width + x).copied()
        } else {
            None
        }
    }

    /// Sets a pixel; one outside of the picture is ignored.
    pub fn set_pixel(&mut self, x: usize, y: usize, colour: u32) {
        if x < self.width
            && let Some(pixel) = self.pixels.get_mut(y * self.width + x)
        {
            *pixel = colour;
        }
    }

    /// Saves the picture.
    pub fn save_png(&self, path: &Path) -> Result<()> {
        let what = || format!("write {}", path.display());
        let file = File::create(path).context(what)?;
        let dimension = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut encoder = png::Encoder::new(
            BufWriter::new(file),
            dimension(self.width),
            dimension(self.height),
        );
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let bytes: Vec<u8> = self
            .pixels
            .iter()
            .flat_map(|pixel| {
                let [_, r, g, b] = pixel.to_be_bytes();
                [r, g, b]
            })
            .collect();
        let write = |mut writer: png::Writer<BufWriter<File>>| {
            writer.write_image_data(&bytes)?;
            writer.finish()
        };
        encoder.write_header().and_then(write).map_err(|e| Error::Io {
            what: what(),
            source: e.into(),
        })
    }
}

/// Where a VNC server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`; a display `:N` is port 5900 + N of this host.
    Tcp(String),
    /// `unix:PATH`.
    Unix(std::path::PathBuf),
}

impl std::str::FromStr for Address {
    type Err = Error;

    /// `HOST:PORT` with a port above 99, `[HOST]:DISPLAY` as `vncviewer` takes it, or `unix:PATH`.
    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let bad = || Error::Parse {
            what: "VNC address (HOST:PORT, :DISPLAY or unix:PATH)",
            text: text.into(),
        };
        let (host, number) = text.rsplit_once(':').ok_or_else(bad)?;
        let number: u16 = number.parse().map_err(|_| bad())?;
        let port = if number < 100 { 5900 + number } else { number };
        let host = if host.is_empty() { "127.0.0.1" } else { host };
        Ok(Self::Tcp(format!("{host}:{port}")))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What the client reads from and writes to.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connected VNC client.
pub struct Client {
    stream: Box<dyn Stream>,
    name: String,
    framebuffer: Framebuffer,
    key_pause: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

const RAW: i32 = 0;
const DESKTOP_SIZE: i32 = -223;
/// Larger than any screen QEMU has; a server's word is not trusted beyond it.
const MAX_SIDE: usize = 8192;
const IO_LIMIT: Duration = Duration::from_secs(10);

impl Client {
    /// Connects; the server may still have to start.
    pub fn connect(address: &Address, limit: Duration) -> Result<Self> {
        let what = || format!("VNC server {address}");
        match address {
            Address::Unix(path) => {
                let stream = connect_unix(path, limit)?;
                stream.set_read_timeout(Some(IO_LIMIT)).context(what)?;
                Self::handshake(Box::new(stream))
            }
            Address::Tcp(host) => {
                let deadline = Instant::now() + limit;
                let stream = loop {
                    match TcpStream::connect(host) {
                        Ok(stream) => break stream,
                        Err(e) if e.kind() == ErrorKind::ConnectionRefused && Instant::now() < deadline => {
                            std::thread::sleep(Duration::from_millis(50));
                        }
                        Err(source) => return Err(Error::Io { what: what(), source }),
                    }
                };
                stream.set_read_timeout(Some(IO_LIMIT)).context(what)?;
                stream.set_nodelay(true).context(what)?;
                Self::handshake(Box::new(stream))
            }
        }
    }

    /// Speaks the opening of the protocol on a connected stream.
    pub fn handshake(stream: Box<dyn Stream>) -> Result<Self> {
        let mut client = Self {
            stream,
            name: String::new(),
            framebuffer: Framebuffer::new(0, 0),
            key_pause: Duration::from_millis(25),
        };
        let version: [u8; 12] = client.read_array()?;
        if !version.starts_with(b"RFB 003.") {
            return Err(protocol(format!(
                "not an RFB server: {:?}",
                String::from_utf8_lossy(&version)
            )));
        }
        if version < *b"RFB 003.008\n" {
            return Err(protocol("the server is older than RFB 3.8".into()));
        }
        client.write(b"RFB 003.008\n")?;

        let count = client.read_u8()?;
        if count == 0 {
            return Err(protocol(format!("refused: {}", client.read_string()?)));
        }
        let types = client.read_vec(count.into())?;
        if !types.contains(&1) {
            return Err(protocol(format!(
                "wants authentication (types {types:?}), which is not supported"
            )));
        }
        client.write(&[1])?;
        if client.read_u32()? != 0 {
            return Err(protocol(format!("refused: {}", client.read_string()?)));
        }
        client.write(&[1])?; // shared: a person may look on at the same time

        let width = client.read_u16()?;
        let height = client.read_u16()?;
        client.read_vec(16)?; // the server's own pixel format; we set ours
        client.name = client.read_string()?;
        client.resize(width.into(), height.into())?;

        // SetPixelFormat: 32 bits, depth 24, little-endian, true colour, 8 bits each at 16, 8 and 0.
        client.write(&[
            0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0,
        ])?;
        let mut encodings = vec![2, 0, 0, 2];
        encodings.extend(RAW.to_be_bytes());
        encodings.extend(DESKTOP_SIZE.to_be_bytes());
        client.write(&encodings)?;
        Ok(client)
    }

    /// The desktop's name: QEMU tells the VM's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The picture that [`Client::grab`] last returned.
    #[must_use]
    pub fn last(&self) -> &Framebuffer {
        &self.framebuffer
    }

    /// Asks for the whole screen and returns it.
    pub fn grab(&mut self) -> Result<&Framebuffer> {
        let deadline = Instant::now() + IO_LIMIT;
        'request: loop {
            let (width, height) = (self.framebuffer.width, self.framebuffer.height);
            let mut request = vec![3, 0, 0, 0, 0, 0];
            for side in [width, height] {
                request.extend(u16::try_from(side).unwrap_or(u16::MAX).to_be_bytes());
            }
            self.write(&request)?;
            while Instant::now() < deadline {
                match self.message()? {
                    Update::Other => {}
                    Update::Resized => continue 'request,
                    Update::Pixels { whole: true } => return Ok(&self.framebuffer),
                    Update::Pixels { whole: false } => {}
                }
            }
            return Err(Error::Timeout {
                what: "a whole picture from the VNC server".into(),
                limit: IO_LIMIT,
                seen: String::new(),
            });
        }
    }

    /// Types `text` on the guest's keyboard (US layout); a newline is the Return key.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        // All of it is looked up first: half a command must not reach the guest.
        let keys = text.chars().map(key_for).collect::<Result<Vec<_>>>()?;
        for key in keys {
            if key.shift {
                self.key(SHIFT, true)?;
            }
            self.key(key.symbol, true)?;
            self.key(key.symbol, false)?;
            if key.shift {
                self.key(SHIFT, false)?;
            }
            // The emulated keyboard's queue holds 16 codes; what doesn't fit is lost.
            std::thread::sleep(self.key_pause);
        }
        Ok(())
    }

    /// Presses or releases the key with this X11 keysym.
    pub fn key(&mut self, keysym: u32, down: bool) -> Result<()> {
        let mut event = vec![4, u8::from(down), 0, 0];
        event.extend(keysym.to_be_bytes());
        self.write(&event)
    }

    /// Reads one message of the server and applies it.
    fn message(&mut self) -> Result<Update> {
        match self.read_u8()? {
            0 => self.framebuffer_update(),
            1 => {
                // SetColourMapEntries: not for true colour, but harmless.
                self.read_vec(3)?;
                let count = self.read_u16()?;
                self.read_vec(usize::from(count) * 6)?;
                Ok(Update::Other)
            }
            2 => Ok(Update::Other), // Bell
            3 => {
                self.read_vec(3)?;
                self.read_string()?;
                Ok(Update::Other)
            }
            other => Err(protocol(format!("unknown message type {other}"))),
        }
    }

    fn framebuffer_update(&mut self) -> Result<Update> {
        self.read_u8()?;
        let count = self.read_u16()?;
        let mut area = 0;
        let mut resized = false;
        for _ in 0..count {
            let x = usize::from(self.read_u16()?);
            let y = usize::from(self.read_u16()?);
            let width = usize::from(self.read_u16()?);
            let height = usize::from(self.read_u16()?);
            match self.read_i32()? {
                RAW => {
                    if x + width > self.framebuffer.width || y + height > self.framebuffer.height {
                        return Err(protocol(format!(
                            "rectangle {width}x{height}+{x}+{y} outside of the {}x{} desktop",
                            self.framebuffer.width, self.framebuffer.height
                        )));
                    }
                    let data = self.read_vec(width * height * 4)?;
                    for (i, pixel) in data.chunks_exact(4).enumerate() {
                        if let [b, g, r, _] = *pixel {
                            let colour = u32::from_be_bytes([0, r, g, b]);
                            self.framebuffer.set_pixel(x + i % width, y + i / width, colour);
                        }
                    }
                    area += width * height;
                }
                DESKTOP_SIZE => {
                    self.resize(width, height)?;
                    resized = true;
                }
                other => return Err(protocol(format!("encoding {other} was not asked for"))),
            }
        }
        if resized {
            return Ok(Update::Resized);
        }
        Ok(Update::Pixels {
            whole: area >= self.framebuffer.pixels.len() && area > 0,
        })
    }

    fn resize(&mut self, width: usize, height: usize) -> Result<()> {
        if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
            return Err(protocol(format!("desktop of {width}x{height}")));
        }
        self.framebuffer = Framebuffer::new(width, height);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream
            .write_all(bytes)
            .context(|| "write to the VNC server".into())
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.stream
            .read_exact(buffer)
            .map_err(|source| match source.kind() {
                ErrorKind::UnexpectedEof => Error::Closed("the VNC server"),
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Timeout {
                    what: "an answer of the VNC server".into(),
                    limit: IO_LIMIT,
                    seen: String::new(),
                },
                _ => Error::Io {
                    what: "read from the VNC server".into(),
                    source,
                },
            })
    }

    fn read_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut buffer = [0; N];
        self.read_exact(&mut buffer)?;
        Ok(buffer)
    }

    fn read_vec(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; length];
        self.read_exact(&mut buffer)?;
        Ok(buffer)
    }

    fn read_u8(&mut self) -> Result<u8> {
        Ok(u8::from_be_bytes(self.read_array()?))
    }

    fn read_u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.read_array()?))
    }

    fn read_u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.read_array()?))
    }

    fn read_i32(&mut self) -> Result<i32> {
        Ok(i32::from_be_bytes(self.read_array()?))
    }

    /// A length and that many bytes.
    fn read_string(&mut self) -> Result<String> {
        let length = self.read_u32()?;
        if length > 1 << 20 {
            return Err(protocol(format!("text of {length} bytes")));
        }
        let length = usize::try_from(length).map_err(|_| protocol(format!("text of {length} bytes")))?;
        let bytes = self.read_vec(length)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

enum Update {
    Pixels { whole: bool },
    Resized,
    Other,
}

fn protocol(detail: String) -> Error {
    Error::Protocol {
        protocol: "RFB",
        detail,
    }
}

const SHIFT: u32 = 0xffe1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    symbol: u32,
    shift: bool,
}

/// The key of a US keyboard that makes this character.
fn key_for(character: char) -> Result<Key> {
    let plain = |symbol: u32| Ok(Key { symbol, shift: false });
    match character {
        '\n' => plain(0xff0d),
        '\t' => plain(0xff09),
        '\u{8}' => plain(0xff08),
        '\u{1b}' => plain(0xff1b),
        ' '..='~' => {
            let shift = character.is_ascii_uppercase() || "~!@#$%^&*()_+{}|:\"<>?".contains(character);
            // The keysym of a printable ASCII character is its code.
            Ok(Key {
                symbol: u32::from(character),
                shift,
            })
        }
        other => Err(Error::NoKey(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::thread;

    #[test]
    fn keys() {
        assert_eq!(
            key_for('a').unwrap(),
            Key {
                symbol: 0x61,
                shift: false
            }
        );
        assert_eq!(
            key_for('A').unwrap(),
            Key {
                symbol: 0x41,
                shift: true
            }
        );
        assert_eq!(
            key_for('%').unwrap(),
            Key {
                symbol: 0x25,
                shift: true
            }
        );
        assert_eq!(
            key_for('-').unwrap(),
            Key {
                symbol: 0x2d,
                shift: false
            }
        );
        assert_eq!(
            key_for('\n').unwrap(),
            Key {
                symbol: 0xff0d,
                shift: false
            }
        );
        assert!(matches!(key_for('ä'), Err(Error::NoKey('ä'))));
    }

    #[test]
    fn addresses() {
        let tcp = |text: &str| match text.parse() {
            Ok(Address::Tcp(address)) => address,
            other => panic!("{other:?}"),
        };
        assert_eq!(tcp(":1"), "127.0.0.1:5901");
        assert_eq!(tcp("localhost:5907"), "localhost:5907");
        assert_eq!(tcp("[::1]:2"), "[::1]:5902");
        assert_eq!(
            "unix:/x/y".parse::<Address>().unwrap(),
            Address::Unix("/x/y".into())
        );
        assert!("nothing".parse::<Address>().is_err());
        assert!(":x".parse::<Address>().is_err());
    }

    fn opening(width: u16, height: u16) -> Vec<u8> {
        let mut bytes = b"RFB 003.008\n".to_vec();
        bytes.extend([1, 1]);
        bytes.extend([0; 4]);
        bytes.extend(width.to_be_bytes());
        bytes.extend(height.to_be_bytes());
        bytes.extend([0; 16]);
        bytes.extend([0, 0, 0, 4]);
        bytes.extend(b"QEMU");
        bytes
    }

    fn rectangle(x: u16, y: u16, width: u16, height: u16, encoding: i32) -> Vec<u8> {
        let mut bytes: Vec<u8> = [x, y, width, height]
            .iter()
            .flat_map(|n| n.to_be_bytes())
            .collect();
        bytes.extend(encoding.to_be_bytes());
        bytes
    }

    /// A server that says `bytes`, whatever it is asked.
    fn client_of(bytes: Vec<u8>) -> Result<Client> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let _ = theirs.write_all(&bytes);
            let _ = theirs.shutdown(std::net::Shutdown::Write);
            let _ = std::io::copy(&mut theirs, &mut std::io::sink());
        });
        Client::handshake(Box::new(ours))
    }

    #[test]
    fn picture_arrives_after_a_resize() {
        let mut bytes = opening(5, 5);
        bytes.extend([2]); // Bell
        bytes.extend([0, 0, 0, 1]);
        bytes.extend(rectangle(0, 0, 2, 1, DESKTOP_SIZE));
        bytes.extend([0, 0, 0, 1]);
        bytes.extend(rectangle(0, 0, 2, 1, RAW));
        bytes.extend([0x33, 0x22, 0x11, 0, 0x66, 0x55, 0x44, 0]);
        let mut client = client_of(bytes).unwrap();
        assert_eq!(client.name(), "QEMU");
        let picture = client.grab().unwrap();
        assert_eq!((picture.width(), picture.height()), (2, 1));
        assert_eq!(
            (picture.pixel(0, 0), picture.pixel(1, 0)),
            (Some(0x11_22_33), Some(0x44_55_66))
        );
        assert_eq!((picture.pixel(2, 0), picture.pixel(0, 1)), (None, None));
    }

    #[test]
    fn hostile_servers_are_errors() {
        let grab = |tail: Vec<u8>| {
            let mut bytes = opening(4, 4);
            bytes.extend(tail);
            client_of(bytes).unwrap().grab().unwrap_err().to_string()
        };
        let mut outside = vec![0, 0, 0, 1];
        outside.extend(rectangle(1, 0, 4, 4, RAW));
        assert!(grab(outside).contains("outside"));
        let mut encoding = vec![0, 0, 0, 1];
        encoding.extend(rectangle(0, 0, 4, 4, 16));
        assert!(grab(encoding).contains("encoding 16"));
        assert!(grab(vec![77]).contains("message type 77"));
        assert!(grab(vec![0, 0]).contains("closed"));
        assert!(
            client_of(opening(0, 4))
                .unwrap_err()
                .to_string()
                .contains("desktop of 0x4")
        );
        assert!(
            client_of(b"SSH-2.0-xyz\r\n".to_vec())
                .unwrap_err()
                .to_string()
                .contains("not an RFB")
        );
        let mut refused = b"RFB 003.008\n\0\0\0\0\x04".to_vec();
        refused.extend(b"full");
        assert!(client_of(refused).unwrap_err().to_string().contains("full"));
    }

    #[test]
    fn png_is_readable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.png");
        let mut picture = Framebuffer::new(3, 2);
        picture.set_pixel(2, 1, 0x12_34_56);
        picture.save_png(&path).unwrap();
        let decoder = png::Decoder::new(std::io::BufReader::new(File::open(&path).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut bytes).unwrap();
        assert_eq!(bytes[15..18], [0x12, 0x34, 0x56]);
    }
}
