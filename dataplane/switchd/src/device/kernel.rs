//! Interfaces of the kernel: host and tap.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use dunlin_dpdk::{
    DpdkError,
    kernel::{driver_of, packet::PacketPort, tap::TapPort},
    port::EthPort,
};
use dunlin_engine::MacAddr;
use dunlin_model::spec::HostDriver;
use parking_lot::Mutex;

use super::{Device, Kind, Opened, Opener, Start, refuse, start_eth};
use crate::{
    links, numa,
    queues::{RxKind, TxHandle},
};

/// What fits into an AF_XDP buffer behind its headrooms, with two tags.
pub(super) const MAX_XDP_MTU: u32 = 1750;

/// A kernel interface, by name and number: one made anew under the same name is another.
pub(super) struct Interface {
    pub name: String,
    index: String,
}

impl Interface {
    pub fn read(name: &str, file: &str) -> Option<String> {
        Some(fs::read_to_string(format!("/sys/class/net/{name}/{file}")).ok()?.trim().to_owned())
    }

    pub fn find(name: &str) -> Result<Self, DpdkError> {
        let index = Self::read(name, "ifindex").ok_or_else(|| refuse(format!("interface '{name}'"), "it is gone"))?;
        Ok(Interface { name: name.to_owned(), index })
    }

    fn number(&self) -> u32 {
        self.index.parse().unwrap_or(0)
    }

    fn mac(name: &str) -> Option<[u8; 6]> {
        Some(Self::read(name, "address")?.parse::<MacAddr>().ok()?.octets())
    }

    pub fn is_there(&self) -> bool {
        links::carrier(self.number(), &self.name).is_some()
            || Self::read(&self.name, "ifindex").as_ref() == Some(&self.index)
    }

    pub fn has_carrier(&self) -> bool {
        links::carrier(self.number(), &self.name)
            .unwrap_or_else(|| self.is_there() && Self::read(&self.name, "carrier").is_some_and(|c| c == "1"))
    }
}

pub(super) fn check_interface(name: &str) -> Result<(), DpdkError> {
    match Path::new("/sys/class/net").join(name).exists() {
        true => Ok(()),
        false => {
            Err(refuse(format!("interface '{name}'"), "there is none of that name; 'ip link' lists what there is"))
        }
    }
}

/// A veth's peer is a host on the same machine, whose large segments only AF_PACKET takes whole; the frames of other
/// interfaces come by AF_XDP with less work.
pub(super) fn open_host(o: &Opener, interface: &str, driver: HostDriver, mtu: u32) -> Result<Opened, DpdkError> {
    check_interface(interface)?;
    let is_veth = driver_of(interface).is_some_and(|d| d == "veth");
    let mut why_not = match driver {
        HostDriver::Auto if is_veth => match open_af_packet(o, interface, mtu, true) {
            Ok(opened) => return Ok(opened),
            Err(e) => format!("AF_PACKET without the host's own stack: {}; ", e.why),
        },
        _ => String::new(),
    };
    if driver != HostDriver::AfPacket {
        match open_af_xdp_patiently(o, interface, mtu) {
            Ok(mut opened) => {
                opened.device.fallback = why_not.trim_end_matches("; ").to_owned();
                return Ok(opened);
            }
            Err(e) if driver == HostDriver::AfXdp => return Err(e),
            Err(e) => why_not += &format!("AF_XDP: {}", e.why),
        }
    }
    // For the first choice, this was tried above.
    let alone =
        if is_veth && driver == HostDriver::AfPacket { open_af_packet(o, interface, mtu, true).ok() } else { None };
    let mut opened = alone.map_or_else(|| open_af_packet(o, interface, mtu, false), Ok)?;
    opened.device.fallback = why_not;
    if !opened.device.keeps_from_host() {
        opened.device.note = "the host's own network stack receives the same frames".into();
    }
    Ok(opened)
}

fn open_af_packet(o: &Opener, interface: &str, mtu: u32, alone: bool) -> Result<Opened, DpdkError> {
    let kernel = Interface::find(interface)?;
    let packet = PacketPort::open(interface, kernel.number(), o.workers, alone)?;
    kernel_mtu(interface, mtu)?;
    let node = numa::of_interface(interface);
    let rx: Vec<_> =
        packet.rx(o.pools.lock().standard(node)).into_iter().map(|q| RxKind::Packet(Box::new(q))).collect();
    let tx: Vec<_> = packet.tx().iter().cycle().take(o.workers).cloned().map(TxHandle::Packet).collect();
    let kind = Kind::Packet { packet, interface: kernel };
    let device =
        Device { mac: Interface::mac(interface), node, ..Device::new(kind, "af_packet", [rx.len(), tx.len()]) };
    Ok(Opened { device, rx, tx, complete_checksums: false, made_interface: false })
}

/// Attaches a driver of a kernel interface, which is as promiscuous afterwards as it is now.
fn attach_interface(o: &Opener, args: &str, interface: &str) -> Result<EthPort, DpdkError> {
    /// IFF_PROMISC.
    const PROMISCUOUS: u32 = 0x100;
    let flags = Interface::read(interface, "flags");
    let flags = flags.and_then(|f| u32::from_str_radix(f.trim_start_matches("0x"), 16).ok());
    let mut port = EthPort::attach(&o.eal, args)?;
    if flags.is_some_and(|f| f & PROMISCUOUS != 0) {
        port.keep_promiscuous();
    }
    Ok(port)
}

/// The kernel takes a moment to let go of a queue whose socket was closed.
pub(super) static LAST_XDP_CLOSE: Mutex<Option<Instant>> = Mutex::new(None);
const XDP_RELEASE: Duration = Duration::from_millis(500);

fn open_af_xdp_patiently(o: &Opener, interface: &str, mtu: u32) -> Result<Opened, DpdkError> {
    loop {
        let opened = open_af_xdp(o, interface, mtu);
        let wait = LAST_XDP_CLOSE.lock().is_some_and(|t| t.elapsed() < XDP_RELEASE);
        if opened.is_ok() || !wait {
            return opened;
        }
        std::thread::sleep(XDP_RELEASE / 10);
    }
}

fn open_af_xdp(o: &Opener, interface: &str, mtu: u32) -> Result<Opened, DpdkError> {
    if mtu > MAX_XDP_MTU {
        return Err(refuse(format!("interface '{interface}': mtu"), format!("{mtu} is more than {MAX_XDP_MTU}")));
    }
    let args = format!("{},iface={interface}", unique("net_af_xdp"));
    let port = attach_interface(o, &args, interface)?;
    let node = numa::of_interface(interface);
    let pool = o.pools.lock().for_xdp(interface, node)?;
    let mut opened = start_eth(o, port, &Start::behind_kernel(&pool, mtu))?;
    (opened.device.driver, opened.device.node) = ("af_xdp", node);
    opened.complete_checksums = true;
    opened.device.follow_kernel(interface, mtu)?;
    Ok(opened)
}

pub(super) fn open_tap(o: &Opener, interface: &str, mtu: u32) -> Result<Opened, DpdkError> {
    let made_interface = Interface::read(interface, "ifindex").is_none();
    let tap = TapPort::open(interface, o.workers)?;
    if let Err(e) = kernel_mtu(interface, mtu) {
        if made_interface {
            tap.remover().remove();
        }
        return Err(e);
    }
    let (rx, tx) = (tap.rx(o.pools.lock().standard(None)), tap.tx());
    let kind = Kind::Tap { tap, name: interface.to_owned() };
    let device = Device { mac: Interface::mac(interface), ..Device::new(kind, "tap", [rx.len(), tx.len()]) };
    let tx = tx.iter().cycle().take(o.workers).cloned().map(TxHandle::Tap).collect();
    let rx = rx.into_iter().map(|q| RxKind::Tap(Box::new(q))).collect();
    Ok(Opened { device, rx, tx, complete_checksums: false, made_interface })
}

/// Raises the MTU of a kernel interface to `mtu`; a larger one is the operator's choice.
pub(super) fn kernel_mtu(interface: &str, mtu: u32) -> Result<(), DpdkError> {
    let path = format!("/sys/class/net/{interface}/mtu");
    let what = format!("interface '{interface}': mtu {mtu}");
    let has = fs::read_to_string(&path).ok().and_then(|m| m.trim().parse::<u32>().ok()).unwrap_or(0);
    if has >= mtu {
        return Ok(());
    }
    fs::write(&path, mtu.to_string()).map_err(|e| refuse(what, e.to_string()))
}

fn unique(driver: &str) -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    format!("{driver}{}", NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}
