//! The northbound API server.

use std::{path::Path, pin::Pin, sync::Arc};

use dunlin_control_api::v1::{self, control_server::ControlServer};
use dunlin_dataplane_api::{
    Client, MAX_MESSAGE, check_version,
    socket::{bind, guard::Guard, limits, listen, peer::Access},
    v1 as dp,
};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{BroadcastStream, errors::BroadcastStreamRecvError},
};
use tonic::{Request, Response, Status, service::interceptor::InterceptedService};

use crate::desired::{Desired, Refused};

pub struct Server(Arc<Desired>);

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Server {
    async fn dataplane(&self) -> Result<Client, Status> {
        match self.0.client().await {
            Some(c) => Ok(c),
            None => Err(Status::unavailable(format!(
                "the dataplane is down ({}); start it with 'systemctl start dunlin-dataplane'",
                self.0.status().await.dataplane_error
            ))),
        }
    }
}

#[tonic::async_trait]
impl v1::control_server::Control for Server {
    async fn get_status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::Status>, Status> {
        Ok(Response::new(self.0.status().await))
    }

    async fn get_config(&self, _: Request<v1::ConfigRequest>) -> Result<Response<v1::Configured>, Status> {
        let current = self.0.current().await;
        Ok(Response::new(v1::Configured { config: Some(current.config.clone()), revision: current.revision }))
    }

    async fn apply(&self, r: Request<v1::ApplyRequest>) -> Result<Response<v1::Plan>, Status> {
        let desired = self.0.clone();
        // On a task of its own: a client that goes away does not leave a change half done.
        let result = tokio::spawn(async move { desired.apply(r.get_ref()).await })
            .await
            .map_err(|e| Status::internal(format!("the call ended early: {e}")))?;
        result.map(Response::new).map_err(|e| match e {
            Refused::Conflict { .. } => Status::aborted(e.to_string()),
            Refused::NotThere(_) => Status::not_found(e.to_string()),
            Refused::Store(_) => Status::resource_exhausted(e.to_string()),
            Refused::Bad(_) | Refused::Dataplane(_) => Status::invalid_argument(e.to_string()),
        })
    }

    type ListMacsStream = Streamed<dp::MacEntries>;

    async fn list_macs(&self, r: Request<dp::MacFilter>) -> Result<Response<Self::ListMacsStream>, Status> {
        let stream = self.dataplane().await?.list_macs(r.into_inner()).await?.into_inner();
        Ok(Response::new(Box::pin(stream)))
    }

    async fn flush_macs(&self, r: Request<dp::MacFilter>) -> Result<Response<dp::Flushed>, Status> {
        self.dataplane().await?.flush_macs(r.into_inner()).await
    }

    async fn flush_neighbors(&self, r: Request<dp::NeighborFilter>) -> Result<Response<dp::Flushed>, Status> {
        self.dataplane().await?.flush_neighbors(r.into_inner()).await
    }

    async fn rebalance(&self, r: Request<dp::RebalanceRequest>) -> Result<Response<dp::Rebalanced>, Status> {
        self.dataplane().await?.rebalance(r.into_inner()).await
    }

    type ListAclsStream = Streamed<dp::AclState>;

    async fn list_acls(&self, r: Request<dp::AclFilter>) -> Result<Response<Self::ListAclsStream>, Status> {
        let stream = self.dataplane().await?.list_acls(r.into_inner()).await?.into_inner();
        Ok(Response::new(Box::pin(stream)))
    }

    type ListSessionsStream = Streamed<dp::SessionEntries>;

    async fn list_sessions(&self, r: Request<dp::SessionFilter>) -> Result<Response<Self::ListSessionsStream>, Status> {
        let stream = self.dataplane().await?.list_sessions(r.into_inner()).await?.into_inner();
        Ok(Response::new(Box::pin(stream)))
    }

    async fn flush_sessions(&self, r: Request<dp::SessionFilter>) -> Result<Response<dp::Flushed>, Status> {
        self.dataplane().await?.flush_sessions(r.into_inner()).await
    }

    async fn trace(&self, r: Request<dp::TraceRequest>) -> Result<Response<dp::Traced>, Status> {
        self.dataplane().await?.trace(r.into_inner()).await
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

/// Serves on `socket`, to whom `access` lets.
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
