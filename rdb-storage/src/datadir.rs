//! Whose directory this is.
//!
//! Owns the data directory of a store: its lock, the file `STORE` that says which store it
//! belongs to, and the refusal of every directory that does not. Does not know what the
//! database inside contains.
//!
//! ```text
//! DIR/LOCK     held while a process uses the directory; its text is that process's id
//! DIR/STORE    format version, store id and UUID, cluster id (the module `store_file`)
//! DIR/RESERVE  room that is kept for the time when the disk is full (the module `reserve`)
//! DIR/db/      the database
//! ```
//!
//! A store's id stands for what it has promised to others: its votes, the log entries that
//! it acknowledged. A directory that was swapped, wiped or written by a newer release would
//! break these promises, so each of them is refused before anything is touched.
//!
//! # Invariants
//!
//! - Refusing changes nothing in the directory.
//! - `STORE` is replaced as a whole: written beside, synced, renamed, directory synced.
//! - The store id and UUID never change, the cluster id changes once, from unknown to known.

mod store_file;

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use thiserror::Error;
use uuid::Uuid;

pub use self::store_file::StoreIdentity;
use self::store_file::{FORMAT_VERSION, ParseError};

const LOCK_FILE: &str = "LOCK";
const STORE_FILE: &str = "STORE";
const NEW_STORE_FILE: &str = "STORE.new";
const DB_DIRECTORY: &str = "db";

/// Why a data directory is not used. Each message is one line that says what to do.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// Another process holds the lock.
    #[error(
        "data directory {path} is in use by another process (pid {pid}); stop that process or \
         give this store a directory of its own"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who holds it, as it wrote down itself; "unknown" if it has not yet.
        pid: String,
    },
    /// It belongs to another store.
    #[error(
        "data directory {path} belongs to store {found}, not to store {wanted}; use the directory \
         of store {wanted}, or an empty one for a new store"
    )]
    OtherStore {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: u32,
        /// Who asked.
        wanted: u32,
    },
    /// It already belongs to a cluster, and not to the one that was given.
    #[error(
        "data directory {path} belongs to cluster {found}, not to cluster {wanted}; a store cannot \
         change its cluster, start it with an empty directory"
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: Uuid,
        /// What was asked for.
        wanted: Uuid,
    },
    /// A newer release wrote it.
    #[error(
        "data directory {path} has format version {found}, this release knows versions up to \
         {FORMAT_VERSION}; start the newer release that wrote it"
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// An older release wrote it, in a form that is not read any more.
    #[error(
        "data directory {path} has format version {found}, which this release does not read (it \
         knows {FORMAT_VERSION}); start the release that wrote it, and move the data with `flaredb scan` and `put`"
    )]
    Older {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// There are files, but none says that they are a store's.
    #[error(
        "{path} is not a data directory: it has no STORE file but contains {found}; give an empty \
         or new directory"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// One of the files.
        found: String,
    },
    /// `STORE` cannot be understood.
    #[error(
        "{file}, line {line}: {what}; the file was damaged or edited: undo the change of this one \
         file. Never put an older copy of the whole directory in its place"
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// The database is gone.
    #[error(
        "data directory {path} has lost its database (db/ is missing or empty); store {store_id} \
         must not come back without its data: bring back the directory that it used last (never an \
         older copy of it)"
    )]
    Wiped {
        /// The directory.
        path: PathBuf,
        /// Whose it was.
        store_id: u32,
    },
    /// The operating system refused something.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was to be done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A data directory that this process holds. Dropping it lets go of the lock.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Mutex<StoreIdentity>,
    /// Locked as long as it is open.
    _lock: File,
}

impl DataDir {
    /// Opens the data directory of store `store_id`, or makes one out of a directory that is
    /// empty or does not exist.
    ///
    /// # Errors
    /// See [`DataDirError`]. Whatever the error, a directory that existed is as it was.
    pub fn open(path: &Path, store_id: u32) -> Result<Self, DataDirError> {
        // Look before the lock file is made, so that a foreign directory stays as it is, and
        // again under the lock, because another process may have been quicker.
        check(path, store_id)?;
        create_directory(path)?;
        let mut lock = take_lock(path)?;
        let identity = match check(path, store_id)? {
            Some(identity) => identity,
            None => {
                let identity = StoreIdentity::new(store_id, changed_unix_s(&lock));
                write_store_file(path, &identity)?;
                identity
            }
        };
        if !identity.initialised {
            remove_unfinished_database(&path.join(DB_DIRECTORY))?;
        }
        write_pid(&mut lock, path)?;
        Ok(Self {
            path: path.to_owned(),
            identity: Mutex::new(identity),
            _lock: lock,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the database is.
    pub fn db_path(&self) -> PathBuf {
        self.path.join(DB_DIRECTORY)
    }

    /// Whose directory this is.
    pub fn identity(&self) -> StoreIdentity {
        self.identity.lock().clone()
    }

    /// Notes, durably, which cluster this store belongs to. Noting the same again is fine.
    ///
    /// # Errors
    /// [`DataDirError::OtherCluster`] if another is noted already, or writing failed; then
    /// nothing was noted.
    pub fn set_cluster_id(&self, cluster_id: Uuid) -> Result<(), DataDirError> {
        self.update(|identity| match identity.cluster_id {
            Some(found) if found != cluster_id => Err(DataDirError::OtherCluster {
                path: self.path.clone(),
                found,
                wanted: cluster_id,
            }),
            _ => {
                identity.cluster_id = Some(cluster_id);
                Ok(())
            }
        })
    }

    /// Notes, durably, that the database has been created: from now on a directory without it
    /// is refused. To be called once the database is open, before the store promises anything
    /// to anybody.
    ///
    /// # Errors
    /// Writing failed; then nothing was noted.
    pub fn mark_initialised(&self) -> Result<(), DataDirError> {
        // The entry of `db` in this directory has to survive as well as what STORE says of it.
        sync_directory(&self.path)?;
        self.update(|identity| {
            identity.initialised = true;
            Ok(())
        })
    }

    fn update(
        &self,
        change: impl FnOnce(&mut StoreIdentity) -> Result<(), DataDirError>,
    ) -> Result<(), DataDirError> {
        // Held while the file is written: two updates at once would lose one. Only start-up
        // and joining come here.
        let mut identity = self.identity.lock();
        let mut changed = identity.clone();
        change(&mut changed)?;
        if changed != *identity {
            write_store_file(&self.path, &changed)?;
            *identity = changed;
        }
        Ok(())
    }
}

/// Looks at a directory without touching it: the identity of the store's own directory, or
/// none if there is nothing yet.
fn check(path: &Path, store_id: u32) -> Result<Option<StoreIdentity>, DataDirError> {
    let file = path.join(STORE_FILE);
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            check_empty(path)?;
            return Ok(None);
        }
        Err(error) => return Err(io_error("read", &file)(error)),
    };
    let identity = StoreIdentity::parse(&text).map_err(|error| match error {
        ParseError::Older { found } => DataDirError::Older {
            path: path.to_owned(),
            found,
        },
        ParseError::Newer { found } => DataDirError::Newer {
            path: path.to_owned(),
            found,
        },
        ParseError::Damaged { line, what } => DataDirError::Damaged { file, line, what },
    })?;
    if identity.store_id != store_id {
        return Err(DataDirError::OtherStore {
            path: path.to_owned(),
            found: identity.store_id,
            wanted: store_id,
        });
    }
    if identity.initialised && is_missing_or_empty(&path.join(DB_DIRECTORY))? {
        return Err(DataDirError::Wiped {
            path: path.to_owned(),
            store_id,
        });
    }
    Ok(Some(identity))
}

/// Accepts a directory without `STORE` if it is missing, empty, a fresh file system, or what a
/// crash during the very first start leaves.
fn check_empty(path: &Path) -> Result<(), DataDirError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("list", path)(error)),
    };
    for entry in entries {
        let name = entry.map_err(io_error("list", path))?.file_name();
        if ![LOCK_FILE, NEW_STORE_FILE, "lost+found"]
            .iter()
            .any(|ours| name == *ours)
        {
            return Err(DataDirError::Foreign {
                path: path.to_owned(),
                found: name.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

fn is_missing_or_empty(path: &Path) -> Result<bool, DataDirError> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(io_error("list", path)(error)),
    }
}

/// Removes what a first start left that ended before [`DataDir::mark_initialised`]: a database that is
/// half created does not open, and nobody was promised anything that could be in it.
fn remove_unfinished_database(path: &Path) -> Result<(), DataDirError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn create_directory(path: &Path) -> Result<(), DataDirError> {
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(io_error("create", path))?;
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_directory(Path::new(".")),
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}

fn take_lock(path: &Path) -> Result<File, DataDirError> {
    let file = path.join(LOCK_FILE);
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&file)
        .map_err(io_error("open", &file))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Only to be helpful: the holder may be about to write it.
            let _ = lock.read_to_string(&mut pid);
            let pid = match pid.trim() {
                "" => "unknown".to_owned(),
                pid => pid.to_owned(),
            };
            Err(DataDirError::InUse {
                path: path.to_owned(),
                pid,
            })
        }
        Err(TryLockError::Error(error)) => Err(io_error("lock", &file)(error)),
    }
}

/// When a file was made or changed. The file system's word for what time it is now, for a file that
/// was just made: this crate reads no clock.
fn changed_unix_s(file: &File) -> u64 {
    file.metadata()
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |since_1970| since_1970.as_secs())
}

/// Tells the next one who holds the lock. Not synced: after a crash nobody holds it.
fn write_pid(lock: &mut File, path: &Path) -> Result<(), DataDirError> {
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(io_error("write", &path.join(LOCK_FILE)))
}

fn write_store_file(path: &Path, identity: &StoreIdentity) -> Result<(), DataDirError> {
    let (new, file) = (path.join(NEW_STORE_FILE), path.join(STORE_FILE));
    File::create(&new)
        .and_then(|mut out| {
            out.write_all(identity.to_text().as_bytes())?;
            out.sync_all()
        })
        .map_err(io_error("write", &new))?;
    fs::rename(&new, &file).map_err(io_error("rename into place", &file))?;
    sync_directory(path)
}

/// A rename or a new file survives a power loss only once its directory is synced.
fn sync_directory(path: &Path) -> Result<(), DataDirError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync", path))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io {
        doing,
        path,
        source,
    }
}
