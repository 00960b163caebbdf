//! Mistakes on the command line, in this program's words: what is wrong, what is meant, what there is.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use dunlin_control_api::model::{did_you_mean, shown};

/// The exit status for a command line that can't be.
const USAGE: u8 = 2;

/// Prints help, the version, or what is wrong; the exit status.
pub fn report(e: &clap::Error) -> ExitCode {
    let text = |kind| match e.get(kind) {
        Some(ContextValue::String(s)) => s.clone(),
        Some(ContextValue::Strings(all)) => all.join(", "),
        _ => String::new(),
    };
    let list = |kind| match e.get(kind) {
        Some(ContextValue::Strings(all)) => all.clone(),
        Some(ContextValue::String(s)) => vec![s.clone()],
        _ => Vec::new(),
    };
    let option = text(ContextKind::InvalidArg);
    let name = option.split(' ').next().unwrap_or_default().trim_start_matches('-').to_owned();
    let value = text(ContextKind::InvalidValue);
    let said = match e.kind() {
        ErrorKind::InvalidValue if value.is_empty() => format!("{option}: needs a value"),
        ErrorKind::InvalidValue => {
            let valid = list(ContextKind::ValidValue);
            let hint = did_you_mean(&value, valid.iter().map(String::as_str));
            format!("{name}: '{}' is none of {}{hint}", shown(&value), valid.join(", "))
        }
        ErrorKind::ValueValidation => {
            let why = std::error::Error::source(e).map_or_else(String::new, ToString::to_string);
            format!("{name}: '{}': {why}", shown(&value))
        }
        ErrorKind::UnknownArgument => {
            let near = text(ContextKind::SuggestedArg);
            let hint = if near.is_empty() { String::new() } else { format!("; did you mean '{near}'?") };
            format!("there is no option '{}' here{hint}", shown(&option))
        }
        ErrorKind::InvalidSubcommand => {
            let near = text(ContextKind::SuggestedSubcommand);
            let hint = if near.is_empty() { String::new() } else { format!("; did you mean '{near}'?") };
            format!("there is no command '{}' here{hint}", shown(&text(ContextKind::InvalidSubcommand)))
        }
        ErrorKind::MissingRequiredArgument => format!("is missing: {option}"),
        // Help and version, and what is rare.
        _ => {
            let _ = e.print();
            return ExitCode::from(u8::from(e.use_stderr()) * USAGE);
        }
    };
    eprintln!("dunlin: {said}");
    if let Some(ContextValue::StyledStr(usage)) = e.get(ContextKind::Usage) {
        eprintln!("{usage}");
    }
    USAGE.into()
}
