//! Mirrors: what the stock tools set up, on real rings.

use vswitch_common::stats::Counter;
use vswitch_tests::frames::{BROADCAST, mac};
use vswitch_tests::{Bare, Frame, Switch, eventually};

/// Adds a mirror of `selects` to `output`.
fn add_mirror(switch: &Switch, selects: &str, output: &str) {
    switch.vsctl(&format!(
        "-- --id=@1 get Port dpdkr1 -- --id=@2 get Port dpdkr2 -- --id=@out get Port {output} \
         -- --id=@m create Mirror name=m {selects} output_port=@out -- set Bridge br0 mirrors=@m"
    ));
}

/// What the database says of the mirror.
fn statistics(switch: &Switch) -> String {
    switch.vsctl("get Mirror m statistics").trim().to_owned()
}

fn frame(to: [u8; 6], from: [u8; 6], mark: u8) -> Frame {
    Frame::marked(to, from, mark, 100)
}

#[test]
fn a_port_is_watched_both_ways() {
    let switch = Switch::with_ports(&[1, 2, 3, 4]);
    let mut clients: Vec<Bare> = (1..=4).map(|port| Bare::attached(&switch, port)).collect();
    let [one, two, three, four] = &mut clients[..] else {
        unreachable!()
    };
    // Learned at what is to be the output.
    let hello = frame(BROADCAST, mac(4), 0);
    four.send(std::slice::from_ref(&hello));
    [&mut *one, &mut *two, &mut *three]
        .into_iter()
        .for_each(|client| client.expect(std::slice::from_ref(&hello)));
    add_mirror(&switch, "select_src_port=@1 select_dst_port=@1", "dpdkr4");
    assert!(!switch.appctl("fdb/show br0").contains("02:00:00:00:00:04"));

    // From port 1, to port 1 by its address, and to all: each once. What passes by is not seen.
    let (from, to, all, other) = (
        frame(mac(2), mac(1), 1),
        frame(mac(1), mac(2), 2),
        frame(BROADCAST, mac(2), 3),
        frame(mac(2), mac(3), 4),
    );
    one.send(std::slice::from_ref(&from));
    two.expect(std::slice::from_ref(&from));
    three.expect(std::slice::from_ref(&from));
    four.expect(std::slice::from_ref(&from));
    two.send(&[to.clone(), all.clone()]);
    one.expect(&[to.clone(), all.clone()]);
    three.expect(std::slice::from_ref(&all));
    four.expect(&[to, all]);
    three.send(std::slice::from_ref(&other));
    two.expect(std::slice::from_ref(&other));
    four.expect_nothing();
    assert_eq!(switch.count("dpdkr1", Counter::RxMirrored), 1);
    assert_eq!(switch.count("dpdkr2", Counter::RxMirrored), 2);
    eventually("the mirror's counters are shown", || {
        statistics(&switch) == "{tx_bytes=300, tx_packets=3}"
    });

    // An output is nothing else: what comes in by it goes nowhere, and nothing is sent to it.
    four.send(&[frame(BROADCAST, mac(4), 5), frame(mac(1), mac(4), 6)]);
    switch.wait_for_count("dpdkr4", Counter::RxDropNoOutput, 2);
    three.send(&[frame(mac(4), mac(3), 7)]);
    one.expect(&[frame(mac(4), mac(3), 7)]);
    two.expect(&[frame(mac(4), mac(3), 7)]);
    four.expect(&[frame(mac(4), mac(3), 7)]);
    clients.iter_mut().for_each(Bare::expect_nothing);
    switch.assert_frames_accounted();

    // Without the mirror it is a port like any other.
    switch.vsctl("clear Bridge br0 mirrors");
    let back = frame(BROADCAST, mac(4), 8);
    clients[3].send(std::slice::from_ref(&back));
    clients[..3]
        .iter_mut()
        .for_each(|client| client.expect(std::slice::from_ref(&back)));
    switch.assert_frames_accounted();
}

/// SPAN of a VLAN: all ports, one VLAN, and no more than the headers.
#[test]
fn a_vlan_is_watched_in_short() {
    let switch = Switch::with_ports(&[1, 2, 3]);
    switch.vsctl("set Port dpdkr1 tag=5");
    let mut clients: Vec<Bare> = (1..=3).map(|port| Bare::attached(&switch, port)).collect();
    add_mirror(&switch, "select_all=true select_vlan=5 snaplen=64", "dpdkr3");
    let plain = frame(BROADCAST, mac(1), 1);
    clients[0].send(std::slice::from_ref(&plain));
    // The tag is of the 64 bytes.
    let tagged = plain.tagged(5);
    clients[1].expect(std::slice::from_ref(&tagged));
    clients[2].expect(&[Frame::new(&tagged.bytes[..64])]);
    clients[1].send(&[frame(BROADCAST, mac(2), 2)]);
    clients.iter_mut().for_each(Bare::expect_nothing);
    switch.assert_frames_accounted();
}

/// An output that is not there yet, or has no client, costs nothing but the copies.
#[test]
fn an_output_may_come_and_go() {
    let switch = Switch::with_ports(&[1, 2, 3]);
    let mut one = Bare::attached(&switch, 1);
    let mut two = Bare::attached(&switch, 2);
    add_mirror(&switch, "select_src_port=@1", "dpdkr3");
    let mut mark = 0;
    let mut passes = |one: &mut Bare, two: &mut Bare| {
        mark += 1;
        let frame = frame(BROADCAST, mac(1), mark);
        one.send(std::slice::from_ref(&frame));
        two.expect(std::slice::from_ref(&frame));
        frame
    };
    passes(&mut one, &mut two);
    switch.wait_for_count("dpdkr3", Counter::TxDropDown, 1);
    let mut three = Bare::attached(&switch, 3);
    let seen = passes(&mut one, &mut two);
    three.expect(&[seen]);
    three.kill();
    passes(&mut one, &mut two);
    switch.assert_frames_accounted();
    // With its port the mirror has lost its output; it says so, and ends.
    switch.vsctl("del-port dpdkr3");
    passes(&mut one, &mut two);
    assert!(
        switch
            .log()
            .contains("bridge br0: mirror m: it has no effect without an output_port"),
        "{}",
        switch.log()
    );
}

/// What a guest hands over with a half-done checksum is complete where a device gets the copy.
#[test]
fn a_capture_file_has_whole_frames() {
    let switch = Switch::with_ports(&[1, 2]);
    let (mut one, mut two) = (Bare::attached(&switch, 1), Bare::attached(&switch, 2));
    let (input, output) = (
        switch.scratch().join("in.pcap"),
        switch.scratch().join("out.pcap"),
    );
    vswitch_tests::pcap::write(&input, &[]);
    switch.vsctl(&format!(
        "add-port br0 span -- set Interface span type=dpdk \
         options:dpdk-devargs=\"net_pcap0,rx_pcap={},tx_pcap={}\"",
        input.display(),
        output.display()
    ));
    add_mirror(&switch, "select_dst_port=@2", "span");
    let sent: Vec<Frame> = (1..30)
        .map(|n| Frame::tcp4_partial(mac(2), mac(1), &vec![n; 40 * usize::from(n)]))
        .collect();
    one.send(&sent);
    two.expect(&sent);
    let complete: Vec<Frame> = sent.into_iter().map(Frame::completed).collect();
    eventually("all are captured", || {
        vswitch_tests::pcap::read(&output).len() >= complete.len()
    });
    assert_eq!(vswitch_tests::pcap::read(&output), complete);
    switch.assert_frames_accounted();
}
