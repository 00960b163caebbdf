//! The API server: each call takes the switch's lock on a thread that may block. Transactions go to the [`Applier`].

use std::{path::Path, pin::Pin, sync::Arc};

use dunlin_dataplane_api::{
    MAX_MESSAGE, check_version, parts,
    socket::{
        BindError, bind,
        guard::Guard,
        limits, listen,
        peer::{Access, Role},
    },
    v1::{self, dataplane_server::DataplaneServer},
};
use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    events::Events,
    switch::{Applier, Refused, Switch},
};

/// Addresses in one message of a list.
const CHUNK: usize = 4096;

struct Server {
    switch: Arc<Mutex<Switch>>,
    applier: Arc<Applier>,
    events: Arc<Events>,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Server {
    async fn with<T: Send + 'static>(&self, f: impl FnOnce(&mut Switch) -> T + Send + 'static) -> Result<T, Status> {
        let switch = self.switch.clone();
        blocking(move || f(&mut switch.lock())).await
    }
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(f).await.map_err(|e| Status::internal(format!("the call ended early: {e}")))
}

#[tonic::async_trait]
impl v1::dataplane_server::Dataplane for Server {
    async fn get_info(&self, _: Request<v1::InfoRequest>) -> Result<Response<v1::Info>, Status> {
        let info = self.with(|s| s.info()).await?;
        Ok(Response::new(v1::Info { applying: self.applier.progress(), ..info }))
    }

    async fn apply(&self, r: Request<tonic::Streaming<v1::Transaction>>) -> Result<Response<v1::Applied>, Status> {
        let t = parts::join(r.into_inner(), &parts::CHANGES).await?;
        let applier = self.applier.clone();
        // It ends even if the client does not wait for it.
        blocking(move || applier.apply(&t)).await?.map(Response::new).map_err(|e| match e {
            Refused::Base { .. } => Status::failed_precondition(e.to_string()),
            Refused::Busy(_) => Status::aborted(e.to_string()),
            _ => Status::invalid_argument(e.to_string()),
        })
    }

    async fn get_state(&self, _: Request<v1::StateRequest>) -> Result<Response<v1::State>, Status> {
        let mut state = self.with(|s| s.state()).await?;
        if let Some(info) = &mut state.info {
            info.applying = self.applier.progress();
        }
        Ok(Response::new(state))
    }

    type ListMacsStream = Streamed<v1::MacEntries>;

    async fn list_macs(&self, r: Request<v1::MacFilter>) -> Result<Response<Self::ListMacsStream>, Status> {
        let filter = r.into_inner();
        let list = self.with(move |s| s.list_macs(&filter)).await?.map_err(Status::invalid_argument)?;
        let chunks: Vec<_> = list.chunks(CHUNK).map(|c| Ok(v1::MacEntries { entries: c.to_vec() })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn flush_macs(&self, r: Request<v1::MacFilter>) -> Result<Response<v1::Flushed>, Status> {
        let filter = r.into_inner();
        let entries = self.with(move |s| s.flush_macs(&filter)).await?.map_err(Status::invalid_argument)?;
        Ok(Response::new(v1::Flushed { entries }))
    }

    async fn rebalance(&self, _: Request<v1::RebalanceRequest>) -> Result<Response<v1::Rebalanced>, Status> {
        Ok(Response::new(v1::Rebalanced { moves: self.with(Switch::rebalance).await? }))
    }

    async fn flush_neighbors(&self, r: Request<v1::NeighborFilter>) -> Result<Response<v1::Flushed>, Status> {
        let f = r.into_inner();
        let entries = self.with(move |s| s.flush_neighbors(&f)).await?.map_err(Status::invalid_argument)?;
        Ok(Response::new(v1::Flushed { entries }))
    }

    type ListAclsStream = Streamed<v1::AclState>;

    async fn list_acls(&self, r: Request<v1::AclFilter>) -> Result<Response<Self::ListAclsStream>, Status> {
        let filter = r.into_inner();
        let all = self.with(move |s| s.list_acls(&filter)).await?.map_err(Status::not_found)?;
        Ok(Response::new(Box::pin(tokio_stream::iter(all.into_iter().map(Ok)))))
    }

    type ListSessionsStream = Streamed<v1::SessionEntries>;

    async fn list_sessions(&self, r: Request<v1::SessionFilter>) -> Result<Response<Self::ListSessionsStream>, Status> {
        let filter = r.into_inner();
        let mut sessions = self.with(move |s| s.sessions(&filter)).await?.map_err(Status::invalid_argument)?;
        let (tx, out) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            for part in 0..sessions.parts() {
                // No thread is held while the client does not read.
                let entries = match blocking(move || (sessions.part(part), sessions)).await {
                    Ok((entries, rest)) => {
                        sessions = rest;
                        Ok(v1::SessionEntries { entries })
                    }
                    Err(e) => return drop(tx.send(Err(e)).await),
                };
                // It may have gone.
                if tx.send(entries).await.is_err() || sessions.is_done() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn flush_sessions(&self, r: Request<v1::SessionFilter>) -> Result<Response<v1::Flushed>, Status> {
        let (filter, switch) = (r.into_inner(), self.switch.clone());
        // The switch is free again before the tables are looked through.
        let flush = move || {
            let meant = switch.lock().sessions(&filter);
            meant.map(|s| s.flush())
        };
        let entries = blocking(flush).await?.map_err(Status::invalid_argument)?;
        Ok(Response::new(v1::Flushed { entries }))
    }

    async fn trace(&self, r: Request<v1::TraceRequest>) -> Result<Response<v1::Traced>, Status> {
        let request = r.into_inner();
        let steps = self.with(move |s| s.trace(&request)).await?.map_err(Status::invalid_argument)?;
        Ok(Response::new(v1::Traced { steps }))
    }

    type WatchStream = Streamed<v1::Event>;

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let rx = self.events.subscribe();
        let stream = futures_stream(rx).map(Ok);
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Events as a stream; a gap becomes an event that says how wide it is.
fn futures_stream(rx: tokio::sync::broadcast::Receiver<v1::Event>) -> impl Stream<Item = v1::Event> + Send {
    let (tx, out) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        let mut rx = rx;
        loop {
            let received = tokio::select! {
                // A watcher that leaves is noticed, though nothing happens.
                () = tx.closed() => break,
                event = rx.recv() => event,
            };
            let event = match received {
                Ok(e) => e,
                Err(RecvError::Lagged(n)) => v1::Event::now(v1::event::What::Lost(n)),
                Err(RecvError::Closed) => break,
            };
            if tx.send(event).await.is_err() {
                break;
            }
        }
    });
    ReceiverStream::new(out)
}

/// Serves on `socket` until `stop` resolves.
pub async fn serve(
    socket: &Path,
    group: Option<&str>,
    switch: Arc<Mutex<Switch>>,
    applier: Arc<Applier>,
    events: Arc<Events>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let fail = |e: BindError| anyhow::anyhow!("API socket {e}");
    let access = Access::new(group, None).map_err(fail)?;
    let listener = bind(socket, &access).map_err(fail)?;
    let service = DataplaneServer::new(Server { switch, applier, events })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let service = tonic::service::interceptor::InterceptedService::new(service, check_version);
    tracing::info!("listening on {}", socket.display());
    let guard = Guard::new(|_| Role::Operator, limits::DATAPLANE);
    let server = limits::server(limits::DATAPLANE).layer(guard).add_service(service);
    tokio::select! {
        served = server.serve_with_incoming(listen::local(listener, access)) => served?,
        () = stop => {}
    }
    let _ = std::fs::remove_file(socket);
    Ok(())
}
