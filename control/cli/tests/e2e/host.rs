//! One switch: dataplane and control, on sockets and files of their own.

use std::{
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::net::{eventually, sh, text};

static NEXT: AtomicU32 = AtomicU32::new(0);

pub struct Host {
    pub folder: PathBuf,
    pub dataplane: Option<Child>,
    pub control: Option<Child>,
    pub metrics_port: u16,
    /// Where its memory is taken from.
    pages: &'static str,
    cores: String,
    options: String,
    /// Further options of dunlin-control, from its next start on.
    pub control_options: String,
}

/// A binary of the release build.
pub fn binary(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/release").join(name)
}

impl Host {
    /// A switch with one worker and nothing configured.
    pub fn start() -> Self {
        Host::with_options("")
    }

    /// The same, with further options of dunlin-dataplane.
    pub fn with_options(options: &str) -> Self {
        Self::on_pages("--no-huge", options)
    }

    /// The same on hugepages.
    pub fn with_hugepages(options: &str) -> Self {
        Self::on_pages("", options)
    }

    fn on_pages(pages: &'static str, options: &str) -> Self {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = PathBuf::from(format!("/tmp/dunlin-e2e-{}-{n}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let metrics_port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        // Tests that run side by side take turns with the cores.
        let cores = if options.contains("--cores") { String::new() } else { format!("--cores {}", 1 - n % 2) };
        let (options, control_options) = (options.to_owned(), String::new());
        let mut host =
            Host { folder, dataplane: None, control: None, metrics_port, pages, cores, options, control_options };
        host.start_dataplane();
        host.start_control();
        host.wait_until_filled();
        host
    }

    /// Other options, for the next start of the dataplane.
    pub fn set_options(&mut self, options: &str) {
        options.clone_into(&mut self.options);
    }

    pub fn path(&self, file: &str) -> String {
        self.folder.join(file).display().to_string()
    }

    fn spawn(&self, name: &str, arguments: &str) -> Child {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.path(&format!("{name}.log"))).unwrap();
        Command::new(binary(name))
            .args(arguments.split_whitespace())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: {e}; 'make build' makes it"))
    }

    pub fn dataplane_arguments(&self) -> String {
        let memory = if self.options.contains("--memory") { "" } else { "--memory 320" };
        let Host { pages, cores, options, folder, .. } = self;
        let sockets = format!("--socket {} --vhost-dir {}", self.path("dataplane.sock"), folder.display());
        format!("{pages} {memory} {cores} {options} {sockets}")
    }

    pub fn control_arguments(&self) -> String {
        format!(
            "--socket {} --dataplane {} --store {} --metrics 127.0.0.1:{} {}",
            self.path("control.sock"),
            self.path("dataplane.sock"),
            self.path("state.redb"),
            self.metrics_port,
            self.control_options
        )
    }

    pub fn start_dataplane(&mut self) {
        self.dataplane = Some(self.spawn("dunlin-dataplane", &self.dataplane_arguments()));
    }

    pub fn start_control(&mut self) {
        self.control = Some(self.spawn("dunlin-control", &self.control_arguments()));
    }

    /// Waits until control answers and the dataplane holds what it wants.
    pub fn wait_until_filled(&self) {
        eventually(&format!("the switch is up: {}", self.logs()), 15.0, || {
            let o = text(&self.try_dunlin("--json status").stdout);
            o.contains("\"dataplane_up\": true") && o.contains("\"pending\": \"\"")
        });
    }

    pub fn logs(&self) -> String {
        let read = |f| std::fs::read_to_string(self.path(f)).unwrap_or_default();
        read("dunlin-dataplane.log") + &read("dunlin-control.log")
    }

    pub fn kill_dataplane(&mut self) {
        // Its books go with it: a last look.
        if self.control.is_some() {
            self.check_conservation();
        }
        kill(self.dataplane.take());
    }

    pub fn kill_control(&mut self) {
        kill(self.control.take());
    }

    /// Runs `dunlin` and gives what it printed; panics if it refuses.
    pub fn dunlin(&self, arguments: &str) -> String {
        let o = self.try_dunlin(arguments);
        // What `status` says of the switch is in its exit status: 1 for problems, 3 for a dataplane that is down.
        let is_status = arguments.trim_start_matches("--json ") == "status" && o.status.code() != Some(2);
        assert!(o.status.success() || is_status, "dunlin {arguments}: {}{}", text(&o.stderr), self.logs());
        text(&o.stdout)
    }

    /// Runs `dunlin`, which should refuse, and gives its reason.
    pub fn refused(&self, arguments: &str) -> String {
        let o = self.try_dunlin(arguments);
        assert!(!o.status.success(), "dunlin {arguments} should be refused: {}", text(&o.stdout));
        text(&o.stderr)
    }

    pub fn try_dunlin(&self, arguments: &str) -> Output {
        Command::new(binary("dunlin"))
            .args(["--control", &self.path("control.sock")])
            .args(arguments.split_whitespace())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Applies a file with this content.
    pub fn apply(&self, toml: &str) -> Output {
        let file = self.path("apply.toml");
        std::fs::write(&file, toml).unwrap();
        self.try_dunlin(&format!("apply -f {file}"))
    }

    pub fn json(&self, arguments: &str) -> serde_json::Value {
        serde_json::from_str(&self.dunlin(&format!("--json {arguments}"))).expect("JSON")
    }

    /// The dataplane's report of a port.
    pub fn port(&self, name: &str) -> serde_json::Value {
        self.json(&format!("port show {name}"))["state"].clone()
    }

    /// The page that Prometheus scrapes.
    pub fn metrics(&self) -> String {
        sh(&format!("curl -sf http://127.0.0.1:{}/metrics", self.metrics_port))
    }

    /// A count of a port, as "rx_frames".
    pub fn count(&self, port: &str, counter: &str) -> u64 {
        self.port(port)["counters"][counter].as_u64().unwrap()
    }

    /// Frames dropped at a port for a reason.
    pub fn drops(&self, port: &str, reason: &str) -> u64 {
        let port = self.port(port);
        let drops = port["counters"]["drops"].as_array().unwrap();
        drops.iter().find(|d| d["reason"] == reason).unwrap_or_else(|| panic!("no reason {reason}"))["frames"]
            .as_u64()
            .unwrap()
    }

    /// Waits until a port is up.
    pub fn wait_up(&self, port: &str) {
        eventually(&format!("port {port} is up"), 30.0, || self.port(port)["up"] == true);
    }

    /// Adds a `host` port for a namespace and waits until it is up.
    pub fn add_host(&self, name: &str, ns: &crate::net::Netns, options: &str) {
        self.dunlin(&format!("port add {name} --kind host --interface {} {options}", ns.outside));
        self.wait_up(name);
    }

    /// Received + cloned = transmitted + dropped + held, over all ports there are and were; and no worker has allocated.
    pub fn check_conservation(&self) {
        // Frames may be on their way while the report is made: it must come true soon.
        eventually("received + cloned = transmitted + dropped + held", 5.0, || {
            let state = self.json("status")["dataplane"].clone();
            let ports = state["ports"].as_array().unwrap().iter().map(|p| &p["counters"]);
            // Frames in tunnels count at the VTEP and at the remote too.
            let empty = Vec::new();
            let vteps = state["vteps"].as_array().unwrap_or(&empty);
            let remotes = vteps.iter().flat_map(|v| v["remotes"].as_array().unwrap()).map(|r| &r["counters"]);
            let vteps = vteps.iter().map(|v| &v["counters"]);
            let all: Vec<_> = ports.chain([&state["removed_ports"]]).chain(vteps).chain(remotes).collect();
            let sum = |key: &str| all.iter().map(|c| c[key].as_u64().unwrap()).sum::<u64>();
            let dropped: u64 =
                all.iter().flat_map(|c| c["drops"].as_array().unwrap()).map(|d| d["frames"].as_u64().unwrap()).sum();
            let workers = state["workers"].as_array().unwrap();
            let held: u64 = workers.iter().map(|w| w["held_frames"].as_u64().unwrap()).sum();
            for w in workers {
                assert_eq!(w["allocations"], 0, "worker on core {}", w["core"]);
            }
            sum("rx_frames") + sum("clones") == sum("tx_frames") + dropped + held
        });
    }
}

fn kill(child: Option<Child>) {
    let mut child = child.expect("it runs");
    child.kill().unwrap();
    child.wait().unwrap();
}

impl Drop for Host {
    fn drop(&mut self) {
        let alive = self.dataplane.is_some() && self.control.is_some();
        if alive && !std::thread::panicking() {
            self.check_conservation();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        let panicked = self.logs().contains("panicked at");
        for mut c in [self.control.take(), self.dataplane.take()].into_iter().flatten() {
            // Politely, so that what the dataplane made is taken down.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(c.id() as i32), nix::sys::signal::SIGTERM);
            let mut left = 600;
            while left > 0 && matches!(c.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(50));
                left -= 1;
            }
            let _ = c.kill();
            let _ = c.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
        assert!(std::thread::panicking() || !panicked, "a process of the switch panicked");
    }
}
