//! VLAN membership of a port: which VLAN an incoming frame belongs to, and how a frame leaves.
//!
//! The modes are those of the Port table (ovs-vswitchd.conf.db(5)): access, trunk, native-tagged, native-untagged.
//! VLAN 0 stands for "no VLAN": untagged frames between trunk ports. A priority tag (VID 0) counts as untagged.

use super::parse::Tag;

/// A set of VLAN ids.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet(Box<[u64; 64]>);

impl VlanSet {
    /// All of 0 to 4095.
    pub fn all() -> VlanSet {
        VlanSet(Box::new([u64::MAX; 64]))
    }

    /// Those of `vids`; larger numbers are ignored.
    pub fn of(vids: &[u16]) -> VlanSet {
        let mut set = VlanSet(Box::new([0; 64]));
        vids.iter().for_each(|&vid| set.insert(vid));
        set
    }

    fn insert(&mut self, vid: u16) {
        if let Some(word) = self.0.get_mut(usize::from(vid >> 6)) {
            *word |= 1 << (vid & 63);
        }
    }

    fn remove(&mut self, vid: u16) {
        if let Some(word) = self.0.get_mut(usize::from(vid >> 6)) {
            *word &= !(1 << (vid & 63));
        }
    }

    /// Is `vid` in it?
    #[inline]
    pub fn contains(&self, vid: u16) -> bool {
        self.0[usize::from(vid >> 6) & 63] & 1 << (vid & 63) != 0
    }
}

impl std::fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set()
            .entries((0..4096).filter(|&v| self.contains(v)))
            .finish()
    }
}

/// How a frame of some VLAN leaves by a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// The port is not in the VLAN.
    Absent,
    /// Without a tag.
    Untagged,
    /// With the VLAN's tag.
    Tagged,
}

/// A port's VLAN configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VlanPolicy {
    /// VLAN of untagged and priority-tagged frames.
    untagged: Option<u16>,
    /// VLANs of tagged frames; 1 to 4094 count.
    tagged: VlanSet,
    /// The VLAN that leaves without a tag.
    egress_untagged: Option<u16>,
}

impl VlanPolicy {
    /// One VLAN, never tagged.
    pub fn access(tag: u16) -> VlanPolicy {
        VlanPolicy {
            untagged: Some(tag),
            tagged: VlanSet::of(&[]),
            egress_untagged: Some(tag),
        }
    }

    /// The VLANs of `trunks` (empty: all), tagged; untagged frames are VLAN 0 and pass if that is among them.
    pub fn trunk(trunks: &[u16]) -> VlanPolicy {
        let tagged = if trunks.is_empty() {
            VlanSet::all()
        } else {
            VlanSet::of(trunks)
        };
        let untagged = tagged.contains(0).then_some(0);
        VlanPolicy {
            untagged,
            tagged,
            egress_untagged: untagged,
        }
    }

    /// As a trunk, but untagged frames belong to VLAN `tag`, which leaves tagged or not as `egress_tagged` says.
    pub fn native(tag: u16, trunks: &[u16], egress_tagged: bool) -> VlanPolicy {
        let mut tagged = if trunks.is_empty() {
            VlanSet::all()
        } else {
            VlanSet::of(trunks)
        };
        // Frames of VLAN 0 would leave untagged, and be the native VLAN's at the other end.
        tagged.remove(0);
        tagged.insert(tag);
        VlanPolicy {
            untagged: Some(tag),
            tagged,
            egress_untagged: (!egress_tagged).then_some(tag),
        }
    }

    /// The VLAN of a frame that came in with `tag`; `None`: the port is not in it, or the id is reserved (4095).
    #[inline]
    pub fn ingress(&self, tag: Option<Tag>) -> Option<u16> {
        match tag.map_or(0, Tag::vid) {
            0 => self.untagged,
            4095 => None,
            vid => self.tagged.contains(vid).then_some(vid),
        }
    }

    /// How a frame of `vlan` leaves.
    #[inline]
    pub fn egress(&self, vlan: u16) -> Egress {
        if self.egress_untagged == Some(vlan) {
            Egress::Untagged
        } else if self.tagged.contains(vlan) {
            // VLAN 0 has no tag to leave with.
            if vlan == 0 {
                Egress::Untagged
            } else {
                Egress::Tagged
            }
        } else {
            Egress::Absent
        }
    }

    /// How a frame of `vlan` leaves by a port that watches others: whatever its VLANs, and with its tag if the port has any.
    pub fn mirrored(&self, vlan: u16) -> Egress {
        let tags = self
            .untagged
            .is_none_or(|untagged| self.tagged.contains(untagged));
        match self.egress(vlan) {
            Egress::Absent if tags && vlan != 0 => Egress::Tagged,
            Egress::Absent => Egress::Untagged,
            egress => egress,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vid(v: u16) -> Option<Tag> {
        Some(Tag(0x2000 | v))
    }

    #[test]
    fn access_takes_untagged_frames_of_one_vlan() {
        let p = VlanPolicy::access(10);
        assert_eq!((p.ingress(None), p.ingress(vid(0))), (Some(10), Some(10)));
        assert_eq!((p.ingress(vid(10)), p.ingress(vid(11))), (None, None));
        assert_eq!(
            (p.egress(10), p.egress(11), p.egress(0)),
            (Egress::Untagged, Egress::Absent, Egress::Absent)
        );
    }

    #[test]
    fn a_plain_port_trunks_everything() {
        let p = VlanPolicy::trunk(&[]);
        assert_eq!(
            (p.ingress(None), p.ingress(vid(0)), p.ingress(vid(4094))),
            (Some(0), Some(0), Some(4094))
        );
        assert_eq!(p.ingress(vid(4095)), None);
        assert_eq!((p.egress(0), p.egress(7)), (Egress::Untagged, Egress::Tagged));
    }

    #[test]
    fn a_limited_trunk_needs_vlan_0_for_untagged_frames() {
        let p = VlanPolicy::trunk(&[5, 6]);
        assert_eq!(
            (p.ingress(None), p.ingress(vid(5)), p.ingress(vid(7))),
            (None, Some(5), None)
        );
        assert_eq!(
            (p.egress(0), p.egress(5), p.egress(7)),
            (Egress::Absent, Egress::Tagged, Egress::Absent)
        );
        assert_eq!(VlanPolicy::trunk(&[0, 5]).ingress(None), Some(0));
    }

    #[test]
    fn a_mirror_port_takes_every_vlan() {
        for (policy, ways) in [
            (
                VlanPolicy::trunk(&[]),
                [Egress::Untagged, Egress::Tagged, Egress::Tagged],
            ),
            (
                VlanPolicy::trunk(&[7]),
                [Egress::Untagged, Egress::Tagged, Egress::Tagged],
            ),
            (VlanPolicy::access(7), [Egress::Untagged; 3]),
            (
                VlanPolicy::native(7, &[], false),
                [Egress::Untagged, Egress::Untagged, Egress::Tagged],
            ),
        ] {
            assert_eq!([0, 7, 8].map(|vlan| policy.mirrored(vlan)), ways, "{policy:?}");
        }
    }

    #[test]
    fn native_modes_differ_only_in_how_the_native_vlan_leaves() {
        for (tagged, out) in [(true, Egress::Tagged), (false, Egress::Untagged)] {
            let p = VlanPolicy::native(5, &[6], tagged);
            assert_eq!(
                (p.ingress(None), p.ingress(vid(5)), p.ingress(vid(6))),
                (Some(5), Some(5), Some(6))
            );
            assert_eq!(p.ingress(vid(7)), None);
            assert_eq!(
                (p.egress(5), p.egress(6), p.egress(7)),
                (out, Egress::Tagged, Egress::Absent)
            );
        }
    }
}
