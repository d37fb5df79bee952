//! VLANs between clients: which frames pass, and with which tag they arrive.

use vswitch_common::stats::Counter;
use vswitch_tests::frames::{BROADCAST, mac};
use vswitch_tests::{Bare, Frame, Switch};

/// Clients end before their switch.
struct Net {
    clients: Vec<Bare>,
    switch: Switch,
}

impl Net {
    /// A bridge with a client on port 1, 2, ... each with these settings of its Port row.
    fn new(settings: &[&str]) -> Net {
        let ports: Vec<u16> = (1..=settings.len() as u16).collect();
        let switch = Switch::with_ports(&ports);
        for (port, settings) in ports.iter().zip(settings) {
            if !settings.is_empty() {
                switch.vsctl(&format!("set Port dpdkr{port} {settings}"));
            }
        }
        let clients = ports.iter().map(|&n| Bare::attached(&switch, n)).collect();
        Net { switch, clients }
    }

    /// Client `from` sends `frame`; `to` says who gets what, and nobody else gets anything.
    #[track_caller]
    fn goes(&mut self, from: usize, frame: &Frame, to: &[(usize, Frame)]) {
        self.clients[from - 1].send(std::slice::from_ref(frame));
        for (n, expected) in to {
            let got = self.clients[n - 1].receive(1);
            assert_eq!(got, std::slice::from_ref(expected), "at client {n}");
        }
        self.clients.iter_mut().for_each(Bare::expect_nothing);
    }
}

fn from(n: u8) -> Frame {
    Frame::marked(BROADCAST, mac(n), n, 64)
}

#[test]
fn access_ports_and_a_trunk() {
    let mut net = Net::new(&["tag=10", "tag=10", "tag=20", ""]);
    net.goes(1, &from(1), &[(2, from(1)), (4, from(1).tagged(10))]);
    net.goes(3, &from(3), &[(4, from(3).tagged(20))]);
    net.goes(4, &from(4).tagged(0x600a), &[(1, from(4)), (2, from(4))]);
    net.goes(4, &from(4).tagged(20), &[(3, from(4))]);
    // A priority tag counts as none, and its priority goes along where a tag is needed.
    net.goes(
        1,
        &from(1).tagged(0x6000),
        &[(2, from(1)), (4, from(1).tagged(0x600a))],
    );
    // Only the outer tag is the VLAN's.
    let inner = from(4).tagged(99);
    net.goes(4, &inner.clone().tagged(10), &[(1, inner.clone()), (2, inner)]);

    // Into an access port comes no tag, right or wrong; 4095 is no VLAN; nobody is in VLAN 30 or in none.
    for (port, frame, counter) in [
        (1, from(1).tagged(10), Counter::RxDropVlan),
        (1, from(1).tagged(20), Counter::RxDropVlan),
        (4, from(4).tagged(4095), Counter::RxDropVlan),
        (4, from(4).tagged(30), Counter::RxDropNoOutput),
        (4, from(4), Counter::RxDropNoOutput),
    ] {
        let name = format!("dpdkr{port}");
        let before = net.switch.count(&name, counter);
        net.goes(port, &frame, &[]);
        net.switch.wait_for_count(&name, counter, before + 1);
    }
    net.switch.assert_frames_accounted();
}

#[test]
fn limited_trunks() {
    let mut net = Net::new(&["trunks=5,6", "trunks=6,7", ""]);
    net.goes(
        1,
        &from(1).tagged(6),
        &[(2, from(1).tagged(6)), (3, from(1).tagged(6))],
    );
    net.goes(1, &from(1).tagged(5), &[(3, from(1).tagged(5))]);
    net.goes(1, &from(1).tagged(7), &[]);
    net.goes(1, &from(1), &[]);
    assert_eq!(net.switch.count("dpdkr1", Counter::RxDropVlan), 2);
    net.switch.assert_frames_accounted();
}

#[test]
fn native_ports() {
    let mut net = Net::new(&[
        "tag=5 vlan_mode=native-untagged trunks=6",
        "tag=5 vlan_mode=native-tagged trunks=6",
        "tag=5",
        "",
    ]);
    let tagged = from(3).tagged(5);
    net.goes(3, &from(3), &[(1, from(3)), (2, tagged.clone()), (4, tagged)]);
    let tagged = from(1).tagged(5);
    net.goes(1, &from(1), &[(2, tagged.clone()), (3, from(1)), (4, tagged)]);
    net.goes(2, &from(2), &[(1, from(2)), (3, from(2)), (4, from(2).tagged(5))]);
    let six = from(4).tagged(6);
    net.goes(4, &six, &[(1, six.clone()), (2, six.clone())]);
    net.goes(1, &from(1).tagged(7), &[]);
    assert_eq!(net.switch.count("dpdkr1", Counter::RxDropVlan), 1);
    net.switch.assert_frames_accounted();
}

/// A tag that is put in or taken out moves the place where a half-done checksum goes.
#[test]
fn half_done_checksums_move_with_the_bytes() {
    let mut net = Net::new(&["tag=10", "", "tag=10"]);
    let data: Vec<u8> = (0..255).collect();
    for frame in [
        Frame::tcp4_partial(BROADCAST, mac(1), &data),
        Frame::tcp6_partial(BROADCAST, mac(1), &data),
    ] {
        let tagged = frame.clone().tagged(10);
        assert_eq!(tagged.partial.unwrap().0, frame.partial.unwrap().0 + 4);
        net.goes(1, &frame, &[(2, tagged.clone()), (3, frame.clone())]);
        net.goes(2, &tagged, &[(1, frame.clone()), (3, frame.clone())]);
    }
    net.switch.assert_frames_accounted();
}

#[test]
fn a_tag_changed_live_joins_and_parts() {
    let mut net = Net::new(&["tag=10", "tag=20"]);
    let hello = Frame::marked(mac(2), mac(1), 1, 64);
    net.goes(1, &hello, &[]);
    net.switch.vsctl("set Port dpdkr2 tag=10");
    net.goes(1, &hello, &[(2, hello.clone())]);
    let back = Frame::marked(mac(1), mac(2), 2, 64);
    net.goes(2, &back, &[(1, back.clone())]);
    net.switch.vsctl("set Port dpdkr1 tag=20");
    // What was learned in VLAN 10 is of no use to either.
    net.goes(1, &hello, &[]);
    net.goes(2, &back, &[]);
    net.switch.vsctl("clear Port dpdkr1 tag -- clear Port dpdkr2 tag");
    net.goes(1, &hello, &[(2, hello.clone())]);
    net.switch.assert_frames_accounted();
}

/// The same station in two VLANs, behind different ports, is two entries.
#[test]
fn vlans_learn_apart() {
    let mut net = Net::new(&["tag=10", "tag=10", "tag=20", "tag=20"]);
    net.goes(1, &from(7), &[(2, from(7))]);
    net.goes(3, &from(7), &[(4, from(7))]);
    let to_seven = Frame::marked(mac(7), mac(8), 1, 64);
    net.goes(2, &to_seven, &[(1, to_seven.clone())]);
    net.goes(4, &to_seven, &[(3, to_seven.clone())]);
    let fdb = net.switch.appctl("fdb/show br0");
    let seven: Vec<Vec<&str>> = fdb
        .lines()
        .filter(|l| l.contains("02:00:00:00:00:07"))
        .map(|l| l.split_whitespace().take(2).collect())
        .collect();
    assert_eq!(seven.len(), 2, "{fdb}");
    net.switch.assert_frames_accounted();
}
