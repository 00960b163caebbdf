//! `dunlin trace`: what would happen to a frame, and why.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, bail};
use dunlin_control_api::{
    dataplane::{MacFilter, TraceRequest},
    model::{
        Kind, Objects,
        v1::{Port, object::Spec},
    },
};
use etherparse::{PacketBuilder, PacketBuilderStep};

use crate::{
    connection::{self, Connection, status_to_error},
    output,
};

/// A MAC address that no host has: flooded, unless an address is given.
const UNKNOWN: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];

#[derive(clap::Args)]
pub struct Trace {
    /// The port by which the frame is received
    #[arg(long)]
    port: String,
    #[command(flatten)]
    what: What,
    /// Its sender, as ADDRESS or ADDRESS:PORT [default: the port's first address or lease, port 40000]
    #[arg(long, value_name = "ADDRESS")]
    from: Option<String>,
    /// Source MAC address [default: the port's first, else one that was learned there]
    #[arg(long, value_name = "MAC")]
    src_mac: Option<String>,
    /// Destination MAC address [default: that of the port that has the address, else an unknown one]
    #[arg(long, value_name = "MAC")]
    dst_mac: Option<String>,
    /// With the tag of this VLAN
    #[arg(long, value_name = "VID")]
    vlan: Option<u16>,
    /// TCP's flags, as syn,ack [default: syn]
    #[arg(long, value_name = "FLAGS", value_delimiter = ',')]
    flags: Vec<String>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// The whole frame in hexadecimal
    #[arg(long, value_name = "HEX")]
    frame: Option<String>,
    /// TCP to ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS:PORT")]
    tcp: Option<SocketAddr>,
    /// UDP to ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS:PORT")]
    udp: Option<SocketAddr>,
    /// A ping to ADDRESS
    #[arg(long, value_name = "ADDRESS")]
    ping: Option<IpAddr>,
    /// An ARP question for ADDRESS
    #[arg(long, value_name = "ADDRESS")]
    arp: Option<std::net::Ipv4Addr>,
}

fn mac(text: &str) -> anyhow::Result<[u8; 6]> {
    let octet = |p: &str| u8::from_str_radix(p, 16).ok().filter(|_| p.len() == 2);
    let octets: Option<Vec<u8>> = text.split([':', '-']).map(octet).collect();
    octets.and_then(|o| o.try_into().ok()).with_context(|| format!("'{text}' is not six octets as 52:54:00:12:34:56"))
}

fn hex(text: &str) -> anyhow::Result<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace() && *b != b':').collect();
    let octet =
        |d: &[u8]| std::str::from_utf8(d).ok().and_then(|d| u8::from_str_radix(d, 16).ok()).filter(|_| d.len() == 2);
    let octets: Option<Vec<u8>> = digits.chunks(2).map(octet).collect();
    octets.filter(|o| !o.is_empty()).context("--frame: is not hexadecimal, two digits an octet")
}

/// "ADDRESS", "ADDRESS:PORT", "[ADDRESS]:PORT".
fn sender(text: &str) -> anyhow::Result<(IpAddr, u16)> {
    let alone = text.parse::<IpAddr>().map(|a| (a, 40_000));
    alone
        .or_else(|_| text.parse::<SocketAddr>().map(|a| (a.ip(), a.port())))
        .with_context(|| format!("--from: '{text}' is neither an address nor ADDRESS:PORT"))
}

/// What the switch knows of a port: the frame's defaults.
#[derive(Default)]
struct Known {
    src_mac: Option<String>,
    /// Configured and leased.
    addresses: Vec<IpAddr>,
    dst_mac: Option<String>,
}

/// An address without its prefix length.
fn host(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

impl Trace {
    /// What is configured, was learned or was leased.
    async fn known(&self, s: &mut Connection, objects: &Objects, port: Option<&Port>) -> anyhow::Result<Known> {
        if self.what.frame.is_some() || port.is_none() {
            return Ok(Known::default());
        }
        let state = s.state().await?;
        let leases = |name: &str| {
            let its = state.ports.iter().find(|p| p.name == name);
            its.into_iter().flat_map(|p| &p.leases).filter_map(|l| host(&l.address)).collect::<Vec<_>>()
        };
        let configured = port.into_iter().flat_map(|p| &p.ips).filter_map(|a| host(a));
        let addresses = configured.chain(leases(&self.port)).collect();
        let src_mac = self.mac_at(s, &self.port, port).await?;
        let target = self.target().filter(|_| self.what.arp.is_none());
        let mut dst_mac = None;
        for (name, o) in objects.of_kind(Kind::Port) {
            let Some(Spec::Port(p)) = &o.spec else { continue };
            let has = |t: IpAddr| p.ips.iter().any(|a| host(a) == Some(t)) || leases(name).contains(&t);
            let is_near =
                port.is_some_and(|own| (&own.network, &own.bridge, own.vlan) == (&p.network, &p.bridge, p.vlan));
            if name != self.port && is_near && dst_mac.is_none() && target.is_some_and(has) {
                dst_mac = self.mac_at(s, name, Some(p)).await?;
            }
        }
        Ok(Known { src_mac, addresses, dst_mac })
    }

    /// The MAC address of a port: the first that is configured, else the first that is known there.
    async fn mac_at(&self, s: &mut Connection, name: &str, port: Option<&Port>) -> anyhow::Result<Option<String>> {
        if let Some(mac) = port.and_then(|p| p.macs.first()) {
            return Ok(Some(mac.clone()));
        }
        let filter = MacFilter { port: name.to_owned(), ..MacFilter::default() };
        // A dataplane that is down says so when it is asked to trace.
        let Ok(parts) = connection::all(s.client.list_macs(filter).await).await else { return Ok(None) };
        Ok(parts.into_iter().flat_map(|p| p.entries).map(|e| e.mac).next())
    }

    /// Where the frame goes.
    fn target(&self) -> Option<IpAddr> {
        let l4 = self.what.tcp.or(self.what.udp).map(|a| a.ip());
        l4.or(self.what.ping).or(self.what.arp.map(IpAddr::from))
    }

    pub async fn run(self, s: &mut Connection) -> anyhow::Result<()> {
        let (objects, _) = s.objects().await?;
        let port = match objects.get(Kind::Port, &self.port).map(|o| &o.spec) {
            Some(Some(Spec::Port(p))) => Some(p),
            _ => None,
        };
        let known = self.known(s, &objects, port).await?;
        let frame = self.frame(&known)?;
        let request = TraceRequest { port: self.port.clone(), frame };
        let steps = s.client.trace(request).await.map_err(|e| status_to_error(&e))?.into_inner().steps;
        if s.json {
            return output::json(&steps);
        }
        let widest = steps.iter().map(|x| x.stage.len()).max().unwrap_or(0);
        steps.iter().for_each(|x| println!("{:widest$}  {}", x.stage, x.text));
        Ok(())
    }

    /// The frame's octets.
    fn frame(&self, known: &Known) -> anyhow::Result<Vec<u8>> {
        if let Some(text) = &self.what.frame {
            let others = [self.from.is_some(), self.src_mac.is_some(), self.dst_mac.is_some(), self.vlan.is_some()];
            if others.contains(&true) || !self.flags.is_empty() {
                bail!("--frame: is whole; leave --from, --src-mac, --dst-mac, --vlan and --flags out");
            }
            return hex(text);
        }
        if self.vlan.is_some_and(|v| !(1..=4094).contains(&v)) {
            bail!("--vlan: {} is not in 1 to 4094", self.vlan.unwrap_or_default());
        }
        if !self.flags.is_empty() && self.what.tcp.is_none() {
            bail!("--flags: only --tcp has them");
        }
        let src_mac = match self.src_mac.as_ref().or(known.src_mac.as_ref()) {
            Some(text) => mac(text).context("--src-mac")?,
            None => [0x02, 0, 0, 0, 0, 0x01],
        };
        let group = if self.what.arp.is_some() { [0xff; 6] } else { UNKNOWN };
        let dst_mac = self.dst_mac.as_ref().or(known.dst_mac.as_ref());
        let dst_mac = dst_mac.map_or(Ok(group), |text| mac(text)).context("--dst-mac")?;
        let to = self.target().context("say what the frame is: --frame, --tcp, --udp, --ping or --arp")?;
        let (from, from_port) = self.sender(known, to)?;
        let b = PacketBuilder::ethernet2(src_mac, dst_mac);
        let mut octets = Vec::new();
        if let IpAddr::V4(target) = to
            && self.what.arp.is_some()
        {
            let IpAddr::V4(asker) = from else { bail!("--from: '{from}' is not IPv4, and ARP is") };
            octets.extend([&dst_mac[..], &src_mac].concat());
            octets.extend(self.vlan.map_or_else(Vec::new, |v| [[0x81, 0], v.to_be_bytes()].concat()));
            octets.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            octets.extend([&src_mac[..], &asker.octets(), &[0; 6], &target.octets()].concat());
            octets.resize(octets.len().max(60), 0);
            return Ok(octets);
        }
        let ip: PacketBuilderStep<etherparse::IpHeaders> = match (from, to, self.vlan) {
            (IpAddr::V4(a), IpAddr::V4(b4), None) => b.ipv4(a.octets(), b4.octets(), 64),
            (IpAddr::V6(a), IpAddr::V6(b6), None) => b.ipv6(a.octets(), b6.octets(), 64),
            (IpAddr::V4(a), IpAddr::V4(b4), Some(v)) => b.single_vlan(v.try_into()?).ipv4(a.octets(), b4.octets(), 64),
            (IpAddr::V6(a), IpAddr::V6(b6), Some(v)) => b.single_vlan(v.try_into()?).ipv6(a.octets(), b6.octets(), 64),
            _ => bail!("--from: '{from}' and '{to}' are not of one family"),
        };
        if let Some(to) = self.what.tcp {
            let mut t = ip.tcp(from_port, to.port(), 1, 65_535);
            let opens = vec!["syn".to_owned()];
            for flag in if self.flags.is_empty() { &opens } else { &self.flags } {
                t = match flag.as_str() {
                    "syn" => t.syn(),
                    "ack" => t.ack(1),
                    "fin" => t.fin(),
                    "rst" => t.rst(),
                    "psh" => t.psh(),
                    other => bail!("--flags: '{other}' is none of syn, ack, fin, rst, psh"),
                };
            }
            t.write(&mut octets, &[])?;
        } else if let Some(to) = self.what.udp {
            ip.udp(from_port, to.port()).write(&mut octets, &[])?;
        } else if to.is_ipv4() {
            ip.icmpv4_echo_request(1, 1).write(&mut octets, &[])?;
        } else {
            ip.icmpv6_echo_request(1, 1).write(&mut octets, &[])?;
        }
        Ok(octets)
    }

    fn sender(&self, known: &Known, to: IpAddr) -> anyhow::Result<(IpAddr, u16)> {
        if let Some(text) = &self.from {
            return sender(text);
        }
        let its_own = known.addresses.iter().copied().find(|a| a.is_ipv4() == to.is_ipv4());
        let example: IpAddr =
            if to.is_ipv4() { [192, 0, 2, 1].into() } else { [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into() };
        Ok((its_own.unwrap_or(example), 40_000))
    }
}
