/* The DPDK headers that dpdk-sys binds. */
#include <rte_bus_vdev.h>
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

/* rte_errno is a per-lcore macro, which no binding generator can follow. */
static inline int dpdk_sys_errno(void) { return rte_errno; }
/* The text log of DPDK: its level macros are casts that bindgen leaves out. */
static inline void dpdk_sys_log_level(unsigned level) { rte_log_set_global_level(level); }
