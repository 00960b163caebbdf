//! A dataplane that does what a script says: it refuses, hangs, fails late, loses answers, is restarted.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use dunlin_dataplane_api::{
    parts,
    socket::{bind, peer::Access},
    v1::{self, dataplane_server::DataplaneServer},
};
use dunlin_model::v1::{Acl, Bridge, Port, object::Spec};
use tokio::sync::watch;
use tokio_stream::{Stream, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// What becomes of the next transaction.
#[derive(Clone, Debug)]
pub enum Fate {
    Refuse(&'static str),
    /// At work for so long, and then refused.
    LateFailure(Duration),
    /// Applied, and the answer gets lost.
    LoseAnswer,
}

/// What it holds.
#[derive(Default)]
pub struct Held {
    pub generation: u64,
    pub instance: u64,
    pub ports: BTreeMap<String, Port>,
    pub acls: BTreeMap<String, Acl>,
    pub bridges: BTreeMap<String, Bridge>,
    pub applying: String,
    pub script: VecDeque<Fate>,
    /// Every transaction that came, applied or not.
    pub seen: Vec<v1::Transaction>,
    /// Cores of its workers; pins to others are problems.
    pub cores: Vec<u32>,
    /// Ports whose device is missing.
    pub missing: Vec<&'static str>,
}

/// The ports that a transaction sets.
pub fn set_ports(t: &v1::Transaction) -> impl Iterator<Item = &Port> {
    t.set.iter().filter_map(|o| if let Some(Spec::Port(p)) = &o.spec { Some(p) } else { None })
}

#[derive(Clone)]
pub struct Fake {
    held: Arc<Mutex<Held>>,
    /// While it is true nothing is answered.
    frozen: Arc<watch::Sender<bool>>,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Fake {
    pub fn start(socket: &Path) -> Self {
        let held = Held { instance: 1, cores: vec![1, 2], ..Default::default() };
        let fake = Fake { held: Arc::new(Mutex::new(held)), frozen: Arc::new(watch::channel(false).0) };
        let service = DataplaneServer::new(fake.clone()).max_decoding_message_size(16 << 20);
        let listener = bind(socket, &Access::new(None, None).unwrap()).unwrap();
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        fake
    }

    pub fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }

    pub fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    pub fn next(&self, fate: Fate) {
        self.held().script.push_back(fate);
    }

    /// As after a restart of the process: it holds nothing.
    pub fn restart(&self) {
        let mut h = self.held();
        (h.generation, h.instance) = (0, h.instance + 1);
        h.ports.clear();
        h.acls.clear();
        h.bridges.clear();
    }

    async fn thawed(&self) {
        let _ = self.frozen.subscribe().wait_for(|f| !f).await;
    }
}

impl Held {
    fn problems(&self) -> Vec<v1::Problem> {
        let mut all = Vec::new();
        for p in self.ports.values() {
            let mut problem = |field: &str, reason: String| {
                all.push(v1::Problem { kind: "port".into(), name: p.name.clone(), field: field.into(), reason });
            };
            if let Some(c) = p.workers.iter().find(|c| !self.cores.contains(c)) {
                problem("workers", format!("core {c} is no worker; there are {:?}", self.cores));
            }
            if self.missing.contains(&p.name.as_str()) {
                problem("device", "there is none of that name".into());
            }
        }
        all
    }

    fn apply(&mut self, t: &v1::Transaction) {
        if t.replace {
            self.ports.clear();
            self.acls.clear();
            self.bridges.clear();
        }
        for k in &t.delete {
            match k.kind.as_str() {
                "port" => drop(self.ports.remove(&k.name)),
                "acl" => drop(self.acls.remove(&k.name)),
                _ => drop(self.bridges.remove(&k.name)),
            }
        }
        for o in &t.set {
            match &o.spec {
                Some(Spec::Port(p)) => drop(self.ports.insert(p.name.clone(), p.clone())),
                Some(Spec::Acl(a)) => drop(self.acls.insert(a.name.clone(), a.clone())),
                Some(Spec::Bridge(b)) => drop(self.bridges.insert(b.name.clone(), b.clone())),
                _ => {}
            }
        }
        self.generation = t.generation;
    }

    fn info(&self) -> v1::Info {
        v1::Info {
            version: "fake".into(),
            instance: self.instance,
            generation: self.generation,
            applying: self.applying.clone(),
            problems: self.problems(),
            ..Default::default()
        }
    }
}

#[tonic::async_trait]
impl v1::dataplane_server::Dataplane for Fake {
    async fn get_info(&self, _: Request<v1::InfoRequest>) -> Result<Response<v1::Info>, Status> {
        self.thawed().await;
        Ok(Response::new(self.held().info()))
    }

    async fn apply(&self, r: Request<Streaming<v1::Transaction>>) -> Result<Response<v1::Applied>, Status> {
        self.thawed().await;
        let t = parts::join(r.into_inner(), &parts::CHANGES).await?;
        let fate = {
            let mut h = self.held();
            h.seen.push(t.clone());
            if t.base_generation.is_some_and(|b| b != h.generation) {
                return Err(Status::failed_precondition("another generation"));
            }
            if !h.applying.is_empty() {
                return Err(Status::aborted("another change is being applied"));
            }
            h.script.pop_front()
        };
        match fate {
            Some(Fate::Refuse(why)) => return Err(Status::invalid_argument(why)),
            Some(Fate::LateFailure(after)) => {
                self.held().applying = "port 'slow': opening its device".into();
                // As the real one, it goes on though nobody waits for the answer.
                let fake = self.clone();
                let late = tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    fake.held().applying.clear();
                });
                let _ = late.await;
                return Err(Status::invalid_argument("port 'slow': its device can't be opened"));
            }
            Some(Fate::LoseAnswer) => {
                self.held().apply(&t);
                return Err(Status::unknown("transport error"));
            }
            None => {}
        }
        let mut h = self.held();
        let strict = set_ports(&t).find(|p| !t.per_object && h.missing.contains(&p.name.as_str()));
        if let Some(p) = strict.filter(|p| !h.ports.contains_key(&p.name)) {
            return Err(Status::invalid_argument(format!("port '{}': there is none of that name", p.name)));
        }
        h.apply(&t);
        Ok(Response::new(v1::Applied { problems: h.problems() }))
    }

    async fn get_state(&self, _: Request<v1::StateRequest>) -> Result<Response<v1::State>, Status> {
        self.thawed().await;
        Ok(Response::new(v1::State { info: Some(self.held().info()), ..Default::default() }))
    }

    type WatchStream = Streamed<v1::Event>;

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.thawed().await;
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }

    type ListMacsStream = Streamed<v1::MacEntries>;

    async fn list_macs(&self, _: Request<v1::MacFilter>) -> Result<Response<Self::ListMacsStream>, Status> {
        self.thawed().await;
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }

    type ListAclsStream = Streamed<v1::AclState>;

    async fn list_acls(&self, _: Request<v1::AclFilter>) -> Result<Response<Self::ListAclsStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }

    type ListSessionsStream = Streamed<v1::SessionEntries>;

    async fn list_sessions(&self, _: Request<v1::SessionFilter>) -> Result<Response<Self::ListSessionsStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }

    async fn flush_macs(&self, _: Request<v1::MacFilter>) -> Result<Response<v1::Flushed>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn rebalance(&self, _: Request<v1::RebalanceRequest>) -> Result<Response<v1::Rebalanced>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn flush_neighbors(&self, _: Request<v1::NeighborFilter>) -> Result<Response<v1::Flushed>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn flush_sessions(&self, _: Request<v1::SessionFilter>) -> Result<Response<v1::Flushed>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn trace(&self, _: Request<v1::TraceRequest>) -> Result<Response<v1::Traced>, Status> {
        Err(Status::unimplemented(""))
    }
}
