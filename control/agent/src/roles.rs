//! What each role may call.

use dunlin_dataplane_api::socket::peer::Role;

/// Methods that change nothing. Every other one, a new one too, is for operators.
const READ_ONLY: &[&str] = &[
    "GetStatus",
    "GetConfig",
    "WatchConfig",
    "Diff",
    "GetHistory",
    "ListMacs",
    "ListAcls",
    "ListSessions",
    "Trace",
    "Watch",
];

/// The role that the method of this path needs.
pub fn needs(path: &str) -> Role {
    match path.strip_prefix("/dunlin.v1.Control/") {
        Some(method) if READ_ONLY.contains(&method) => Role::ReadOnly,
        _ => Role::Operator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_to_be_harmless_is_for_operators() {
        for path in ["/dunlin.v1.Control/Apply", "/dunlin.v1.Control/FlushMacs", "/dunlin.v1.Other/GetStatus", "/", ""]
        {
            assert_eq!(needs(path), Role::Operator, "{path}");
        }
        assert_eq!(needs("/dunlin.v1.Control/GetStatus"), Role::ReadOnly);
    }

    #[test]
    fn the_table_names_methods_that_are_there() {
        let proto = include_str!("../../api/proto/control.proto");
        for method in READ_ONLY {
            assert!(proto.contains(&format!("rpc {method}(")), "{method}");
        }
    }
}
