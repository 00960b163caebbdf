//! What each kind needs in code: its word, its name, its place in a file. A further kind is one line here.

use std::fmt::{self, Display};

use serde_json::{Map, Value};

use crate::{
    Bad, DEFAULT_BRIDGE, SETTINGS,
    v1::{self, Config, Object, object::Spec},
};

macro_rules! kinds {
    ($($variant:ident $word:ident $message:ident $place:tt: $name:expr;)+) => {
        /// A kind of objects, in the order in which they depend on each other.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[allow(missing_docs, reason = "their words say it")]
        pub enum Kind { $($variant,)+ }

        impl Kind {
            /// All of them.
            pub const ALL: &[Kind] = &[$(Kind::$variant,)+];

            /// As in files, commands and keys.
            pub fn word(self) -> &'static str {
                match self { $(Kind::$variant => stringify!($word),)+ }
            }

            /// The message that defines it.
            pub fn message(self) -> &'static str {
                match self { $(Kind::$variant => stringify!($message),)+ }
            }

            /// Whether there is one object of it.
            pub fn is_single(self) -> bool {
                match self { $(Kind::$variant => kinds!(@single $place),)+ }
            }

            /// An object of the fields as JSON has them.
            ///
            /// # Errors
            /// A field that is not there, or of another type.
            pub fn object(self, fields: Map<String, Value>) -> Result<Object, serde_json::Error> {
                let spec = match self {
                    $(Kind::$variant => Spec::$variant(serde_json::from_value(fields.into())?),)+
                };
                Ok(Object { spec: Some(spec) })
            }
        }

        impl Object {
            /// Its kind; `None` if it is of one that is not known here.
            pub fn kind(&self) -> Option<Kind> {
                Some(match self.spec.as_ref()? { $(Spec::$variant(_) => Kind::$variant,)+ })
            }

            /// What it is known by among those of its kind.
            pub fn name(&self) -> String {
                match &self.spec {
                    $(Some(Spec::$variant(x)) => { let name: fn(&v1::$message) -> String = $name; name(x) })+
                    None => String::new(),
                }
            }

            /// Its fields as JSON has them; those that are absent are left out.
            pub fn fields(&self) -> Map<String, Value> {
                let value = match &self.spec {
                    $(Some(Spec::$variant(x)) => serde_json::to_value(x),)+
                    None => return Map::new(),
                };
                match value { Ok(Value::Object(fields)) => fields, _ => Map::new() }
            }
        }

        $(impl From<v1::$message> for Object {
            fn from(x: v1::$message) -> Self { Object { spec: Some(Spec::$variant(x)) } }
        })+

        impl Config {
            /// Its objects, as they stand in the file.
            pub fn into_objects(self) -> Vec<Object> {
                let mut all = Vec::new();
                $(all.extend(self.$word.into_iter().map(Object::from));)+
                all
            }

            /// The file that has some objects.
            pub fn of<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Self {
                let mut config = Config::default();
                for o in objects {
                    match &o.spec {
                        $(Some(Spec::$variant(x)) => kinds!(@put $place config $word x),)+
                        None => {}
                    }
                }
                config
            }
        }
    };
    (@single one) => { true };
    (@single many) => { false };
    (@put one $config:ident $word:ident $x:ident) => { $config.$word = Some($x.clone()) };
    (@put many $config:ident $word:ident $x:ident) => { $config.$word.push($x.clone()) };
}

kinds! {
    Dataplane dataplane Dataplane one: |_| SETTINGS.to_owned();
    Sessions sessions Sessions one: |_| SETTINGS.to_owned();
    Set set AddressSet many: |x| x.name.clone();
    Acl acl Acl many: |x| x.name.clone();
    Group group Group many: |x| x.name.clone();
    Bridge bridge Bridge many: |x| x.name.clone();
    Vtep vtep Vtep many: |x| x.name.clone();
    Route route Route many: |x| format!("{} {}", x.to, x.vtep).trim_end().to_owned();
    Neighbor neighbor Neighbor many: |x| format!("{} {}", x.address, x.vtep).trim_end().to_owned();
    Network network Network many: |x| x.name.clone();
    Port port Port many: |x| x.name.clone();
    Mac mac StaticMac many: mac_name;
}

/// "MAC VLAN 10 of br0", or "MAC of NETWORK".
fn mac_name(m: &v1::StaticMac) -> String {
    let mac = plain_mac(&m.mac);
    let bridge = if m.bridge.is_empty() { DEFAULT_BRIDGE } else { &m.bridge };
    if m.network.is_empty() { format!("{mac} VLAN {} of {bridge}", m.vlan) } else { format!("{mac} of {}", m.network) }
}

/// One way of writing an address, so that the same one makes no difference.
pub fn plain_mac(mac: &str) -> String {
    mac.to_ascii_lowercase().replace('-', ":")
}

impl Kind {
    /// The kind of a word.
    pub fn from_word(word: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|k| k.word() == word)
    }

    /// The object of a name that is there without being declared: settings, and the default bridge.
    pub fn implicit(self, name: &str) -> Option<Object> {
        match self {
            Kind::Bridge if name == DEFAULT_BRIDGE => {
                Some(v1::Bridge { name: name.into(), ..Default::default() }.into())
            }
            kind if kind.is_single() => kind.object(Map::new()).ok(),
            _ => None,
        }
    }

    /// The kind of a word that a caller gives.
    ///
    /// # Errors
    /// There is none of that word.
    pub fn parse(word: &str) -> Result<Kind, Bad> {
        let unknown = || {
            let hint = crate::did_you_mean(word, Kind::ALL.iter().map(|k| k.word()));
            Bad::new(format!("kind '{}'", crate::shown(word)), "", format!("there is none of that name{hint}"))
        };
        Kind::from_word(word).ok_or_else(unknown)
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_its_objects() {
        let text = "[dataplane]\nidle = \"poll\"\n\n[[bridge]]\nname = \"b\"\nageing_s = 5\n\n[[port]]\nname = \"web1\"\n\
                    kind = \"vhost-user\"\nvlan = 10\ndescription = \"of web\"\n\n[port.labels]\nowner = \"web\"\n";
        let config: Config = toml::from_str(text).unwrap();
        let objects = config.clone().into_objects();
        let named: Vec<String> = objects.iter().map(|o| format!("{} {}", o.kind().unwrap(), o.name())).collect();
        assert_eq!(named, ["dataplane settings", "bridge b", "port web1"]);
        assert_eq!(Config::of(&objects), config);
        assert_eq!(toml::to_string(&config).unwrap(), text);
        let again = Kind::Port.object(objects[2].fields()).unwrap();
        assert_eq!(again, objects[2]);
    }

    #[test]
    fn static_addresses_have_one_name_however_they_are_written() {
        let mac = |mac: &str, bridge: &str| {
            Object::from(v1::StaticMac { mac: mac.into(), bridge: bridge.into(), vlan: 3, ..Default::default() })
        };
        assert_eq!(mac("52-54-00-00-00-AA", "").name(), mac("52:54:00:00:00:aa", "br0").name());
    }
}
