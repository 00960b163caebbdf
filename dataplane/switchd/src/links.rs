//! The kernel's interfaces of this network namespace, as rtnetlink(7) reports them: ports of kind `host` follow their
//! carrier at once, and none is polled. What is not known here is read from sysfs: an interface that was just made, and
//! all of them while reports are lost.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use rtnetlink::{
    MulticastGroup, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{LinkAttribute, LinkFlags, LinkMessage},
    },
};
use tokio_stream::StreamExt;

#[derive(Clone, PartialEq, Eq)]
struct Link {
    name: String,
    has_carrier: bool,
}

/// By index.
static KNOWN: Mutex<Option<HashMap<u32, Link>>> = Mutex::new(None);

/// Whether the interface of this index and name has a carrier; `None` if that is not known.
pub fn carrier(index: u32, name: &str) -> Option<bool> {
    let known = KNOWN.lock();
    known.as_ref()?.get(&index).filter(|l| l.name == name).map(|l| l.has_carrier)
}

/// Follows the kernel's reports, and calls `changed` after each that changes something.
pub async fn watch(changed: Arc<dyn Fn() + Send + Sync>) {
    loop {
        let followed = follow(&*changed).await;
        // Reports were lost, or there are none any more.
        *KNOWN.lock() = None;
        if let Err(e) = followed {
            tracing::warn!("rtnetlink: {e}; interfaces are polled");
            return;
        }
    }
}

async fn follow(changed: &(dyn Fn() + Send + Sync)) -> Result<(), String> {
    let opened = new_multicast_connection(&[MulticastGroup::Link]).map_err(|e| e.to_string())?;
    let (connection, handle, mut reports) = opened;
    let connection = tokio::spawn(connection);
    let mut all = handle.link().get().execute();
    while let Some(link) = all.next().await {
        note(link.map_err(|e| e.to_string())?);
    }
    changed();
    while let Some((report, _)) = reports.next().await {
        let is_news = match report.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => note(link),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => forget(&link),
            NetlinkPayload::Overrun(_) => break,
            _ => false,
        };
        if is_news {
            changed();
        }
    }
    connection.abort();
    Ok(())
}

/// Of a bridge's ports there are reports of another family, which say nothing of the interface.
fn is_of_interface(link: &LinkMessage) -> bool {
    link.header.interface_family == AddressFamily::Unspec
}

/// Whether that is news.
fn note(link: LinkMessage) -> bool {
    let name = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    let Some(name) = name.filter(|_| is_of_interface(&link)) else { return false };
    let now = Link { name, has_carrier: link.header.flags.contains(LinkFlags::LowerUp) };
    let mut known = KNOWN.lock();
    let before = known.get_or_insert_default().insert(link.header.index, now.clone());
    before.as_ref() != Some(&now)
}

fn forget(link: &LinkMessage) -> bool {
    is_of_interface(link) && KNOWN.lock().get_or_insert_default().remove(&link.header.index).is_some()
}
