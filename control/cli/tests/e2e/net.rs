//! Kernel hosts in namespaces, and the probe that sends and receives raw frames there.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// A test that waits ends without progress only after so many times what is usual: what a slow machine takes is no
/// failure.
pub const PATIENCE: u32 = 10;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace with one interface, `eth0`, whose peer `outside` is for the switch.
pub struct Netns {
    pub name: String,
    pub outside: String,
}

/// Runs a command to its end and gives what it printed; panics if it fails.
pub fn sh(command: &str) -> String {
    let o = try_sh(command);
    assert!(o.status.success(), "{command}\n{}{}", text(&o.stdout), text(&o.stderr));
    text(&o.stdout)
}

/// The same, whatever comes of it.
pub fn try_sh(command: &str) -> Output {
    Command::new("bash").args(["-c", command]).stdin(Stdio::null()).output().expect("bash is there")
}

pub fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

/// How many times as long everything takes here.
fn slower() -> f64 {
    std::env::var("DUNLIN_SLOWER").ok().and_then(|s| s.parse().ok()).unwrap_or(1.0)
}

/// Waits until `what` holds. `seconds`: what is usual at most; it fails after [`PATIENCE`] times as long.
pub fn eventually(what: &str, seconds: f64, mut holds: impl FnMut() -> bool) {
    let seconds = seconds * slower() * f64::from(PATIENCE);
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed().as_secs_f64() < seconds, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Netns {
    pub fn new() -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}x{n}", std::process::id() % 100_000);
        let ns = Netns { name: format!("dn{id}"), outside: format!("dv{id}") };
        sh(&format!(
            "ip netns add {0} && ip link add {1} type veth peer name eth0 netns {0} && ip link set {1} up && \
             ip -n {0} link set lo up && ip netns exec {0} sysctl -qw net.ipv6.conf.all.disable_ipv6=1 && \
             sysctl -qw net.ipv6.conf.{1}.disable_ipv6=1 && ip -n {0} link set eth0 up",
            ns.name, ns.outside
        ));
        ns
    }

    /// With an address, as "10.1.0.1/24".
    pub fn with_address(address: &str) -> Self {
        let ns = Netns::new();
        ns.run(&format!("ip addr add {address} dev eth0"));
        ns
    }

    /// It starts without IPv6, so that it sends nothing unasked.
    pub fn allow_ipv6(&self) {
        let eth0 = "net.ipv6.conf.eth0";
        self.run(&format!("sysctl -qw net.ipv6.conf.all.disable_ipv6=0 {eth0}.disable_ipv6=0 {eth0}.accept_dad=0"));
    }

    /// Sends a packet, written as scapy has it, by its layer 2.
    pub fn scapy(&self, packet: &str) {
        let script = format!("from scapy.all import *; sendp({packet}, iface=\"eth0\", verbose=0)");
        let out = Command::new("ip")
            .args(["netns", "exec", &self.name, "/usr/bin/python3", "-c", &script])
            .output()
            .expect("ip is there");
        assert!(out.status.success(), "{packet}: {}", text(&out.stderr));
    }

    /// A DHCP server that gives addresses of `range` ("10.1.0.100,10.1.0.120") and keeps its files in `folder`.
    pub fn serve_dhcp(&self, range: &str, folder: &str) -> Background {
        self.spawn(&format!(
            "/usr/sbin/dnsmasq -k --conf-file=/dev/null --port=0 --interface=eth0 --bind-interfaces --user=root \
             --dhcp-range={range},1h --dhcp-leasefile={folder}/dnsmasq.leases --pid-file={folder}/dnsmasq.pid"
        ))
    }

    /// Runs a command in it.
    pub fn run(&self, command: &str) -> String {
        sh(&self.inside(command))
    }

    pub fn try_run(&self, command: &str) -> Output {
        try_sh(&self.inside(command))
    }

    fn inside(&self, command: &str) -> String {
        format!("ip netns exec {} bash -c '{command}'", self.name)
    }

    /// Starts a command in it.
    pub fn spawn(&self, command: &str) -> Background {
        self.spawn_with(Stdio::null(), command)
    }

    fn spawn_with(&self, stdin: Stdio, command: &str) -> Background {
        let mut ip = Command::new("ip");
        ip.args(["netns", "exec", &self.name, "bash", "-c", &format!("exec {command}")]);
        Background(Some(ip.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ip is there")))
    }

    /// Waits until something listens on a TCP port in it.
    pub fn listens(&self, port: u16) {
        eventually(&format!("port {port} listens"), 10.0, || {
            self.try_run(&format!("ss -lnt | grep -q :{port}")).status.success()
        });
    }

    /// An iperf3 server for one test, listening.
    pub fn iperf_server(&self) -> Background {
        let start = || self.spawn("iperf3 -s -1");
        let mut server = start();
        eventually("iperf3 listens", 10.0, || {
            let child = server.0.as_mut().unwrap();
            // The server of the test before may not have left the port yet.
            if child.try_wait().unwrap().is_some() {
                server = start();
                return false;
            }
            self.try_run(&format!("ss -lntp | grep -q pid={},", child.id())).status.success()
        });
        server
    }

    /// tcpdump with these options, capturing.
    pub fn capture(&self, options: &str) -> Background {
        let mut tcpdump = self.spawn(&format!("tcpdump {options}"));
        // Octet by octet: what follows stays in the pipe.
        let (mut told, mut octet) = (Vec::new(), [0]);
        while !told.ends_with(b"listening on ") {
            let n = tcpdump.0.as_mut().unwrap().stderr.as_mut().unwrap().read(&mut octet).unwrap();
            assert!(n == 1, "tcpdump {options}: {}", text(&told));
            told.push(octet[0]);
        }
        tcpdump
    }

    /// Frames that its interface has received.
    pub fn rx_packets(&self) -> u64 {
        self.run("cat /sys/class/net/eth0/statistics/rx_packets").trim().parse().unwrap()
    }

    /// Whether `address` answers: one ping, where it should not; else as many `tries` as are usual, [`PATIENCE`] times.
    pub fn reaches(&self, address: &str, tries: u32) -> bool {
        let tries = if tries > 1 { tries * PATIENCE } else { 1 };
        (0..tries).any(|_| self.try_run(&format!("ping -c 1 -W 1 {address}")).status.success())
    }

    pub fn mac(&self) -> String {
        self.run("cat /sys/class/net/eth0/address").trim().to_owned()
    }

    /// Sends probe frames: see `probe.py send`.
    pub fn send(&self, options: &str) {
        self.run(&format!("{} send eth0 {options}", probe()));
    }

    /// Sends probe frames until the stream is ended: see `probe.py send`.
    pub fn stream(&self, options: &str) -> Stream {
        Stream(self.spawn_with(Stdio::piped(), &format!("{} send eth0 --stream {options}", probe())))
    }

    /// Starts to receive probe frames: see `probe.py receive`. Returns once it listens.
    pub fn receive(&self, options: &str) -> Receiver {
        self.receive_on("eth0", options)
    }

    /// The same on another interface.
    pub fn receive_on(&self, interface: &str, options: &str) -> Receiver {
        let mut child = self.spawn_with(Stdio::piped(), &format!("{} receive {interface} {options}", probe()));
        let mut out = BufReader::new(child.0.as_mut().unwrap().stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "listening");
        Receiver { child, out }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = try_sh(&format!(
            "ip netns pids {0} | xargs -r kill -9; ip netns del {0}; ip link del {1}",
            self.name, self.outside
        ));
    }
}

/// The command that hostile.py is started with.
pub fn hostile() -> String {
    format!("/usr/bin/python3 {}/tests/e2e/hostile.py", env!("CARGO_MANIFEST_DIR"))
}

pub fn probe() -> String {
    format!("/usr/bin/python3 {}/tests/e2e/probe.py", env!("CARGO_MANIFEST_DIR"))
}

/// A running command, killed when dropped.
pub struct Background(pub Option<Child>);

impl Background {
    /// A guest that breaks the rules of virtio, see hostile.py: in the way of `what`.
    pub fn hostile(socket: &str, what: &str) -> Self {
        let mut bash = Command::new("bash");
        bash.args(["-c", &format!("exec {} {socket} {what}", hostile())]);
        Background(Some(bash.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("bash is there")))
    }

    /// Waits for its end and gives what it printed.
    pub fn finish(mut self) -> String {
        let o = self.0.take().unwrap().wait_with_output().unwrap();
        text(&o.stdout) + &text(&o.stderr)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(c) = &mut self.0 {
            let _ = c.kill();
            let _ = c.wait();
        }
    }
}

/// A probe that sends.
pub struct Stream(Background);

impl Stream {
    /// The same as [`Netns::stream`], by an interface that is in no namespace.
    pub fn by(interface: &str, options: &str) -> Self {
        let command = format!("exec {} send {interface} --stream {options}", probe());
        let child = Command::new("bash").args(["-c", &command]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Stream(Background(Some(child.expect("bash is there"))))
    }

    /// Ends it and gives how many frames it has sent.
    pub fn end(self) -> u64 {
        // Waiting closes its input, which ends it.
        let told = self.0.finish();
        number(&told, "sent")
    }
}

/// A probe that listens.
pub struct Receiver {
    child: Background,
    out: BufReader<std::process::ChildStdout>,
}

impl Receiver {
    /// All that were to be sent are sent. Waits for its end (--count frames, or a time without one) and gives a line a
    /// frame, with --frames, and the summary.
    pub fn finish(mut self) -> Vec<String> {
        self.nothing_more();
        let mut lines = Vec::new();
        for line in (&mut self.out).lines() {
            lines.push(line.unwrap());
        }
        drop(self.child.0.take().map(|mut c| c.wait()));
        lines
    }

    /// The same, for so many frames: its summary, which must say that they arrived whole and in their order.
    pub fn expect(mut self, frames: u64) -> String {
        let stdin = self.child.0.as_mut().unwrap().stdin.as_mut().unwrap();
        stdin.write_all(frames.to_string().as_bytes()).unwrap();
        let summary = self.finish().pop().expect("a summary");
        assert!(summary.starts_with(&format!("received={frames} distinct={frames} lost=0 disorder=0")), "{summary}");
        summary
    }

    /// Of several, which then wait at the same time.
    pub fn finish_all(mut receivers: Vec<Receiver>) -> Vec<Vec<String>> {
        receivers.iter_mut().for_each(Receiver::nothing_more);
        receivers.into_iter().map(Receiver::finish).collect()
    }

    fn nothing_more(&mut self) {
        drop(self.child.0.as_mut().unwrap().stdin.take());
    }

    /// The number behind `key=` in the summary.
    pub fn summary(self, key: &str) -> u64 {
        let lines = self.finish();
        let last = lines.last().expect("a summary");
        number(last, key)
    }
}

/// The number behind `key=` in a line.
pub fn number(line: &str, key: &str) -> u64 {
    let found = line.split_whitespace().find_map(|w| w.strip_prefix(&format!("{key}=")));
    found.unwrap_or_else(|| panic!("no {key} in {line}")).parse().unwrap()
}
