//! Binds the functions and types that the workspace uses, nothing more: the full set takes half a minute.

use std::env;
use std::path::PathBuf;

/// Functions bound, as regular expressions.
const FUNCTIONS: &[&str] = &[
    "dpdk_sys_.*",
    "rte_eal_(init|cleanup|remote_launch|wait_lcore|get_runtime_dir|iova_mode)",
    "rte_get_(tsc_hz|next_lcore)",
    "rte_(strerror|version|openlog_stream)",
    "rte_pktmbuf_pool_create",
    "rte_pktmbuf_alloc_bulk",
    "rte_mempool_(avail_count|obj_iter|put_bulk)",
    "rte_mem_virt2iova",
    "rte_memzone_(reserve_aligned|free)",
    "rte_memzone_walk",
    "rte_mcfg_(mem|tailq|mempool)_write_(lock|unlock)",
    "rte_ring_(create|free|lookup|init|count)",
    "rte_eth_(dev_configure|dev_start|dev_stop|dev_close|dev_info_get|dev_get_port_by_name|dev_set_mtu)",
    "rte_eth_(rx_queue_setup|tx_queue_setup|rx_burst|tx_burst|tx_prepare|macaddr_get|link_get_nowait)",
    "rte_eth_(promiscuous_enable|allmulticast_enable|dev_is_valid_port)",
    "rte_eth_(xstats_get|xstats_get_names|dev_get_name_by_port|dev_adjust_nb_rx_tx_desc|dev_socket_id)",
    "rte_eth_dev_(get_port_by_name|rx_intr_ctl_q_get_fd)",
    "rte_dev_(probe|remove)",
    "rte_dev_(bus|bus_info)",
    "rte_bus_name",
    "rte_vfio_(enable|is_enabled)",
    "rte_dev_(event_monitor_start|hotplug_handle_enable|event_callback_register)",
    "rte_eth_dev_(flow_ctrl_get|flow_ctrl_set|callback_register)",
];

const TYPES: &[&str] = &[
    "rte_mbuf",
    "rte_ring",
    "rte_eth_.*",
    "rte_mempool",
    "rte_memzone",
    "rte_proc_type_t",
];

const VARS: &[&str] = &[
    "DPDK_SYS_.*",
    "RTE_MBUF_F_.*",
    "RTE_ETH_.*",
    "RTE_MAX_LCORE",
    "RTE_MAX_ETHPORTS",
    "RTE_PKTMBUF_HEADROOM",
    "RING_F_.*",
    "RTE_MEMZONE_.*",
];

fn main() {
    println!("cargo:rerun-if-changed=wrapper.h");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let dpdk = dpdk_link::probe();
    let includes = dpdk.include_paths.iter().map(|p| format!("-I{}", p.display()));
    // DPDK's own pkg-config flags ask for corei7: its inline functions need SSE4.2.
    let flags: Vec<String> = includes
        .chain(["-march=corei7".into(), "-include".into(), "rte_config.h".into()])
        .collect();

    let mut builder = bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(&flags)
        .wrap_static_fns(true)
        .wrap_static_fns_path(out.join("inline"))
        .wrap_unsafe_ops(false)
        .derive_copy(true)
        .prepend_enum_name(false)
        // Packed structs inside packed structs, which Rust's repr can't express; none is used.
        .opaque_type("rte_arp_hdr|rte_arp_ipv4|rte_l2tpv2_combined_msg_hdr|rte_gtp_psc_generic_hdr")
        .layout_tests(true);
    for f in FUNCTIONS {
        builder = builder.allowlist_function(f);
    }
    for t in TYPES {
        builder = builder.allowlist_type(t);
    }
    for v in VARS {
        builder = builder.allowlist_var(v);
    }
    builder
        .generate()
        .expect("bindgen over the DPDK headers (on Debian: apt install libdpdk-dev libclang-dev)")
        .write_to_file(out.join("bindings.rs"))
        .expect("OUT_DIR is writable");

    let mut cc = cc::Build::new();
    cc.file(out.join("inline.c"))
        .include(".")
        .warnings(false)
        .opt_level(3);
    for f in &flags {
        cc.flag(f);
    }
    cc.compile("dpdk_sys_inline");
}
