/*
 * A secondary without DPDK's service cores, which nothing here uses.
 *
 * rte_service_init() takes 150 KiB from the heap in shared memory, in every process, and a process that is killed
 * never gives them back: each attach would cost the switch that much. The linker puts these in its place (--wrap).
 */
#include <errno.h>

int __wrap_rte_service_init(void);
int __wrap_rte_service_start_with_defaults(void);

int __wrap_rte_service_init(void)
{
	return 0;
}

/* EAL takes ENOTSUP for "there are none". */
int __wrap_rte_service_start_with_defaults(void)
{
	return -ENOTSUP;
}
