//! gRPC over a Unix socket: access, and the version of the API.
//!
//! * `peer.rs`: the user of a client, and its role.
//! * `listen.rs`: connections, within limits.
//! * `guard.rs`: calls, by role and within limits.
//! * `limits.rs`: the limits.

pub mod guard;
pub mod limits;
pub mod listen;
pub mod peer;

use std::{
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// A group of the system's.
pub use nix::unistd::Gid as GroupId;
use tokio::net::{UnixListener, UnixStream};
use tonic::{Request, Status, service::Interceptor, transport::Channel};

pub use self::limits::MAX_MESSAGE;
use self::peer::Access;

/// The version this build speaks: clients of another major version are refused.
pub const API_VERSION: (u32, u32) = (1, 0);

const VERSION_HEADER: &str = "dunlin-api-version";

/// Why a client could not connect.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", .socket.display())]
pub struct ConnectError {
    /// The socket.
    pub socket: PathBuf,
    /// The reason.
    pub why: String,
}

/// Adds the client's API version to every call.
#[derive(Clone, Copy)]
pub struct VersionHeader;

impl Interceptor for VersionHeader {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let version = format!("{}.{}", API_VERSION.0, API_VERSION.1);
        let value = version.parse().map_err(|_| Status::internal("version is no header value"))?;
        request.metadata_mut().insert(VERSION_HEADER, value);
        Ok(request)
    }
}

/// The server's side: refuses a call whose client names another major version.
///
/// # Errors
///
/// Names both versions.
pub fn check_version(request: Request<()>) -> Result<Request<()>, Status> {
    let Some(value) = request.metadata().get(VERSION_HEADER) else { return Ok(request) };
    let theirs = value.to_str().unwrap_or("?");
    let major = theirs.split('.').next().and_then(|m| m.parse::<u32>().ok());
    if major == Some(API_VERSION.0) {
        return Ok(request);
    }
    Err(Status::failed_precondition(format!(
        "the client speaks API version {theirs}, this process {}.{}: install the same release of \
         dunlin on both sides",
        API_VERSION.0, API_VERSION.1
    )))
}

/// A channel to the server on `socket`.
///
/// # Errors
///
/// At once if no process listens.
pub async fn connect_channel(socket: &Path) -> Result<Channel, ConnectError> {
    let fail = |why: String| ConnectError { socket: socket.to_owned(), why };
    let path = socket.to_owned();
    // The first connection by hand, because the transport's own error names neither socket nor reason.
    let first = UnixStream::connect(socket).await.map_err(|e| fail(e.to_string()))?;
    let first = Mutex::new(Some(first));
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let (path, first) = (path.clone(), first.lock().unwrap_or_else(PoisonError::into_inner).take());
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => UnixStream::connect(path).await?,
            };
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    tonic::transport::Endpoint::from_static("http://dunlin.invalid")
        .connect_with_connector(connector)
        .await
        .map_err(|e| fail(e.to_string()))
}

/// Why a server could not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process does already.
    #[error("{}: another process listens on it; stop it first, or choose another socket", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{}: exists and is no socket; remove it, or choose another path", .0.display())]
    NoSocket(PathBuf),
    /// The path does not fit into the kernel's address.
    #[error("{}: longer than 107 octets, which is the most for a socket's path", .0.display())]
    TooLong(PathBuf),
    /// There is no such group.
    #[error("group '{0}': there is none of that name; make it with 'groupadd --system {0}', or choose another")]
    NoGroup(String),
    /// The system's refusal.
    #[error("{}: {why}", .path.display())]
    System {
        /// The path.
        path: PathBuf,
        /// The reason.
        why: String,
    },
}

/// Listens on `path` with the mode and group that `access` needs. A socket that a dead process left is
/// replaced; the parent folder is made if it is missing.
///
/// # Errors
///
/// If something is in the way of the socket, or the system refuses.
pub fn bind(path: &Path, access: &Access) -> Result<UnixListener, BindError> {
    let system = |e: std::io::Error| BindError::System { path: path.to_owned(), why: e.to_string() };
    if path.as_os_str().len() > 107 {
        return Err(BindError::TooLong(path.to_owned()));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(system)?;
    }
    match fs::symlink_metadata(path) {
        Ok(m) if !m.file_type().is_socket() => return Err(BindError::NoSocket(path.to_owned())),
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            return Err(BindError::InUse(path.to_owned()));
        }
        Ok(_) => fs::remove_file(path).map_err(system)?,
        Err(_) => {}
    }
    // Only the owner has access until mode and group are set.
    let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path).map_err(system);
    nix::sys::stat::umask(old);
    let listener = listener?;
    let (group, mode) = access.owner();
    own(path, group, mode).map_err(system)?;
    Ok(listener)
}

/// The number of the group `name`.
///
/// # Errors
///
/// If there is none of that name.
pub fn group_id(name: &str) -> Result<GroupId, BindError> {
    match nix::unistd::Group::from_name(name) {
        Ok(Some(found)) => Ok(found.gid),
        _ => Err(BindError::NoGroup(name.to_owned())),
    }
}

/// Gives access to the socket at `path` to its owner, and to `group` if one is named, alone.
///
/// # Errors
///
/// If there is no socket at `path`, or the system refuses.
pub fn share(path: &Path, group: Option<GroupId>) -> std::io::Result<()> {
    own(path, group, 0o660)
}

/// A user with write access to the folder can put a link in the socket's place: the file that was checked is changed.
fn own(path: &Path, group: Option<GroupId>, mode: u32) -> std::io::Result<()> {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let held: OwnedFd = open(path, flags, nix::sys::stat::Mode::empty())?;
    let held_path = format!("/proc/self/fd/{}", held.as_raw_fd());
    let found = fs::metadata(&held_path)?;
    if !found.file_type().is_socket() || found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(std::io::Error::other("was replaced by something else"));
    }
    if group.is_some() {
        nix::unistd::chown(held_path.as_str(), None, group)?;
    }
    fs::set_permissions(&held_path, fs::Permissions::from_mode(mode))
}

/// Resolves at SIGTERM or SIGINT: a server's time to end.
pub async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut term) => {
            tokio::select! { _ = term.recv() => {}, _ = tokio::signal::ctrl_c() => {} }
        }
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}
