//! `dunlin worker`: what each worker core does.

use crate::{output, session::Session};

#[derive(clap::Subcommand)]
pub enum Command {
    /// List the workers: load, queues, cycles, over the last second
    #[command(visible_alias = "ls")]
    List,
}

impl Command {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        let Command::List = self;
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
