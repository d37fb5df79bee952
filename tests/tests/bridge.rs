//! The learning bridge, on real rings: where each frame goes, and by which counter each dropped one is told.

use std::time::{Duration, Instant};

use vswitch_common::stats::Counter;
use vswitch_tests::frames::{BROADCAST, Mac, mac};
use vswitch_tests::{Bare, Frame, Switch};

const GROUP: Mac = [1, 0, 0x5e, 0, 0, 5];

/// Clients end before their switch.
struct Net {
    clients: Vec<Bare>,
    switch: Switch,
}

impl Net {
    /// One bridge with ports 1 to `ports`, a client on each.
    fn new(ports: u16) -> Net {
        let numbers: Vec<u16> = (1..=ports).collect();
        let switch = Switch::with_ports(&numbers);
        let clients = numbers.iter().map(|&n| Bare::attached(&switch, n)).collect();
        Net { switch, clients }
    }

    /// Client `from` sends `frame`; it arrives, unchanged, at those in `to` and nowhere else.
    #[track_caller]
    fn goes(&mut self, from: usize, frame: Frame, to: &[usize]) {
        self.clients[from - 1].send(std::slice::from_ref(&frame));
        for &n in to {
            assert_eq!(
                self.clients[n - 1].receive(1),
                std::slice::from_ref(&frame),
                "at client {n}; {}",
                self.switch.counters()
            );
        }
        for (i, client) in self.clients.iter_mut().enumerate() {
            assert!(
                !to.is_empty() || i + 1 != from || client.collect(1, Duration::ZERO).is_empty(),
                "back out of the port it came by"
            );
            client.expect_nothing();
        }
    }

    #[track_caller]
    fn count(&self, port: usize, counter: Counter) -> u64 {
        self.switch.count(&format!("dpdkr{port}"), counter)
    }
}

fn frame(to: Mac, from: Mac) -> Frame {
    Frame::marked(to, from, 0x30, 64)
}

#[test]
fn learns_floods_and_moves() {
    let mut net = Net::new(3);
    net.goes(1, frame(mac(2), mac(1)), &[2, 3]);
    net.goes(2, frame(mac(1), mac(2)), &[1]);
    net.goes(1, frame(mac(2), mac(1)), &[2]);
    let fdb = net.switch.appctl("fdb/show br0");
    let mut lines = fdb.lines();
    assert_eq!(lines.next(), Some(" port  VLAN  MAC                Age"));
    let rows: Vec<Vec<&str>> = lines.map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 2, "{fdb}");
    assert!(
        rows.iter().any(|r| r[1..3] == ["0", "02:00:00:00:00:02"]),
        "{fdb}"
    );

    // Station 1 is now behind port 3.
    net.goes(3, frame(mac(2), mac(1)), &[2]);
    net.goes(2, frame(mac(1), mac(2)), &[3]);
    assert!(
        net.switch
            .appctl("fdb/stats-show br0")
            .contains("port moved MAC entries  : 1")
    );

    assert_eq!(net.switch.appctl("fdb/flush br0"), "table successfully flushed\n");
    net.goes(2, frame(mac(1), mac(2)), &[1, 3]);
    assert_eq!(net.count(1, Counter::RxFlooded), 1);
    net.switch.assert_frames_accounted();
}

/// Who is not heard of for the time that is set is forgotten, and flooded to; who is heard of, or was entered by hand, stays.
#[test]
fn addresses_age_out() {
    let mut net = Net::new(3);
    let switch = &net.switch;
    switch.vsctl("set Bridge br0 other_config:mac-aging-time=15");
    switch.appctl("fdb/add br0 dpdkr3 0 02:00:00:00:00:03");
    net.goes(2, frame(mac(3), mac(2)), &[3]);
    let silent = Instant::now();
    let known = |net: &Net, n: u8| {
        let table = net.switch.appctl("fdb/show br0");
        table.contains(&format!("02:00:00:00:00:{n:02x}"))
    };
    while known(&net, 2) {
        assert!(silent.elapsed() < Duration::from_secs(25), "it stays");
        net.clients[0].send(&[frame(mac(3), mac(1))]);
        net.clients[2].receive(1);
    }
    println!("forgotten after {:.1} s", silent.elapsed().as_secs_f64());
    assert!(silent.elapsed() >= Duration::from_secs(14));
    assert!(known(&net, 1) && known(&net, 3));
    net.goes(1, frame(mac(2), mac(1)), &[2, 3]);
    net.goes(3, frame(mac(1), mac(4)), &[1]);

    for n in [1, 3] {
        net.switch
            .appctl(&format!("fdb/del br0 0 02:00:00:00:00:{n:02x}"));
        assert!(!known(&net, n));
    }
    net.goes(2, frame(mac(3), mac(2)), &[1, 3]);
    let again = net
        .switch
        .tool("ovs-appctl", &["fdb/del", "br0", "0", "02:00:00:00:00:03"]);
    assert!(!again.status.success(), "{again:?}");
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("no such entry"),
        "{again:?}"
    );
    net.switch.assert_frames_accounted();
}

#[test]
fn group_addresses_go_to_all_others() {
    let mut net = Net::new(3);
    for to in [BROADCAST, GROUP, [0x33, 0x33, 0, 0, 0, 1]] {
        net.goes(2, frame(to, mac(2)), &[1, 3]);
    }
    assert_eq!(net.count(2, Counter::RxFlooded), 3);
    assert_eq!(net.count(2, Counter::RxCopies), 6);
    net.switch.assert_frames_accounted();
}

#[test]
fn a_frame_to_its_own_side_is_dropped() {
    let mut net = Net::new(2);
    net.goes(1, frame(BROADCAST, mac(1)), &[2]);
    net.goes(1, frame(BROADCAST, mac(11)), &[2]);
    net.goes(1, frame(mac(11), mac(1)), &[]);
    assert_eq!(net.count(1, Counter::RxDropNoOutput), 1);
    net.switch.assert_frames_accounted();
}

#[test]
fn what_was_behind_a_client_is_forgotten_with_it() {
    let mut net = Net::new(3);
    net.goes(2, frame(BROADCAST, mac(2)), &[1, 3]);
    net.goes(1, frame(mac(2), mac(1)), &[2]);
    net.clients[1].ok("detach");
    vswitch_tests::eventually("port 2 goes down", || !net.switch.port("dpdkr2").info.link);
    assert!(!net.switch.appctl("fdb/show br0").contains("02:00:00:00:00:02"));
    let lost = frame(mac(2), mac(1));
    net.clients[0].send(std::slice::from_ref(&lost));
    net.clients[2].expect(&[lost]);
    // A new client gets nothing that was meant for the old one.
    net.clients[1] = Bare::attached(&net.switch, 2);
    net.clients[1].expect_nothing();
    net.goes(2, frame(BROADCAST, mac(2)), &[1, 3]);
    net.switch.assert_frames_accounted();
}

#[test]
fn reserved_addresses_stay_on_their_link() {
    let mut net = Net::new(2);
    let reserved: Vec<Frame> = (0..16).map(|x| frame([1, 0x80, 0xc2, 0, 0, x], mac(1))).collect();
    net.clients[0].send(&reserved);
    net.switch.wait_for_count("dpdkr1", Counter::RxDropReserved, 16);
    net.clients[1].expect_nothing();
    for to in [
        [1, 0x80, 0xc2, 0, 0, 0x10],
        [1, 0x80, 0xc2, 0, 1, 0],
        [1, 0x80, 0xc2, 0, 0, 0x21],
    ] {
        net.goes(1, frame(to, mac(1)), &[2]);
    }
    net.switch.vsctl("set Bridge br0 other_config:forward-bpdu=true");
    net.goes(1, reserved[0].clone(), &[2]);
    net.switch.assert_frames_accounted();
}

#[test]
fn impossible_frames_are_dropped_with_their_reason() {
    let mut net = Net::new(2);
    let whole = frame(BROADCAST, mac(1));
    // Shorter than an Ethernet header, none at all among them.
    let runts: Vec<Frame> = (0..14).map(|n| Frame::new(&whole.bytes[..n])).collect();
    // An empty frame has no text form; the hostile tests send it.
    net.clients[0].send(&runts[1..]);
    // Cut inside a tag, of either kind.
    let cut: Vec<Frame> = (14..18)
        .flat_map(|n| {
            let (c, s) = (whole.clone().tagged(5), whole.clone().service_tagged(5));
            [Frame::new(&c.bytes[..n]), Frame::new(&s.bytes[..n])]
        })
        .collect();
    net.clients[0].send(&cut);
    net.switch
        .wait_for_count("dpdkr1", Counter::RxDropMalformed, 13 + 8);

    let sources = [GROUP, BROADCAST, [0; 6], [1, 0, 0, 0, 0, 0]];
    net.clients[0].send(&sources.map(|from| frame(mac(2), from)));
    net.switch.wait_for_count("dpdkr1", Counter::RxDropSource, 4);
    net.clients[1].expect_nothing();
    assert_eq!(
        net.switch.appctl("fdb/show br0").lines().count(),
        1,
        "nothing is learned from them"
    );
    // The shortest that are frames: a header alone, and one with a whole tag.
    net.goes(1, Frame::new(&whole.bytes[..14]), &[2]);
    net.goes(1, Frame::new(&whole.tagged(5).bytes[..18]), &[2]);
    net.switch.assert_frames_accounted();
}

#[test]
fn giants_end_at_the_mtu_of_the_way_out() {
    let mut net = Net::new(3);
    let giant = |len| Frame::marked(BROADCAST, mac(1), 1, len);
    // MTU 1500, Ethernet header and two tags.
    net.goes(1, giant(1522), &[2, 3]);
    net.goes(1, giant(1523), &[]);
    assert_eq!(
        (
            net.count(2, Counter::TxDropTooLong),
            net.count(3, Counter::TxDropTooLong)
        ),
        (1, 1)
    );
    net.switch.vsctl("set Interface dpdkr2 mtu_request=2000");
    net.goes(1, giant(2022), &[2]);
    net.goes(1, giant(2023), &[]);
    assert_eq!(
        (
            net.count(2, Counter::TxDropTooLong),
            net.count(3, Counter::TxDropTooLong)
        ),
        (2, 3)
    );
    // Frames of several mbufs, to one client and copied to two.
    for port in [2, 3] {
        net.switch
            .vsctl(&format!("set Interface dpdkr{port} mtu_request=9000"));
    }
    net.goes(1, giant(9022), &[2, 3]);
    net.goes(1, giant(9023), &[]);
    net.goes(2, Frame::marked(BROADCAST, mac(2), 2, 2048), &[3]);
    net.goes(1, Frame::marked(mac(2), mac(1), 3, 9022), &[2]);
    net.switch.assert_frames_accounted();
}

/// The original's flow key kept bytes of the frame before; a burst of every kind, over and over, must come out as it
/// went in (a priority tag apart: VLAN 0 leaves untagged, as Open vSwitch does it).
#[test]
fn every_kind_of_frame_interleaved() {
    let mut net = Net::new(2);
    let (to, from) = (mac(2), mac(1));
    net.goes(2, frame(BROADCAST, to), &[1]);
    let plain = frame(to, from);
    let data: Vec<u8> = (0..200).collect();
    let kinds = [
        plain.clone(),
        plain.clone().tagged(0x2005),
        Frame::arp(from, [10, 0, 0, 1], [10, 0, 0, 2]),
        Frame::tcp4_partial(to, from, &data),
        plain.clone().tagged(0xe000),
        Frame::tcp6_partial(to, from, &data[..100]),
        plain.clone().tagged(9).service_tagged(0x3007),
        Frame::tcp4_partial(to, from, &data)
            .completed()
            .tagged(0x0fff & 4094),
        Frame::marked(to, from, 9, 1514),
        Frame::tcp6_partial(to, from, &data).tagged(6),
        Frame::ethernet(to, from, 0x05dc, b"a length, not a type"),
        Frame::ethernet(BROADCAST, from, 0x8809, b"slow protocol elsewhere"),
        plain.clone().tagged(7).tagged(8),
    ];
    let expected: Vec<Frame> = kinds
        .iter()
        .map(|f| {
            if f.bytes[12..16] == [0x81, 0, 0xe0, 0] {
                plain.clone()
            } else {
                f.clone()
            }
        })
        .collect();
    for round in 0..20 {
        let (mut sent, mut wanted) = (kinds.to_vec(), expected.clone());
        sent.rotate_left(round % kinds.len());
        wanted.rotate_left(round % kinds.len());
        net.clients[0].send(&sent);
        assert_eq!(net.clients[1].receive(wanted.len()), wanted, "round {round}");
    }
    net.clients[1].expect_nothing();
    net.switch.assert_frames_accounted();
}

#[test]
fn two_bridges_stay_apart() {
    let switch = Switch::start();
    switch.add_bridge("left", &[1, 2]);
    switch.add_bridge("right", &[3, 4]);
    let clients = (1..=4).map(|n| Bare::attached(&switch, n)).collect();
    let mut net = Net { switch, clients };
    // The same stations on both.
    net.goes(1, frame(BROADCAST, mac(1)), &[2]);
    net.goes(3, frame(BROADCAST, mac(1)), &[4]);
    net.goes(2, frame(mac(1), mac(2)), &[1]);
    net.goes(4, frame(mac(1), mac(2)), &[3]);
    net.goes(1, frame(mac(9), mac(1)), &[2]);
    // A port that moves over takes nothing along.
    net.switch
        .vsctl("del-port dpdkr4 -- add-port left dpdkr4 -- set Interface dpdkr4 type=dpdkr");
    net.clients[3] = Bare::attached(&net.switch, 4);
    net.goes(3, frame(BROADCAST, mac(1)), &[]);
    net.goes(4, frame(BROADCAST, mac(4)), &[1, 2]);
    // Client 3 ends before its port does: one whose port goes is killed if it stays.
    net.clients.remove(2);
    net.switch.vsctl("del-br right");
    net.goes(1, frame(mac(4), mac(1)), &[3]);
}
