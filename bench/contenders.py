"""Who is measured: Dunlin, DPDK's testpmd and Open vSwitch, each on the ports of a case.

A contender has
    needs       the files and programs that must be there
    memory_mb   hugepages that a case takes; None if it cannot have so many frames
    settle_s    seconds it takes beyond the usual warm-up
    start       brings it to forwarding between the case's ports
    sample      cumulative cycles of the workers, frames they received, frames they sent
"""

import contextlib
import ctypes
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from scenarios import OTHER_VTEP, OWN_VTEP, VNI, mac

OVS_SWITCHD = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
OVS_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
LIBC, PR_SET_PDEATHSIG = ctypes.CDLL(None), 1


class Failed(Exception):
    """A contender could not be measured; the text says why."""


def tsc_reader():
    """A function that reads the time-stamp counter, the unit of all cycles here."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(bytes.fromhex("0f31" "48c1e220" "4809d0" "c3"))  # rdtsc; shl rdx,32; or rax,rdx; ret
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    read.code = code  # lives as long as the function
    return read


tsc = tsc_reader()


class Run:
    """One contender at work: its processes and its folder, all gone at the end of the block."""

    def __init__(self, folder, case, core, other_core, hugepages):
        self.core, self.other_core, self.hugepages, self.processes = core, other_core, hugepages, []
        # The second worker shares its core with everything that is not measured.
        self.workers = [core, other_core][:case.workers]
        self.dir = Path(tempfile.mkdtemp(dir=folder))
        self.env = {**os.environ, "OVS_RUNDIR": str(self.dir)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for p in reversed(self.processes):
            p.terminate()
            try:
                p.wait(15)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()
        shutil.rmtree(self.dir)

    def daemon(self, *command, ready, stdin=subprocess.DEVNULL):
        """Starts a process that stays, its output in a log, and waits until `ready()`."""
        log = self.dir / f"{len(self.processes)}.log"
        with open(log, "wb") as out:
            # A session of its own: Ctrl-C is for the script, which ends its processes in order.
            p = subprocess.Popen([str(c) for c in command], stdin=stdin, stdout=out, stderr=out, env=self.env,
                                 cwd=self.dir, start_new_session=True,
                                 preexec_fn=self.child)
        self.processes.append(p)
        p.log = log
        self.wait(p, ready)
        return p

    def child(self):
        os.sched_setaffinity(0, {self.core, self.other_core})
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # it ends with the script, however that ends

    def wait(self, process, ready, seconds=60):
        """Until `ready()`; a process that ends or takes too long is a failure."""
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            if ready():
                return
            time.sleep(0.02)
        words = process.log.read_text(errors="replace").strip().splitlines()[-3:]
        raise Failed(f"{process.args[0]} is not ready; its last words: {' | '.join(words) or 'none'}")

    def call(self, *command):
        """Runs a command to its end; its output."""
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120,
                              env=self.env, start_new_session=True)
        if done.returncode != 0:
            raise Failed(f"{Path(command[0]).name}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def confine(self):
        """Moves every thread that is not pinned to the measured core off it. Those that are."""
        workers = []
        for p in self.processes:
            for task in Path(f"/proc/{p.pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    pinned = os.sched_getaffinity(int(task.name))
                    if pinned == {self.core}:
                        workers.append(task)
                    elif len(self.workers) > 1 and len(pinned) == 1:
                        continue
                    else:
                        os.sched_setaffinity(int(task.name), {self.other_core})
        return workers


def with_files_mb(case):
    """The driver keeps every frame of its file in a buffer; not all of the memory is for buffers."""
    return 256 + case.frames * 4 // 1024


class Dunlin:
    def __init__(self, binaries):
        self.needs = [str(binaries / b) for b in ("dunlin-dataplane", "dunlin-control", "dunlin")]
        self.options = []  # of the dataplane, in place of the usual ones

    memory_mb, settle_s = staticmethod(with_files_mb), staticmethod(lambda case: case.settle)

    def start(self, run, case):
        dataplane, control, self.cli = self.needs
        api, self.socket = run.dir / "dataplane.sock", run.dir / "control.sock"
        huge = [] if run.hugepages else ["--no-huge"]
        cores = ",".join(map(str, run.workers))
        options = self.options or ["--mac-table-size", 1_000_000]
        if case.sessions:
            # Half of them are unanswered for a moment: an eighth of the table may be.
            options = [*options, "--session-table-size", max(65_536, case.sessions)]
        # Its devices read files; guests' sockets are in the folder above the run's.
        run.daemon(dataplane, "--cores", cores, "--memory", self.memory_mb(case), *huge, "--socket", api, "--any-device",
                   "--vhost-dir", run.dir.parent, *options, ready=api.exists)
        run.daemon(control, "--socket", self.socket, "--dataplane", api, "--store", run.dir / "state.redb",
                   "--metrics", "127.0.0.1:0", ready=lambda: self.socket.exists() and self.status(run)["dataplane_up"])
        nic, guest = 'kind = "nic"\nqueues = {}\ndevice = "{}"', 'kind = "vhost-user"\nsocket = "{1}"'
        kind = guest if case.guests else nic
        def words(p):
            return p.kind[0].format(device=p.device) if p.kind else kind.format(p.queues, p.device)

        filtered = type(self) is Dunlin
        ports = [f'[[port]]\nname = "p{i}"\n{words(p)}\n{p.dunlin}\n{p.filter if filtered else ""}\n'
                 for i, p in enumerate(case.ports)]
        if filtered and case.filter:
            most = max(65_536, case.sessions)
            sessions = f"[sessions]\nport_max = {most}\nunanswered_max = {most}\n"
            ports.append(case.filter + (sessions if case.sessions else ""))
        if case.tunnel:
            ports = [ports[0] + ('network = "blue"\n' if type(self) is Dunlin else ""), ports[1] + "mtu = 1600\n",
                     self.TUNNEL.replace("MORE", "".join(f', "10.0.0.{n}"' for n in range(3, 2 + case.remotes)))]
            ports += [f'[[neighbor]]\naddress = "10.0.0.{n}"\nmac = "02:fe:00:00:00:{n:02x}"\n'
                      for n in range(3, 2 + case.remotes)]
        (run.dir / "bench.toml").write_text(f'[dataplane]\nidle = "{case.idle}"\n' + "".join(ports))
        run.call(self.cli, "--control", self.socket, "apply", "--yes", "-f", run.dir / "bench.toml")

    def status(self, run):
        return json.loads(run.call(self.cli, "--control", self.socket, "--json", "status"))

    def driver(self, run, kind):
        return self.status(run)["dataplane"]["ports"][0]["driver"]

    def sample(self, run):
        state = self.status(run)["dataplane"]
        if errors := [p["error"] for p in state["ports"] if p["error"]]:
            raise Failed(errors[0])
        cycles, frames = (sum(w[k] for w in state["workers"]) for k in ("busy_cycles", "frames"))
        return cycles, frames, sum(p["counters"]["tx_frames"] for p in state["ports"])


    TUNNEL = f"""
[[vtep]]
name = "v"
uplink = "p1"
address = "{OWN_VTEP[0]}/24"
mac = "{OWN_VTEP[1].hex(":")}"
[[neighbor]]
address = "{OTHER_VTEP[0]}"
mac = "{OTHER_VTEP[1].hex(":")}"
[[mac]]
mac = "{OTHER_VTEP[1].hex(":")}"
port = "p1"
[[network]]
name = "blue"
vni = {VNI}
remotes = ["{OTHER_VTEP[0]}"MORE]
[[mac]]
network = "blue"
mac = "{mac(1, 0).hex(":")}"
port = "v/{OTHER_VTEP[0]}"
[[mac]]
network = "blue"
mac = "{mac(0, 0).hex(":")}"
port = "p0"
"""


class Plain(Dunlin):
    """Dunlin on the frames of a tunnel's case, without the tunnel."""

    TUNNEL = f"""
[[mac]]
mac = "{mac(1, 0).hex(":")}"
port = "p1"
[[mac]]
mac = "{OWN_VTEP[1].hex(":")}"
port = "p0"
"""


class Testpmd:
    needs = ["dpdk-testpmd", "stdbuf"]

    def __init__(self, mode):
        self.mode = mode

    memory_mb, settle_s = staticmethod(with_files_mb), staticmethod(lambda case: 0)

    def start(self, run, case):
        memory = ["--in-memory"] if run.hugepages else ["--no-huge", "--no-shconf", "-m", self.memory_mb(case)]
        vdevs = [a for p in case.ports for a in ("--vdev", p.device)]
        self.prompt = lambda: b"testpmd>" in self.output()
        self.output = lambda: (run.dir / "0.log").read_bytes()
        # stdbuf: line by line, or what it prints into a file comes late.
        self.process = run.daemon(
            "stdbuf", "-oL", "dpdk-testpmd", f"--lcores=0@{run.other_core},1@{run.core}", "--no-pci", "--no-telemetry",
            *memory, *vdevs, "--", "--interactive", "--auto-start", "--nb-cores=1", "--no-flush-rx",
            f"--forward-mode={self.mode}", f"--total-num-mbufs={case.frames + 16384}",
            ready=self.prompt, stdin=subprocess.PIPE)

    def sample(self, run):
        seen, now = len(self.output()), tsc()  # one core that never idles: its cycles are the counter's
        self.process.stdin.write(b"show port stats all\n")
        self.process.stdin.flush()

        def counts(which):
            return [int(n) for n in re.findall(rf"{which}-packets: *(\d+)".encode(), self.output()[seen:])]

        run.wait(self.process, lambda: len(counts("TX")) == 2)
        return now, sum(counts("RX")), sum(counts("TX"))


class OpenVSwitch:
    needs = ["ovsdb-server", "ovsdb-tool", "ovs-vsctl", "ovs-ofctl", "ovs-appctl", "unshare", OVS_SWITCHD, OVS_SCHEMA]

    def memory_mb(self, case):
        # Its pool has 262,144 buffers at most, whatever the memory.
        return 1024 if case.frames <= 250_000 else None

    def settle_s(self, case):
        # It sets up a flow for every pair of addresses, one by one.
        return case.frames / 20_000 + case.settle

    def start(self, run, case):
        if not run.hugepages:
            raise Failed("it does not start without hugepages")
        self.db, self.control = f"unix:{run.dir}/db.sock", run.dir / "switchd.ctl"
        run.call("ovsdb-tool", "create", run.dir / "conf.db", OVS_SCHEMA)
        run.daemon("ovsdb-server", run.dir / "conf.db", f"--remote=p{self.db}", f"--unixctl={run.dir}/ovsdb.ctl",
                   ready=(run.dir / "db.sock").exists)
        self.vsctl(run, "--no-wait", "--", "init", "--", "set", "Open_vSwitch", ".", "other_config:dpdk-init=true",
                   'other_config:dpdk-extra="--no-pci --no-telemetry --in-memory"',
                   f"other_config:pmd-cpu-mask={sum(1 << c for c in run.workers):#x}")
        # In a network namespace of its own: its bridge's kernel interface is nobody else's business. But
        # where its ports are interfaces of this one.
        apart = [] if any(p.kind for p in case.ports) else ["unshare", "--net"]
        run.daemon(*apart, OVS_SWITCHD, self.db, f"--unixctl={self.control}", ready=self.control.exists)
        kind = ("type=dpdkvhostuserclient", 'options:vhost-server-path="{}"') if case.guests else (
            "type=dpdk", 'options:dpdk-devargs="{}"')
        if case.tunnel:
            return self.start_tunnel(run, case)
        names = self.names(case)
        ports = [a for n, p in zip(names, case.ports) for a in (
            "--", "add-port", "bench", n, *p.ovs, "--", "set", "interface", n,
            *(("type=tap",) if "tap" in p.kind else (kind[0], kind[1].format(p.device), f"options:n_rxq={p.queues}")))]
        # No flow but the default one, NORMAL: learning and forwarding.
        self.vsctl(run, "--timeout=60", "add-br", "bench", "--", "set", "bridge", "bench", "datapath_type=netdev",
                   "other_config:mac-table-size=1000000", *ports)
        if case.flows:
            (run.dir / "flows").write_text("\n".join(case.flows) + "\n")
            ofctl = ["ovs-ofctl", "-O", "OpenFlow14", "--bundle"]
            run.call(*ofctl, "del-flows", "bench")
            run.call(*ofctl, "add-flows", "bench", run.dir / "flows")
        for name in names:
            if (error := self.vsctl(run, "get", "interface", name, "error").strip()) != "[]":
                raise Failed(error)

    def start_tunnel(self, run, case):
        """Two bridges, the guest's and the underlay's; the VTEP's address is that of the second's interface."""
        guest, uplink = (p.device for p in case.ports)
        # The first digits of a locally administered address, which it takes as it is.
        own, other = OWN_VTEP[1].hex(":"), OTHER_VTEP[1].hex(":")
        self.vsctl(run, "--timeout=60", "add-br", "under", "--", "set", "bridge", "under", "datapath_type=netdev",
                   f'other_config:hwaddr="{own}"', "--", "add-port", "under", "p1", "--", "set", "interface", "p1",
                   "type=dpdk", f'options:dpdk-devargs="{uplink}"', "mtu_request=1600", "--", "add-br", "bench", "--",
                   "set", "bridge", "bench", "datapath_type=netdev", "--", "add-port", "bench", "p0", "--", "set",
                   "interface", "p0", "type=dpdk", f'options:dpdk-devargs="{guest}"', "--", "add-port", "bench", "vx",
                   "--", "set", "interface", "vx", "type=vxlan", f"options:remote_ip={OTHER_VTEP[0]}",
                   f"options:key={VNI}")
        inside = ["nsenter", "-t", run.processes[-1].pid, "-n", "ip"]
        run.call(*inside, "addr", "add", f"{OWN_VTEP[0]}/24", "dev", "under")
        run.call(*inside, "link", "set", "under", "up")
        appctl = ["ovs-appctl", "--timeout=60", "-t", self.control]
        run.call(*appctl, "tnl/neigh/set", "under", OTHER_VTEP[0], other)

    def names(self, case):
        # A tap interface has its port's name.
        return [p.device if "tap" in p.kind else f"p{i}" for i, p in enumerate(case.ports)]

    def vsctl(self, run, *args):
        return run.call("ovs-vsctl", f"--db={self.db}", *args)

    def driver(self, run, kind):
        return "af_xdp" if kind == "host" else "tap"

    def sample(self, run):
        appctl = ["ovs-appctl", "--timeout=60", "-t", self.control]
        worker = run.call(*appctl, "dpif-netdev/pmd-stats-show").split("main thread:")[0]
        busy = re.findall(r"avg processing cycles per packet: \S+ \((\d+)/(\d+)\)", worker)
        if not busy:
            raise Failed("no frame was received")
        cycles, frames = (sum(int(b[i]) for b in busy) for i in (0, 1))
        sent = re.findall(r"TX packets:(\d+)", run.call(*appctl, "dpctl/show", "-s"))
        return cycles, frames, sum(map(int, sent))


class Guests:
    """Two guests in one testpmd: virtio-user ports that send to each other as fast as they can, on the
    other core. They serve the sockets; the switch connects."""

    MEMORY_MB = 512

    def __init__(self, run, case):
        self.run = run
        macs = [f"52:54:00:00:00:0{i}" for i in (1, 2)]
        vdevs = [a for i, s in enumerate(case.guests) for a in (
            "--vdev", f"net_virtio_user{i},path={s},server=1,queues=1,queue_size=1024,mac={macs[i]}")]
        peers = [f"--eth-peer={i},{macs[1 - i]}" for i in (0, 1)]
        log = run.dir / "guests.log"
        self.output = lambda: log.read_bytes()
        # It waits for the switch at the first socket before it makes the second: ready is asked for later.
        self.process = run.daemon(
            "stdbuf", "-oL", "dpdk-testpmd", f"--lcores=0@{run.other_core},1@{run.other_core}", "--no-pci",
            "--no-telemetry", "--in-memory", "--single-file-segments", "-m", self.MEMORY_MB // 2, *vdevs, "--",
            "--interactive", "--nb-cores=1", "--forward-mode=flowgen", f"--txpkts={case.size}", *peers,
            "--total-num-mbufs=16384", ready=case.guests[0].exists, stdin=subprocess.PIPE)
        log.symlink_to(self.process.log)

    def tell(self, command):
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def start(self):
        self.run.wait(self.process, lambda: b"testpmd>" in self.output())
        self.tell("start")

    def received(self):
        """Frames that both got."""
        seen = len(self.output())
        self.tell("show port stats all")

        def counts():
            return [int(n) for n in re.findall(rb"RX-packets: *(\d+)", self.output()[seen:])]

        self.run.wait(self.process, lambda: len(counts()) == 2)
        return sum(counts())
