//! The devices of DPDK that a port of kind `nic` may name.
//!
//! DPDK's devargs are a language: some drivers run a command (`net_failsafe0,exec(…)`), some write a file
//! (`net_pcap0,tx_pcap=…`), load a BPF program or attach another process' memory, all with the rights of this
//! process. The API's group must not get these rights. So drivers, their keys and the form of each value are an
//! allow list: what is not in it is refused. `dunlin-dataplane --any-device` takes the check away.

use std::path::Path;

/// The longest devargs.
const MAX_LENGTH: usize = 256;

/// What a key takes.
#[derive(Clone, Copy)]
enum Value {
    /// A decimal number of at most this.
    Number(u32),
    /// A kernel interface that exists. libpcap takes other names too (`usbmon1`, `dbus-system`).
    Interface,
    /// The name of a kernel interface to be made.
    NewInterface,
    /// A MAC address, or `fixed`.
    Mac,
}

use Value::{Interface, Mac, NewInterface, Number};

/// Tuning of the drivers of mlx5, ice, i40e, virtio and ena. Representors, firmware files, the eSwitch's mode and
/// whatever changes other functions of the device are left out.
const PCI_KEYS: &[(&str, Value)] = &[
    ("rxq_cqe_comp_en", Number(4)),
    ("mprq_en", Number(1)),
    ("mprq_log_stride_num", Number(16)),
    ("rxqs_min_mprq", Number(64)),
    ("txq_inline_min", Number(1024)),
    ("txq_inline_max", Number(1024)),
    ("txq_inline_mpw", Number(1024)),
    ("txqs_min_inline", Number(64)),
    ("txq_mpw_en", Number(1)),
    ("dv_flow_en", Number(2)),
    ("safe-mode-support", Number(1)),
    ("support-multi-driver", Number(1)),
    ("vectorized", Number(1)),
    ("large_llq_hdr", Number(1)),
];

/// Virtual devices: driver and keys.
const VIRTUAL: &[(&str, &[(&str, Value)])] = &[
    // The driver writes `size` octets into a buffer, whatever the buffer's size.
    ("net_null", &[("size", Number(1514)), ("copy", Number(1)), ("no-rx", Number(1))]),
    // Its keys attach memory.
    ("net_ring", &[]),
    // Its other keys name files.
    ("net_pcap", &[("iface", Interface), ("rx_iface", Interface), ("tx_iface", Interface), ("phy_mac", Number(1))]),
    (
        "net_af_packet",
        &[
            ("iface", Interface),
            ("qpairs", Number(64)),
            ("blocksz", Number(1 << 20)),
            ("framesz", Number(1 << 16)),
            ("framecnt", Number(1 << 16)),
            ("qdisc_bypass", Number(1)),
        ],
    ),
    // Its other keys name programs and maps of BPF.
    ("net_af_xdp", &[("iface", Interface), ("start_queue", Number(1023)), ("queue_count", Number(64))]),
    ("net_tap", &[("iface", NewInterface), ("mac", Mac), ("remote", Interface)]),
];

/// Whether `devargs` is a PCI address or a virtual device of the allow list, with keys of the list only, each at
/// most once.
///
/// # Errors
///
/// Names the device, the key and the value that are not in the list.
pub fn check(devargs: &str) -> Result<(), String> {
    refusal(devargs).map_err(|why| {
        let shown: String = devargs.chars().take(MAX_LENGTH).collect();
        format!(
            "'{shown}': {why}; 'dunlin-dataplane --any-device' permits every driver and key, for tests and \
             benchmarks only"
        )
    })
}

fn refusal(devargs: &str) -> Result<(), String> {
    if devargs.len() > MAX_LENGTH {
        return Err(format!("{} octets are more than {MAX_LENGTH}", devargs.len()));
    }
    // Brackets and parentheses nest devargs, '/' begins a path or DPDK's other syntax.
    let plain = |c: &char| c.is_ascii_alphanumeric() || "_.:,=-".contains(*c);
    if let Some(c) = devargs.chars().find(|c| !plain(c)) {
        return Err(format!("{c:?} is not allowed in a device"));
    }
    let mut parts = devargs.split(',');
    let device = parts.next().unwrap_or_default();
    let (owner, keys) = if is_pci_address(device) {
        ("a PCI device", PCI_KEYS)
    } else {
        let driver = device.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = device.len() - driver.len();
        match VIRTUAL.iter().find(|(name, _)| *name == driver) {
            Some((name, keys)) if number <= 5 => (*name, *keys),
            _ => {
                let known: Vec<_> = VIRTUAL.iter().map(|(name, _)| *name).collect();
                return Err(format!(
                    "device '{device}' is neither a PCI address (0000:03:00.0) nor one of {} with a number",
                    known.join(", ")
                ));
            }
        }
    };
    let mut seen = Vec::new();
    for part in parts {
        let Some((key, value)) = part.split_once('=') else {
            return Err(format!("'{part}' is not KEY=VALUE"));
        };
        let Some((_, form)) = keys.iter().find(|(name, _)| *name == key) else {
            return Err(format!("key '{key}' (value '{value}') is not allowed for {owner}; {}", allowed(keys)));
        };
        if seen.contains(&key) {
            return Err(format!("key '{key}' is there twice"));
        }
        seen.push(key);
        check_value(*form, value).map_err(|why| format!("key '{key}': '{value}' {why}"))?;
    }
    Ok(())
}

fn allowed(keys: &[(&str, Value)]) -> String {
    match keys.iter().map(|(name, _)| *name).collect::<Vec<_>>() {
        names if names.is_empty() => "no key is".to_owned(),
        names => format!("allowed are {}", names.join(", ")),
    }
}

fn check_value(form: Value, value: &str) -> Result<(), String> {
    let name = |s: &str| {
        (1..=15).contains(&s.len())
            && !s.starts_with(['.', '-'])
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    let digits = value.len() <= 10 && !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
    match form {
        Number(most) if digits && value.parse::<u32>().is_ok_and(|n| n <= most) => Ok(()),
        Number(most) => Err(format!("is not a number of 0 to {most}")),
        Interface if name(value) && Path::new("/sys/class/net").join(value).exists() => Ok(()),
        Interface => Err("is no interface of this host; 'ip link' lists them".into()),
        NewInterface if name(value) => Ok(()),
        NewInterface => Err("is no interface name (1 to 15 letters, digits, '_', '.', '-')".into()),
        Mac if value == "fixed" || value.parse::<dunlin_engine::MacAddr>().is_ok() => Ok(()),
        Mac => Err("is neither a MAC address nor 'fixed'".into()),
    }
}

/// DDDD:BB:DD.F or BB:DD.F.
pub fn is_pci_address(s: &str) -> bool {
    let s = if s.len() == 12 { s } else { return s.len() == 7 && is_pci_address(&format!("0000:{s}")) };
    s.bytes().enumerate().all(|(i, b)| match i {
        4 | 7 => b == b':',
        10 => b == b'.',
        11 => matches!(b, b'0'..=b'7'),
        _ => b.is_ascii_hexdigit(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses() {
        for good in ["0000:03:00.0", "03:00.1", "0001:af:1f.7"] {
            assert!(is_pci_address(good), "{good}");
        }
        for bad in ["net_pcap0", "0000:03:00", "0000-03-00.0", "eth0", "", "0000:03:00.8", "000:03:00.00"] {
            assert!(!is_pci_address(bad), "{bad}");
        }
    }

    #[test]
    fn harmless_devices_pass() {
        for good in [
            "0000:03:00.0",
            "03:00.0",
            "0000:03:00.0,dv_flow_en=2,rxq_cqe_comp_en=0",
            "net_null0",
            "net_null0,no-rx=1",
            "net_null12,size=60,copy=1",
            "net_ring0",
            "net_pcap0,iface=lo",
            "net_pcap0,rx_iface=lo,tx_iface=lo,phy_mac=1",
            "net_af_packet0,iface=lo,framesz=2048,blocksz=65536,framecnt=2048,qpairs=1,qdisc_bypass=1",
            "net_af_xdp0,iface=lo,start_queue=0,queue_count=1",
            "net_tap0,iface=up0,mac=02:00:00:00:00:01,remote=lo",
            "net_tap0,mac=fixed",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_runs_commands_or_opens_files_is_refused_by_name() {
        for (bad, wants) in [
            ("net_failsafe0,exec(touch /tmp/x)", "'('"),
            ("net_failsafe0,exec=x", "device 'net_failsafe0'"),
            ("net_failsafe0,dev(net_null0)", "'('"),
            ("net_bonding0,slave=0000:03:00.0", "device 'net_bonding0'"),
            ("net_pcap0,tx_pcap=/etc/passwd", "'/'"),
            ("net_pcap0,tx_pcap=file", "key 'tx_pcap' (value 'file') is not allowed for net_pcap"),
            ("net_pcap0,rx_pcap=file,infinite_rx=1", "key 'rx_pcap'"),
            ("net_pcap0,iface=usbmon1", "'usbmon1' is no interface"),
            ("net_pcap0,iface=..", "'..' is no interface"),
            ("net_af_xdp0,iface=lo,xdp_prog=prog", "key 'xdp_prog'"),
            ("net_memif0,socket=x", "device 'net_memif0'"),
            ("net_ring0,nodeaction=a:0:ATTACH", "key 'nodeaction'"),
            ("net_virtio_user0,path=x", "device 'net_virtio_user0'"),
            ("net_null0,size=65535", "'65535' is not a number of 0 to 1514"),
            ("net_null0,size=-1", "'-1'"),
            ("net_null0,size=0x10", "'0x10'"),
            ("net_null0,size=", "''"),
            ("net_null0,SIZE=60", "key 'SIZE'"),
            ("net_null0,size=60,size=64", "'size' is there twice"),
            ("net_null0,size", "'size' is not KEY=VALUE"),
            ("net_null0,", "'' is not KEY=VALUE"),
            ("net_null0,size=60=61", "'60=61'"),
            ("NET_NULL0", "device 'NET_NULL0'"),
            ("net_null123456", "device 'net_null123456'"),
            ("net_nullx0", "device 'net_nullx0'"),
            ("vdev:net_null0", "device 'vdev:net_null0'"),
            ("pci:0000:03:00.0", "device 'pci:0000:03:00.0'"),
            ("bus=pci,addr=03:00.0", "device 'bus=pci'"),
            ("bus=vdev/driver=net_pcap", "'/'"),
            ("0000:03:00.0,representor=0", "key 'representor'"),
            ("0000:03:00.0,representor=[0-3]", "'['"),
            ("0000:03:00.0,ddp_pkg_file=x", "key 'ddp_pkg_file'"),
            ("0000:03:00.0;net_null0", "';'"),
            (" 03:00.0", "' '"),
            ("03:00.0\0", "'\\0'"),
            ("03:00.0\u{e9}", "'\u{e9}'"),
            ("", "device ''"),
        ] {
            let why = check(bad).expect_err(bad);
            assert!(why.contains(wants) && why.contains("--any-device"), "{bad}: {why}");
        }
        let long = format!("net_null0,size={}", "0".repeat(300));
        assert!(check(&long).unwrap_err().contains("315 octets are more than 256"));
    }
}
