//! The file: its mode, its shape, what is refused.

use super::*;

#[test]
fn what_was_written_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.db");
    let (org, cas, signer);
    {
        let store = Store::open(&path).unwrap();
        org = store.create_org("acme", at(0)).unwrap();
        cas = (
            store.user_cas(org.id).unwrap(),
            store.host_cas(org.id).unwrap(),
        );
        signer = store.token_signer().unwrap().public_key();
    }
    let store = Store::open(&path).unwrap();
    assert_eq!(store.org("acme").unwrap(), org);
    assert_eq!(store.user_cas(org.id).unwrap(), cas.0);
    assert_eq!(store.host_cas(org.id).unwrap(), cas.1);
    assert_eq!(store.token_signer().unwrap().public_key(), signer);
}

#[test]
fn a_new_file_is_its_owners_alone_and_so_is_its_journal() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("control.db")).unwrap();
    store.create_org("acme", at(0)).unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?}", entry.file_name());
        seen += 1;
    }
    assert!(seen >= 2, "no journal: not WAL?");
}

#[test]
fn the_file_is_as_it_is_meant_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("control.db")).unwrap();
    let connection = store.writer();
    let pragma = |name| -> String {
        connection
            .pragma_query_value(None, name, |row| {
                row.get::<_, rusqlite::types::Value>(0)
                    .map(|value| format!("{value:?}"))
            })
            .unwrap()
    };
    assert_eq!(pragma("journal_mode"), r#"Text("wal")"#);
    assert_eq!(pragma("foreign_keys"), "Integer(1)");
    assert_eq!(pragma("secure_delete"), "Integer(1)");
    assert_eq!(pragma("user_version"), "Integer(1)");
    let ghost = "INSERT INTO apps (network, name, created) VALUES (77, 'x', 0)";
    assert!(
        connection.execute(ghost, []).is_err(),
        "foreign keys are not enforced"
    );
    let zero = "INSERT INTO networks (id, organisation, name, created) VALUES (0, 1, 'x', 0)";
    assert!(
        connection.execute(zero, []).is_err(),
        "network 0 is nobody's"
    );
}

#[test]
fn files_that_are_no_store_of_ours_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let newer = dir.path().join("newer.db");
    {
        let store = Store::open(&newer).unwrap();
        store
            .writer()
            .pragma_update(None, "user_version", 99)
            .unwrap();
    }
    refused(Store::open(&newer), "store_too_new");
    let junk = dir.path().join("junk.db");
    fs::write(
        &junk,
        "certainly not a database, but long enough to be taken for one",
    )
    .unwrap();
    refused(Store::open(&junk), "internal");
    refused(Store::open(dir.path().join("no/such/place.db")), "internal");
}

#[test]
fn views_follow_what_other_processes_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.db");
    let (here, there) = (Store::open(&path).unwrap(), Store::open(&path).unwrap());
    let org = here.create_org("acme", at(0)).unwrap();
    assert!(
        here.network_view(org.network, at(0))
            .unwrap()
            .unwrap()
            .apps
            .is_empty()
    );
    there.create_app(org.id, "web", at(0)).unwrap();
    assert_eq!(
        here.network_view(org.network, at(0))
            .unwrap()
            .unwrap()
            .apps
            .len(),
        1
    );
}

/// A store in a file, whose write lock somebody else holds.
fn held(dir: &Path) -> (Store, Org, Connection) {
    let path = dir.join("control.db");
    let store = Store::open(&path).unwrap();
    let acme = store.create_org("acme", at(0)).unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    (store, acme, other)
}

#[test]
fn nobody_who_reads_waits_for_one_who_waits_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let (store, acme, other) = held(dir.path());
    other.execute_batch("ROLLBACK").unwrap();
    let lease = store.lease_peer(acme.id, None, key(1), at(0), None);
    let address = lease.unwrap().address.address();
    let token = || store.create_login_token(acme.id, "ann", at(0)).unwrap();
    let session = store.redeem(token().token.reveal(), at(0)).unwrap();
    let waiting = token();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();

    std::thread::scope(|scope| {
        let writer = scope.spawn(|| store.redeem(waiting.token.reveal(), at(1)));
        while store.writer.try_lock().is_ok() {
            assert!(!writer.is_finished(), "the writer did not wait");
            std::thread::yield_now();
        }
        // A network that was not asked for before, then one that is kept.
        for _ in 0..2 {
            let view = store.network_view(acme.network, at(1)).unwrap();
            assert_eq!(view.unwrap().peers[0].address, address);
            assert!(store.peer_by_key(key(1), at(1)).unwrap().is_some());
            assert!(store.peer_by_key(key(2), at(1)).unwrap().is_none());
        }
        let ann = store.session(session.bearer.reveal(), at(1)).unwrap();
        assert_eq!(store.org_of(&ann, "acme").unwrap(), acme);
        assert_eq!(store.list_peers(acme.id, at(1)).unwrap().len(), 1);
        let waits = store.writer.try_lock().is_err() && !writer.is_finished();
        assert!(waits, "the reader waited as long as the writer");
        other.execute_batch("ROLLBACK").unwrap();
        writer.join().unwrap().unwrap();
    });
}

#[test]
fn a_token_that_nobody_made_waits_for_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _, _other) = held(dir.path());
    let made_up = format!("uplt_{}", "A".repeat(43));
    refused(store.redeem(&made_up, at(0)), "token_unknown");
}

#[test]
fn readers_cannot_write_and_the_last_to_close_leaves_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("control.db")).unwrap();
    store.create_org("acme", at(0)).unwrap();
    for connection in [Store::reader, Store::gateway] {
        let wrote = connection(&store).execute("DELETE FROM organisations", []);
        assert!(wrote.is_err(), "a reader can write");
    }
    store.orgs().unwrap();
    drop(store);
    let left = fs::read_dir(dir.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["control.db"]);
}
