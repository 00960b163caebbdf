//! `dunlin worker`: what each worker core does.

use dunlin_control_api::{
    dataplane::{RebalanceRequest, WorkerState},
    model::{Kind, SETTINGS},
};

use crate::{
    connection::{Connection, status_to_error},
    output, show,
};

#[derive(clap::Subcommand)]
pub enum Command {
    /// List the workers: load, queues, cycles, over the last second
    #[command(visible_alias = "ls")]
    List,
    /// Show the settings of the workers; with CORE, what each stage of the pipeline costs its worker, over the last second
    Show {
        /// The worker's core
        core: Option<u32>,
    },
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
        if let Command::Show { core: None } = self {
            return show::of(Kind::Dataplane, SETTINGS, s).await;
        }
        if let Command::Show { core: Some(core) } = self {
            return show_stages(&workers, core, s.json);
        }
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

fn show_stages(workers: &[WorkerState], core: u32, json: bool) -> anyhow::Result<()> {
    let Some(w) = workers.iter().find(|w| w.core == core) else {
        let cores: Vec<String> = workers.iter().map(|w| w.core.to_string()).collect();
        anyhow::bail!("core {core} has no worker; there are workers on {}", cores.join(", "));
    };
    if json {
        return output::json(w);
    }
    let asleep = w.slept_cycles as f64 / w.total_cycles.max(1) as f64;
    println!(
        "core {core}: {} busy over the last second, {} asleep since its start",
        output::percent(w.busy_share),
        output::percent(asleep)
    );
    println!(
        "{:.0} cycles a frame, {:.1} frames a burst, {} frames held",
        w.cycles_per_frame, w.frames_per_burst, w.held_frames
    );
    if w.stages.is_empty() {
        println!("no frames were measured in the last second");
        return Ok(());
    }
    let all: f64 = w.stages.iter().map(|s| s.cycles_per_frame).sum();
    let rows = w.stages.iter().map(|s| {
        vec![
            s.name.clone(),
            format!("{:.1}", s.cycles_per_frame),
            output::percent(s.cycles_per_frame / all.max(f64::MIN_POSITIVE)),
        ]
    });
    output::table(&["STAGE", "CYCLES/FRAME", "SHARE"], 99, rows);
    Ok(())
}
