//! Ethernet devices: NICs, kernel interfaces, anything DPDK has a driver for.

use std::{
    ffi::{CStr, CString},
    mem::MaybeUninit,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arrayvec::ArrayVec;
use dpdk_sys as sys;

use crate::{
    DpdkError, Mbuf, check,
    eal::Eal,
    kernel::sockets::Companions,
    mempool::{MARK, Mempool},
    offload::Caps,
    sleep::Sleeper,
    steering::{self, ByDestination, Destination, HashFields, Rule},
};

/// Descriptors of a receive and of a transmit queue, where the device does not want others.
pub const DESCRIPTORS: u16 = 1024;
/// The same of a queue that is one guest's.
pub const GUEST_DESCRIPTORS: u16 = 512;

/// Octets around the payload that drivers count: Ethernet header and FCS.
const OVERHEAD: u32 = 14 + 4;

/// A device, from its attachment to DPDK until the last handle of it is gone. Queues hold it too.
pub(crate) struct Device {
    pub(crate) id: u16,
    pub(crate) name: String,
    /// Its driver puts frames into its buffers.
    pool: Option<Mempool>,
    /// Descriptors that came with it.
    companions: Companions,
    /// Frames that AF_PACKET's sockets lost, as far as they were asked.
    packet_drops: AtomicU64,
    /// Was promiscuous before, and is to be so afterwards.
    stays_promiscuous: bool,
}

/// With more, the driver of 22.11 writes past its stack: a message to secondary processes holds 8 descriptors.
const NET_TAP_QUEUES: u16 = 4;

impl Device {
    fn info(&self) -> sys::rte_eth_dev_info {
        let mut info = sys::rte_eth_dev_info::default();
        // SAFETY: the device is attached and info is ours to write.
        unsafe { sys::rte_eth_dev_info_get(self.id, &mut info) };
        info
    }

    fn driver(&self) -> String {
        let name = self.info().driver_name;
        match name.is_null() {
            true => String::new(),
            // SAFETY: a driver's name is a static NUL-terminated string.
            false => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let mut info = sys::rte_eth_dev_info::default();
        // SAFETY: the id is that of an attached device: only this Drop detaches it. Its queues
        // are gone with their handles, so it is not polled. `info.device` is read before close, and
        // the sockets are reaped after it.
        unsafe {
            sys::rte_eth_dev_info_get(self.id, &mut info);
            let device = info.device;
            if !self.stays_promiscuous {
                sys::rte_eth_promiscuous_disable(self.id);
            }
            let mut companions = std::mem::take(&mut self.companions);
            // To close it, libxdp asks for its program once more.
            companions.note(&self.name, || {
                sys::rte_eth_dev_stop(self.id);
                sys::rte_eth_dev_close(self.id);
                if !device.is_null() && sys::rte_dev_remove(device) < 0 {
                    tracing::warn!("device '{}' did not detach cleanly", self.name);
                }
            });
            companions.close_leaked();
        }
    }
}

/// What a device says of itself.
#[derive(Clone, Debug, Default)]
pub struct Info {
    /// Its driver, as "net_af_xdp".
    pub driver: String,
    /// The most receive queues.
    pub max_rx_queues: u16,
    /// The most transmit queues.
    pub max_tx_queues: u16,
    /// The largest MTU; 0 if it does not say.
    pub max_mtu: u16,
    /// The NUMA node it is on, if on one.
    pub numa_node: Option<u32>,
}

/// How a device is set up.
pub struct Setup<'a> {
    /// Receive queues, at least 1.
    pub rx_queues: u16,
    /// Transmit queues, at least 1.
    pub tx_queues: u16,
    /// Further pairs of queues, for guests: nothing arrives by them but what rules send there. There are none if the
    /// device can't be set to.
    pub guest_queues: u16,
    /// In octets. The buffers of `pool` hold a frame of it.
    pub mtu: u16,
    /// Set it on the device; otherwise the owner of the interface does.
    pub device_mtu: bool,
    /// By what frames are spread over several receive queues, as far as the device offers it.
    pub hash: HashFields,
    /// Where received frames are put.
    pub pool: &'a Mempool,
}

/// Counts that a device keeps by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Frames lost because its ring was full: the switch was too slow.
    pub rx_missed: u64,
    /// Frames received with an error.
    pub rx_errors: u64,
    /// Frames lost because the pool was empty.
    pub rx_no_buffer: u64,
    /// Frames that were accepted for transmission and failed.
    pub tx_errors: u64,
}

/// An attached device.
pub struct EthPort {
    device: Arc<Device>,
    caps: Caps,
    hash: Option<HashFields>,
    /// Keeps what no guest's rule names out of guests' queues, if the device has no other means.
    others: Option<Rule>,
}

/// The queues of a started device, each to be used by one thread.
pub struct Queues {
    /// For what arrives.
    pub rx: Vec<RxQueue>,
    /// For what leaves.
    pub tx: Vec<TxQueue>,
    /// Those for guests, whose numbers follow those of the others.
    pub guests: Vec<(RxQueue, TxQueue)>,
}

impl EthPort {
    /// Attaches the device that `devargs` names: a PCI address, or "net_DRIVER…,KEY=VALUE".
    pub fn attach(_: &Eal, devargs: &str) -> Result<Self, DpdkError> {
        let name = devargs.split(',').next().unwrap_or_default().to_owned();
        let what = || format!("attaching device '{devargs}'");
        let c_args = CString::new(devargs).map_err(|_| DpdkError::new(what(), "it has a NUL in it"))?;
        let c_name = CString::new(name.as_str()).map_err(|_| DpdkError::new(what(), "it has a NUL in it"))?;
        let mut id = 0u16;
        let mut companions = Companions::default();
        // SAFETY: DPDK runs (the Eal proves it) and the strings are NUL-terminated.
        unsafe {
            if sys::rte_eth_dev_get_port_by_name(c_name.as_ptr(), &mut id) == 0 {
                return Err(DpdkError::new(what(), "another port has it already"));
            }
            check(what(), companions.note(&name, || sys::rte_dev_probe(c_args.as_ptr())))?;
            let found = sys::rte_eth_dev_get_port_by_name(c_name.as_ptr(), &mut id);
            check(format!("{}: no Ethernet device came of it", what()), found)?;
        }
        let device =
            Device { id, name, pool: None, companions, packet_drops: AtomicU64::new(0), stays_promiscuous: false };
        Ok(EthPort { device: Arc::new(device), caps: Caps::default(), hash: None, others: None })
    }

    /// It was promiscuous before the port was made: it stays so when the port goes.
    pub fn keep_promiscuous(&mut self) {
        if let Some(device) = Arc::get_mut(&mut self.device) {
            device.stays_promiscuous = true;
        }
    }

    /// What the device says of itself.
    pub fn info(&self) -> Info {
        let i = self.device.info();
        // SAFETY: the device is attached.
        let numa_node = u32::try_from(unsafe { sys::rte_eth_dev_socket_id(self.device.id) }).ok();
        let driver = self.device.driver();
        let most = if driver == "net_tap" { NET_TAP_QUEUES } else { u16::MAX };
        let [max_rx_queues, max_tx_queues] = [i.max_rx_queues, i.max_tx_queues].map(|max| max.min(most));
        Info { driver, max_rx_queues, max_tx_queues, max_mtu: i.max_mtu, numa_node }
    }

    /// Configures and starts it.
    pub fn start(&mut self, setup: &Setup<'_>) -> Result<Queues, DpdkError> {
        let mut companions = Companions::default();
        if let Some(device) = Arc::get_mut(&mut self.device) {
            device.pool = Some(setup.pool.clone());
            companions = std::mem::take(&mut device.companions);
        }
        let name = self.device.name.clone();
        let started = companions.note(&name, || {
            let started = self.configure(setup, setup.guest_queues).map(|()| setup.guest_queues);
            // Whether it can do what they need is known only now.
            if setup.guest_queues == 0 || (started.is_ok() && self.keep_for_guests(setup.rx_queues)) {
                return started;
            }
            // SAFETY: the device is attached; it is not polled yet.
            unsafe { sys::rte_eth_dev_stop(self.device.id) };
            self.configure(setup, 0).map(|()| 0)
        });
        // A device that has companions takes no rules, so nothing else holds it yet.
        if let Some(device) = Arc::get_mut(&mut self.device) {
            device.companions = companions;
        }
        let guests = started?;
        let device = || self.device.clone();
        let rx = |queue| RxQueue { device: device(), queue, marks: setup.pool.is_of_device() };
        let tx = |queue| TxQueue { device: device(), queue, caps: self.caps };
        let pair = |i| (rx(setup.rx_queues + i), tx(setup.tx_queues + i));
        Ok(Queues {
            rx: (0..setup.rx_queues).map(rx).collect(),
            tx: (0..setup.tx_queues).map(tx).collect(),
            guests: (0..guests).map(pair).collect(),
        })
    }

    fn configure(&mut self, setup: &Setup<'_>, guests: u16) -> Result<(), DpdkError> {
        let id = self.device.id;
        let what = |step: &str| format!("device '{}': {step}", self.device.name);
        let info = self.device.info();
        let chains = sys::DUNLIN_TX_OFFLOAD_MULTI_SEGS;
        let tx = chains & info.tx_offload_capa;
        // Checksums and segmentation are done in software for every device: what drivers want
        // prepared for theirs differs, and can only be tried on the hardware.
        self.caps = Caps { chains: tx & chains != 0, ..Caps::default() };
        let mut conf = sys::rte_eth_conf::default();
        conf.txmode.offloads = tx;
        // Drivers of kernel interfaces name a limit that AF_PACKET's and AF_XDP's don't hold to.
        let most = info.max_rx_pktlen.saturating_sub(OVERHEAD).clamp(1, u32::from(u16::MAX));
        conf.rxmode.mtu = if setup.device_mtu { u32::from(setup.mtu) } else { u32::from(setup.mtu).min(most) };
        // With one queue for all beside guests' own, it is set by the table of hashes which that is.
        if setup.rx_queues + guests > 1 && info.flow_type_rss_offloads != 0 {
            let hash = setup.hash.offered(info.flow_type_rss_offloads);
            conf.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
            conf.rx_adv_conf.rss_conf.rss_hf = hash.bits();
            self.hash = (setup.rx_queues > 1).then_some(hash);
        }
        // SAFETY: the device is attached and not started; the configuration outlives the calls.
        unsafe {
            let code = sys::rte_eth_dev_configure(id, setup.rx_queues + guests, setup.tx_queues + guests, &conf);
            check(what("configuration"), code)?;
            self.set_up_queues(setup, guests, &info, tx)?;
            if setup.device_mtu {
                // Not every driver takes it; those that do must accept it.
                let code = sys::rte_eth_dev_set_mtu(id, setup.mtu);
                if code != -nix::libc::ENOTSUP {
                    check(what(&format!("mtu {}", setup.mtu)), code)?;
                }
            }
            check(what("start"), sys::rte_eth_dev_start(id))?;
            // A switch wants every frame; a device that has no such mode passes them anyway.
            sys::rte_eth_promiscuous_enable(id);
            sys::rte_eth_allmulticast_enable(id);
        }
        Ok(())
    }

    /// Leaves the queues behind the first `queues` to frames that rules send there; whether the started device can do
    /// that.
    fn keep_for_guests(&mut self, queues: u16) -> bool {
        if self.by_destination().rules.is_some() {
            return false;
        }
        if steering::spread_over(self.device.id, self.device.info().reta_size, queues) {
            return true;
        }
        // A rule for all others has one queue to name.
        self.others = if queues == 1 { Rule::create(&self.device, None, 0).ok() } else { None };
        self.others.is_some()
    }

    /// Of a device that is configured and not started.
    fn set_up_queues(
        &self,
        setup: &Setup<'_>,
        guests: u16,
        info: &sys::rte_eth_dev_info,
        offloads: u64,
    ) -> Result<(), DpdkError> {
        let id = self.device.id;
        let what = |step: &str| format!("device '{}': {step}", self.device.name);
        let ring = |wanted| {
            let (mut rx, mut tx) = (wanted, wanted);
            // SAFETY: the device is attached, and both are ours to write.
            let code = unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &mut rx, &mut tx) };
            check(what("ring sizes"), code).map(|_| (rx, tx))
        };
        let rings = [ring(DESCRIPTORS)?, ring(GUEST_DESCRIPTORS)?];
        // SAFETY: the device is attached.
        let node = unsafe { sys::rte_eth_dev_socket_id(id) } as u32;
        for q in 0..setup.rx_queues + guests {
            let conf = sys::rte_eth_rxconf { offloads: 0, ..info.default_rxconf };
            let depth = rings[usize::from(q >= setup.rx_queues)].0;
            // SAFETY: the device is configured for so many queues; the pool outlives it, because the device
            // keeps a handle of it.
            let code = unsafe { sys::rte_eth_rx_queue_setup(id, q, depth, node, &conf, setup.pool.as_ptr()) };
            check(what("receive queue"), code)?;
        }
        for q in 0..setup.tx_queues + guests {
            let conf = sys::rte_eth_txconf { offloads, ..info.default_txconf };
            let depth = rings[usize::from(q >= setup.tx_queues)].1;
            // SAFETY: the device is configured for so many queues.
            let code = unsafe { sys::rte_eth_tx_queue_setup(id, q, depth, node, &conf) };
            check(what("transmit queue"), code)?;
        }
        Ok(())
    }

    /// Changes the MTU of the running device; the driver's refusal is returned.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), DpdkError> {
        // SAFETY: the device is attached; the call is made for use at any time.
        let code = unsafe { sys::rte_eth_dev_set_mtu(self.device.id, mtu) };
        check(format!("device '{}': mtu {mtu}", self.device.name), code).map(drop)
    }

    /// By what the started device spreads frames over its queues; `None` if it does not, having one
    /// queue only or no such means.
    pub fn hash_fields(&self) -> Option<HashFields> {
        self.hash
    }

    /// Whether the started device can choose a frame's queue by where it goes.
    pub fn by_destination(&self) -> ByDestination {
        steering::probe(self.device.id, &self.device.info())
    }

    /// Frames to `to` go into the guest's queue `queue` from now on, until the rule is dropped. The driver's refusal is
    /// told.
    pub fn send_to_queue(&self, to: Destination, queue: u16) -> Result<Rule, DpdkError> {
        let what = || format!("device '{}': a rule for queue {queue}", self.device.name);
        Rule::create(&self.device, Some(to), queue).map_err(|why| DpdkError::new(what(), why))
    }

    /// Whether the driver says the link is up.
    pub fn link_up(&self) -> bool {
        let mut link = sys::rte_eth_link::default();
        // SAFETY: the device is attached and link is ours to write.
        let code = unsafe { sys::rte_eth_link_get_nowait(self.device.id, &mut link) };
        code == 0 && link.link_status() == sys::RTE_ETH_LINK_UP as u16
    }

    /// The device's own counts.
    pub fn stats(&self) -> DeviceStats {
        let mut s = sys::rte_eth_stats::default();
        // SAFETY: the device is attached and s is ours to write.
        unsafe { sys::rte_eth_stats_get(self.device.id, &mut s) };
        // What the kernel loses between its device and the driver, which the driver does not count.
        let mut lost = 0;
        for socket in &self.device.companions.sockets {
            let (xdp, packet) = socket.ring_full();
            self.device.packet_drops.fetch_add(packet, Relaxed);
            lost += xdp;
        }
        lost += self.device.packet_drops.load(Relaxed);
        DeviceStats {
            rx_missed: s.imissed + lost,
            rx_errors: s.ierrors,
            rx_no_buffer: s.rx_nombuf,
            tx_errors: s.oerrors,
        }
    }

    /// The device's address, first octet on the wire first.
    pub fn mac(&self) -> [u8; 6] {
        let mut a = sys::rte_ether_addr::default();
        // SAFETY: the device is attached and a is ours to write.
        unsafe { sys::rte_eth_macaddr_get(self.device.id, &mut a) };
        a.addr_bytes
    }
}

/// A receive queue, polled by its owner.
pub struct RxQueue {
    device: Arc<Device>,
    queue: u16,
    /// Frames are marked: see `mempool.rs`.
    marks: bool,
}

impl RxQueue {
    /// Its number on the device.
    pub fn number(&self) -> u16 {
        self.queue
    }

    /// Lets what arrives by it end a sleep; whether it will.
    pub fn wake(&self, sleeper: &mut Sleeper) -> bool {
        match &self.device.companions.sockets[..] {
            [one] => {
                sleeper.wait_for(one.fd);
                true
            }
            _ => false,
        }
    }

    /// Takes up to N frames into the empty `burst`; how many.
    #[inline(always)]
    pub fn receive<F: From<Mbuf>, const N: usize>(&mut self, burst: &mut ArrayVec<F, N>) -> usize {
        let mut raw: [RawBuffer; N] = [MaybeUninit::uninit(); N];
        // SAFETY: the device is started (it gave out this handle) and stops only when the handle
        // is gone; one thread polls the queue, because the handle is borrowed exclusively and
        // there is one; raw has room for N.
        let n = unsafe { sys::dunlin_rx_burst(self.device.id, self.queue, raw.as_mut_ptr().cast(), N as u16) };
        if self.marks {
            for m in &raw[..n as usize] {
                // SAFETY: a valid chain, which only this function has.
                unsafe { (*m.assume_init()).port = MARK };
            }
        }
        // SAFETY: the driver handed over the first n pointers, each a valid chain.
        unsafe { adopt(&raw[..n as usize], burst) };
        n as usize
    }
}

/// A buffer as drivers hand it out.
pub(crate) type RawBuffer = MaybeUninit<*mut sys::rte_mbuf>;

/// Takes over buffers that a driver handed out into the empty `burst`.
///
/// # Safety
/// Each pointer is there and a valid chain, handed over once.
///
/// # Panics
/// If there are more than the burst holds, or some in it.
#[inline(always)]
pub(crate) unsafe fn adopt<F: From<Mbuf>, const N: usize>(raw: &[RawBuffer], burst: &mut ArrayVec<F, N>) {
    assert!(raw.len() <= N && burst.is_empty());
    let to = burst.as_mut_ptr();
    for (i, m) in raw.iter().enumerate() {
        // SAFETY: as the caller promises; drivers hand out no NULL; i is below N.
        unsafe { to.add(i).write(F::from(Mbuf::from_raw(NonNull::new_unchecked(m.assume_init())))) };
    }
    // SAFETY: so many were written just now.
    unsafe { burst.set_len(raw.len()) };
}

/// Hands the frames of `burst` over, in their order; it is empty afterwards. How many there were.
#[inline(always)]
pub(crate) fn hand_over<F: Into<Mbuf>, const N: usize>(burst: &mut ArrayVec<F, N>, raw: &mut [RawBuffer; N]) -> usize {
    let (n, from) = (burst.len(), burst.as_ptr());
    // SAFETY: the burst forgets its frames before they are read, each once.
    unsafe { burst.set_len(0) };
    for (i, r) in raw.iter_mut().enumerate().take(n) {
        // SAFETY: the first n were there.
        r.write(Into::<Mbuf>::into(unsafe { from.add(i).read() }).into_raw());
    }
    n
}

/// A transmit queue, used by its owner.
pub struct TxQueue {
    device: Arc<Device>,
    queue: u16,
    caps: Caps,
}

impl TxQueue {
    /// What the device does by itself.
    #[inline(always)]
    pub fn caps(&self) -> Caps {
        self.caps
    }

    /// Sends frames from the front of `burst`; those the device did not take stay in it. How
    /// many it took.
    #[inline(always)]
    pub fn transmit<F: Into<Mbuf> + From<Mbuf>, const N: usize>(&mut self, burst: &mut ArrayVec<F, N>) -> usize {
        let mut raw = [MaybeUninit::uninit(); N];
        let n = hand_over(burst, &mut raw);
        let first = raw.as_mut_ptr().cast();
        // SAFETY: the device is started as in receive(); the n pointers are valid chains that the
        // driver takes over as far as it says, and keeps its hands off the others.
        let sent = unsafe { sys::dunlin_tx_burst(self.device.id, self.queue, first, n as u16) as usize };
        if sent < n {
            // SAFETY: not taken by the driver, so still ours, and adopted once.
            unsafe { adopt(&raw[sent..n], burst) };
        }
        sent
    }
}
