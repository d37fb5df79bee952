//! What both sides share: EAL, mbufs, rings, the client-port protocol, the stats segment.
