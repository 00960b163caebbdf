//! Where the configuration is kept: one file, written in transactions that survive a crash at
//! any instant (redb: copy on write, checksums, fsync at commit). A change writes the objects that it changes.
//!
//! The file says the version of its schema. An older one is migrated when it is opened; a newer one is refused.

use std::{
    fs,
    ops::RangeBounds,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use dunlin_model::{
    Objects,
    kinds::Kind,
    v1::{Config, Object},
};
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{
    history::{Pending, Record},
    leases::{Identities, Leases},
};

const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("dunlin");
/// Each object as "kind/name", as JSON, since schema 2.
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
/// Each change by its revision, since schema 2.
const HISTORY: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("history");
const REVISION: &str = "revision";
const LEASES: &str = "leases";
/// Identities of ports, since schema 2.
const IDENTITIES: &str = "identities";
/// A change that waits to be confirmed.
const PENDING: &str = "pending";
/// Schema 1 had the whole configuration here.
const CONFIG: &str = "config";
/// Its number and the release that wrote it, as "2 0.1.0"; absent in schema 1.
const SCHEMA: &str = "schema";
const SCHEMA_NOW: u32 = 2;
/// Changes that are kept.
const KEPT: u64 = 1000;

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    pub objects: Objects,
    pub revision: u64,
    pub identities: Identities,
    pub leases: Leases,
    pub pending: Option<Pending>,
}

/// What a change writes.
pub struct Saved<'a> {
    pub before: &'a Objects,
    pub after: &'a Objects,
    /// Objects of the store that this release does not accept: they go.
    pub left_out: &'a [dunlin_model::objects::Key],
    pub identities: &'a Identities,
    pub record: &'a Record,
    pub pending: Option<&'a Pending>,
}

/// What went wrong with the store.
#[derive(Debug, Clone, thiserror::Error)]
#[error("store {path}: {why}")]
pub struct StoreError {
    path: String,
    why: String,
    /// Only a person can mend it.
    pub permanent: bool,
}

impl StoreError {
    /// The thread that wrote ended before it answered.
    pub fn ended() -> Self {
        StoreError { path: "(configuration)".into(), why: "writing ended early".into(), permanent: false }
    }
}

/// The file. After a failed write redb wants it closed and opened again, so it may be closed for
/// a while; then the next use opens it.
pub struct Store {
    db: Mutex<Option<Database>>,
    path: PathBuf,
}

impl Store {
    /// Opens the file, or makes it where there is none. A damaged one, and one of a newer schema, is left as it is.
    ///
    /// # Errors
    /// The file can't be opened or made, is damaged, or was written by a newer release.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let name = path.display().to_string();
        let fail = |why: String, permanent| StoreError { path: name.clone(), why, permanent };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| fail(format!("its folder can't be made: {e}"), false))?;
        }
        let advice = "the configuration in it can't be trusted. Put back a copy of the file, or move it away \
                      to start with an empty configuration (then 'dunlin apply -f' yours)";
        match fs::metadata(path) {
            Ok(m) if m.is_dir() => return Err(fail("is a folder; name a file".into(), true)),
            // redb would take it for a new one.
            Ok(m) if m.len() == 0 => return Err(fail(format!("is empty, so it was truncated: {advice}"), true)),
            _ => {}
        }
        // A file cut short makes redb's own checks fail; some of them by panicking, which is no news for the log.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let opened = std::panic::catch_unwind(|| {
            if !path.exists() {
                create(path).map_err(|e| format!("can't be made: {e}"))?;
            }
            let db = Database::open(path).map_err(|e| e.to_string())?;
            let store = Store { db: Mutex::new(Some(db)), path: path.to_owned() };
            let newer = store.migrate().map_err(|e| e.why)?;
            if newer.is_none() {
                store.load().map_err(|e| e.why)?;
            }
            Ok::<_, String>((store, newer))
        });
        std::panic::set_hook(hook);
        match opened {
            Ok(Ok((store, None))) => Ok(store),
            Ok(Ok((_, Some(newer)))) => Err(fail(newer, true)),
            Ok(Err(why)) if why.contains("already open") || why.contains("lock") => {
                Err(fail("another dunlin-control has it open; stop that one first".into(), false))
            }
            Ok(Err(why)) if why.contains("can't be made") || why.contains("denied") => Err(fail(why, false)),
            Ok(Err(why)) => Err(fail(format!("{why}: {advice}"), true)),
            Err(_) => Err(fail(format!("is damaged: {advice}"), true)),
        }
    }

    /// Brings an older file to the schema of now; what is to be said of a newer one.
    fn migrate(&self) -> Result<Option<String>, StoreError> {
        let said = self.get(SCHEMA, |v| Ok(String::from_utf8_lossy(v).into_owned()))?;
        let (number, release) = said.as_deref().and_then(|s| s.split_once(' ')).unwrap_or(("1", "0.1.0"));
        let number: u32 = number.parse().map_err(|e| self.fail(format!("schema: {e}")))?;
        if number > SCHEMA_NOW {
            return Ok(Some(format!(
                "has schema {number}, written by dunlin-control {release}; this is dunlin-control {}, which knows schemas up \
                 to {SCHEMA_NOW}. Install {release} or newer, or put back a copy of the file from before the upgrade",
                env!("CARGO_PKG_VERSION")
            )));
        }
        if number == 1 {
            let config: Config = self.get(CONFIG, json)?.unwrap_or_default();
            self.write(|t, fail| {
                let mut table = t.open_table(OBJECTS).map_err(|e| fail(&e))?;
                for o in config.into_objects() {
                    table.insert(&*key_of(&o), &*octets_of(&o)).map_err(|e| fail(&e))?;
                }
                let mut table = t.open_table(TABLE).map_err(|e| fail(&e))?;
                // Its leases name no port but by name: they are learned again, or the guest asks anew.
                table.insert(LEASES, &b"{}"[..]).map_err(|e| fail(&e))?;
                table.remove(CONFIG).map_err(|e| fail(&e))?;
                table.insert(SCHEMA, schema().as_bytes()).map_err(|e| fail(&e))?;
                Ok(())
            })?;
            tracing::info!("store {}: migrated from schema 1 to {SCHEMA_NOW}", self.path.display());
        }
        Ok(None)
    }

    fn fail(&self, e: impl std::fmt::Display) -> StoreError {
        StoreError { path: self.path.display().to_string(), why: e.to_string(), permanent: false }
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

    fn read<T>(&self, f: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.with(|db| f(&db.begin_read().map_err(|e| self.fail(e))?))
    }

    /// Runs `f` in a transaction that is durable when this returns.
    fn write(
        &self,
        f: impl FnOnce(&WriteTransaction, &dyn Fn(&dyn std::fmt::Display) -> StoreError) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.with(|db| {
            let transaction = db.begin_write().map_err(|e| self.fail(e))?;
            f(&transaction, &|e| self.fail(e))?;
            transaction.commit().map_err(|e| self.fail(e))
        })
    }

    /// A table; none in a file where it was never written.
    fn table<K: redb::Key + 'static, V: redb::Value + 'static>(
        &self,
        t: &ReadTransaction,
        definition: TableDefinition<'_, K, V>,
    ) -> Result<Option<ReadOnlyTable<K, V>>, StoreError> {
        match t.open_table(definition) {
            Ok(table) => Ok(Some(table)),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(e) => Err(self.fail(e)),
        }
    }

    /// A value, read by `read`; nothing in a new file.
    fn get<T>(&self, key: &str, read: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<Option<T>, StoreError> {
        self.read(|transaction| {
            let Some(table) = self.table(transaction, TABLE)? else { return Ok(None) };
            let value = table.get(key).map_err(|e| self.fail(e))?;
            value.map(|v| read(v.value()).map_err(|e| self.fail(format!("{key}: {e}")))).transpose()
        })
    }

    /// What the file holds; nothing and revision 0 in a new one.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn load(&self) -> Result<Stored, StoreError> {
        let number = |v: &[u8]| Ok(u64::from_le_bytes(v.try_into().map_err(|_| "is no number".to_owned())?));
        let objects = self.read(|t| {
            let Some(table) = self.table(t, OBJECTS)? else { return Ok(Vec::new()) };
            let entries = table.iter().map_err(|e| self.fail(e))?;
            let object = |e: Result<(redb::AccessGuard<'_, &str>, redb::AccessGuard<'_, &[u8]>), _>| {
                let (key, value) = e.map_err(|e: redb::StorageError| self.fail(e))?;
                object_of(key.value(), value.value()).map_err(|e| self.fail(format!("{}: {e}", key.value())))
            };
            entries.map(object).collect::<Result<Vec<Object>, StoreError>>()
        })?;
        Ok(Stored {
            objects: Objects::of(objects),
            revision: self.get(REVISION, number)?.unwrap_or(0),
            identities: self.get(IDENTITIES, json)?.unwrap_or_default(),
            leases: self.get(LEASES, json)?.unwrap_or_default(),
            pending: self.get(PENDING, json)?,
        })
    }

    /// Writes DHCP leases, durably when it returns.
    ///
    /// # Errors
    /// The file can't be written; it is as before.
    pub fn save_leases(&self, leases: &Leases) -> Result<(), StoreError> {
        let octets = serde_json::to_vec(leases).map_err(|e| self.fail(e))?;
        self.put(LEASES, Some(&octets))
    }

    /// Writes identities of ports, durably when it returns.
    ///
    /// # Errors
    /// The file can't be written; it is as before.
    pub fn save_identities(&self, identities: &Identities) -> Result<(), StoreError> {
        let octets = serde_json::to_vec(identities).map_err(|e| self.fail(e))?;
        self.put(IDENTITIES, Some(&octets))
    }

    /// Notes that no change waits to be confirmed.
    ///
    /// # Errors
    /// The file can't be written; it is as before.
    pub fn confirm(&self) -> Result<(), StoreError> {
        self.put(PENDING, None)
    }

    fn put(&self, key: &str, octets: Option<&[u8]>) -> Result<(), StoreError> {
        self.write(|t, fail| {
            let mut table = t.open_table(TABLE).map_err(|e| fail(&e))?;
            match octets {
                Some(octets) => drop(table.insert(key, octets).map_err(|e| fail(&e))?),
                None => drop(table.remove(key).map_err(|e| fail(&e))?),
            }
            Ok(())
        })
    }

    /// Writes a change, durably when it returns.
    ///
    /// # Errors
    /// The file can't be written; it is as before.
    pub fn save(&self, s: &Saved<'_>) -> Result<(), StoreError> {
        self.write(|t, fail| {
            {
                let mut table = t.open_table(OBJECTS).map_err(|e| fail(&e))?;
                for (kind, name) in s.before.differing(s.after) {
                    let key = format!("{kind}/{name}");
                    match s.after.get(*kind, name) {
                        Some(o) => drop(table.insert(&*key, &*octets_of(o)).map_err(|e| fail(&e))?),
                        None => drop(table.remove(&*key).map_err(|e| fail(&e))?),
                    }
                }
                for (kind, name) in s.left_out.iter().filter(|(kind, name)| s.after.get(*kind, name).is_none()) {
                    table.remove(&*format!("{kind}/{name}")).map_err(|e| fail(&e))?;
                }
                let mut history = t.open_table(HISTORY).map_err(|e| fail(&e))?;
                let octets = serde_json::to_vec(s.record).map_err(|e| fail(&e))?;
                let revision = s.record.revision;
                history.insert(revision, &*octets).map_err(|e| fail(&e))?;
                let old: Vec<u64> = match revision.checked_sub(KEPT) {
                    Some(last) => {
                        let range = history.range(..=last).map_err(|e| fail(&e))?;
                        range.map(|e| e.map(|(k, _)| k.value())).collect::<Result<_, _>>().map_err(|e| fail(&e))?
                    }
                    None => Vec::new(),
                };
                for revision in old {
                    history.remove(revision).map_err(|e| fail(&e))?;
                }
            }
            let mut table = t.open_table(TABLE).map_err(|e| fail(&e))?;
            table.insert(REVISION, &s.record.revision.to_le_bytes()[..]).map_err(|e| fail(&e))?;
            let identities = serde_json::to_vec(s.identities).map_err(|e| fail(&e))?;
            table.insert(IDENTITIES, &*identities).map_err(|e| fail(&e))?;
            match s.pending {
                Some(p) => {
                    let octets = serde_json::to_vec(p).map_err(|e| fail(&e))?;
                    table.insert(PENDING, &*octets).map_err(|e| fail(&e))?;
                }
                None => drop(table.remove(PENDING).map_err(|e| fail(&e))?),
            }
            Ok(())
        })
    }

    /// Reads changes, the newest first, one at a time, until `take` has enough.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn history<T: DeserializeOwned>(
        &self,
        revisions: impl RangeBounds<u64>,
        mut take: impl FnMut(T) -> bool,
    ) -> Result<(), StoreError> {
        self.read(|t| {
            let Some(table) = self.table(t, HISTORY)? else { return Ok(()) };
            for entry in table.range::<u64>(revisions).map_err(|e| self.fail(e))?.rev() {
                let (_, octets) = entry.map_err(|e| self.fail(e))?;
                if !take(json(octets.value()).map_err(|e| self.fail(format!("history: {e}")))?) {
                    break;
                }
            }
            Ok(())
        })
    }
}

fn json<T: DeserializeOwned>(octets: &[u8]) -> Result<T, String> {
    serde_json::from_slice(octets).map_err(|e| e.to_string())
}

fn key_of(o: &Object) -> String {
    format!("{}/{}", o.kind().map_or("", Kind::word), o.name())
}

fn octets_of(o: &Object) -> Vec<u8> {
    Value::Object(o.fields()).to_string().into_bytes()
}

fn object_of(key: &str, octets: &[u8]) -> Result<Object, String> {
    let kind = key.split('/').next().and_then(Kind::from_word).ok_or("is of a kind that is not known here")?;
    let fields: Map<String, Value> = json(octets)?;
    kind.object(fields).map_err(|e| e.to_string())
}

/// What the file says of its schema.
fn schema() -> String {
    format!("{SCHEMA_NOW} {}", env!("CARGO_PKG_VERSION"))
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
    store.put(SCHEMA, Some(schema().as_bytes()))?;
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
    use dunlin_model::v1::Bridge;

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

    fn objects(n: u32) -> Objects {
        let bridge = |i| Bridge { name: format!("br{i}"), ageing_s: Some(i + 1), ..Default::default() };
        Objects::of((0..n).map(bridge).map(Object::from))
    }

    fn save(store: &Store, n: u32, revision: u64) {
        let record = Record { revision, ..Default::default() };
        let identities = [("web1".to_owned(), 7)].into();
        let (before, after) = (store.load().unwrap().objects, objects(n));
        let saved = Saved {
            before: &before,
            after: &after,
            left_out: &[],
            identities: &identities,
            record: &record,
            pending: None,
        };
        store.save(&saved).unwrap();
    }

    #[test]
    fn what_was_saved_is_there_after_reopening() {
        let f = Folder::new("reopen");
        let path = f.0.join("state.redb");
        let store = Store::open(&path).unwrap();
        save(&store, 5, 6);
        save(&store, 3, 7);
        drop(store);
        let now = Store::open(&path).unwrap().load().unwrap();
        assert_eq!((now.objects, now.revision, now.identities["web1"]), (objects(3), 7, 7));
    }

    #[test]
    fn old_changes_are_forgotten() {
        let f = Folder::new("history");
        let store = Store::open(&f.0.join("state.redb")).unwrap();
        for revision in [1, 2, KEPT + 1, KEPT + 2] {
            save(&store, 1, revision);
        }
        let mut kept: Vec<u64> = Vec::new();
        store
            .history(.., |r: Record| {
                kept.push(r.revision);
                true
            })
            .unwrap();
        assert_eq!(kept, [KEPT + 2, KEPT + 1]);
    }

    /// An upgrade keeps what is there; a downgrade is refused with both versions, and touches nothing.
    #[test]
    fn older_schemas_are_migrated_and_newer_ones_refused() {
        let f = Folder::new("schema");
        let path = f.0.join("state.redb");
        let store = Store::open(&path).unwrap();
        let octets = serde_json::to_vec(&objects(2).config()).unwrap();
        store.put(CONFIG, Some(&octets)).unwrap();
        store.put(LEASES, Some(br#"{"web1":[{"address":"192.0.2.1","seen_s":1,"left_s":2}]}"#)).unwrap();
        store.put(SCHEMA, None).unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        let now = store.load().unwrap();
        assert_eq!((now.objects, now.leases), (objects(2), Leases::default()));
        store.put(SCHEMA, Some(b"9 7.2.0")).unwrap();
        drop(store);
        let e = Store::open(&path).err().unwrap();
        let said = e.to_string();
        assert!(
            e.permanent && said.contains("schema 9") && said.contains("7.2.0") && said.contains("up to 2"),
            "{said}"
        );
        // The release that wrote it finds what it wrote.
        let db = Database::open(&path).unwrap();
        let store = Store { db: Mutex::new(Some(db)), path };
        assert_eq!(store.load().unwrap().objects, objects(2));
    }

    /// Cut anywhere, it is refused or whole, and the file is not touched.
    #[test]
    fn a_truncated_file_is_never_taken_for_an_empty_one() {
        let f = Folder::new("truncated");
        let path = f.0.join("state.redb");
        save(&Store::open(&path).unwrap(), 50, 1);
        let whole = fs::read(&path).unwrap();
        for part in 0..16 {
            let cut = &whole[..whole.len() * part / 16];
            fs::write(&path, cut).unwrap();
            match Store::open(&path) {
                Ok(s) => assert_eq!(s.load().unwrap().objects, objects(50), "cut to {part}/16"),
                Err(e) => assert!(e.permanent && e.to_string().contains("can't be trusted"), "{e}"),
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
