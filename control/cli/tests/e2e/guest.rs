//! QEMU guests, driven through their serial console.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::net::PATIENCE;

pub struct Guest {
    name: String,
    child: Child,
    console: UnixStream,
    /// Printed, and not looked at yet.
    unread: Vec<u8>,
}

fn script() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs/demo/guest/run.sh")
}

fn image() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/guest")
}

impl Guest {
    /// Starts a guest on `socket`; it boots once the switch is there. `options` are run.sh's.
    pub fn start(name: &str, socket: &str, options: &str) -> Guest {
        let console = format!("{socket}.console");
        let child = Command::new(script())
            .args(["--name", name, "--socket", socket, "--console", &format!("unix:{console}")])
            .args(["--image", &image().display().to_string()])
            .args(options.split_whitespace())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("run.sh is there");
        let begun = Instant::now();
        let console = loop {
            match UnixStream::connect(&console) {
                Ok(c) => break c,
                Err(e) => assert!(begun.elapsed().as_secs() < 20 * u64::from(PATIENCE), "console of {name}: {e}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Guest { name: name.into(), child, console, unread: Vec::new() }
    }

    /// Waits until it is up.
    pub fn ready(mut self) -> Guest {
        self.read_until(&format!("DUNLIN-GUEST-READY {}", self.name), 120);
        self.read_until(&self.prompt(), 30);
        self.run("stty -echo");
        self
    }

    fn prompt(&self) -> String {
        format!("{}# ", self.name)
    }

    fn read_until(&mut self, mark: &str, seconds: u64) -> String {
        let seconds = seconds * u64::from(PATIENCE);
        self.console.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut last = Instant::now();
        loop {
            let text = String::from_utf8_lossy(&self.unread).into_owned();
            if let Some(at) = text.find(mark) {
                let (before, after) = text.split_at(at + mark.len());
                self.unread = after.as_bytes().to_vec();
                return before.to_owned();
            }
            // Without any progress for so long.
            assert!(last.elapsed().as_secs() < seconds, "guest {}: no '{mark}': {text}", self.name);
            let mut part = [0; 4096];
            if let Ok(n @ 1..) = self.console.read(&mut part) {
                last = Instant::now();
                self.unread.extend_from_slice(&part[..n]);
            }
        }
    }

    /// Runs a command in it and gives what it printed.
    pub fn run(&mut self, command: &str) -> String {
        // The mark is put together by the guest's shell: an echo of the command does not have it.
        self.console.write_all(format!("{command}; echo D''ONE\n").as_bytes()).unwrap();
        let out = self.read_until("DONE", 120);
        self.read_until(&self.prompt(), 30);
        out.replace("DONE", "")
    }

    /// Whether `address` answers one of `tries` pings.
    pub fn reaches(&mut self, address: &str, tries: u32) -> bool {
        (0..tries).any(|_| self.run(&format!("ping -c 1 -W 1 {address}")).contains(" 0% packet loss"))
    }

    /// Ends it at once, as a crash of QEMU would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
