//! The contract between control and dataplane, with the real `dunlin-control` and a dataplane that does what a script
//! says. What these tests want: whatever happens, what control says is in force is what the dataplane holds.

#![allow(missing_docs, reason = "tests")]

mod fake;

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use dunlin_control_api::{
    Client, connect,
    model::{
        Objects,
        v1::{Acl, AddressSet, Bridge, Config, Key, Port},
    },
    parts,
    v1::{Change, ConfigRequest, ConfirmRequest, Plan, RollbackRequest, Status, StatusRequest, WatchConfigRequest},
};
use fake::{Fake, Fate, set_ports};

struct Control {
    folder: PathBuf,
    process: Child,
    client: Client,
}

impl Control {
    /// Control beside a fake dataplane, in step with it.
    async fn start(test: &str) -> (Self, Fake) {
        let folder = std::env::temp_dir().join(format!("dunlin-contract-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let fake = Fake::start(&folder.join("dataplane.sock"));
        let process = Self::spawn(&folder);
        let client = Self::connect(&folder).await;
        let mut control = Control { folder, process, client };
        control.in_step(&fake).await;
        (control, fake)
    }

    fn spawn(folder: &std::path::Path) -> Child {
        let path = |file: &str| folder.join(file).display().to_string();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path("control.log")).unwrap();
        Command::new(env!("CARGO_BIN_EXE_dunlin-control"))
            .args(["--socket", &path("control.sock"), "--dataplane", &path("dataplane.sock")])
            .args(["--store", &path("state.redb"), "--metrics", "off"])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    async fn connect(folder: &std::path::Path) -> Client {
        loop {
            match connect(&folder.join("control.sock")).await {
                Ok(c) => return c,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = Self::spawn(&self.folder);
        self.client = Self::connect(&self.folder).await;
    }

    async fn status(&mut self) -> Status {
        self.client.get_status(StatusRequest {}).await.unwrap().into_inner()
    }

    async fn config(&mut self) -> Config {
        let parts = self.client.get_config(ConfigRequest::default()).await.unwrap().into_inner();
        Objects::of(parts::join(parts, &dunlin_control_api::parts::CHANGES).await.unwrap().objects).config()
    }

    async fn try_set(&mut self, config: Config) -> Result<Plan, tonic::Status> {
        self.change(Change { set: config.into_objects(), ..Default::default() }).await
    }

    async fn change(&mut self, change: Change) -> Result<Plan, tonic::Status> {
        Ok(self.client.apply(tokio_stream::iter(parts::split(change))).await?.into_inner())
    }

    async fn set(&mut self, config: Config) -> Plan {
        self.try_set(config).await.unwrap()
    }

    /// Waits until nothing is pending, and the dataplane holds the ports, bridges and lists that control says.
    async fn in_step(&mut self, fake: &Fake) {
        let begun = Instant::now();
        loop {
            let s = self.status().await;
            if s.dataplane_up && s.pending.is_empty() {
                let config = self.config().await;
                let h = fake.held();
                let ports: Vec<&String> = config.port.iter().map(|p| &p.name).collect();
                let acls: Vec<&String> = config.acl.iter().map(|a| &a.name).collect();
                if h.ports.keys().eq(ports) && h.acls.keys().eq(acls) {
                    for p in &config.port {
                        assert_eq!(h.ports[&p.name].egress_acls, p.egress_acls, "port {}", p.name);
                    }
                    return;
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{s:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("control.log")).unwrap_or_default()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn port(name: &str) -> Port {
    Port { name: name.into(), kind: "tap".into(), ..Default::default() }
}

fn ports(ports: &[Port]) -> Config {
    Config { port: ports.to_vec(), ..Default::default() }
}

fn bridge(name: &str) -> Config {
    Config { bridge: vec![Bridge { name: name.into(), ..Default::default() }], ..Default::default() }
}

/// A change runs into the deadline and fails afterwards: the next one must not be applied on top of it as if it was there.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_fails_late_is_not_taken_for_installed() {
    let (mut control, fake) = Control::start("late").await;
    control.set(ports(&[port("web")])).await;
    fake.next(Fate::LateFailure(Duration::from_secs(14)));
    let with_list = Config {
        acl: vec![Acl { name: "none".into(), ..Default::default() }],
        port: vec![Port { egress_acls: vec!["none".into()], ..port("web") }, port("slow")],
        ..Default::default()
    };
    let plan = control.set(with_list).await;
    assert!(!plan.in_force && plan.pending.contains("port 'slow'"), "{plan:?}");
    let status = control.status().await;
    assert!(status.pending.contains("port 'slow'"), "{status:?}");
    control.set(bridge("harmless")).await;
    control.in_step(&fake).await;
    assert!(fake.held().acls.contains_key("none") && fake.held().bridges.contains_key("harmless"));
    assert!(control.log().contains("is not in force"), "{}", control.log());
}

/// Something else than control changed the dataplane: nothing is applied on top of that, everything is sent.
#[tokio::test(flavor = "multi_thread")]
async fn another_base_is_refused_and_everything_sent() {
    let (mut control, fake) = Control::start("base").await;
    control.set(ports(&[port("a"), port("b")])).await;
    {
        let mut h = fake.held();
        h.generation = 4711;
        h.ports.remove("b");
    }
    let plan = control.set(ports(&[port("c")])).await;
    assert!(plan.in_force, "{plan:?}");
    control.in_step(&fake).await;
    assert!(fake.held().seen.iter().any(|t| t.replace && t.base_generation == Some(4711)));
}

/// A refusal changes nothing, on neither side.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_stores_nothing() {
    let (mut control, fake) = Control::start("refusal").await;
    fake.next(Fate::Refuse("port 'a': the device says no"));
    let error = control.try_set(ports(&[port("a")])).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (tonic::Code::InvalidArgument, "port 'a': the device says no"));
    assert!(control.config().await.port.is_empty());
    control.in_step(&fake).await;
}

/// An answer that got lost is asked for: the change is in force, and said to be.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_asked_for() {
    let (mut control, fake) = Control::start("answer").await;
    fake.next(Fate::LoseAnswer);
    let plan = control.set(ports(&[port("a")])).await;
    assert!(plan.in_force && plan.pending.is_empty(), "{plan:?}");
    let applied = fake.held().seen.iter().filter(|t| set_ports(t).next().is_some()).count();
    assert_eq!(applied, 1, "it is not sent again");
}

/// A dataplane that hangs leaves control answering, and every change is stored within seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_dataplane_that_hangs_leaves_control_answering() {
    let (mut control, fake) = Control::start("hang").await;
    control.set(ports(&[port("a")])).await;
    fake.freeze(true);
    for name in ["b", "c", "d"] {
        let begun = Instant::now();
        let mut other = control.client.clone();
        let reading = tokio::spawn(async move {
            let begun = Instant::now();
            parts::join(other.get_config(ConfigRequest::default()).await.unwrap().into_inner(), &parts::CHANGES)
                .await
                .unwrap();
            begun.elapsed()
        });
        let plan = control.set(ports(&[port(name)])).await;
        assert!(!plan.in_force && !plan.pending.is_empty(), "{plan:?}");
        assert!(begun.elapsed() < Duration::from_secs(8), "port {name}: {:?}", begun.elapsed());
        assert!(reading.await.unwrap() < Duration::from_secs(1));
    }
    let begun = Instant::now();
    let listed = control.client.list_macs(dunlin_control_api::dataplane::MacFilter::default()).await;
    let failed = match listed {
        Ok(list) => list.into_inner().message().await.is_err(),
        Err(_) => true,
    };
    assert!(failed && begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
    fake.freeze(false);
    control.in_step(&fake).await;
    assert_eq!(fake.held().ports.len(), 4);
}

/// After a restart with fewer cores one port is pinned to a core that is no worker: it is named, and stops nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_problem_of_one_port_stops_nothing_else() {
    let (mut control, fake) = Control::start("cores").await;
    control.set(ports(&[Port { workers: vec![2], ..port("pinned") }, port("other")])).await;
    fake.held().cores = vec![1];
    fake.restart();
    // Its connection stays, so control finds out by the generation.
    control.in_step(&fake).await;
    let problems = |s: &Status| s.dataplane.clone().unwrap().info.unwrap().problems;
    let s = control.status().await;
    assert_eq!(problems(&s)[0].name, "pinned");
    assert!(control.log().contains("port 'pinned': workers: core 2 is no worker"), "{}", control.log());
    // It is tried again all the time, alone.
    let retried = || fake.held().seen.iter().filter(|t| t.per_object && !t.replace && t.set.len() == 1).count();
    let begun = Instant::now();
    while retried() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", control.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // And can be mended.
    let plan = control.set(ports(&[port("pinned")])).await;
    assert!(plan.in_force && plan.problems.is_empty(), "{plan:?}");
    assert!(problems(&control.status().await).is_empty());
}

/// 100,000 rules of 400 octets: more than any message may have. What is accepted comes back after restarts of both.
#[tokio::test(flavor = "multi_thread")]
async fn forty_mebibytes_are_restored() {
    let (mut control, fake) = Control::start("large").await;
    let rule = |i: usize| format!("allow tcp from 10.0.0.0/8 to any port {}{}", i % 60_000 + 1, " ".repeat(360));
    let list = |n: usize| Acl { name: format!("a{n}"), rules: (0..10_000).map(rule).collect(), ..Default::default() };
    for n in 0..10 {
        control.set(Config { acl: vec![list(n)], ..Default::default() }).await;
    }
    assert!(control.set(ports(&[port("p")])).await.in_force);
    let size = |c: &Config| c.acl.iter().flat_map(|a| &a.rules).map(String::len).sum::<usize>();
    assert!(size(&control.config().await) > 38 << 20);
    fake.restart();
    control.restart().await;
    control.in_step(&fake).await;
    let held: usize = fake.held().acls.values().flat_map(|a| &a.rules).map(String::len).sum();
    assert!(held > 38 << 20, "{held}");
    // What could not be restored is not accepted.
    let long = |n: usize| Acl { rules: vec![format!("allow tcp{}", " ".repeat(1000)); 10_000], ..list(n) };
    let addresses = |n: usize| (0..65_000).map(|i| format!("10.{n}.{}.{}", i >> 8, i & 0xff)).collect();
    let set = |n: usize| AddressSet { name: format!("s{n}"), addresses: addresses(n), ..Default::default() };
    let all = Config { acl: (0..10).map(long).collect(), set: (0..40).map(set).collect(), ..Default::default() };
    let error = control.try_set(all).await.unwrap_err();
    assert!(error.message().contains("at most 128 MiB"), "{error}");
    // What could not be taken back is not made on probation.
    let nothing = Change { replace: true, confirm_s: 60, ..Default::default() };
    let error = control.change(nothing).await.unwrap_err();
    assert!(error.message().contains("too large for the way back"), "{error}");
    assert_eq!(control.config().await.acl.len(), 10);
}

/// A change that is not confirmed in time is taken back, also by a control that was restarted meanwhile; one that is, stays.
#[tokio::test(flavor = "multi_thread")]
async fn an_unconfirmed_change_is_taken_back() {
    let (mut control, fake) = Control::start("confirm").await;
    control.set(ports(&[port("a")])).await;
    let with_confirm =
        |name: &str, confirm_s| Change { set: ports(&[port(name)]).into_objects(), confirm_s, ..Default::default() };
    control.change(with_confirm("kept", 60)).await.unwrap();
    let error = control.try_set(bridge("other")).await.unwrap_err();
    assert!(error.message().contains("waits for 'dunlin confirm'"), "{error}");
    control.client.confirm(ConfirmRequest {}).await.unwrap();
    control.change(with_confirm("gone", 2)).await.unwrap();
    assert!(control.status().await.confirm_left_s.is_some());
    control.restart().await;
    let begun = Instant::now();
    loop {
        let names: Vec<String> = control.config().await.port.into_iter().map(|p| p.name).collect();
        if names == ["a", "kept"] {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{names:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    control.in_step(&fake).await;
    assert!(control.status().await.confirm_left_s.is_none());
}

/// A change is taken back also where the dataplane can't do all of that any more: a device went away meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_taken_back_though_a_device_is_gone() {
    let (mut control, fake) = Control::start("forced").await;
    control.set(ports(&[port("away"), port("stays")])).await;
    let set = ports(&[port("other")]).into_objects();
    control.change(Change { replace: true, set, confirm_s: 2, ..Default::default() }).await.unwrap();
    fake.held().missing = vec!["away"];
    let begun = Instant::now();
    while control.status().await.confirm_left_s.is_some() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", control.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    control.in_step(&fake).await;
    assert!(fake.held().ports.contains_key("stays") && !fake.held().ports.contains_key("other"));
    let problems = control.status().await.dataplane.unwrap().info.unwrap().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].name, "away");
}

/// A watcher of the configuration has at first all of it, then each change; one that knows the revision has changes alone.
#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_can_be_watched() {
    let (mut control, _fake) = Control::start("watch").await;
    let revision = control.set(ports(&[port("a"), port("b")])).await.revision;
    let mut all = control.client.watch_config(WatchConfigRequest::default()).await.unwrap().into_inner();
    let known = WatchConfigRequest { revision: Some(revision) };
    let mut changes = control.client.watch_config(known).await.unwrap().into_inner();
    let first = all.message().await.unwrap().unwrap();
    assert_eq!((first.replace, first.revision, first.set.len(), first.more), (true, revision, 2, false));
    control.set(ports(&[Port { mtu: Some(9000), ..port("a") }])).await;
    for watcher in [&mut all, &mut changes] {
        let c = watcher.message().await.unwrap().unwrap();
        let names: Vec<String> = c.set.iter().map(|o| o.name()).collect();
        assert_eq!((c.replace, c.revision, names, c.delete.len()), (false, revision + 1, vec!["a".to_owned()], 0));
    }
    let delete = vec![Key { kind: "port".into(), name: "b".into() }];
    control.change(Change { delete: delete.clone(), ..Default::default() }).await.unwrap();
    let c = changes.message().await.unwrap().unwrap();
    assert_eq!((c.set.len(), c.delete), (0, delete));
}

/// Any revision that is kept can be gone back to, and from.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_brings_back_what_was() {
    let (mut control, fake) = Control::start("rollback").await;
    let mut configs = vec![control.config().await];
    let steps = [
        ports(&[port("a"), port("b")]),
        ports(&[Port { mtu: Some(9000), ..port("a") }]),
        Config { acl: vec![Acl { name: "x".into(), ..Default::default() }], ..bridge("b1") },
        ports(&[Port { egress_acls: vec!["x".into()], bridge: "b1".into(), ..port("b") }]),
    ];
    for step in steps {
        control.set(step).await;
        configs.push(control.config().await);
    }
    for revision in [2u64, 4, 0, 3, 1] {
        let request = RollbackRequest { revision, command: "test".into() };
        control.client.rollback(request).await.unwrap();
        assert_eq!(control.config().await, configs[revision as usize], "revision {revision}");
        control.in_step(&fake).await;
    }
    let error = control.client.rollback(RollbackRequest { revision: 99, ..Default::default() }).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
}
