//! Control plane of the switch: OVSDB client, ovsdb-server supervision, unixctl.
