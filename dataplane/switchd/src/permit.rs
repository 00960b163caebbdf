//! What the API's clients may make this process open: set once, at the start.

use std::{
    fs,
    path::{Component, Path, PathBuf},
    sync::OnceLock,
};

use dunlin_model::spec::DeviceSpec;

pub mod devargs;

/// The folder of vhost-user sockets unless others are given.
pub const DEFAULT_VHOST_DIR: &str = "/run/dunlin/vhost";

/// See the module.
#[derive(Debug)]
pub struct Permit {
    /// Every device and key of DPDK: an operator of the API can then do what this process can.
    pub any_device: bool,
    /// Folders of vhost-user sockets, absolute.
    pub vhost_dirs: Vec<PathBuf>,
}

static PERMIT: OnceLock<Permit> = OnceLock::new();

impl Permit {
    /// Makes this one hold for the process. The first one stays.
    pub fn set(self) {
        let _ = PERMIT.set(self);
    }

    /// The one that holds; without one, the strictest.
    pub fn get() -> &'static Self {
        PERMIT.get_or_init(|| Permit { any_device: false, vhost_dirs: vec![DEFAULT_VHOST_DIR.into()] })
    }

    /// Whether a port may have a device.
    ///
    /// # Errors
    ///
    /// Names what is not allowed.
    pub fn check(&self, device: &DeviceSpec) -> Result<(), String> {
        match device {
            DeviceSpec::Nic { device, .. } => self.device(device),
            DeviceSpec::VhostUser { socket, .. } => self.socket(socket),
            DeviceSpec::Host { .. } | DeviceSpec::Tap { .. } => Ok(()),
        }
    }

    /// Whether a port may have the DPDK device `devargs`.
    ///
    /// # Errors
    ///
    /// Names what is not allowed.
    pub fn device(&self, devargs: &str) -> Result<(), String> {
        if self.any_device { Ok(()) } else { devargs::check(devargs) }
    }

    /// Whether a port may have the vhost-user socket `path`. The folders belong to root or to whom root trusts:
    /// who can replace a part of the path between this check and the use is not kept out.
    ///
    /// # Errors
    ///
    /// Names the path and the folders.
    pub fn socket(&self, path: &str) -> Result<(), String> {
        let refuse = |why: String| {
            let dirs: Vec<_> = self.vhost_dirs.iter().map(|d| d.display().to_string()).collect();
            let dirs = dirs.join(", ");
            Err(format!("'{path}' {why}; sockets may be below {dirs} ('dunlin-dataplane --vhost-dir' names folders)"))
        };
        if !is_normal(path) {
            return refuse("is no absolute path without empty, '.' and '..' parts".into());
        }
        let path = Path::new(path);
        let Some(dir) = self.vhost_dirs.iter().find(|d| path.starts_with(d) && path != d.as_path()) else {
            return refuse("is in none of the permitted folders".into());
        };
        if fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink()) {
            return refuse("is a symbolic link".into());
        }
        let parent = path.parent().unwrap_or(dir);
        match (fs::canonicalize(parent), fs::canonicalize(dir)) {
            (Ok(parent), Ok(dir)) if parent.starts_with(&dir) => Ok(()),
            (Ok(_), Ok(_)) => refuse("leads out of the permitted folders by a symbolic link".into()),
            // Made with the port: the folder itself, and one directly below it.
            (Err(_), _) if is_missing(parent) && (parent == dir || parent.parent() == Some(dir)) => Ok(()),
            _ => refuse(format!("is in a folder that can't be used: {} is missing or unreadable", parent.display())),
        }
    }
}

/// Nothing is there, no dangling link either.
fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

fn is_normal(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
        && !path.contains(|c: char| c.is_control())
}

/// A folder for `--vhost-dir`.
///
/// # Errors
///
/// If it is no absolute path without `.` and `..`.
pub fn parse_dir(s: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(s.trim_end_matches('/'));
    let normal = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && normal { Ok(path) } else { Err("must be an absolute path without '..'".into()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("dunlin-permit-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn sockets_stay_in_their_folders() {
        let base = folder("sockets");
        let (dir, missing) = (base.join("vhost"), base.join("missing"));
        fs::create_dir_all(dir.join("there/deep")).unwrap();
        fs::create_dir(base.join("vhost2")).unwrap();
        symlink(&base, dir.join("out")).unwrap();
        symlink(base.join("nothing"), dir.join("dangling")).unwrap();
        symlink(dir.join("there"), dir.join("in")).unwrap();
        symlink("/etc/passwd", dir.join("link.sock")).unwrap();
        let permit = Permit { any_device: false, vhost_dirs: vec![dir, missing] };
        let check = |rest: &str| permit.socket(&format!("{}/{rest}", base.display()));
        for good in [
            "vhost/a.sock",
            "vhost/there/deep/a.sock",
            "vhost/new/a.sock",
            "vhost/in/a.sock",
            "missing/a.sock",
            "missing/b/a.sock",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("a.sock", "none of the permitted"),
            ("vhost2/a.sock", "none of the permitted"),
            ("vhost", "none of the permitted"),
            ("vhost/../a.sock", "'..'"),
            ("vhost/./a.sock", "'.'"),
            ("vhost//a.sock", "empty"),
            ("vhost/a.sock/", "empty"),
            ("vhost/a\n.sock", "absolute path"),
            ("vhost/out/a.sock", "leads out"),
            ("vhost/dangling/a.sock", "can't be used"),
            ("vhost/link.sock", "is a symbolic link"),
            ("vhost/new/er/a.sock", "can't be used"),
            ("missing/new/er/a.sock", "can't be used"),
        ] {
            let error = check(bad).expect_err(bad);
            assert!(
                error.contains(why) && error.contains("--vhost-dir") && error.contains("missing"),
                "{bad}: {error}"
            );
        }
        assert!(permit.socket("vhost/a.sock").is_err());
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn folders_are_absolute() {
        assert_eq!(parse_dir("/run/x/"), Ok("/run/x".into()));
        for bad in ["run/x", "/run/../x", "", "."] {
            assert!(parse_dir(bad).is_err(), "{bad}");
        }
    }
}
