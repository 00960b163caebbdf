//! `dunlin apply`, `diff`, `export`: the whole configuration as a file.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::Context;
use dunlin_control_api::v1::{ApplyRequest, Config};

use crate::{output, session::Session};

#[derive(clap::Args)]
pub struct Apply {
    /// The file, TOML; '-' is standard input
    #[arg(short, long, value_name = "PATH")]
    file: PathBuf,
    /// Keep what the file does not name
    #[arg(long)]
    keep: bool,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
}

#[derive(clap::Args)]
pub struct Diff {
    /// The file, TOML; '-' is standard input
    #[arg(short, long, value_name = "PATH")]
    file: PathBuf,
}

impl Apply {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        let set = read(&self.file)?;
        let change = ApplyRequest { replace: !self.keep, set: Some(set), dry_run: self.dry_run, ..Default::default() };
        let plan = s.apply(change).await.with_context(|| self.file.display().to_string())?;
        output::plan(&plan, s.json, self.dry_run)
    }
}

impl Diff {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        Apply { file: self.file, keep: false, dry_run: true }.run(s).await
    }
}

fn read(path: &Path) -> anyhow::Result<Config> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
    } else {
        text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    }
    toml::from_str(&text).with_context(|| path.display().to_string())
}

pub async fn export(s: &mut Session) -> anyhow::Result<()> {
    let (config, _) = s.config().await?;
    if s.json {
        return output::json(&config);
    }
    print!("{}", toml::to_string(&config)?);
    Ok(())
}
