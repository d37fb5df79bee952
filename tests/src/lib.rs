//! Tests across processes, tools and VMs.
