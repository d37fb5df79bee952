/* The DPDK headers that dpdk-sys binds. */
#include <rte_bus.h>
#include <rte_cycles.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_eal_memconfig.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_launch.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_memory.h>
#include <rte_mempool.h>
#include <rte_memzone.h>
#include <rte_ring.h>
#include <rte_version.h>
#include <rte_vfio.h>

/* rte_errno is a per-lcore macro, which no binding generator can follow. */
static inline int dpdk_sys_errno(void) { return rte_errno; }
/* `stderr` is a macro. */
static inline int dpdk_sys_log_to_stderr(void) { return rte_openlog_stream(stderr); }

/* Flags that are macros of macros, which bindgen leaves out, too. */
static const uint64_t DPDK_SYS_RX_CHECKSUM = RTE_ETH_RX_OFFLOAD_TCP_CKSUM | RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
static const uint64_t DPDK_SYS_RX_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;
static const uint64_t DPDK_SYS_RX_LARGE = RTE_ETH_RX_OFFLOAD_TCP_LRO;
static const uint64_t DPDK_SYS_TX_TCP_CHECKSUM = RTE_ETH_TX_OFFLOAD_TCP_CKSUM;
static const uint64_t DPDK_SYS_TX_UDP_CHECKSUM = RTE_ETH_TX_OFFLOAD_UDP_CKSUM;
static const uint64_t DPDK_SYS_TX_IPV4_CHECKSUM = RTE_ETH_TX_OFFLOAD_IPV4_CKSUM;
static const uint64_t DPDK_SYS_TX_TCP_SEGMENTATION = RTE_ETH_TX_OFFLOAD_TCP_TSO;
static const uint64_t DPDK_SYS_TX_VLAN_INSERT = RTE_ETH_TX_OFFLOAD_VLAN_INSERT;
static const uint64_t DPDK_SYS_TX_MULTI_SEGMENT = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
static const uint32_t DPDK_SYS_LINK_INTERRUPT = RTE_ETH_DEV_INTR_LSC;
static const uint32_t DPDK_SYS_REMOVAL_INTERRUPT = RTE_ETH_DEV_INTR_RMV;
