//! How a device spreads frames over its receive queues: by a hash of some of their fields (RSS), or
//! by destination, where it can.

use std::{
    ffi::{CStr, c_void},
    ptr::NonNull,
    sync::Arc,
};

use dpdk_sys as sys;

use crate::port::Device;

/// Fields of a frame that a device may hash to choose the queue: frames that agree in them share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashFields(u64);

impl HashFields {
    /// Addresses and ports, of whatever carries them.
    pub const DEFAULT: HashFields =
        HashFields(sys::DUNLIN_RSS_IP | sys::DUNLIN_RSS_TCP | sys::DUNLIN_RSS_UDP | sys::DUNLIN_RSS_SCTP);

    const NAMES: [(&str, u64); 6] = [
        ("mac", sys::DUNLIN_RSS_MAC),
        ("vlan", sys::DUNLIN_RSS_VLAN),
        ("ip", sys::DUNLIN_RSS_IP),
        ("tcp", sys::DUNLIN_RSS_TCP),
        ("udp", sys::DUNLIN_RSS_UDP),
        ("sctp", sys::DUNLIN_RSS_SCTP),
    ];

    /// The names there are.
    pub fn known() -> impl Iterator<Item = &'static str> {
        Self::NAMES.iter().map(|n| n.0)
    }

    /// Those of these names, or the name that is none of [`Self::known`]. No name is the default.
    pub fn from_names<S: AsRef<str>>(names: &[S]) -> Result<Self, &str> {
        if names.is_empty() {
            return Ok(Self::DEFAULT);
        }
        let bits = |n: &str| Self::NAMES.iter().find(|known| known.0 == n).map(|known| known.1);
        names.iter().try_fold(0, |all, n| Ok(all | bits(n.as_ref()).ok_or(n.as_ref())?)).map(HashFields)
    }

    /// Those of them that a device offers by `rss_offloads`, its rte_eth_dev_info's flow_type_rss_offloads.
    pub(crate) fn offered(self, rss_offloads: u64) -> Self {
        HashFields(self.0 & rss_offloads)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// Their names, as far as something of each is there.
    pub fn names(self) -> Vec<&'static str> {
        Self::NAMES.iter().filter(|n| self.0 & n.1 != 0).map(|n| n.0).collect()
    }
}

/// Whether a device can choose the queue by destination.
#[derive(Clone, Debug, Default)]
pub struct ByDestination {
    /// VMDq pools; 0 if it has none.
    pub vmdq_pools: u16,
    /// Whether it takes a rule of rte_flow "to this MAC in this VLAN: this queue"; if not, why.
    pub rules: Option<String>,
}

impl std::fmt::Display for ByDestination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} VMDq pools, rules by MAC and VLAN: ", self.vmdq_pools)?;
        f.write_str(self.rules.as_deref().unwrap_or("yes"))
    }
}

/// Where a frame goes to, as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// First octet on the wire first.
    pub mac: [u8; 6],
    /// In which VLAN; `None` for frames without a tag, and those in VLANs that no other rule names.
    pub vid: Option<u16>,
}

/// A rule of a device: frames to a destination go into one queue. Dropping it takes it back.
pub struct Rule {
    device: Arc<Device>,
    /// `None` once it is taken back.
    flow: Option<NonNull<sys::rte_flow>>,
}

// SAFETY: ethdev has a lock of its own around what it does to a device's rules.
unsafe impl Send for Rule {}

impl Rule {
    /// Frames to `to`, or those that no other rule names, go into queue `queue` of the started device from now on;
    /// otherwise, why the driver does not take that.
    pub(crate) fn create(device: &Arc<Device>, to: Option<Destination>, queue: u16) -> Result<Self, String> {
        // What says more goes before what says less, but some devices know one priority only.
        let priorities: &[u32] = match to {
            Some(Destination { vid: Some(_), .. }) => &[0],
            Some(Destination { vid: None, .. }) => &[1, 0],
            None => &[2],
        };
        let mut refused = String::new();
        for priority in priorities {
            let asked = with_rule(to, queue, *priority, |attributes, pattern, actions, error| {
                // SAFETY: the device is attached and started; the rest is as with_rule() promises.
                NonNull::new(unsafe { sys::rte_flow_create(device.id, attributes, pattern, actions, error) })
            });
            match asked {
                (flow @ Some(_), _) => return Ok(Rule { device: device.clone(), flow }),
                (None, why) => refused = why.unwrap_or_else(|| crate::strerror(crate::errno())),
            }
        }
        Err(refused)
    }

    /// Takes it back; if the device keeps to it all the same, it is given back, and that is logged.
    pub fn roll_back(mut self) -> Result<(), Rule> {
        if self.destroy() { Ok(()) } else { Err(self) }
    }

    fn destroy(&mut self) -> bool {
        let Some(flow) = self.flow else { return true };
        let mut error = sys::rte_flow_error::default();
        // SAFETY: the device gave the rule out, is still attached (it is held here), and it is destroyed once: it is
        // forgotten below.
        let done = unsafe { sys::rte_flow_destroy(self.device.id, flow.as_ptr(), &mut error) } == 0;
        match done {
            true => self.flow = None,
            false => {
                let why = why(&error).unwrap_or_default();
                tracing::warn!("device '{}': a rule can't be taken back: {why}", self.device.name);
            }
        }
        done
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        self.destroy();
    }
}

/// Asks the started device `id`, changing nothing.
pub(crate) fn probe(id: u16, info: &sys::rte_eth_dev_info) -> ByDestination {
    let to = Some(Destination { mac: [2, 0, 0, 0, 0, 1], vid: Some(1) });
    let (code, why) = with_rule(to, 0, 0, |attributes, pattern, actions, error| {
        // SAFETY: the device is attached; the rest is as with_rule() promises.
        unsafe { sys::rte_flow_validate(id, attributes, pattern, actions, error) }
    });
    let why = || why.unwrap_or_else(|| crate::strerror(code.abs()));
    ByDestination { vmdq_pools: info.max_vmdq_pools, rules: (code != 0).then(why) }
}

/// Calls `f` with a rule as rte_flow wants it: everything pointed to lives until it returns, the lists end with END,
/// and each item's structure is that of its type. What comes of it, and what the driver said against it.
fn with_rule<R>(
    to: Option<Destination>,
    queue: u16,
    priority: u32,
    f: impl FnOnce(
        *const sys::rte_flow_attr,
        *const sys::rte_flow_item,
        *const sys::rte_flow_action,
        *mut sys::rte_flow_error,
    ) -> R,
) -> (R, Option<String>) {
    let mut eth = sys::rte_flow_item_eth::default();
    let mut eth_mask = sys::rte_flow_item_eth::default();
    eth.__bindgen_anon_1.__bindgen_anon_1.dst.addr_bytes = to.map_or([0; 6], |to| to.mac);
    eth_mask.__bindgen_anon_1.__bindgen_anon_1.dst.addr_bytes = [0xff; 6];
    let vid = to.and_then(|to| to.vid);
    let mut vlan = sys::rte_flow_item_vlan::default();
    let mut vlan_mask = sys::rte_flow_item_vlan::default();
    vlan.__bindgen_anon_1.__bindgen_anon_1.tci = vid.unwrap_or(0).to_be();
    vlan_mask.__bindgen_anon_1.__bindgen_anon_1.tci = 0xfffu16.to_be();
    let none = std::ptr::null();
    let item = |kind, spec: *const c_void, mask| sys::rte_flow_item { type_: kind, spec, last: none, mask };
    let tag = item(sys::RTE_FLOW_ITEM_TYPE_VLAN, (&raw const vlan).cast(), (&raw const vlan_mask).cast());
    let end = item(sys::RTE_FLOW_ITEM_TYPE_END, none, none);
    let pattern = [
        match to {
            Some(_) => item(sys::RTE_FLOW_ITEM_TYPE_ETH, (&raw const eth).cast(), (&raw const eth_mask).cast()),
            None => item(sys::RTE_FLOW_ITEM_TYPE_ETH, none, none),
        },
        if vid.is_some() { tag } else { end },
        end,
    ];
    let queue = sys::rte_flow_action_queue { index: queue };
    let actions = [
        sys::rte_flow_action { type_: sys::RTE_FLOW_ACTION_TYPE_QUEUE, conf: (&raw const queue).cast() },
        sys::rte_flow_action { type_: sys::RTE_FLOW_ACTION_TYPE_END, conf: none },
    ];
    let mut attributes = sys::rte_flow_attr { priority, ..Default::default() };
    attributes.set_ingress(1);
    let mut error = sys::rte_flow_error::default();
    let result = f(&attributes, pattern.as_ptr(), actions.as_ptr(), &mut error);
    (result, why(&error))
}

/// What a driver said, if it said something.
fn why(error: &sys::rte_flow_error) -> Option<String> {
    // SAFETY: a driver's message is a static NUL-terminated string.
    (!error.message.is_null()).then(|| unsafe { CStr::from_ptr(error.message) }.to_string_lossy().into_owned())
}

/// Makes the device hash over its first `queues` only; whether it can.
pub(crate) fn spread_over(id: u16, table_size: u16, queues: u16) -> bool {
    let group = sys::RTE_ETH_RETA_GROUP_SIZE as usize;
    let mut table = vec![sys::rte_eth_rss_reta_entry64::default(); usize::from(table_size).div_ceil(group)];
    for at in 0..usize::from(table_size) {
        let part = &mut table[at / group];
        part.mask |= 1 << (at % group);
        part.reta[at % group] = at as u16 % queues;
    }
    // SAFETY: the device is attached and started, and the table has as many entries as are said.
    table_size > 0 && unsafe { sys::rte_eth_dev_rss_reta_update(id, table.as_mut_ptr(), table_size) } == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_names() {
        assert_eq!(HashFields::from_names(&["mac", "udp"]).unwrap().names(), ["mac", "udp"]);
        assert_eq!(HashFields::from_names::<&str>(&[]), Ok(HashFields::DEFAULT));
        assert_eq!(HashFields::from_names(&["ip", "ipx"]), Err("ipx"));
        assert_eq!(HashFields::DEFAULT.offered(sys::DUNLIN_RSS_UDP).names(), ["udp"]);
    }
}
