//! Who may do what with the API, and what nobody may do with it.

use std::{
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Output, Stdio},
};

use dunlin_control_api::{
    connect, dataplane as dp,
    v1::{StatusRequest, control_client::ControlClient},
};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::{
    host::{Host, binary},
    net::{eventually, sh, text},
};

/// Groups that every Debian has and no user of the tests is in.
const OPERATORS: &str = "operator";
const READERS: &str = "users";
const OTHERS: &str = "games";

/// A switch whose control was started with these options.
fn with_control_options(dataplane: &str, control: &str) -> Host {
    let mut host = Host::with_options(dataplane);
    host.kill_control();
    host.control_options = control.to_owned();
    host.start_control();
    host.wait_until_filled();
    for name in ["dunlin", "dunlin-control"] {
        // The folder of the build may be root's alone.
        std::fs::copy(binary(name), host.path(name)).unwrap();
    }
    host
}

fn with_roles() -> Host {
    with_control_options("", &format!("--group {OPERATORS} --read-group {READERS}"))
}

/// A command of another user, with this group alone.
fn command_as(user: &str, group: &str, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={user}"), &format!("--regid={group}"), "--clear-groups", program]);
    command.stdin(Stdio::null());
    command
}

fn dunlin_as(host: &Host, user: &str, group: &str, arguments: &[&str]) -> Output {
    let mut command = command_as(user, group, &host.path("dunlin"));
    command.args(["--control", &host.path("control.sock")]).args(arguments).output().unwrap()
}

/// Runs `dunlin` as nobody, and gives its words if it was refused.
fn as_nobody(host: &Host, group: &str, arguments: &str) -> Result<String, String> {
    let o = dunlin_as(host, "nobody", group, &arguments.split_whitespace().collect::<Vec<_>>());
    if o.status.success() { Ok(text(&o.stdout)) } else { Err(text(&o.stderr)) }
}

#[test]
fn the_group_of_the_api_gets_nothing_of_roots() {
    let mut host = with_control_options("", &format!("--group {OPERATORS}"));
    let (proof, victim) = (host.path("proof"), host.path("victim"));
    std::fs::write(&victim, "root's").unwrap();
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
    let devices = [
        format!("net_failsafe0,exec(touch {proof})"),
        format!("net_failsafe0,dev(net_pcap0,tx_pcap={victim})"),
        format!("net_pcap0,tx_pcap={victim}"),
        format!("net_pcap0,rx_pcap={victim}"),
        format!("net_memif0,role=server,socket={proof}"),
        format!("vdev:net_pcap0,tx_pcap={victim}"),
    ];
    let before = host.dunlin("export");
    let file = host.path("stranger.toml");
    for device in &devices {
        let o = dunlin_as(&host, "nobody", OPERATORS, &["port", "add", "x", "--kind", "nic", "--device", device]);
        let error = text(&o.stderr);
        assert!(!o.status.success() && error.contains("port 'x': device") && error.contains("--any-device"), "{error}");
        let toml = format!("[[port]]\nname = \"x\"\nkind = \"nic\"\ndevice = \"{device}\"\n");
        std::fs::write(&file, toml).unwrap();
        let error = as_nobody(&host, OPERATORS, &format!("apply -f {file}")).unwrap_err();
        assert!(error.contains("port 'x': device") && error.contains("--any-device"), "{error}");
    }
    std::os::unix::fs::symlink("/etc", host.path("link")).unwrap();
    for socket in
        ["/etc/x.sock".to_owned(), host.path("../x.sock"), host.path("link/x.sock"), host.path("new/folder/x.sock")]
    {
        let add = format!("port add x --kind vhost-user --server --socket {socket}");
        let error = as_nobody(&host, OPERATORS, &add).unwrap_err();
        assert!(error.contains("port 'x': socket") && error.contains(&host.folder.display().to_string()), "{error}");
    }
    assert_eq!(host.dunlin("export"), before);
    host.kill_dataplane();
    host.start_dataplane();
    host.wait_until_filled();
    assert!(!std::path::Path::new(&proof).exists(), "a command was run");
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "root's");
    assert!(!std::path::Path::new("/etc/x.sock").exists());
    // What the group is for.
    as_nobody(&host, OPERATORS, "port add y --kind nic --device net_null0,no-rx=1").unwrap();
    let own = host.path("new/y.sock");
    as_nobody(&host, OPERATORS, &format!("port add z --kind vhost-user --server --socket {own}")).unwrap();
    // Without a read group, the socket's mode keeps others out.
    let error = as_nobody(&host, OTHERS, "status").unwrap_err();
    assert!(error.contains("Permission denied") && error.contains("Join the group"), "{error}");
}

#[test]
fn readers_read_operators_change_and_others_are_refused() {
    let host = with_roles();
    let trace = "trace --port x --tcp 10.20.0.2:80 --from 10.20.0.1";
    as_nobody(&host, OPERATORS, "bridge add b1").unwrap();
    as_nobody(&host, OPERATORS, "port add x --kind nic --device net_null0,no-rx=1").unwrap();
    for read in ["status", "export", "port list", "mac list", "session list", "worker list", "acl list", trace] {
        as_nobody(&host, READERS, read).unwrap_or_else(|e| panic!("{read}: {e}"));
    }
    for change in ["bridge add b2", "port del x", "mac flush", "worker rebalance"] {
        let error = as_nobody(&host, READERS, change).unwrap_err();
        assert!(error.contains("user 'nobody' may only read"), "{change}: {error}");
    }
    let error = as_nobody(&host, OTHERS, "status").unwrap_err();
    assert!(error.contains("user 'nobody' is in neither group 'operator' (operators) nor group 'users'"), "{error}");
    // By a supplementary group.
    let (program, socket) = (host.path("dunlin"), host.path("control.sock"));
    sh(&format!(
        "setpriv --reuid=nobody --regid={OTHERS} --groups={OPERATORS} {program} --control {socket} bridge add b3"
    ));
    let bridges = host.dunlin("bridge list");
    assert!(bridges.contains("b1") && bridges.contains("b3") && !bridges.contains("b2"), "{bridges}");
}

#[test]
fn the_dataplane_asks_for_credentials_whatever_its_sockets_mode_is() {
    let host = with_roles();
    let folder = host.path("nobodys");
    std::fs::set_permissions(host.path("dataplane.sock"), std::fs::Permissions::from_mode(0o666)).unwrap();
    sh(&format!("mkdir {folder} && chown nobody {folder}"));
    let mut other = command_as("nobody", OPERATORS, &host.path("dunlin-control"));
    let socket = format!("{folder}/control.sock");
    other.args(["--socket", &socket, "--store", &format!("{folder}/state.redb"), "--metrics", "127.0.0.1:0"]);
    let other = other.args(["--dataplane", &host.path("dataplane.sock")]).stderr(Stdio::null()).spawn().unwrap();
    let _other = Ends(other);
    eventually("a control process of nobody's is refused", 10.0, || {
        let o = Command::new(binary("dunlin")).args(["--control", &socket, "--json", "status"]).output().unwrap();
        text(&o.stdout).contains("user 'nobody' may not use this API: only root may")
    });
}

/// A child that does not outlive its test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const HOLD: &str = "import socket, sys, time\nall = []\nfor _ in range(int(sys.argv[2])):\n    \
                    s = socket.socket(socket.AF_UNIX)\n    s.connect(sys.argv[1])\n    all.append(s)\n\
                    print('ready', flush=True)\ntime.sleep(600)\n";

/// Holds so many connections open.
fn hold(host: &Host, group: &str, connections: u32) -> Ends {
    let mut python = command_as("nobody", group, "/usr/bin/python3");
    python.args(["-c", HOLD, &host.path("control.sock"), &connections.to_string()]).stdout(Stdio::piped());
    let mut child = python.spawn().unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    Ends(child)
}

#[test]
fn a_client_takes_its_own_connections_only() {
    let host = with_roles();
    let held = hold(&host, READERS, 64);
    let error = as_nobody(&host, READERS, "status").unwrap_err();
    assert!(error.contains("user 'nobody' has 64 connections open"), "{error}");
    // Others go on: another user of the same group, and root.
    let o = dunlin_as(&host, "daemon", READERS, &["status"]);
    assert!(o.status.success(), "{}", text(&o.stderr));
    host.dunlin("bridge add b1");
    drop(held);
    eventually("its connections are free again", 5.0, || as_nobody(&host, READERS, "status").is_ok());
    // Who has no role takes nothing from those who have one, and not for long.
    let _held = hold(&host, OTHERS, 100);
    let o = dunlin_as(&host, "daemon", READERS, &["status"]);
    assert!(o.status.success(), "{}", text(&o.stderr));
    eventually("a stranger is told why again", 10.0, || {
        as_nobody(&host, OTHERS, "status").unwrap_err().contains("in neither group")
    });
}

#[test]
fn a_client_has_its_own_streams_only() {
    let host = with_roles();
    let socket = host.folder.join("control.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut first = connect(&socket).await.unwrap();
        let mut streams = Vec::new();
        for _ in 0..64 {
            streams.push(first.watch(dp::WatchRequest {}).await.unwrap());
        }
        let mut second = connect(&socket).await.unwrap();
        let error = second.get_status(StatusRequest {}).await.unwrap_err();
        assert!(error.message().contains("user 'root' has 64 calls open"), "{error}");
        as_nobody(&host, READERS, "status").unwrap();
        drop(streams);
        let mut left = 100;
        while second.get_status(StatusRequest {}).await.is_err() {
            left -= 1;
            assert!(left > 0, "ended streams count no more");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
}

/// Two CAs, a certificate of a server and three of clients.
const CERTIFICATES: &str = "set -e; cd $0
ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=$1 -keyout $1.key -out $1.pem; }
cert() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$2 -keyout $2.key -out $2.csr
    echo subjectAltName=$3 | openssl x509 -req -in $2.csr -CA $1.pem -CAkey $1.key -CAcreateserial -days 2 -extfile /dev/stdin -out $2.pem
}
ca ca; ca other
cert ca server DNS:localhost,IP:127.0.0.1
cert ca ops DNS:ops.example
cert ca view DNS:view.example
cert other rogue DNS:ops.example";

#[test]
fn remote_clients_show_a_certificate() {
    let folder = std::env::temp_dir().join(format!("dunlin-e2e-certificates-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let made = Command::new("bash").args(["-c", CERTIFICATES]).arg(&folder).output().unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let file = |name: &str| folder.join(name).display().to_string();
    let host = with_control_options(
        "",
        &format!(
            "--tls 127.0.0.1:{port} --tls-cert {} --tls-key {} --tls-client-ca {} --tls-operators else.example,ops.example",
            file("server.pem"),
            file("server.key"),
            file("ca.pem")
        ),
    );
    let url = format!("https://localhost:{port}");
    let remote = |name: &str, ca: &str, arguments: &str| {
        let (cert, key) = (file(&format!("{name}.pem")), file(&format!("{name}.key")));
        let mut command = Command::new(binary("dunlin"));
        command.args(["--control", &url, "--cert", &cert, "--key", &key, "--ca", &file(ca)]);
        let o = command.args(arguments.split_whitespace()).stdin(Stdio::null()).output().unwrap();
        if o.status.success() { Ok(text(&o.stdout)) } else { Err(text(&o.stderr)) }
    };
    remote("ops", "ca.pem", "bridge add far").unwrap();
    assert!(remote("view", "ca.pem", "bridge list").unwrap().contains("far"));
    let error = remote("view", "ca.pem", "bridge add far2").unwrap_err();
    assert!(error.contains("certificate of 'view.example'") && error.contains("may only read"), "{error}");
    let error = remote("rogue", "ca.pem", "status").unwrap_err();
    assert!(error.contains("may not have signed"), "{error}");
    let error = remote("ops", "other.pem", "status").unwrap_err();
    assert!(error.contains("does not answer") && error.contains("certificate"), "{error}");
    let o = Command::new(binary("dunlin")).args(["--control", &url, "status"]).output().unwrap();
    assert!(text(&o.stderr).contains("give --cert, --key and --ca"), "{}", text(&o.stderr));
    // No certificate at all.
    let ca = Certificate::from_pem(std::fs::read(file("ca.pem")).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(url.clone()).unwrap();
        let endpoint = endpoint.tls_config(ClientTlsConfig::new().ca_certificate(ca)).unwrap();
        if let Ok(channel) = endpoint.connect().await {
            ControlClient::new(channel).get_status(StatusRequest {}).await.unwrap_err();
        }
    });
    assert!(host.dunlin("bridge list").contains("far"));
    std::fs::remove_dir_all(&folder).unwrap();
}
