/*
 * The inline functions of DPDK that Dunlin calls, with a symbol each. Nothing here has logic of
 * its own: whoever reads the Rust side finds the DPDK function of the same name behind each.
 */
#include "wrapper.h"

int dunlin_errno(void) { return rte_errno; }

uint16_t dunlin_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
	return rte_eth_rx_burst(port, queue, pkts, n);
}

uint16_t dunlin_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
	return rte_eth_tx_burst(port, queue, pkts, n);
}

struct rte_mbuf *dunlin_mbuf_alloc(struct rte_mempool *pool) { return rte_pktmbuf_alloc(pool); }

void dunlin_mbuf_free(struct rte_mbuf *m) { rte_pktmbuf_free(m); }

/* Every segment gets one more owner, as rte_pktmbuf_free takes one from each. */
void dunlin_mbuf_share(struct rte_mbuf *m) { rte_pktmbuf_refcnt_update(m, 1); }
