//! Where the configuration is kept: one file, written in transactions that survive a crash at
//! any instant (redb: copy on write, checksums, fsync at commit).

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use dunlin_control_api::v1::Config;
use redb::{Database, ReadableDatabase, TableDefinition};

use crate::leases::Leases;

const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("dunlin");
const CONFIG: &str = "config";
const REVISION: &str = "revision";
const LEASES: &str = "leases";

/// What went wrong with the store.
#[derive(Debug, Clone, thiserror::Error)]
#[error("store {path}: {why}")]
pub struct StoreError {
    path: String,
    why: String,
}

impl StoreError {
    /// The thread that wrote ended before it answered.
    pub fn ended() -> Self {
        StoreError { path: "(configuration)".into(), why: "writing ended early".into() }
    }
}

/// The file. After a failed write redb wants it closed and opened again, so it may be closed for
/// a while; then the next use opens it.
pub struct Store {
    db: Mutex<Option<Database>>,
    path: PathBuf,
}

impl Store {
    /// Opens the file, or makes it where there is none. One that is damaged is left as it is.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let name = path.display().to_string();
        let fail = |why: String| StoreError { path: name.clone(), why };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| fail(format!("its folder can't be made: {e}")))?;
        }
        let advice = "the configuration in it can't be trusted. Put back a copy of the file, or move it away \
                      to start with an empty configuration (then 'dunlin apply -f' yours)";
        match fs::metadata(path) {
            Ok(m) if m.is_dir() => return Err(fail("is a folder; name a file".into())),
            // redb would take it for a new one.
            Ok(m) if m.len() == 0 => return Err(fail(format!("is empty, so it was truncated: {advice}"))),
            _ => {}
        }
        // A file cut short makes redb's own checks fail; some of them by panicking.
        let opened = std::panic::catch_unwind(|| {
            if !path.exists() {
                create(path).map_err(|e| format!("can't be made: {e}"))?;
            }
            let db = Database::open(path).map_err(|e| e.to_string())?;
            let store = Store { db: Mutex::new(Some(db)), path: path.to_owned() };
            store.load().map_err(|e| e.why)?;
            Ok::<Store, String>(store)
        });
        match opened {
            Ok(Ok(store)) => Ok(store),
            Ok(Err(why)) if why.contains("already open") || why.contains("lock") => {
                Err(fail("another dunlin-control has it open; stop that one first".into()))
            }
            Ok(Err(why)) if why.contains("can't be made") || why.contains("denied") => Err(fail(why)),
            Ok(Err(why)) => Err(fail(format!("{why}: {advice}"))),
            Err(_) => Err(fail(format!("is damaged: {advice}"))),
        }
    }

    fn fail(&self, e: impl std::fmt::Display) -> StoreError {
        StoreError { path: self.path.display().to_string(), why: e.to_string() }
    }

    /// Runs `f` on the open file; closes it if that fails.
    fn with<T>(&self, f: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        if db.is_none() {
            *db = Some(Database::open(&self.path).map_err(|e| self.fail(e))?);
        }
        let result = f(db.as_ref().expect("opened above"));
        if result.is_err() {
            *db = None;
        }
        result
    }

    /// The configuration and its revision; empty and 0 in a new file.
    pub fn load(&self) -> Result<(Config, u64), StoreError> {
        self.with(|db| {
            let read = db.begin_read().map_err(|e| self.fail(e))?;
            let table = match read.open_table(TABLE) {
                Ok(t) => t,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok((Config::default(), 0)),
                Err(e) => return Err(self.fail(e)),
            };
            let get = |key| table.get(key).map_err(|e| self.fail(e));
            let config = match get(CONFIG)? {
                Some(v) => serde_json::from_slice(v.value()).map_err(|e| self.fail(format!("configuration: {e}")))?,
                None => Config::default(),
            };
            let revision = match get(REVISION)? {
                Some(v) => u64::from_le_bytes(v.value().try_into().map_err(|e| self.fail(format!("revision: {e}")))?),
                None => 0,
            };
            Ok((config, revision))
        })
    }

    /// What DHCP had given stations; nothing in a new file.
    pub fn leases(&self) -> Result<Leases, StoreError> {
        self.with(|db| {
            let read = db.begin_read().map_err(|e| self.fail(e))?;
            let table = read.open_table(TABLE).map_err(|e| self.fail(e))?;
            let kept = table.get(LEASES).map_err(|e| self.fail(e))?;
            kept.map_or(Ok(Leases::default()), |v| {
                serde_json::from_slice(v.value()).map_err(|e| self.fail(format!("leases: {e}")))
            })
        })
    }

    /// Writes what DHCP gave stations, durably when it returns.
    pub fn save_leases(&self, leases: &Leases) -> Result<(), StoreError> {
        self.put(&[(LEASES, &serde_json::to_vec(leases).map_err(|e| self.fail(e))?)])
    }

    /// Writes a configuration, durably when it returns.
    pub fn save(&self, config: &Config, revision: u64) -> Result<(), StoreError> {
        let octets = serde_json::to_vec(config).map_err(|e| self.fail(e))?;
        self.put(&[(CONFIG, &octets), (REVISION, &revision.to_le_bytes())])
    }

    fn put(&self, all: &[(&str, &[u8])]) -> Result<(), StoreError> {
        self.with(|db| {
            let write = db.begin_write().map_err(|e| self.fail(e))?;
            {
                let mut table = write.open_table(TABLE).map_err(|e| self.fail(e))?;
                for (key, octets) in all {
                    table.insert(key, octets).map_err(|e| self.fail(e))?;
                }
            }
            write.commit().map_err(|e| self.fail(e))
        })
    }
}

/// Makes an empty store, whole or not at all: under another name first.
fn create(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let store = Store { db: Mutex::new(Some(Database::create(&new)?)), path: new.clone() };
    store.save(&Config::default(), 0)?;
    drop(store);
    fs::rename(&new, path)?;
    if let Some(folder) = path.parent() {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dunlin_control_api::v1::Bridge;

    struct Folder(std::path::PathBuf);
    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("dunlin-store-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Folder(path)
        }
    }
    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn config(n: u32) -> Config {
        let bridge = (0..n).map(|i| Bridge { name: format!("br{i}"), ageing_s: Some(i + 1) }).collect();
        Config { bridge, ..Default::default() }
    }

    #[test]
    fn what_was_saved_is_there_after_reopening() {
        let f = Folder::new("reopen");
        let path = f.0.join("state.redb");
        let store = Store::open(&path).unwrap();
        store.save(&config(3), 7).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!((store.load().unwrap(), store.leases().unwrap()), ((config(3), 7), Leases::default()));
    }

    /// Cut anywhere, it is refused or whole, and the file is not touched.
    #[test]
    fn a_truncated_file_is_never_taken_for_an_empty_one() {
        let f = Folder::new("truncated");
        let path = f.0.join("state.redb");
        Store::open(&path).unwrap().save(&config(50), 1).unwrap();
        let whole = fs::read(&path).unwrap();
        for part in 0..16 {
            let cut = &whole[..whole.len() * part / 16];
            fs::write(&path, cut).unwrap();
            match Store::open(&path) {
                Ok(s) => assert_eq!(s.load().unwrap(), (config(50), 1), "cut to {part}/16"),
                Err(e) => assert!(e.to_string().contains("can't be trusted"), "{e}"),
            }
        }
    }

    #[test]
    fn a_folder_is_refused_by_name() {
        let f = Folder::new("folder");
        fs::create_dir_all(&f.0).unwrap();
        assert!(Store::open(&f.0).err().unwrap().to_string().contains("is a folder"));
    }
}
