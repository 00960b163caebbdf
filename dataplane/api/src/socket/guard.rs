//! Before each call: may this client make it, and has it not too many open?

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http_body_util::BodyExt;
use tonic::{
    Status,
    body::Body,
    codegen::http::{Extensions, Request, Response},
    transport::{CertificateDer, server::TlsConnectInfo},
};
use tower::{Layer, Service};

use super::{
    limits::{Counts, Limits},
    peer::{Caller, Role},
};

/// The role that a method needs, by its path (`/dunlin.v1.Control/Apply`).
pub type Needs = fn(&str) -> Role;

/// A layer of a server; see the module. Clones count together.
#[derive(Clone)]
pub struct Guard {
    needs: Needs,
    limits: Limits,
    calls: Arc<Counts>,
    /// Names in certificates of remote operators.
    operators: Arc<[String]>,
}

impl Guard {
    /// Checks calls against `needs` and `limits`.
    pub fn new(needs: Needs, limits: Limits) -> Self {
        Guard { needs, limits, calls: Arc::default(), operators: Arc::from([]) }
    }

    /// Remote clients whose certificate has one of these DNS names are operators; others may read.
    pub fn with_operators(mut self, names: Vec<String>) -> Self {
        self.operators = names.into();
        self
    }

    fn caller(&self, extensions: &Extensions) -> Result<Caller, Status> {
        let caller = extensions.get::<Arc<Caller>>().ok_or_else(|| Status::unauthenticated("the client is unknown"))?;
        let certificate = extensions.get::<TlsConnectInfo<Arc<Caller>>>().and_then(TlsConnectInfo::peer_certs);
        match certificate.as_deref().and_then(|chain| chain.first()) {
            Some(certificate) => Ok(self.remote(caller, certificate)),
            None => Ok(Caller::clone(caller)),
        }
    }

    /// The client with a certificate, which TLS has checked already.
    fn remote(&self, caller: &Caller, certificate: &CertificateDer<'_>) -> Caller {
        let parsed = webpki::EndEntityCert::try_from(certificate);
        let names: Vec<&str> = parsed.iter().flat_map(|c| c.valid_dns_names()).collect();
        let is_operator = names.iter().any(|n| self.operators.iter().any(|o| o.eq_ignore_ascii_case(n)));
        let role = if is_operator { Role::Operator } else { Role::ReadOnly };
        let name = match &names[..] {
            [] => format!("{} (certificate without a DNS name)", caller.name),
            names => format!("{} (certificate of '{}')", caller.name, names.join("', '")),
        };
        Caller { client: caller.client, name, role: Ok(role) }
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: self.clone() }
    }
}

/// A service behind a [`Guard`].
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    guard: Guard,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Guard { needs, limits, calls, .. } = &self.guard;
        let checked = self.guard.caller(request.extensions()).and_then(|caller| {
            permit(&caller, needs(request.uri().path()))?;
            calls.take(caller.client, limits.per_client, limits.all).ok_or_else(|| {
                Status::resource_exhausted(format!(
                    "{} has {} calls open, or all others but root {}: end some first",
                    caller.name, limits.per_client, limits.all
                ))
            })
        });
        let slot = match checked {
            Ok(slot) => slot,
            Err(status) => return Box::pin(async { Ok(status.into_http()) }),
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            // A stream is open as long as its body is.
            Ok(answer.await?.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _held = &slot;
                    frame
                }))
            }))
        })
    }
}

fn permit(caller: &Caller, needs: Role) -> Result<(), Status> {
    match &caller.role {
        Err(why) => Err(why.clone()),
        Ok(role) if *role >= needs => Ok(()),
        Ok(_) => Err(Status::permission_denied(format!("{} may only read, not change anything", caller.name))),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::limits::Client, *};

    #[test]
    fn roles() {
        let caller = |role| Caller { client: Client::User(7), name: "user 'x'".into(), role };
        assert!(permit(&caller(Ok(Role::Operator)), Role::Operator).is_ok());
        assert!(permit(&caller(Ok(Role::ReadOnly)), Role::ReadOnly).is_ok());
        let error = permit(&caller(Ok(Role::ReadOnly)), Role::Operator).unwrap_err();
        assert_eq!(error.message(), "user 'x' may only read, not change anything");
        assert!(permit(&caller(Err(Status::permission_denied("no"))), Role::ReadOnly).is_err());
    }

    #[test]
    fn a_call_without_a_known_client_is_refused() {
        let guard = Guard::new(|_| Role::ReadOnly, super::super::limits::NORTHBOUND);
        assert_eq!(guard.caller(&Extensions::new()).unwrap_err().code(), tonic::Code::Unauthenticated);
    }
}
