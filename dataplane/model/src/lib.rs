//! What is configured: one definition for each kind of object, and the checks across kinds. No I/O.
//!
//! * `proto/model.proto` defines the kinds: messages, help, defaults and limits.
//! * [`meta`] reads the definition for programs: options of the command line, `explain`, a JSON schema.
//! * [`kinds`] has what every kind needs in code: its word, its name, its place in a file.
//! * [`check`] holds an object against its definition.
//! * [`objects`] are all of them, and are changed: set, delete, rename, with the references between objects.
//! * [`groups`] has the settings of a port with those of its groups.
//! * [`spec`] is what objects mean: [`MacAddr`], [`vlan`], [`rule`], and a type for each kind that can't hold a bad value.
//! * [`configuration`] puts it together: objects, what they mean, and the checks across kinds. Control and dataplane hold
//!   one each.
//! * [`plan`] says what one configuration changes of another.
//!
//! Starts no threads. **Read next** the proto file.

#![forbid(unsafe_code)]

pub mod check;
pub mod configuration;
pub mod groups;
pub mod kinds;
pub mod limits;
pub mod mac;
pub mod meta;
pub mod number;
pub mod objects;
pub mod plan;
pub mod rule;
pub mod spec;
pub mod vlan;

/// The generated messages.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/dunlin.model.v1.rs"));
}

/// Default numbers of settings, from the proto file.
pub mod defaults {
    include!(concat!(env!("OUT_DIR"), "/defaults.rs"));
}

pub use configuration::Configuration;
pub use kinds::Kind;
pub use mac::MacAddr;
pub use number::{Fps, Mtu, Vid, Vni};
pub use objects::{Change, Objects};

/// The bridge of a port that names none; it need not be declared.
pub const DEFAULT_BRIDGE: &str = "br0";
/// The name of the object of a kind of which there is one.
pub const SETTINGS: &str = "settings";
/// The longest name, in octets.
pub const MAX_NAME: usize = 63;

/// An object that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {}{why}", if .field.is_empty() { String::new() } else { format!("{}: ", .field) })]
pub struct Bad {
    /// As "port 'web1'".
    pub object: String,
    /// The field; empty for the whole object.
    pub field: String,
    /// What is wrong with its value, and what to do.
    pub why: String,
}

impl Bad {
    /// An error of one field.
    pub fn new(object: impl Into<String>, field: impl Into<String>, why: impl Into<String>) -> Self {
        Bad { object: object.into(), field: field.into(), why: why.into() }
    }
}

/// What is left out when an object is written.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The known word that a mistyped one most likely is, as a hint for the end of a message.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = known.into_iter().map(|k| (strsim::jaro_winkler(word, k), k)).max_by(|a, b| a.0.total_cmp(&b.0));
    near.filter(|(likeness, _)| *likeness > 0.8).map_or_else(String::new, |(_, k)| format!("; did you mean '{k}'?"))
}

/// Text of a caller's in a message: short, and without control characters.
pub fn shown(text: &str) -> String {
    shown_up_to(text, 80)
}

/// The same, of so many characters.
pub fn shown_up_to(text: &str, most: usize) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let short: String = text.chars().take(most).map(clean).collect();
    if short.chars().count() < text.chars().count() { short + "…" } else { short }
}
