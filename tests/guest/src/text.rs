//! Reads a VGA text screen from its pixels.
//!
//! Each character cell is 8 or 9 pixels wide and 16 high. A cell's 8x16 bit pattern is looked up in the VGA font,
//! which is taken from the firmware that the guest itself booted with. What is in no font reads as U+FFFD, so a
//! damaged picture can't be taken for the text that was hoped for.

use crate::error::{Context, Error, Result};
use crate::rfb::Framebuffer;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Rows of a glyph.
const ROWS: usize = 16;

/// Eight pixels per row, the leftmost in the highest bit.
type Glyph = [u8; ROWS];

/// What stands for a cell that holds no known character.
pub const UNKNOWN: char = char::REPLACEMENT_CHARACTER;

/// An 8x16 font of 256 characters in code page 437.
#[derive(Debug, Clone)]
pub struct Font {
    glyphs: Vec<Glyph>,
    characters: HashMap<Glyph, char>,
}

/// The capital A of the font that VGA BIOSes carry: by it the font is found in a ROM.
const LETTER_A: Glyph = [
    0, 0, 0x10, 0x38, 0x6c, 0xc6, 0xc6, 0xfe, 0xc6, 0xc6, 0xc6, 0xc6, 0, 0, 0, 0,
];

/// Where Debian and a built QEMU keep the VGA BIOS.
const ROMS: [&str; 5] = [
    "/usr/share/seabios/vgabios-stdvga.bin",
    "/usr/share/qemu/vgabios-stdvga.bin",
    "/usr/local/share/qemu/vgabios-stdvga.bin",
    "/usr/share/seabios/vgabios.bin",
    "/usr/share/vgabios/vgabios.bin",
];

impl Font {
    /// The font of this host's VGA BIOS. The variable `VGABIOS` names another file.
    pub fn of_this_host() -> Result<Self> {
        let named = std::env::var_os("VGABIOS").map(PathBuf::from);
        let candidates: Vec<PathBuf> = named
            .into_iter()
            .chain(ROMS.iter().map(PathBuf::from))
            .filter(|path| path.exists())
            .collect();
        for path in &candidates {
            if let Some(font) = Self::from_rom_file(path)? {
                return Ok(font);
            }
        }
        let tried = if candidates.is_empty() {
            ROMS.iter().map(PathBuf::from).collect()
        } else {
            candidates
        };
        Err(Error::NoFont(tried))
    }

    fn from_rom_file(path: &Path) -> Result<Option<Self>> {
        let rom = std::fs::read(path).context(|| format!("read {}", path.display()))?;
        Ok(Self::from_rom(&rom))
    }

    /// Finds the font inside a ROM's bytes.
    #[must_use]
    pub fn from_rom(rom: &[u8]) -> Option<Self> {
        let letter = rom.windows(ROWS).position(|window| window == LETTER_A)?;
        let start = letter.checked_sub(usize::from(b'A') * ROWS)?;
        let table = rom.get(start..start + 256 * ROWS)?;
        Some(Self::from_table(table))
    }

    /// Makes a font of 16 bytes per character; bytes after the 256th character are ignored.
    #[must_use]
    pub fn from_table(table: &[u8]) -> Self {
        let mut glyphs = Vec::with_capacity(256);
        for bytes in table.chunks_exact(ROWS).take(256) {
            let mut glyph = [0; ROWS];
            glyph.copy_from_slice(bytes);
            glyphs.push(glyph);
        }
        let mut characters = HashMap::new();
        // Some codes look alike (0, 32 and 255 are all blank): ASCII has the first word.
        for code in (32..127).chain(0..32).chain(127..256) {
            if let Some(&glyph) = glyphs.get(code) {
                characters.entry(glyph).or_insert_with(|| cp437(code));
            }
        }
        characters.entry([0; ROWS]).or_insert(' ');
        Self { glyphs, characters }
    }

    /// The glyph of a character, if the font has it.
    #[must_use]
    pub fn glyph(&self, character: char) -> Option<&Glyph> {
        let code = (0..256).find(|&code| cp437(code) == character)?;
        self.glyphs.get(code)
    }

    /// Reads the whole screen; blanks at the end of a line are cut.
    #[must_use]
    pub fn read(&self, screen: &Framebuffer) -> Vec<String> {
        let cell = if screen.width().is_multiple_of(9) { 9 } else { 8 };
        (0..screen.height() / ROWS)
            .map(|row| {
                let line: String = (0..screen.width() / cell)
                    .map(|column| self.read_cell(screen, column * cell, row * ROWS, cell))
                    .collect();
                line.trim_end().to_owned()
            })
            .collect()
    }

    fn read_cell(&self, screen: &Framebuffer, left: usize, top: usize, width: usize) -> char {
        let Some(pattern) = pattern(screen, left, top, width) else {
            return UNKNOWN;
        };
        if let Some(&character) = self.characters.get(&pattern) {
            return character;
        }
        // The text cursor is a bar over the lower rows: see whether the rest fits.
        if let Some(first) = cursor(&pattern) {
            return self.match_without(&pattern, first);
        }
        UNKNOWN
    }

    /// The one character that equals `pattern` above row `first`. Several that agree there: unknown, except that
    /// the blank is taken (a cursor usually stands on one).
    fn match_without(&self, pattern: &Glyph, first: usize) -> char {
        let above = |glyph: &Glyph| glyph.iter().zip(pattern).take(first).all(|(a, b)| a == b);
        if above(&[0; ROWS]) {
            return ' ';
        }
        let mut found = self
            .characters
            .iter()
            .filter(|(glyph, _)| above(glyph))
            .map(|(_, &c)| c);
        match (found.next(), found.next()) {
            (Some(character), None) => character,
            _ => UNKNOWN,
        }
    }
}

/// The cell's bits: two colours, of which the one in more pixels is the background. `None` if there are more
/// colours than two.
fn pattern(screen: &Framebuffer, left: usize, top: usize, width: usize) -> Option<Glyph> {
    let first = screen.pixel(left, top)?;
    let mut other = None;
    let mut others = 0;
    for y in top..top + ROWS {
        for x in left..left + width {
            let colour = screen.pixel(x, y)?;
            if colour == first {
                continue;
            }
            if *other.get_or_insert(colour) != colour {
                return None;
            }
            others += 1;
        }
    }
    let ink = if others * 2 <= ROWS * width {
        other.unwrap_or(!first)
    } else {
        first
    };
    let mut glyph = [0; ROWS];
    for (y, row) in glyph.iter_mut().enumerate() {
        for x in 0..8 {
            let set = screen.pixel(left + x, top + y)? == ink;
            *row = *row << 1 | u8::from(set);
        }
        // The ninth column is blank, or goes on with the eighth (line drawing characters, the cursor).
        if width == 9 && screen.pixel(left + 8, top + y)? == ink && *row & 1 == 0 {
            return None;
        }
    }
    Some(glyph)
}

/// The first row of a full-width bar that starts at row 12 or below.
fn cursor(pattern: &Glyph) -> Option<usize> {
    let first = pattern.iter().skip(12).position(|&row| row == 0xff)? + 12;
    Some(first)
}

/// Code page 437, as VGA text mode shows it.
fn cp437(code: usize) -> char {
    const LOW: &str = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼";
    const HIGH: &str = "⌂ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■ ";
    let found = match code {
        0..32 => LOW.chars().nth(code),
        32..127 => u32::try_from(code).ok().and_then(char::from_u32),
        _ => HIGH.chars().nth(code - 127),
    };
    found.unwrap_or(UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A font of our own, so that these tests need no firmware: distinct patterns, the blank blank.
    fn font() -> Font {
        let mut table = vec![0; 256 * ROWS];
        for code in 1_u8..255 {
            let at = usize::from(code) * ROWS;
            table[at + 2] = code;
            table[at + 5] = !code & 0x7e;
            table[at + 9] = code.rotate_left(3);
        }
        for blank in [0, 32, 255] {
            table[blank * ROWS..(blank + 1) * ROWS].fill(0);
        }
        Font::from_table(&table)
    }

    fn render(font: &Font, lines: &[&str], cell: usize, ink: u32, paper: u32) -> Framebuffer {
        let mut screen = Framebuffer::new(80 * cell, 25 * ROWS);
        for y in 0..screen.height() {
            for x in 0..screen.width() {
                screen.set_pixel(x, y, paper);
            }
        }
        for (row, line) in lines.iter().enumerate() {
            for (column, character) in line.chars().enumerate() {
                for (y, bits) in font.glyph(character).unwrap().iter().enumerate() {
                    for x in (0..8).filter(|x| bits << x & 0x80 != 0) {
                        screen.set_pixel(column * cell + x, row * ROWS + y, ink);
                    }
                }
            }
        }
        screen
    }

    const LINES: [&str; 3] = [
        "client2:~# ping -c 3 10.0.0.2",
        "3 packets transmitted, 3 received, 0% packet loss, time 2003ms",
        "äö~{}|\\",
    ];

    #[test]
    fn round_trip_in_both_cell_widths_and_any_colours() {
        let font = font();
        for cell in [8, 9] {
            for (ink, paper) in [(0xaa_aa_aa, 0), (0, 0xff_ff_ff), (0xff_55_55, 0x00_00_aa)] {
                let lines = font.read(&render(&font, &LINES, cell, ink, paper));
                assert_eq!(lines.len(), 25);
                assert_eq!(lines[..3], LINES);
                assert!(lines[3..].iter().all(String::is_empty));
            }
        }
    }

    #[test]
    fn wrong_pixels_are_unknown() {
        let font = font();
        let mut screen = render(&font, &["abc"], 9, 0xaa_aa_aa, 0);
        screen.set_pixel(9 + 4, 12, 0xaa_aa_aa); // one more in the b
        assert_eq!(font.read(&screen)[0], "a\u{fffd}c");
        screen.set_pixel(2 * 9 + 4, 12, 0x12_34_56); // a third colour in the c
        assert_eq!(font.read(&screen)[0], "a\u{fffd}\u{fffd}");
        screen.set_pixel(8, 12, 0xaa_aa_aa); // ink in the gap after the a
        assert_eq!(font.read(&screen)[0], "\u{fffd}\u{fffd}\u{fffd}");
    }

    #[test]
    fn cursor_is_looked_through() {
        let font = font();
        let mut screen = render(&font, &["ab "], 9, 0xaa_aa_aa, 0);
        for column in [1, 2] {
            for y in [13, 14] {
                for x in 0..9 {
                    screen.set_pixel(column * 9 + x, y, 0xaa_aa_aa);
                }
            }
        }
        assert_eq!(font.read(&screen)[0], "ab");
    }

    #[test]
    fn no_font_in_other_bytes() {
        assert!(Font::from_rom(&[0; 8192]).is_none());
        assert!(Font::from_rom(&LETTER_A).is_none());
    }

    #[test]
    fn font_of_the_firmware_is_complete() {
        // QEMU can't show a VGA screen without this package, so wherever guests run the file is there.
        let font = Font::of_this_host().expect("on Debian: apt install seabios");
        let ascii: String = (' '..='~').collect();
        let screen = render(
            &font,
            &[ascii.get(..80).unwrap(), ascii.get(80..).unwrap()],
            9,
            0xaa_aa_aa,
            0,
        );
        let lines = font.read(&screen);
        assert_eq!(format!("{}{}", lines[0], lines[1]), ascii);
    }
}
