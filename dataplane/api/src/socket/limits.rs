//! What one client may take of a server: all numbers in one place, and the counts they are compared with.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tonic::transport::Server;

/// The most octets of one message, either way.
pub const MAX_MESSAGE: usize = 16 << 20;
/// Connections of one user (by user id), or of one remote address.
pub const CONNECTIONS_PER_CLIENT: usize = 64;
/// Connections of all clients but root.
pub const CONNECTIONS: usize = 256;
/// Connections, of all users together, that are kept only to say why they are refused.
pub const REFUSED_CONNECTIONS: usize = 16;
/// How long such a connection is kept.
pub const REFUSED_TIME: Duration = Duration::from_secs(5);
/// The longest that a call may take until its answer begins. Streams go on.
pub const CALL_TIME: Duration = Duration::from_secs(120);
/// The longest TLS handshake.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How often a client is asked whether it is there, and how long the answer may take.
pub const KEEPALIVE: Duration = Duration::from_secs(20);
/// The most octets of a call's headers.
pub const HEADERS: u32 = 16 << 10;

/// Calls and streams of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open at once on one connection. A client waits with the next.
    pub per_connection: u32,
    /// Open at once of one client. The next is refused.
    pub per_client: usize,
    /// Open at once of all clients.
    pub all: usize,
}

/// The northbound API.
pub const NORTHBOUND: Limits = Limits { per_connection: 64, per_client: 64, all: 512 };
/// The dataplane's API: control passes the calls of all its clients on, over one connection.
pub const DATAPLANE: Limits = Limits { per_connection: 1024, per_client: 1024, all: 2048 };

/// A server within these limits.
pub fn server(limits: Limits) -> Server {
    Server::builder()
        .max_concurrent_streams(limits.per_connection)
        .concurrency_limit_per_connection(limits.per_connection as usize)
        .http2_max_header_list_size(HEADERS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .timeout(CALL_TIME)
}

/// The user that something is counted for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Client {
    /// A user of this host.
    User(u32),
    /// A host that connects with TLS.
    Address(IpAddr),
    /// All that are refused.
    Refused,
}

/// How many of something each client has.
#[derive(Default, Debug)]
pub struct Counts(Mutex<HashMap<Client, usize>>);

/// One of them, until dropped.
#[derive(Debug)]
pub struct Slot {
    client: Client,
    counts: Arc<Counts>,
}

impl Counts {
    /// One more for `client`, if it then has at most `each` and all others but root at most `all`.
    pub fn take(self: &Arc<Self>, client: Client, each: usize, all: usize) -> Option<Slot> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let root = Client::User(0);
        let others: usize = held.iter().filter(|(c, _)| **c != root).map(|(_, n)| n).sum();
        let own = held.get(&client).copied().unwrap_or(0);
        if own >= each || client != root && others >= all {
            return None;
        }
        held.insert(client, own + 1);
        Some(Slot { client, counts: self.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = held.get_mut(&self.client) {
            *n -= 1;
            if *n == 0 {
                held.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_count_and_root_is_never_kept_out_by_others() {
        let counts = Arc::new(Counts::default());
        let take = |user| counts.take(Client::User(user), 2, 3);
        let first = take(7).unwrap();
        let _second = take(7).unwrap();
        assert!(take(7).is_none());
        let _other = take(8).unwrap();
        assert!(take(9).is_none(), "three of all");
        let (_r1, _r2) = (take(0).unwrap(), take(0).unwrap());
        assert!(take(0).is_none(), "root has its own limit too");
        drop(first);
        assert!(take(7).is_some());
    }
}
