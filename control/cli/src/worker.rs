//! `dunlin worker`: what each worker core does.

use dunlin_control_api::dataplane::RebalanceRequest;

use crate::{
    connection::{Connection, status_to_error},
    output,
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// List the workers: load, queues, cycles, over the last second
    #[command(visible_alias = "ls")]
    List,
    /// Move receive queues from busy workers to idle ones, once
    Rebalance,
}

impl Command {
    pub async fn run(self, s: &mut Connection) -> anyhow::Result<()> {
        if let Command::Rebalance = self {
            let moves =
                s.client.rebalance(RebalanceRequest {}).await.map_err(|e| status_to_error(&e))?.into_inner().moves;
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
