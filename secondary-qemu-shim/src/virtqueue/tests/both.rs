//! What holds for either layout: each test runs over a split and a packed ring.

use super::*;
use crate::virtqueue::testing::packed::PackedDriver;

/// The guest's end of either.
trait Guest {
    fn offer(&mut self, offers: &[Offer]) -> u16;
    fn offer_indirect(&mut self, table: u64, offers: &[Offer]) -> u16;
    fn used(&mut self) -> Vec<(u16, u32)>;
}

macro_rules! guests {
    ($($driver:ty)*) => {
        $(impl Guest for $driver {
            fn offer(&mut self, offers: &[Offer]) -> u16 {
                self.offer(offers)
            }

            fn offer_indirect(&mut self, table: u64, offers: &[Offer]) -> u16 {
                self.offer_indirect(table, offers)
            }

            fn used(&mut self) -> Vec<(u16, u32)> {
                self.used()
            }
        })*
    };
}

guests!(Driver PackedDriver);

/// Runs `test` over rings of 8 entries in memory of these regions.
fn over_both(regions: &[(u64, u64)], test: impl Fn(&GuestMemory, &mut dyn Guest, &mut Ring)) {
    let m = memory(regions);
    let mut driver = Driver::new(&m, 0, 8);
    let mut ring = Ring::Split(driver.device());
    ring.set_features(INDIRECT_ONLY);
    test(&m, &mut driver, &mut ring);

    let m = memory(regions);
    let mut driver = PackedDriver::new(&m, 0, 8);
    let mut ring = Ring::Packed(driver.device());
    ring.set_features(INDIRECT_ONLY);
    test(&m, &mut driver, &mut ring);
}

#[test]
fn chains_come_in_order_and_go_back_in_order() {
    over_both(&[(0, END)], |m, driver, ring| {
        let bases = match ring {
            Ring::Split(_) => [0, 1, 2],
            Ring::Packed(_) => [0x8000_8000, 0x8002_8002, 0x8003_8003],
        };
        assert_eq!(read(ring, m), Ok(vec![]));
        let a = vec![(BUFFERS, 12, false), (BUFFERS + 64, 60, false)];
        let b = vec![(BUFFERS + 256, 100, false)];
        let heads = [driver.offer(&a), driver.offer(&b)];
        assert_eq!(read(ring, m), Ok(vec![a, b.clone()]));
        assert_eq!(ring.base(), bases[0], "taking consumes nothing");
        complete(ring, &[0]);
        assert_eq!(driver.used(), [(heads[0], 0)]);
        assert_eq!(ring.base(), bases[1]);
        assert_eq!(read(ring, m), Ok(vec![b]), "what was not completed comes again");
        complete(ring, &[7]);
        assert_eq!(driver.used(), [(heads[1], 7)]);
        assert_eq!(ring.base(), bases[2]);
    });
}

/// Long chains behind what is wanted are not walked; nor are they lost.
#[test]
fn no_more_long_chains_are_walked_than_wanted() {
    over_both(&[(0, END)], |m, driver, ring| {
        let long = [(BUFFERS, 100, false), (BUFFERS + 100, 100, false)];
        (0..4).for_each(|_| _ = driver.offer(&long));
        let mut chains = Chains::new();
        for (wanted, walked) in [(1, 1), (200, 1), (201, 2)] {
            chains.want(wanted);
            ring.take(m, Access::Read, BATCH, &mut chains).unwrap();
            assert_eq!(chains.len(), walked, "of {wanted} bytes");
        }
        complete(ring, &[0; 2]);
        assert_eq!(read(ring, m).map(|chains| chains.len()), Ok(2));
    });
}

/// Each way to lie about a buffer, with the fault it must end in.
#[test]
fn hostile_buffers_break_the_queue() {
    let outside = |address, len| Fault::Address { address, len };
    let cases: &[(&[Offer], Fault)] = &[
        (&[(BUFFERS, 0, false)], Fault::Empty),
        (
            &[(BUFFERS, 12, false), (BUFFERS, 64, true)],
            Fault::Direction("writable"),
        ),
        (&[(END, 1, false)], outside(END, 1)),
        (&[(END - 10, 11, false)], outside(END - 10, 11)),
        (&[(u64::MAX - 3, 64, false)], outside(u64::MAX - 3, 64)),
        (&[(BUFFERS, u32::MAX, false)], outside(BUFFERS, u32::MAX)),
    ];
    for (offers, fault) in cases {
        over_both(&[(0, END)], |m, driver, ring| {
            driver.offer(offers);
            assert_eq!(read(ring, m), Err(*fault));
            assert_eq!(driver.used(), [], "{fault:?}: nothing is used");
        });
        over_both(&[(0, END)], |m, driver, ring| {
            driver.offer_indirect(BUFFERS, offers);
            assert_eq!(read(ring, m), Err(*fault), "the same in a table");
            assert_eq!(driver.used(), [], "{fault:?}: nothing is used");
        });
    }
}

/// Each buffer lies in (sparse) memory; together they are more than the used ring can tell.
#[test]
fn a_chain_of_more_than_4_gib_breaks_the_queue() {
    over_both(&[(0, 5 << 30)], |m, driver, ring| {
        let whole: Offer = (0, u32::MAX, false);
        driver.offer(&[whole]);
        driver.offer(&[whole, (0, 1, false)]);
        assert_eq!(read(ring, m), Ok(vec![vec![whole]]));
        complete(ring, &[0]);
        assert_eq!(read(ring, m), Err(Fault::TooManyBytes));
    });
}

#[test]
fn receive_buffers_must_be_writable() {
    over_both(&[(0, END)], |m, driver, ring| {
        driver.offer(&[(BUFFERS, 64, false)]);
        let taken = take(ring, m, Access::Write, 1);
        assert_eq!(taken, Err(Fault::Direction("readable")));
    });
}

/// A driver knows nothing of regions; what lies in no region is another matter.
#[test]
fn a_buffer_across_regions_is_taken_in_pieces() {
    let regions = [(0, 0x1000), (0x1000, 0x20), (0x1020, 0x1000), (0x3000, 0x1000)];
    over_both(&regions, |m, driver, ring| {
        driver.offer(&[(0xff0, 16, false)]);
        driver.offer(&[(0xff0, 64, false)]);
        driver.offer(&[(0x2010, 32, false)]);
        let pieces = vec![(0xff0, 16, false), (0x1000, 32, false), (0x1020, 16, false)];
        assert_eq!(read(ring, m), Ok(vec![vec![(0xff0, 16, false)], pieces]));
        complete(ring, &[0, 0]);
        let fault = Fault::Address {
            address: 0x2010,
            len: 32,
        };
        assert_eq!(read(ring, m), Err(fault));
    });
}

#[test]
fn good_chains_before_a_bad_one_are_served() {
    over_both(&[(0, END)], |m, driver, ring| {
        driver.offer(&[(BUFFERS, 64, false)]);
        driver.offer(&[(BUFFERS, 0, false)]);
        assert_eq!(read(ring, m).map(|c| c.len()), Ok(1));
        complete(ring, &[0]);
        assert_eq!(read(ring, m), Err(Fault::Empty));
        assert_eq!(driver.used().len(), 1);
    });
}

#[test]
fn long_indirect_chains_share_a_batch_or_come_alone() {
    let offers: Vec<Offer> = (0..600).map(|i| (BUFFERS + 0x1_0000 + i, 1, false)).collect();
    over_both(&[(0, END)], |m, driver, ring| {
        for i in 0..3 {
            driver.offer_indirect(BUFFERS + i * 0x4000, &offers);
        }
        for _ in 0..3 {
            let taken = read(ring, m).map(|c| c.len());
            assert_eq!(taken, Ok(1), "two do not fit a batch");
            complete(ring, &[0]);
        }
        assert_eq!(driver.used().len(), 3);
    });
}
