//! `dunlin worker`: what each worker core does.

use dunlin_control_api::v1::{ApplyRequest, Config};

use crate::{output, session::Session};

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
    },
}

impl Command {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        if let Command::Set { idle, max_sleep_us } = self {
            let plan = s
                .change(|config| {
                    let mut d = config.dataplane.clone().unwrap_or_default();
                    d.idle = idle.clone().unwrap_or(d.idle);
                    d.max_sleep_us = max_sleep_us.or(d.max_sleep_us);
                    let set = Some(Config { dataplane: Some(d), ..Default::default() });
                    Ok(ApplyRequest { set, ..Default::default() })
                })
                .await?;
            return output::plan(&plan, s.json, false);
        }
        let workers = s.state().await?.workers;
        if s.json {
            return output::json(&workers);
        }
        let rows = workers.iter().map(|w| {
            let queues: Vec<String> = w.queues.iter().map(|q| format!("{}/{}", q.port, q.queue)).collect();
            vec![
                w.core.to_string(),
                output::percent(w.busy_share),
                format!("{:.1}", w.frames_per_burst),
                format!("{:.0}", w.cycles_per_frame),
                w.frames.to_string(),
                queues.join(" "),
            ]
        });
        output::table(&["CORE", "BUSY", "FRAMES/BURST", "CYCLES/FRAME", "FRAMES", "QUEUES"], 99, rows);
        Ok(())
    }
}
