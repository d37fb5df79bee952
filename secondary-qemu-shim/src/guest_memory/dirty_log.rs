//! The dirty-page bitmap of a live migration (vhost-user, `SET_LOG_BASE`): one bit for each 4 KiB page written.

use super::SharedTable;

const PAGE_SHIFT: u32 = 12;

/// A mapped bitmap. The frontend reads and clears it meanwhile.
#[derive(Debug)]
pub struct DirtyLog(SharedTable);

impl DirtyLog {
    /// A log that lies in `table`.
    pub fn new(table: SharedTable) -> DirtyLog {
        DirtyLog(table)
    }

    /// Marks the pages of `len` bytes at guest physical address `guest`. Call it after writing them. Pages behind
    /// the bitmap's end are none of the migration's.
    pub fn mark(&self, guest: u64, len: usize) {
        if len == 0 {
            return;
        }
        let last = guest.saturating_add(len as u64 - 1) >> PAGE_SHIFT;
        for page in (guest >> PAGE_SHIFT)..=last {
            if page / 8 >= self.0.len() {
                return;
            }
            self.0.set_bits(page / 8, 1 << (page % 8));
        }
    }
}
