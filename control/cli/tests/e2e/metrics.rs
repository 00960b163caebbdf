//! The metrics page: promtool's opinion, a real Prometheus, and the same numbers as the CLI.

use std::process::{Command, Stdio};

use crate::{
    host::Host,
    net::{Background, Netns, eventually, sh},
};

fn value(page: &str, series: &str) -> Option<f64> {
    page.lines().find_map(|l| l.strip_prefix(series)?.trim().parse().ok())
}

#[test]
fn every_counter_of_the_cli_is_there_with_the_same_number() {
    let (a, b) = (Netns::with_address("10.4.0.1/24"), Netns::with_address("10.4.0.2/24"));
    let host = Host::start();
    host.add_host("a", &a, "--vlan 10");
    host.add_host("b", &b, "--vlan 10");
    assert!(a.reaches("10.4.0.2", 3));
    a.send("--tags 8100:0007 --count 7");
    let page = host.metrics();
    for name in ["a", "b"] {
        let port = host.port(name);
        for (field, series) in [
            ("rx_frames", "receive_frames"),
            ("rx_bytes", "receive_bytes"),
            ("tx_frames", "transmit_frames"),
            ("tx_bytes", "transmit_bytes"),
            ("clones", "cloned_frames"),
        ] {
            let series = format!("dunlin_port_{series}_total{{port=\"{name}\"}}");
            assert_eq!(value(&page, &series), port["counters"][field].as_f64(), "{series}");
        }
        for d in port["counters"]["drops"].as_array().unwrap() {
            let (direction, reason) = (d["direction"].as_str().unwrap(), d["reason"].as_str().unwrap());
            let series = format!(
                "dunlin_port_dropped_frames_total{{direction=\"{direction}\",port=\"{name}\",reason=\"{reason}\"}}"
            );
            assert_eq!(value(&page, &series), d["frames"].as_f64(), "{series}");
        }
    }
    let dropped = "dunlin_port_dropped_frames_total{direction=\"rx\",port=\"a\",reason=\"ingress_vlan\"}";
    assert_eq!(value(&page, dropped), Some(7.0));
    assert_eq!(value(&page, "dunlin_dataplane_up"), Some(1.0));
    assert_eq!(value(&page, "dunlin_transactions_total{result=\"applied\"}"), Some(2.0));
    host.refused("port add a --kind tap");
    host.refused("port add x --kind host --interface nope0");
    let page = host.metrics();
    assert_eq!(value(&page, "dunlin_transactions_total{result=\"refused\"}"), Some(1.0));
}

#[test]
fn promtool_approves_and_prometheus_scrapes() {
    let (a, b) = (Netns::with_address("10.4.1.1/24"), Netns::with_address("10.4.1.2/24"));
    let mut host = Host::start();
    host.add_host("a", &a, "");
    host.add_host("b", &b, "");
    assert!(a.reaches("10.4.1.2", 3));
    std::fs::write(host.path("page"), host.metrics()).unwrap();
    assert_eq!(sh(&format!("promtool check metrics < {} 2>&1", host.path("page"))), "");
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: dunlin\n  static_configs: [{{targets: ['127.0.0.1:{}']}}]\n",
        host.metrics_port
    );
    std::fs::write(host.path("prometheus.yml"), config).unwrap();
    let web = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let prometheus = Command::new("prometheus")
        .arg(format!("--config.file={}", host.path("prometheus.yml")))
        .arg(format!("--storage.tsdb.path={}", host.path("tsdb")))
        .arg(format!("--web.listen-address=127.0.0.1:{web}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("prometheus is installed");
    let _prometheus = Background(Some(prometheus));
    let query =
        |q: &str| sh(&format!("curl -s -G --data-urlencode 'query={q}' http://127.0.0.1:{web}/api/v1/query || true"));
    eventually("prometheus has the frames", 40.0, || {
        let found = query("dunlin_port_receive_frames_total{port=\"a\"} > 0");
        found.contains("\"port\":\"a\"")
    });
    host.kill_dataplane();
    eventually("prometheus knows that the dataplane is down", 20.0, || {
        query("dunlin_dataplane_up == 0").contains("dunlin_dataplane_up")
    });
}

#[test]
fn watchers_see_ports_guests_and_addresses() {
    let (a, b) = (Netns::new(), Netns::new());
    let mut host = Host::start();
    host.dunlin("bridge add br0 --ageing 1");
    host.add_host("a", &a, "");
    let out = std::fs::File::create(host.path("events")).unwrap();
    let watcher = Command::new(crate::host::binary("dunlin"))
        .args(["--control", &host.path("control.sock"), "--json", "watch"])
        .stdout(out)
        .spawn()
        .unwrap();
    let _watcher = Background(Some(watcher));
    let events = host.path("events");
    let seen = |what: &str| std::fs::read_to_string(&events).unwrap().contains(what);
    eventually("the watcher listens", 5.0, || {
        host.dunlin("port add first --kind nic --device net_null9,no-rx=1");
        host.dunlin("port del first");
        seen("\"port\":\"first\"")
    });
    host.add_host("b", &b, "");
    eventually("the port is told", 5.0, || seen("\"port\":{\"port\":\"b\",\"kind\":\"added\"}"));
    a.send("--src 52:54:00:00:00:05");
    let at = |port: &str| format!("\"mac\":\"52:54:00:00:00:05\",\"port\":\"{port}\"");
    eventually("the address is told", 5.0, || {
        seen(&format!("\"learned\":{{\"bridge\":\"br0\",\"vlan\":0,{}", at("a")))
    });
    b.send("--src 52:54:00:00:00:05");
    eventually("the move is told", 5.0, || seen("\"mac\":\"52:54:00:00:00:05\",\"from\":\"a\",\"to\":\"b\""));
    eventually("its end is told", 8.0, || seen(&format!("\"aged\":{{\"bridge\":\"br0\",\"vlan\":0,{}", at("b"))));
    sh(&format!("ip link set {} down", b.outside));
    eventually("the link is told", 5.0, || seen("{\"port\":\"b\",\"kind\":\"down\"}"));
    let socket = host.path("g.sock");
    host.dunlin(&format!("port add g --kind vhost-user --server --socket {socket}"));
    sh(&format!("{} {socket} 1", crate::net::hostile()));
    eventually("the guest is told", 5.0, || seen("\"guest\":{\"port\":\"g\",\"connected\":true,\"running\":true}"));
    host.kill_dataplane();
    eventually("the dataplane's end is told", 5.0, || seen("\"dataplane\":{\"up\":false}"));
    host.start_dataplane();
    eventually("and its return", 5.0, || seen("\"dataplane\":{\"up\":true}"));
    assert!(!seen("\"unix_ms\":0"));
}
