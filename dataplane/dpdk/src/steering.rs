//! How a device spreads frames over its receive queues: by a hash of some of their fields (RSS), or
//! by destination, where it can.

use std::ffi::CStr;

use dpdk_sys as sys;

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

/// Asks the started device `id`, changing nothing.
pub(crate) fn probe(id: u16, info: &sys::rte_eth_dev_info) -> ByDestination {
    let mut eth = sys::rte_flow_item_eth::default();
    let mut eth_mask = sys::rte_flow_item_eth::default();
    eth.__bindgen_anon_1.__bindgen_anon_1.dst.addr_bytes = [2, 0, 0, 0, 0, 1];
    eth_mask.__bindgen_anon_1.__bindgen_anon_1.dst.addr_bytes = [0xff; 6];
    let mut vlan = sys::rte_flow_item_vlan::default();
    let mut vlan_mask = sys::rte_flow_item_vlan::default();
    vlan.__bindgen_anon_1.__bindgen_anon_1.tci = 1u16.to_be();
    vlan_mask.__bindgen_anon_1.__bindgen_anon_1.tci = 0xfffu16.to_be();
    let item = |kind, spec: *const std::ffi::c_void, mask| sys::rte_flow_item {
        type_: kind,
        spec,
        last: std::ptr::null(),
        mask,
    };
    let none = std::ptr::null();
    let pattern = [
        item(sys::RTE_FLOW_ITEM_TYPE_ETH, (&raw const eth).cast(), (&raw const eth_mask).cast()),
        item(sys::RTE_FLOW_ITEM_TYPE_VLAN, (&raw const vlan).cast(), (&raw const vlan_mask).cast()),
        item(sys::RTE_FLOW_ITEM_TYPE_END, none, none),
    ];
    let queue = sys::rte_flow_action_queue { index: 0 };
    let actions = [
        sys::rte_flow_action { type_: sys::RTE_FLOW_ACTION_TYPE_QUEUE, conf: (&raw const queue).cast() },
        sys::rte_flow_action { type_: sys::RTE_FLOW_ACTION_TYPE_END, conf: none },
    ];
    let mut attributes = sys::rte_flow_attr::default();
    attributes.set_ingress(1);
    let mut error = sys::rte_flow_error::default();
    // SAFETY: the device is attached; everything pointed to outlives the call, the lists end with END,
    // and each item's structure is that of its type.
    let code = unsafe { sys::rte_flow_validate(id, &attributes, pattern.as_ptr(), actions.as_ptr(), &mut error) };
    let why = || match error.message.is_null() {
        true => crate::strerror(code.abs()),
        // SAFETY: a driver's message is a static NUL-terminated string.
        false => unsafe { CStr::from_ptr(error.message) }.to_string_lossy().into_owned(),
    };
    ByDestination { vmdq_pools: info.max_vmdq_pools, rules: (code != 0).then(why) }
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
