//! `dunlin completions` and `dunlin man`: made from the same definitions as the commands.

use std::path::PathBuf;

use anyhow::Context;

use crate::command;

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

/// Names of objects, behind the verbs that take one.
const BASH_NAMES: &str = r#"
_dunlin_names() {
    case "${COMP_WORDS[2]}" in
        set | unset | del | rm | show | rename)
            if [ "$COMP_CWORD" -eq 3 ] && [[ "${COMP_WORDS[3]}" != -* ]]; then
                mapfile -t COMPREPLY < <(compgen -W "$(dunlin "${COMP_WORDS[1]}" list --names 2>/dev/null)" -- "${COMP_WORDS[3]}")
                [ ${#COMPREPLY[@]} -gt 0 ] && return
            fi ;;
    esac
    _dunlin "$@"
}
complete -F _dunlin_names -o nosort -o bashdefault -o default dunlin
"#;

impl Completions {
    pub fn run(&self) -> anyhow::Result<()> {
        clap_complete::generate(self.shell, &mut command(), "dunlin", &mut std::io::stdout());
        if self.shell == clap_complete::Shell::Bash {
            print!("{BASH_NAMES}");
        }
        Ok(())
    }
}

impl Man {
    pub fn run(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.folder).with_context(|| self.folder.display().to_string())?;
        clap_mangen::generate_to(command(), &self.folder).with_context(|| self.folder.display().to_string())?;
        Ok(())
    }
}
