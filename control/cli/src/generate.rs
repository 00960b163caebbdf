//! `dunlin completions` and `dunlin man`: made from the same definitions as the commands.

use std::path::PathBuf;

use anyhow::Context;
use clap::CommandFactory;

use crate::Args;

#[derive(clap::Args)]
pub struct Completions {
    /// bash, zsh, fish, elvish or powershell
    shell: clap_complete::Shell,
}

#[derive(clap::Args)]
pub struct Man {
    /// The folder
    folder: PathBuf,
}

impl Completions {
    pub fn run(&self) -> anyhow::Result<()> {
        clap_complete::generate(self.shell, &mut Args::command(), "dunlin", &mut std::io::stdout());
        Ok(())
    }
}

impl Man {
    pub fn run(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.folder).with_context(|| self.folder.display().to_string())?;
        clap_mangen::generate_to(Args::command(), &self.folder).with_context(|| self.folder.display().to_string())?;
        Ok(())
    }
}
