//! Connections: accepted within limits, each with what is known of its client.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::mpsc,
    time::Sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::server::Connected};

use super::{
    limits::{CONNECTIONS, CONNECTIONS_PER_CLIENT, Client, Counts, REFUSED_CONNECTIONS, REFUSED_TIME, Slot},
    peer::{Access, Caller},
};

/// A connection that counts for its client until dropped.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    caller: Arc<Caller>,
    /// When it ends by itself.
    ends: Option<Pin<Box<Sleep>>>,
    _slot: Slot,
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Arc<Caller>;

    fn connect_info(&self) -> Arc<Caller> {
        self.caller.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Nothing read is the end.
        if self.ends.as_mut().is_some_and(|at| at.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// The connections of a listener, for [`tonic`]'s `serve_with_incoming`.
pub type Incoming<S> = ReceiverStream<io::Result<Connection<S>>>;

/// Connections of local clients, each with the role that `access` gives it.
pub fn local(listener: UnixListener, access: Access) -> Incoming<UnixStream> {
    let (tx, connections) = mpsc::channel(16);
    let (counts, access) = (Arc::new(Counts::default()), Arc::new(access));
    tokio::spawn(async move {
        while let Some((stream, _)) = next(&tx, || listener.accept()).await {
            let Ok(peer) = stream.peer_cred() else { continue };
            let slot = counts.take(Client::User(peer.uid()), CONNECTIONS_PER_CLIENT, CONNECTIONS);
            let (tx, counts, access) = (tx.clone(), counts.clone(), access.clone());
            // The user database may be slow: another client does not wait for it.
            tokio::spawn(async move {
                let Ok(caller) = tokio::task::spawn_blocking(move || access.caller(&peer)).await else { return };
                if let Some(connection) = admit(stream, caller, slot, &counts) {
                    let _ = tx.send(Ok(connection)).await;
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

/// Connections of remote clients. Their certificates are checked later.
pub fn remote(listener: TcpListener) -> Incoming<TcpStream> {
    let (tx, connections) = mpsc::channel(16);
    let counts = Arc::new(Counts::default());
    tokio::spawn(async move {
        while let Some((stream, address)) = next(&tx, || listener.accept()).await {
            let (client, name) = (Client::Address(address.ip()), format!("client {}", address.ip()));
            // Without an answer: it would have to be encrypted first.
            let Some(slot) = counts.take(client, CONNECTIONS_PER_CLIENT, CONNECTIONS) else { continue };
            let role = Err(Status::unauthenticated(format!("{name} showed no certificate")));
            let _ = stream.set_nodelay(true);
            let caller = Arc::new(Caller { client, name, role });
            let _ = tx.send(Ok(Connection { stream, caller, ends: None, _slot: slot })).await;
        }
    });
    ReceiverStream::new(connections)
}

/// The next that `accept` gives; none when the server takes it no more. Out of file descriptors, it waits: a client
/// must not be able to end the server by taking them all.
async fn next<T, C, F: Future<Output = io::Result<T>>>(tx: &mpsc::Sender<C>, accept: impl Fn() -> F) -> Option<T> {
    loop {
        let accepted = tokio::select! {
            accepted = accept() => accepted,
            () = tx.closed() => return None,
        };
        match accepted {
            Ok(accepted) => return Some(accepted),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A client above its limit, or without a role, gets the reason for a moment, if there is room for that.
fn admit<S>(stream: S, mut caller: Caller, slot: Option<Slot>, counts: &Arc<Counts>) -> Option<Connection<S>> {
    if slot.is_none() && caller.role.is_ok() {
        caller.role = Err(Status::resource_exhausted(format!(
            "{} has {CONNECTIONS_PER_CLIENT} connections open, or all others but root {CONNECTIONS}: close some first",
            caller.name
        )));
    }
    if caller.role.is_ok() {
        return slot.map(|slot| Connection { stream, caller: Arc::new(caller), ends: None, _slot: slot });
    }
    let slot = counts.take(Client::Refused, REFUSED_CONNECTIONS, usize::MAX)?;
    let ends = Some(Box::pin(tokio::time::sleep(REFUSED_TIME)));
    Some(Connection { stream, caller: Arc::new(caller), ends, _slot: slot })
}
