//! A data directory is accepted once it is certain whose it is; otherwise it is refused with
//! one clear line, and stays as it was.

#![allow(
    clippy::expect_used,
    reason = "helpers of tests may stop at what they did not expect"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use rdb_storage::{DataDir, DataDirError};
use tempfile::TempDir;
use uuid::Uuid;

/// Every file below a directory with its content and time of change; directories with none.
fn contents(path: &Path) -> BTreeMap<PathBuf, Option<(Vec<u8>, std::time::SystemTime)>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(path).expect("it can be listed") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            found.extend(contents(&path));
            found.insert(path, None);
        } else {
            let modified = fs::metadata(&path).and_then(|data| data.modified());
            let text = fs::read(&path).expect("it can be read");
            found.insert(path, Some((text, modified.expect("a time of change"))));
        }
    }
    found
}

/// Opens a directory that has to be refused, checks that nothing changed, returns the message.
fn refused(path: &Path, store_id: u32) -> String {
    let before = contents(path);
    let error = DataDir::open(path, store_id).expect_err("it has to be refused");
    assert_eq!(contents(path), before, "{error}");
    let message = error.to_string();
    assert!(!message.contains('\n'), "one line: {message}");
    assert!(
        message.contains(&path.display().to_string()),
        "names the directory: {message}"
    );
    message
}

/// What a database looks like from outside: the data directory knows no more of it.
fn create_database(data: &DataDir) {
    fs::create_dir_all(data.db_path()).expect("it can be made");
    fs::write(data.db_path().join("CURRENT"), "MANIFEST-000005\n").expect("it can be written");
}

/// A directory that store 1 has used.
fn used() -> TempDir {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let data = DataDir::open(parent.path(), 1).expect("an empty one is taken");
    create_database(&data);
    data.mark_initialised().expect("it can be written");
    parent
}

#[test]
fn a_new_directory_gets_an_identity_and_keeps_it() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let path = parent.path().join("some/where");
    let data = DataDir::open(&path, 7).expect("a missing one is made");
    let identity = data.identity();
    assert_eq!((identity.store_id, identity.format_version), (7, 2));
    assert_eq!(identity.store_uuid.get_version_num(), 4);
    assert_eq!(identity.cluster_id, None);
    assert!(!identity.initialised);
    assert!(identity.created_unix_s > 1_600_000_000);
    assert_eq!(data.db_path(), path.join("db"));
    drop(data);

    let data = DataDir::open(&path, 7).expect("its own");
    assert_eq!(data.identity(), identity);

    let other = DataDir::open(&parent.path().join("other"), 7).expect("a missing one is made");
    assert_ne!(other.identity().store_uuid, identity.store_uuid);
}

#[test]
fn the_cluster_is_noted_once() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let (cluster, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let data = DataDir::open(parent.path(), 1).expect("an empty one is taken");
    data.set_cluster_id(cluster).expect("the first");
    data.set_cluster_id(cluster).expect("the same again");
    let before = contents(parent.path());
    let error = data.set_cluster_id(other).expect_err("another");
    assert!(
        matches!(error, DataDirError::OtherCluster { .. }),
        "{error}"
    );
    assert_eq!(contents(parent.path()), before);
    assert_eq!(data.identity().cluster_id, Some(cluster));
    drop(data);

    let data = DataDir::open(parent.path(), 1).expect("its own");
    assert_eq!(data.identity().cluster_id, Some(cluster));
    data.set_cluster_id(other).expect_err("another");
}

#[test]
fn a_directory_in_use_is_refused() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let data = DataDir::open(parent.path(), 1).expect("an empty one is taken");
    let message = refused(parent.path(), 1);
    assert!(
        message.contains(&format!(
            "is in use by another process (pid {})",
            std::process::id()
        )),
        "{message}"
    );
    drop(data);
    DataDir::open(parent.path(), 1).expect("free again");
}

#[test]
fn another_store_is_refused() {
    let parent = used();
    let message = refused(parent.path(), 2);
    assert!(
        message.contains("belongs to store 1, not to store 2"),
        "{message}"
    );
}

#[test]
fn a_newer_format_is_refused() {
    let parent = used();
    let file = parent.path().join("STORE");
    let text = fs::read_to_string(&file).expect("it can be read");
    let newer = text.replace("format_version = 2", "format_version = 9");
    fs::write(&file, newer + "what_is_this = \"new\"\n").expect("it can be written");
    let message = refused(parent.path(), 1);
    assert!(message.contains("format version 9"), "{message}");
    assert!(message.contains("newer release"), "{message}");
    let older = text.replace("format_version = 2", "format_version = 1");
    fs::write(&file, older).expect("it can be written");
    let message = refused(parent.path(), 1);
    assert!(message.contains("format version 1"), "{message}");
    assert!(message.contains("does not read"), "{message}");
}

#[test]
fn a_foreign_directory_is_refused() {
    let parent = tempfile::tempdir().expect("a temporary directory");
    fs::write(parent.path().join(".bashrc"), "alias ll='ls -l'").expect("it can be written");
    let message = refused(parent.path(), 1);
    assert!(
        message.contains("no STORE file but contains .bashrc"),
        "{message}"
    );

    // A store that lost its identity is as foreign.
    let parent = used();
    fs::remove_file(parent.path().join("STORE")).expect("it can be removed");
    let message = refused(parent.path(), 1);
    assert!(message.contains("contains db"), "{message}");

    let file = parent.path().join("LOCK");
    let error = DataDir::open(&file, 1).expect_err("a file is no directory");
    assert!(error.to_string().contains("LOCK"), "{error}");
}

#[test]
fn a_damaged_identity_is_refused_with_its_line() {
    let parent = used();
    let file = parent.path().join("STORE");
    let text = fs::read_to_string(&file).expect("it can be read");

    let edited = text.replace("store_id = 1", "store_id = one");
    fs::write(&file, edited).expect("it can be written");
    let message = refused(parent.path(), 1);
    assert!(
        message.starts_with(&format!("{}, line 3: store_id", file.display())),
        "{message}"
    );

    fs::write(
        &file,
        text.replace("initialised = true", "initialised = false"),
    )
    .expect("it can be written");
    let message = refused(parent.path(), 1);
    assert!(message.contains("line 8: the checksum"), "{message}");

    fs::write(&file, b"\xff\xfe").expect("it can be written");
    assert!(refused(parent.path(), 1).contains("line 1: not text"));
    fs::write(&file, b"").expect("it can be written");
    assert!(refused(parent.path(), 1).contains("line 1: format_version is missing"));
    fs::write(&file, text).expect("it can be written");
    DataDir::open(parent.path(), 1).expect("restored");
}

#[test]
fn a_wiped_database_is_refused() {
    let parent = used();
    let db = parent.path().join("db");
    fs::remove_dir_all(&db).expect("it can be removed");
    let message = refused(parent.path(), 1);
    assert!(message.contains("has lost its database"), "{message}");
    fs::create_dir(&db).expect("it can be made");
    let message = refused(parent.path(), 1);
    assert!(message.contains("has lost its database"), "{message}");
}

#[test]
fn what_a_crash_at_the_first_start_leaves_is_taken() {
    // After the lock, and after the unfinished identity.
    for files in [&["LOCK"][..], &["LOCK", "STORE.new"]] {
        let parent = tempfile::tempdir().expect("a temporary directory");
        for file in files {
            fs::write(parent.path().join(file), "torn").expect("it can be written");
        }
        let data = DataDir::open(parent.path(), 1).expect("nothing was promised yet");
        assert!(!data.identity().initialised);
    }
    // After the identity, before the database was noted: a missing one is no loss yet.
    let parent = tempfile::tempdir().expect("a temporary directory");
    drop(DataDir::open(parent.path(), 1).expect("an empty one is taken"));
    let data = DataDir::open(parent.path(), 1).expect("its own");
    create_database(&data);
    // A file system's own directory does not make an empty one foreign.
    let parent = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(parent.path().join("lost+found")).expect("it can be made");
    DataDir::open(parent.path(), 1).expect("as good as empty");
}
