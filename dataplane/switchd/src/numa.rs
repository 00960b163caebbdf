//! Which NUMA node cores and kernel interfaces are of. Devices, their buffers and the workers that
//! poll them belong together on one.

use std::{fs, path::Path};

/// The node of a core; `None` where the kernel knows of no nodes.
pub fn of_core(core: usize) -> Option<u32> {
    let folder = fs::read_dir(format!("/sys/devices/system/cpu/cpu{core}")).ok()?;
    folder.flatten().find_map(|e| e.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

/// The node of the device behind a kernel interface; `None` if it has none, as virtual ones.
pub fn of_interface(name: &str) -> Option<u32> {
    let file = Path::new("/sys/class/net").join(name).join("device/numa_node");
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The nodes of these cores, each once; none if they are all of one, because then none matters.
pub fn nodes_of(cores: &[usize]) -> Vec<u32> {
    let nodes: std::collections::BTreeSet<u32> = cores.iter().filter_map(|c| of_core(*c)).collect();
    if nodes.len() > 1 { nodes.into_iter().collect() } else { Vec::new() }
}
