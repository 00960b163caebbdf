//! The client of a connection, and its role.

use std::{ffi::CString, fs};

use nix::unistd::{Gid, Uid, User, getgrouplist};
use tokio::net::unix::UCred;
use tonic::Status;

use super::{BindError, group_id, limits::Client};

/// What a client may do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// Read state, configuration, lists and events.
    ReadOnly,
    /// Everything.
    Operator,
}

/// The groups that may use a socket. Root and the server's own user are operators always.
#[derive(Clone, Debug, Default)]
pub struct Access {
    operators: Option<(String, Gid)>,
    readers: Option<(String, Gid)>,
}

/// A client.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The user that its connections and calls are counted for.
    pub client: Client,
    /// What messages call it: "user 'x'".
    pub name: String,
    /// What it may do, or why nothing.
    pub role: Result<Role, Status>,
}

impl Access {
    /// Access for the group `operators` and, read-only, for the group `readers`.
    ///
    /// # Errors
    ///
    /// If there is no such group.
    pub fn new(operators: Option<&str>, readers: Option<&str>) -> Result<Self, BindError> {
        let group = |name: Option<&str>| name.map(|n| Ok((n.to_owned(), group_id(n)?))).transpose();
        Ok(Access { operators: group(operators)?, readers: group(readers)? })
    }

    /// The group of the socket, and its mode. A socket has one group: with two, everybody may connect, and
    /// a user of neither is refused by its credentials.
    pub(super) fn owner(&self) -> (Option<Gid>, u32) {
        let operators = self.operators.as_ref().map(|(_, gid)| *gid);
        (operators, if self.readers.is_some() { 0o666 } else { 0o660 })
    }

    /// The client with the credentials `peer`, as the kernel has them of the moment when it connected.
    /// May wait for the system's user database.
    pub fn caller(&self, peer: &UCred) -> Caller {
        let (uid, name) = (Uid::from_raw(peer.uid()), user_name(peer.uid()));
        let role = if uid.is_root() || uid == nix::unistd::geteuid() {
            Ok(Role::Operator)
        } else {
            let of = |group: &Option<(String, Gid)>| group.as_ref().is_some_and(|(_, gid)| is_member(peer, *gid));
            if of(&self.operators) {
                Ok(Role::Operator)
            } else if of(&self.readers) {
                Ok(Role::ReadOnly)
            } else {
                Err(Status::permission_denied(self.without_role(&name)))
            }
        };
        Caller { client: Client::User(peer.uid()), name, role }
    }

    fn without_role(&self, name: &str) -> String {
        match (&self.operators, &self.readers) {
            (Some((o, _)), Some((r, _))) => {
                format!("{name} is in neither group '{o}' (operators) nor group '{r}' (read-only)")
            }
            (Some((group, _)), None) => format!("{name} is not in group '{group}', which may use this API"),
            (None, Some((group, _))) => format!("{name} is not in group '{group}', which may read with this API"),
            (None, None) => format!("{name} may not use this API: only root may; --group names a group that may too"),
        }
    }
}

fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => format!("user '{}'", user.name),
        _ => format!("user {uid}"),
    }
}

/// By the process' own groups, or by the user's.
fn is_member(peer: &UCred, group: Gid) -> bool {
    peer.gid() == group.as_raw()
        || process_groups(peer).contains(&group.as_raw())
        || user_groups(peer).is_some_and(|groups| groups.contains(&group))
}

/// The supplementary groups of the process. Another process may have got its number meanwhile: the groups of a
/// process whose user is another at any of the four places do not count.
fn process_groups(peer: &UCred) -> Vec<u32> {
    let Some(pid) = peer.pid().filter(|pid| *pid > 0) else { return Vec::new() };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    groups_in(&status, peer.uid())
}

fn groups_in(status: &str, uid: u32) -> Vec<u32> {
    let line = |key: &str| -> Vec<u32> {
        let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_default();
        line.split_whitespace().filter_map(|n| n.parse().ok()).collect()
    };
    if line("Uid:") == [uid; 4] { line("Groups:") } else { Vec::new() }
}

fn user_groups(peer: &UCred) -> Option<Vec<Gid>> {
    let user = User::from_uid(Uid::from_raw(peer.uid())).ok()??;
    getgrouplist(&CString::new(user.name).ok()?, user.gid).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_a_process_count_if_it_is_of_the_same_user() {
        let status = "Name:\tx\nUid:\t65534\t65534\t65534\t65534\nGid:\t5\t5\t5\t5\nGroups:\t4 24 997 \n";
        assert_eq!(groups_in(status, 65534), [4, 24, 997]);
        assert!(groups_in(status, 0).is_empty());
        // A program that runs as another user than it was started by.
        assert!(groups_in(&status.replacen("65534", "0", 1), 65534).is_empty());
        assert!(groups_in("", 1).is_empty());
    }

    #[test]
    fn only_a_read_group_opens_the_socket_to_all() {
        assert_eq!(Access::default().owner(), (None, 0o660));
        let both =
            Access { operators: Some(("a".into(), Gid::from_raw(7))), readers: Some(("b".into(), Gid::from_raw(8))) };
        assert_eq!(both.owner(), (Some(Gid::from_raw(7)), 0o666));
        assert_eq!(
            both.without_role("user 'x'"),
            "user 'x' is in neither group 'a' (operators) nor group 'b' (read-only)"
        );
    }
}
