//! The northbound API server.

use std::{path::Path, pin::Pin, sync::Arc, time::Duration};

use dunlin_control_api::v1::{self, control_server::ControlServer};
use dunlin_dataplane_api::{
    Client, MAX_MESSAGE, check_version, parts,
    socket::{
        bind,
        guard::Guard,
        limits, listen,
        peer::{Access, Caller},
    },
    v1 as dp,
};
use dunlin_model::{Kind, v1::Key};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{BroadcastStream, ReceiverStream, errors::BroadcastStreamRecvError},
};
use tonic::{Request, Response, Status, Streaming, service::interceptor::InterceptedService};

use crate::desired::{Desired, Refused};

pub struct Server(Arc<Desired>);

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// For so long a call waits for the dataplane, and a list for its next part.
const ANSWER: Duration = Duration::from_secs(5);

impl Server {
    /// Asks the dataplane, which must be up and answer in time.
    async fn ask<T>(
        &self,
        call: impl AsyncFnOnce(&mut Client) -> Result<Response<T>, Status>,
    ) -> Result<Response<T>, Status> {
        let Some(mut client) = self.0.link.client() else {
            let why = self.0.link.error();
            return Err(Status::unavailable(format!(
                "the dataplane is down ({why}); start it with 'systemctl start dunlin-dataplane'"
            )));
        };
        tokio::time::timeout(ANSWER, call(&mut client)).await.unwrap_or_else(|_| Err(no_answer()))
    }
}

fn no_answer() -> Status {
    Status::deadline_exceeded(format!("the dataplane does not answer for {} s", ANSWER.as_secs()))
}

/// A list from the dataplane, passed on; it ends with an error if no part comes in time.
fn passed_on<T: Send + 'static>(list: Response<Streaming<T>>) -> Response<Streamed<T>> {
    let parts = Box::pin(list.into_inner().timeout(ANSWER));
    Response::new(Box::pin(parts.map(|part| part.unwrap_or_else(|_| Err(no_answer())))))
}

/// Runs a change on a task of its own: a client that goes away does not leave it half done.
async fn to_the_end(
    change: impl Future<Output = Result<v1::Plan, Refused>> + Send + 'static,
) -> Result<Response<v1::Plan>, Status> {
    let result = tokio::spawn(change).await.map_err(|e| Status::internal(format!("the call ended early: {e}")))?;
    result.map(Response::new).map_err(refused)
}

fn refused(e: Refused) -> Status {
    match e {
        Refused::Conflict { .. } => Status::aborted(e.to_string()),
        Refused::NotThere(_) => Status::not_found(e.to_string()),
        Refused::Store(_) => Status::resource_exhausted(e.to_string()),
        Refused::Busy => Status::unavailable(e.to_string()),
        Refused::Unconfirmed(..) => Status::failed_precondition(e.to_string()),
        Refused::Bad(_) | Refused::Dataplane(_) => Status::invalid_argument(e.to_string()),
    }
}

/// The user that makes a call, by the credentials of the connection.
fn user_of(extensions: &tonic::Extensions) -> String {
    extensions.get::<Arc<Caller>>().map_or_else(|| "unknown".into(), |c| c.name.clone())
}

#[tonic::async_trait]
impl v1::control_server::Control for Server {
    async fn get_status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::Status>, Status> {
        Ok(Response::new(self.0.status().await))
    }

    type GetConfigStream = Streamed<v1::Configured>;

    async fn get_config(&self, r: Request<v1::ConfigRequest>) -> Result<Response<Self::GetConfigStream>, Status> {
        let (current, only) = (self.0.current(), r.into_inner().only);
        let of_key = |k: &Key| current.objects().get(Kind::from_word(&k.kind)?, &k.name);
        let objects = match only.is_empty() {
            true => current.objects().iter().map(|(_, o)| (**o).clone()).collect(),
            false => only.iter().filter_map(of_key).map(|o| (**o).clone()).collect(),
        };
        let whole = v1::Configured { objects, revision: current.revision };
        Ok(Response::new(Box::pin(tokio_stream::iter(parts::split(whole).into_iter().map(Ok)))))
    }

    type WatchConfigStream = Streamed<v1::Changed>;

    async fn watch_config(
        &self,
        r: Request<v1::WatchConfigRequest>,
    ) -> Result<Response<Self::WatchConfigStream>, Status> {
        let (known, desired) = (r.into_inner().revision, self.0.clone());
        let (tx, out) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut revisions = desired.revisions.subscribe();
            let mut last = Some(desired.current()).filter(|c| known == Some(c.revision));
            loop {
                revisions.borrow_and_update();
                let now = desired.current();
                if last.as_ref().is_none_or(|l| l.revision != now.revision) {
                    let (set, delete) = now.target.changes_since(last.as_ref().map(|l| &*l.target));
                    let (replace, revision) = (last.is_none(), now.revision);
                    let mut parts = parts::split(v1::Changed { replace, revision, set, delete, more: false });
                    let most = parts.len() - 1;
                    for (i, mut part) in parts.drain(..).enumerate() {
                        (part.revision, part.more) = (revision, i < most);
                        // A watcher may have gone.
                        if tx.send(Ok(part)).await.is_err() {
                            return;
                        }
                    }
                }
                last = Some(now);
                tokio::select! {
                    () = tx.closed() => return,
                    changed = revisions.changed() => if changed.is_err() { return },
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn apply(&self, r: Request<Streaming<v1::Change>>) -> Result<Response<v1::Plan>, Status> {
        let user = user_of(r.extensions());
        let change = parts::join(r.into_inner(), &parts::CHANGES).await?;
        let desired = self.0.clone();
        to_the_end(async move { desired.apply(change, &user).await }).await
    }

    async fn diff(&self, r: Request<Streaming<v1::Change>>) -> Result<Response<v1::Plan>, Status> {
        let change = parts::join(r.into_inner(), &parts::QUESTIONS).await?;
        self.0.diff(change).await.map(Response::new).map_err(refused)
    }

    async fn confirm(&self, _: Request<v1::ConfirmRequest>) -> Result<Response<v1::Confirmed>, Status> {
        // On a task of its own, as changes are.
        let desired = self.0.clone();
        let confirmed = tokio::spawn(async move { desired.confirm().await }).await;
        let confirmed = confirmed.map_err(|e| Status::internal(format!("the call ended early: {e}")))?;
        Ok(Response::new(v1::Confirmed { revision: confirmed.map_err(refused)? }))
    }

    type GetHistoryStream = Streamed<v1::Revision>;

    async fn get_history(&self, r: Request<v1::HistoryRequest>) -> Result<Response<Self::GetHistoryStream>, Status> {
        let r = r.into_inner();
        let revisions = self.0.history(r.limit as usize, r.revision).await.map_err(refused)?;
        Ok(Response::new(Box::pin(tokio_stream::iter(revisions.into_iter().map(Ok)))))
    }

    async fn rollback(&self, r: Request<v1::RollbackRequest>) -> Result<Response<v1::Plan>, Status> {
        let user = user_of(r.extensions());
        let (r, desired) = (r.into_inner(), self.0.clone());
        to_the_end(async move { desired.roll_back_to(r.revision, &user, &r.command).await }).await
    }

    type ListMacsStream = Streamed<dp::MacEntries>;

    async fn list_macs(&self, r: Request<dp::MacFilter>) -> Result<Response<Self::ListMacsStream>, Status> {
        self.ask(async |d| d.list_macs(r.into_inner()).await).await.map(passed_on)
    }

    async fn flush_macs(&self, r: Request<dp::MacFilter>) -> Result<Response<dp::Flushed>, Status> {
        self.ask(async |d| d.flush_macs(r.into_inner()).await).await
    }

    async fn flush_neighbors(&self, r: Request<dp::NeighborFilter>) -> Result<Response<dp::Flushed>, Status> {
        self.ask(async |d| d.flush_neighbors(r.into_inner()).await).await
    }

    async fn rebalance(&self, r: Request<dp::RebalanceRequest>) -> Result<Response<dp::Rebalanced>, Status> {
        self.ask(async |d| d.rebalance(r.into_inner()).await).await
    }

    type ListAclsStream = Streamed<dp::AclState>;

    async fn list_acls(&self, r: Request<dp::AclFilter>) -> Result<Response<Self::ListAclsStream>, Status> {
        self.ask(async |d| d.list_acls(r.into_inner()).await).await.map(passed_on)
    }

    type ListSessionsStream = Streamed<dp::SessionEntries>;

    async fn list_sessions(&self, r: Request<dp::SessionFilter>) -> Result<Response<Self::ListSessionsStream>, Status> {
        self.ask(async |d| d.list_sessions(r.into_inner()).await).await.map(passed_on)
    }

    async fn flush_sessions(&self, r: Request<dp::SessionFilter>) -> Result<Response<dp::Flushed>, Status> {
        self.ask(async |d| d.flush_sessions(r.into_inner()).await).await
    }

    async fn trace(&self, r: Request<dp::TraceRequest>) -> Result<Response<dp::Traced>, Status> {
        self.ask(async |d| d.trace(r.into_inner()).await).await
    }

    type WatchStream = Streamed<dp::Event>;

    async fn watch(&self, _: Request<dp::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let events = BroadcastStream::new(self.0.events.subscribe()).map(|e| {
            Ok(e.unwrap_or_else(|BroadcastStreamRecvError::Lagged(n)| dp::Event::now(dp::event::What::Lost(n))))
        });
        Ok(Response::new(Box::pin(events)))
    }
}

/// The service, for a server on any transport.
pub type Service = InterceptedService<ControlServer<Server>, fn(Request<()>) -> Result<Request<()>, Status>>;

/// The northbound API.
pub fn service(desired: Arc<Desired>) -> Service {
    let service = ControlServer::new(Server(desired))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    InterceptedService::new(service, check_version)
}

/// Serves on `socket`, with the roles of `access`.
pub async fn serve(socket: &Path, access: Access, guard: Guard, desired: Arc<Desired>) -> anyhow::Result<()> {
    let listener = bind(socket, &access).map_err(|e| anyhow::anyhow!("API socket {e}"))?;
    tracing::info!("listening on {}", socket.display());
    limits::server(limits::NORTHBOUND)
        .layer(guard)
        .add_service(service(desired))
        .serve_with_incoming(listen::local(listener, access))
        .await?;
    Ok(())
}
