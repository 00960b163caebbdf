//! `dunlin apply`, `diff`, `export`: the whole configuration as a file.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
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
    /// Allow a file that names nothing: everything is removed
    #[arg(long)]
    empty: bool,
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
        if set == Config::default() && !self.keep && !self.dry_run && !self.empty {
            bail!(
                "{}: names nothing, so everything would be removed; add --empty if that is meant",
                self.file.display()
            );
        }
        let change = ApplyRequest { replace: !self.keep, set: Some(set), dry_run: self.dry_run, ..Default::default() };
        let plan = s.apply(change).await.with_context(|| self.file.display().to_string())?;
        output::plan(&plan, s.json, self.dry_run)
    }
}

impl Diff {
    pub async fn run(self, s: &mut Session) -> anyhow::Result<()> {
        Apply { file: self.file, keep: false, empty: false, dry_run: true }.run(s).await
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
