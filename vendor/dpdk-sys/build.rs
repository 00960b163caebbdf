//! Finds libdpdk by pkg-config, binds the allowlisted part of it and compiles the shim.

use std::{env, path::PathBuf};

/// Every function bound; nothing else of DPDK's API is reachable from Rust.
const FUNCTIONS: &[&str] = &[
    // start-up, threads, memory
    "rte_eal_init",
    "rte_eal_cleanup",
    "rte_thread_register",
    "rte_thread_unregister",
    "rte_get_tsc_hz",
    "rte_log_set_global_level",
    "rte_log_set_level_pattern",
    "rte_openlog_stream",
    "rte_malloc_socket",
    "rte_zmalloc_socket",
    "rte_free",
    "rte_strerror",
    "rte_socket_id",
    // buffers
    "rte_pktmbuf_pool_create",
    "rte_mempool_create_empty",
    "rte_mempool_populate_iova",
    "rte_memzone_reserve",
    "rte_memzone_free",
    "rte_mem_virt2memseg",
    "rte_mempool_obj_iter",
    "rte_pktmbuf_pool_init",
    "rte_pktmbuf_init",
    "rte_mempool_free",
    "rte_mempool_avail_count",
    "rte_mempool_in_use_count",
    "rte_pktmbuf_copy",
    "rte_pktmbuf_free_bulk",
    // devices
    "rte_dev_probe",
    "rte_dev_remove",
    "rte_eth_dev_get_port_by_name",
    "rte_eth_dev_info_get",
    "rte_eth_dev_configure",
    "rte_eth_rx_queue_setup",
    "rte_eth_tx_queue_setup",
    "rte_eth_dev_start",
    "rte_eth_dev_stop",
    "rte_eth_dev_close",
    "rte_eth_promiscuous_enable",
    "rte_eth_promiscuous_disable",
    "rte_eth_allmulticast_enable",
    "rte_eth_dev_set_mtu",
    "rte_eth_stats_get",
    "rte_eth_link_get_nowait",
    "rte_eth_macaddr_get",
    "rte_eth_dev_socket_id",
    "rte_eth_dev_adjust_nb_rx_tx_desc",
    "rte_eth_dev_set_link_up",
    "rte_eth_dev_rss_reta_update",
    "rte_flow_validate",
    "rte_flow_create",
    "rte_flow_destroy",
    // vhost-user
    "rte_vhost_driver_register",
    "rte_vhost_driver_unregister",
    "rte_vhost_driver_start",
    "rte_vhost_driver_callback_register",
    "rte_vhost_driver_disable_features",
    "rte_vhost_enqueue_burst",
    "rte_vhost_dequeue_burst",
    "rte_vhost_get_ifname",
    "rte_vhost_get_vring_num",
    "rte_vhost_get_vhost_vring",
    "rte_vhost_get_negotiated_features",
    "rte_vhost_get_mtu",
    "rte_vhost_enable_guest_notification",
    "rte_vhost_driver_set_max_queue_num",
    // segmentation in software
    // what shim.c adds
    "dunlin_.*",
];

const TYPES: &[&str] = &[
    "rte_mbuf",
    "rte_mempool",
    "rte_mempool_objhdr",
    "rte_pktmbuf_pool_private",
    "rte_eth_dev_info",
    "rte_eth_conf",
    "rte_eth_rxconf",
    "rte_eth_txconf",
    "rte_eth_stats",
    "rte_eth_rss_reta_entry64",
    "rte_eth_link",
    "rte_ether_addr",
    "rte_flow_item_eth",
    "rte_flow_item_vlan",
    "rte_flow_action_queue",
    "rte_vhost_device_ops",
    "rte_vhost_vring",
];

const CONSTANTS: &[&str] = &[
    "RTE_PKTMBUF_HEADROOM",
    "RTE_MBUF_F_.*",
    "RTE_MEMPOOL_F_NO_IOVA_CONTIG",
    "DUNLIN_.*",
    "RTE_ETH_MQ_RX_RSS",
    "RTE_ETH_RETA_GROUP_SIZE",
    "RTE_VHOST_USER_.*",
    "RTE_MAX_ETHPORTS",
    "RTE_ETHER_HDR_LEN",
    "VIRTIO_.*",
    "VHOST_.*",
    "RTE_ETH_LINK_.*",
    "RTE_FLOW_ITEM_TYPE_(ETH|VLAN|END)",
    "RTE_FLOW_ACTION_TYPE_(QUEUE|END)",
];

fn main() {
    println!("cargo:rerun-if-changed=src/wrapper.h");
    println!("cargo:rerun-if-changed=src/shim.c");
    let dpdk = pkg_config::Config::new()
        .atleast_version("22.11")
        .probe("libdpdk")
        .expect("libdpdk 22.11 or newer is needed: apt-get install libdpdk-dev");

    let mut flags: Vec<String> = vec!["-include".into(), "rte_config.h".into(), "-march=corei7".into()];
    flags.extend(dpdk.include_paths.iter().map(|p| format!("-I{}", p.display())));

    let mut builder = bindgen::Builder::default()
        .header("src/wrapper.h")
        .clang_args(&flags)
        .layout_tests(false)
        .generate_comments(false)
        .derive_default(true)
        .prepend_enum_name(false)
        // Packed structures with aligned members can't be expressed; nobody needs their fields.
        .opaque_type("rte_(arp|ipv4|ipv6|tcp|udp|ether|vlan|vxlan|gtp|l2tpv2|ppp|vhost_vring).*_?hdr.*")
        .opaque_type("rte_arp_ipv4|rte_l2tpv2_combined_msg_hdr|rte_gtp_psc_generic_hdr");
    for f in FUNCTIONS {
        builder = builder.allowlist_function(f);
    }
    for t in TYPES {
        builder = builder.allowlist_type(t);
    }
    for c in CONSTANTS {
        builder = builder.allowlist_var(c);
    }
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    builder
        .generate()
        .expect("bindgen needs libclang: apt-get install libclang-dev")
        .write_to_file(out.join("bindings.rs"))
        .expect("OUT_DIR is writable");

    let mut shim = cc::Build::new();
    shim.file("src/shim.c").opt_level(3).warnings(false);
    for f in &flags {
        shim.flag(f);
    }
    shim.compile("dunlin_shim");
}
