//! `dunlin worker`: what each worker core does.

use dunlin_control_api::{
    dataplane::RebalanceRequest,
    v1::{ApplyRequest, Config},
};

use crate::{
    output,
    session::{Session, told},
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// List the workers: load, queues, cycles, over the last second
    #[command(visible_alias = "ls")]
    List,
    /// Say how workers idle
    Set {
        /// adaptive: an idle worker sleeps; poll: it never does
        #[arg(long, value_parser = ["adaptive", "poll"])]
        idle: Option<String>,
        /// Longest sleep of an idle worker, 1 to 10000 µs
        #[arg(long, value_name = "US")]
        max_sleep_us: Option<u32>,
        /// auto: receive queues move to less busy workers by themselves
        #[arg(long, value_parser = ["off", "auto"])]
        rebalance: Option<String>,
    },
    /// Move receive queues from busy workers to idle ones, once
    Rebalance,
}

impl Command {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        if let Command::Set { idle, max_sleep_us, rebalance } = &self {
            let plan = s
                .change(|config| {
                    let mut d = config.dataplane.clone().unwrap_or_default();
                    d.idle = idle.clone().unwrap_or(d.idle);
                    d.rebalance = rebalance.clone().unwrap_or(d.rebalance);
                    d.max_sleep_us = max_sleep_us.or(d.max_sleep_us);
                    let set = Some(Config { dataplane: Some(d), ..Default::default() });
                    Ok(ApplyRequest { set, ..Default::default() })
                })
                .await?;
            return output::plan(&plan, s.json, false);
        }
        if let Command::Rebalance = self {
            let moves = s.client.rebalance(RebalanceRequest {}).await.map_err(|e| told(&e))?.into_inner().moves;
            if s.json {
                return output::json(&moves);
            }
            for m in &moves {
                println!("port {} queue {}: core {} -> {}", m.port, m.queue, m.from_core, m.to_core);
            }
            println!("{} queues moved", moves.len());
            return Ok(());
        }
        let workers = s.state().await?.workers;
        if s.json {
            return output::json(&workers);
        }
        let rows = workers.iter().map(|w| {
            let queues: Vec<String> =
                w.queues.iter().map(|q| format!("{}/{} {}", q.port, q.queue, output::percent(q.share))).collect();
            vec![
                w.core.to_string(),
                output::percent(w.busy_share),
                format!("{:.1}", w.frames_per_burst),
                format!("{:.0}", w.cycles_per_frame),
                w.frames.to_string(),
                queues.join(", "),
            ]
        });
        output::table(&["CORE", "BUSY", "FRAMES/BURST", "CYCLES/FRAME", "FRAMES", "QUEUES"], 99, rows);
        Ok(())
    }
}
