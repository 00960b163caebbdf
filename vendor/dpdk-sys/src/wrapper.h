/* What bindgen reads: DPDK's headers and the declarations of shim.c. */
#include <rte_bus_vdev.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_flow.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_malloc.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_vhost.h>
#include <linux/virtio_net.h>

int dunlin_errno(void);
uint16_t dunlin_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **pkts, uint16_t n);
uint16_t dunlin_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **pkts, uint16_t n);
struct rte_mbuf *dunlin_mbuf_alloc(struct rte_mempool *pool);
void dunlin_mbuf_free(struct rte_mbuf *m);
void dunlin_mbuf_share(struct rte_mbuf *m);

/* Macros that bindgen can't evaluate by itself. */
static const uint64_t DUNLIN_TX_OFFLOAD_MULTI_SEGS = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
static const uint64_t DUNLIN_RSS_MAC = RTE_ETH_RSS_ETH;
static const uint64_t DUNLIN_RSS_VLAN = RTE_ETH_RSS_VLAN;
static const uint64_t DUNLIN_RSS_IP = RTE_ETH_RSS_IP;
static const uint64_t DUNLIN_RSS_TCP = RTE_ETH_RSS_TCP;
static const uint64_t DUNLIN_RSS_UDP = RTE_ETH_RSS_UDP;
static const uint64_t DUNLIN_RSS_SCTP = RTE_ETH_RSS_SCTP;
