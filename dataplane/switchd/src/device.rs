//! Opening the device behind a port: one function a kind; those of the kernel's interfaces are in `kernel.rs`.

mod kernel;

use std::{fs, os::unix::fs::FileTypeExt, path::Path, sync::Arc, time::Instant};

use dunlin_dataplane_api::socket::{GroupId, share};
use dunlin_dpdk::{
    DpdkError,
    eal::Eal,
    kernel::{
        packet::PacketPort,
        tap::{TapPort, TapRemover},
    },
    mempool::Mempool,
    port::{DeviceStats, EthPort, GUEST_DESCRIPTORS, Queues, Setup, TxQueue},
    quiescent::{Domain, Workers},
    steering::{ByDestination, Destination, HashFields, Rule},
    vhost::{GuestState, MAX_QUEUE_PAIRS, Role, VhostPort},
};
use dunlin_model::spec::DeviceSpec;
use parking_lot::Mutex;

use crate::{
    permit::devargs::is_pci_address,
    pools::Pools,
    queues::{RxKind, TxHandle},
    switch::GuestQueues,
};
use kernel::{Interface, LAST_XDP_CLOSE, MAX_XDP_MTU, check_interface, kernel_mtu, open_host, open_tap};

/// Queues of an uplink that guests may have for themselves, where it has so many.
const MAX_GUEST_QUEUES: u16 = 32;

/// What opening needs. Not the switch's lock: a device may take long, or for ever.
#[derive(Clone)]
pub struct Opener {
    pub eal: Eal,
    /// Locked for single looks, never while a device is opened.
    pub pools: Arc<Mutex<Pools>>,
    pub domain: Arc<Domain<Workers>>,
    pub workers: usize,
    /// Who may use the sockets that are made.
    pub vhost_group: Option<GroupId>,
    /// Called, from any thread, when a guest comes or goes.
    pub changed: Arc<dyn Fn() + Send + Sync>,
}

/// A device at work.
pub struct Device {
    kind: Kind,
    pub driver: &'static str,
    pub note: String,
    /// Why the driver is not the first choice, if it is not.
    pub fallback: String,
    pub mac: Option<[u8; 6]>,
    pub rx_queues: u32,
    pub tx_queues: u32,
    /// By what it spreads frames over its queues; `None` if it does not.
    pub hash: Option<HashFields>,
    /// Whether it could spread them by destination; `None` if it is no Ethernet device of DPDK's.
    pub by_destination: Option<ByDestination>,
    /// Queues that guests may have for themselves, if there are some.
    pub guest_queues: Option<GuestQueues>,
    /// The NUMA node it is on, if on one.
    pub node: Option<u32>,
}

enum Kind {
    Eth { port: EthPort, interface: Option<Interface> },
    Packet { packet: PacketPort, interface: Interface },
    Tap { tap: TapPort, name: String },
    Vhost(VhostPort),
}

/// A device and its queues: `rx` to be spread over the workers, `tx` one a worker.
pub struct Opened {
    pub device: Device,
    pub rx: Vec<RxKind>,
    pub tx: Vec<TxHandle>,
    pub complete_checksums: bool,
    /// A tap interface was made for it.
    pub made_interface: bool,
}

impl Opener {
    /// Makes the buffers that frames of `mtu` need.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn prepare(&self, spec: &DeviceSpec, mtu: u32) -> Result<(), DpdkError> {
        match spec {
            DeviceSpec::Nic { .. } => self.pools.lock().for_mtu(mtu, None).map(drop),
            DeviceSpec::Host { .. } | DeviceSpec::Tap { .. } | DeviceSpec::VhostUser { .. } => Ok(()),
        }
    }
}

/// Opens what `spec` names for frames of `mtu`.
pub fn open(o: &Opener, spec: &DeviceSpec, mtu: u32) -> Result<Opened, DpdkError> {
    match spec {
        DeviceSpec::Nic { device, queues, hash_fields, guests } => {
            // Names that the model knows and DPDK does not are not asked for.
            let hash = HashFields::from_names(hash_fields).unwrap_or(HashFields::DEFAULT);
            open_nic(o, device, (*queues, hash, *guests), mtu)
        }
        DeviceSpec::Host { interface, driver } => open_host(o, interface, *driver, mtu),
        DeviceSpec::Tap { interface } => open_tap(o, interface, mtu),
        DeviceSpec::VhostUser { socket, server } => open_vhost(o, socket, *server),
    }
}

/// Whether a device is there and free, as far as that can be known without opening it.
///
/// # Errors
/// It can't be opened, and why.
pub fn check(spec: &DeviceSpec) -> Result<(), DpdkError> {
    match spec {
        DeviceSpec::Nic { device, .. } if is_pci_address(device.split(',').next().unwrap_or_default()) => {
            check_pci(device)
        }
        DeviceSpec::Host { interface, .. } => check_interface(interface),
        DeviceSpec::Nic { .. } | DeviceSpec::Tap { .. } | DeviceSpec::VhostUser { .. } => Ok(()),
    }
}

fn refuse(what: impl Into<String>, why: impl Into<String>) -> DpdkError {
    DpdkError { what: what.into(), why: why.into() }
}

fn open_nic(
    o: &Opener,
    device: &str,
    (queues, hash, guests): (u16, HashFields, bool),
    mtu: u32,
) -> Result<Opened, DpdkError> {
    if is_pci_address(device.split(',').next().unwrap_or_default()) {
        check_pci(device)?;
    }
    let port = EthPort::attach(&o.eal, device)?;
    let pool = o.pools.lock().for_mtu(mtu, port.info().numa_node)?;
    let wanted = if queues == 0 { o.workers as u16 } else { queues };
    // What their rings hold must not be a large part of all buffers there are.
    let affordable = (pool.size() / 8 / u32::from(GUEST_DESCRIPTORS)) as u16;
    let guest_queues = if guests && o.workers > 1 { MAX_GUEST_QUEUES.min(affordable) } else { 0 };
    let setup = Start { pool: &pool, rx_queues: wanted, guest_queues, mtu, device_mtu: true, hash };
    let mut opened = start_eth(o, port, &setup)?;
    opened.device.driver = "dpdk";
    let takes_rules = opened.device.by_destination.as_ref().is_some_and(|d| d.rules.is_none());
    if guest_queues > 0 && takes_rules && opened.device.guest_queues.is_none() {
        opened.device.note += "; no queues for guests: too few, or other frames can't be kept out of them (with \
                               --queues 1 they may)";
    }
    if u32::from(wanted) > opened.device.rx_queues {
        opened.device.note = format!("{}; {} of {wanted} receive queues", opened.device.note, opened.device.rx_queues);
    }
    Ok(opened)
}

fn open_vhost(o: &Opener, socket: &str, server: bool) -> Result<Opened, DpdkError> {
    let role = if server { Role::Server } else { Role::Client };
    let what = format!("socket '{socket}'");
    if let Ok(m) = fs::metadata(socket) {
        if m.is_dir() {
            return Err(refuse(&what, "is a folder; name the socket itself"));
        }
        if !m.file_type().is_socket() {
            return Err(refuse(&what, "exists and is no socket"));
        }
        if server {
            if std::os::unix::net::UnixStream::connect(socket).is_ok() {
                return Err(refuse(&what, "another process listens on it"));
            }
            fs::remove_file(socket).map_err(|e| refuse(&what, e.to_string()))?;
        }
    }
    if let Some(folder) = Path::new(socket).parent() {
        fs::create_dir_all(folder).map_err(|e| refuse(&what, format!("its folder can't be made: {e}")))?;
    }
    let changed = o.changed.clone();
    let port = VhostPort::register(&o.eal, socket, role, o.domain.clone(), move || changed())?;
    if server {
        share(Path::new(socket), o.vhost_group).map_err(|e| refuse(&what, format!("its group and mode: {e}")))?;
    }
    let pool = o.pools.lock().standard(None).clone();
    let rx = (0..MAX_QUEUE_PAIRS).map(|q| RxKind::Vhost(port.queue(q, &pool))).collect();
    let tx = (0..o.workers).map(|w| TxHandle::Vhost(port.sender(w as u16))).collect();
    let note = if server { "server".into() } else { "client, reconnects".into() };
    let device = Device { note, ..Device::new(Kind::Vhost(port), "vhost-user", [MAX_QUEUE_PAIRS.into(); 2]) };
    Ok(Opened { device, rx, tx, complete_checksums: false, made_interface: false })
}

/// How an Ethernet device is to be started, before it is known what it offers.
struct Start<'a> {
    pool: &'a Mempool,
    rx_queues: u16,
    guest_queues: u16,
    mtu: u32,
    device_mtu: bool,
    hash: HashFields,
}

impl<'a> Start<'a> {
    fn behind_kernel(pool: &'a Mempool, mtu: u32) -> Self {
        Start { pool, rx_queues: 1, guest_queues: 0, mtu, device_mtu: false, hash: HashFields::DEFAULT }
    }
}

fn start_eth(o: &Opener, mut port: EthPort, want: &Start<'_>) -> Result<Opened, DpdkError> {
    let info = port.info();
    let workers = o.workers as u16;
    let mut setup = Setup {
        rx_queues: want.rx_queues.clamp(1, info.max_rx_queues.max(1)),
        tx_queues: workers.clamp(1, info.max_tx_queues.max(1)),
        guest_queues: 0,
        mtu: want.mtu as u16,
        device_mtu: want.device_mtu,
        hash: want.hash,
        pool: want.pool,
    };
    // By their devargs.
    if ["net_af_packet", "net_tap"].contains(&info.driver.as_str()) {
        // Their queues come in pairs.
        setup.tx_queues = setup.rx_queues;
    }
    let left = |max: u16, taken| max.saturating_sub(taken);
    let left = left(info.max_rx_queues, setup.rx_queues).min(left(info.max_tx_queues, setup.tx_queues));
    setup.guest_queues = want.guest_queues.min(left);
    let Queues { rx, tx, guests } = port.start(&setup)?;
    let queues = [rx.len(), tx.len()].map(|n| n + guests.len());
    let device = Device {
        mac: Some(port.mac()),
        note: info.driver,
        guest_queues: GuestQueues::new(rx.len() as u16, guests),
        hash: port.hash_fields(),
        by_destination: Some(port.by_destination()),
        node: info.numa_node,
        ..Device::new(Kind::Eth { port, interface: None }, "dpdk", queues)
    };
    Ok(Opened {
        device,
        rx: rx.into_iter().map(RxKind::Eth).collect(),
        tx: share_out(tx, o.workers),
        complete_checksums: false,
        made_interface: false,
    })
}

/// One handle a worker, out of as many queues as there are.
fn share_out(tx: Vec<TxQueue>, workers: usize) -> Vec<TxHandle> {
    if tx.len() >= workers {
        return tx.into_iter().take(workers).map(TxHandle::Eth).collect();
    }
    let shared: Vec<Arc<Mutex<TxQueue>>> = tx.into_iter().map(|q| Arc::new(Mutex::new(q))).collect();
    (0..workers).map(|w| TxHandle::SharedEth(shared[w % shared.len()].clone())).collect()
}

impl Device {
    /// One of which nothing more is known than its queues, of each direction.
    fn new(kind: Kind, driver: &'static str, [rx, tx]: [usize; 2]) -> Self {
        Device {
            kind,
            driver,
            note: String::new(),
            fallback: String::new(),
            mac: None,
            rx_queues: rx as u32,
            tx_queues: tx as u32,
            hash: None,
            by_destination: None,
            guest_queues: None,
            node: None,
        }
    }

    /// The kernel's interface says whether the link is up, and must take frames of `mtu`.
    fn follow_kernel(&mut self, name: &str, mtu: u32) -> Result<(), DpdkError> {
        if let Kind::Eth { interface, .. } = &mut self.kind {
            *interface = Some(Interface::find(name)?);
        }
        kernel_mtu(name, mtu)
    }

    /// What the kernel takes of its interface, in octets; `None` if it is none of the kernel's, or in another namespace.
    pub fn interface_mtu(&self) -> Option<u32> {
        let name = match &self.kind {
            Kind::Eth { interface: Some(i), .. } | Kind::Packet { interface: i, .. } => &i.name,
            Kind::Tap { name, .. } => name,
            Kind::Eth { .. } | Kind::Vhost(_) => return None,
        };
        Interface::read(name, "mtu")?.parse().ok()
    }

    /// Whether nothing that it receives reaches the host's own stack.
    fn keeps_from_host(&self) -> bool {
        !matches!(&self.kind, Kind::Packet { packet, .. } if !packet.is_alone())
    }

    /// Whether frames can leave by it now.
    pub fn up(&self) -> bool {
        match &self.kind {
            // The drivers of kernel interfaces don't follow their carrier.
            Kind::Eth { interface: Some(i), .. } | Kind::Packet { interface: i, .. } => i.has_carrier(),
            Kind::Eth { port, .. } => port.link_up(),
            Kind::Tap { tap, .. } => tap.up() == Some(true),
            Kind::Vhost(v) => v.state().running,
        }
    }

    /// Why the device can't be used any more, if so.
    pub fn lost(&self) -> Option<String> {
        match &self.kind {
            Kind::Eth { interface: Some(i), .. } | Kind::Packet { interface: i, .. } if !i.is_there() => {
                Some(format!("interface '{}': it was removed or created again; waiting for it", i.name))
            }
            Kind::Tap { tap, name } if tap.up().is_none() => {
                Some(format!("interface '{name}': it was removed; waiting to create it again"))
            }
            _ => None,
        }
    }

    /// The guest, for vhost-user.
    pub fn guest(&self) -> Option<GuestState> {
        match &self.kind {
            Kind::Vhost(v) => Some(v.state()),
            Kind::Eth { .. } | Kind::Packet { .. } | Kind::Tap { .. } => None,
        }
    }

    /// Of a tap whose name means nothing here, because it was moved to another namespace.
    pub fn moved_tap(&self) -> Option<TapRemover> {
        match &self.kind {
            Kind::Tap { tap, name } if Interface::read(name, "ifindex").is_none() => Some(tap.remover()),
            _ => None,
        }
    }

    /// The device's own counts.
    pub fn stats(&self) -> DeviceStats {
        match &self.kind {
            Kind::Eth { port, .. } => port.stats(),
            Kind::Packet { packet, .. } => DeviceStats { rx_missed: packet.missed(), ..DeviceStats::default() },
            Kind::Tap { .. } | Kind::Vhost(_) => DeviceStats::default(),
        }
    }

    /// Whether it can choose a frame's queue by destination, and for whom it does; empty if it can't be asked.
    pub fn steers_by(&self) -> String {
        let can = self.by_destination.as_ref().map(ToString::to_string);
        let does = self.guest_queues.as_ref().map(ToString::to_string);
        can.into_iter().chain(does).collect::<Vec<_>>().join("; ")
    }

    /// Frames to `to` go into its queue `queue` while the rule is there.
    pub fn send_to_queue(&self, to: Destination, queue: u16) -> Result<Rule, DpdkError> {
        match &self.kind {
            Kind::Eth { port, .. } => port.send_to_queue(to, queue),
            Kind::Packet { .. } | Kind::Tap { .. } | Kind::Vhost(_) => Err(refuse("a rule", "is for devices of DPDK")),
        }
    }

    /// Changes the MTU while it runs.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), DpdkError> {
        match &self.kind {
            Kind::Eth { interface: Some(i), .. } | Kind::Packet { interface: i, .. } => kernel_mtu(&i.name, mtu),
            Kind::Eth { port, .. } => port.set_mtu(mtu as u16),
            Kind::Tap { name, .. } if Interface::read(name, "ifindex").is_some() => kernel_mtu(name, mtu),
            // In another namespace, the MTU is set there.
            Kind::Tap { .. } => Ok(()),
            // The guest has its MTU from QEMU; what is sent to it is checked against the port's.
            Kind::Vhost(_) => Ok(()),
        }
    }

    /// Closes it; its queues are back already.
    pub fn close(self) {
        let is_xdp = self.driver == "af_xdp";
        drop(self);
        if is_xdp {
            *LAST_XDP_CLOSE.lock() = Some(Instant::now());
        }
    }
}

/// Whether DPDK can take the device; if not, what to do.
fn check_pci(device: &str) -> Result<(), DpdkError> {
    let address = device.split(',').next().unwrap_or_default();
    let full = if address.len() == 7 { format!("0000:{address}") } else { address.to_owned() };
    let what = format!("PCI device '{address}'");
    let path = Path::new("/sys/bus/pci/devices").join(&full);
    if !path.exists() {
        return Err(refuse(what, "there is none at that address; 'dpdk-devbind.py --status-dev net' lists them"));
    }
    // DPDK's drivers for these use the device beside the kernel.
    const FOR_DPDK: &[&str] = &["vfio-pci", "uio_pci_generic", "igb_uio", "mlx4_core", "mlx5_core", "uio_hv_generic"];
    let driver = fs::read_link(path.join("driver")).ok();
    let driver = driver.as_deref().and_then(|d| d.file_name()).map(|d| d.to_string_lossy().into_owned());
    let bind = format!("bind it with 'modprobe vfio-pci && dpdk-devbind.py --bind=vfio-pci {full}'");
    match driver {
        Some(d) if FOR_DPDK.contains(&d.as_str()) => Ok(()),
        Some(d) => Err(refuse(what, format!("the kernel's driver '{d}' has it; {bind}"))),
        None => Err(refuse(what, format!("no driver has it; {bind}"))),
    }
}

/// Whether another MTU needs the device opened anew: other buffers, or another driver.
pub fn other_device(spec: &DeviceSpec, has: u32, wants: u32) -> bool {
    let xdp = |mtu| matches!(spec, DeviceSpec::Host { .. }) && mtu <= MAX_XDP_MTU;
    let buffers = matches!(spec, DeviceSpec::Nic { .. } | DeviceSpec::Host { .. });
    buffers && (Pools::is_jumbo(has) != Pools::is_jumbo(wants) || xdp(has) != xdp(wants))
}

/// Removes what a deleted port leaves outside of the process.
pub fn clean_up(spec: &DeviceSpec) {
    if let DeviceSpec::Tap { interface } = spec
        && let Err(e) = TapPort::remove(interface)
    {
        tracing::warn!("{e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_pci_device_says_how_to_list() {
        let e = check_pci("ffff:ff:1f.7").unwrap_err().to_string();
        assert!(e.contains("there is none at that address") && e.contains("dpdk-devbind"), "{e}");
    }
}
