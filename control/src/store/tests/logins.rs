//! Tokens and sessions, and what is kept of them.

use super::*;

fn token(store: &Store, org: &Org) -> Secret {
    store
        .create_login_token(org.id, "ann", at(0))
        .unwrap()
        .token
}

#[test]
fn a_token_works_once_and_says_why_not_the_second_time() {
    let (store, acme, _) = two();
    let token = token(&store, &acme);
    assert!(token.reveal().starts_with("uplt_") && token.reveal().len() == 48);
    let session = store.redeem(token.reveal(), at(599)).unwrap();
    assert_eq!(
        (session.user.as_str(), &session.orgs[..]),
        ("ann", &["acme".to_owned()][..])
    );
    assert_eq!(session.expires, at(599 + 12 * 3600));
    refused(store.redeem(token.reveal(), at(599)), "token_used");
    refused(store.redeem(token.reveal(), at(700)), "token_used");

    let late = self::token(&store, &acme);
    refused(store.redeem(late.reveal(), at(600)), "token_expired");
    refused(store.redeem(late.reveal(), at(600)), "token_expired");
    let (other, _, _) = two();
    refused(other.redeem(late.reveal(), at(0)), "token_unknown");
    for text in [
        "",
        "uplt_",
        "x",
        &late.reveal()[5..],
        &"uplt_".repeat(1000),
        session.bearer.reveal(),
    ] {
        refused(store.redeem(text, at(0)), "token_unknown");
    }
    let mut altered = late.reveal().to_owned();
    altered.pop();
    altered.push('_');
    refused(store.redeem(&altered, at(0)), "token_unknown");
}

#[test]
fn of_many_at_the_same_moment_one_gets_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.db");
    let store = Store::open(&path).unwrap();
    let acme = store.create_org("acme", at(0)).unwrap();
    // Two processes' worth of stores, eight threads each.
    let stores = [store, Store::open(&path).unwrap()];
    for _ in 0..20 {
        let token = token(&stores[0], &acme);
        let gate = std::sync::Barrier::new(16);
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|n| {
                    let (store, token, gate) = (&stores[n % 2], &token, &gate);
                    scope.spawn(move || {
                        gate.wait();
                        store.redeem(token.reveal(), at(1))
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1);
        for loser in lost {
            refused(loser, "token_used");
        }
    }
}

#[test]
fn sessions_end() {
    let (store, acme, rival) = two();
    let session = store.redeem(token(&store, &acme).reveal(), at(0)).unwrap();
    let bearer = session.bearer.reveal();
    let ann = store.session(bearer, at(12 * 3600 - 1)).unwrap();
    assert_eq!(ann.user(), "ann");
    refused(store.session(bearer, at(12 * 3600)), "session_expired");
    refused(store.session("upss_x", at(0)), "session_unknown");
    refused(
        store.session(token(&store, &acme).reveal(), at(0)),
        "session_unknown",
    );

    assert_eq!(store.org_of(&ann, "acme").unwrap(), acme);
    refused(store.org_of(&ann, &rival.name), "org_unknown");
    refused(store.org_of(&ann, "nobody"), "org_unknown");
    store.create_login_token(rival.id, "ann", at(0)).unwrap();
    assert_eq!(store.orgs_of(&ann).unwrap(), ["acme", "rival"]);

    store.end_session(bearer).unwrap();
    store.end_session(bearer).unwrap();
    refused(store.session(bearer, at(0)), "session_unknown");
}

#[test]
fn what_has_ended_is_forgotten_in_time() {
    let (store, acme, _) = two();
    let used = token(&store, &acme);
    let bearer = store.redeem(used.reveal(), at(0)).unwrap().bearer;
    store.sweep(at(3600)).unwrap();
    refused(store.redeem(used.reveal(), at(3600)), "token_used");
    store.sweep(at(600 + 24 * 3600)).unwrap();
    refused(
        store.redeem(used.reveal(), at(600 + 24 * 3600)),
        "token_unknown",
    );
    refused(
        store.session(bearer.reveal(), at(12 * 3600)),
        "session_expired",
    );
    store.sweep(at(36 * 3600)).unwrap();
    refused(
        store.session(bearer.reveal(), at(36 * 3600)),
        "session_unknown",
    );
}

#[test]
fn waiting_tokens_are_bounded() {
    let (store, acme, _) = two();
    for _ in 0..100 {
        token(&store, &acme);
    }
    refused(
        store.create_login_token(acme.id, "ann", at(0)),
        "too_many_tokens",
    );
    store.create_login_token(acme.id, "bob", at(0)).unwrap();
    store.create_login_token(acme.id, "ann", at(600)).unwrap();
}

#[test]
fn a_user_cannot_be_named_like_a_field_of_a_key_id() {
    let (store, acme, _) = two();
    for user in ["", "a;org=rival", "a b", "a\n", "é", &"x".repeat(65)] {
        refused(
            store.create_login_token(acme.id, user, at(0)),
            "name_invalid",
        );
    }
    store
        .create_login_token(acme.id, "ann.o+x@example-1.com", at(0))
        .unwrap();
    refused(
        store.create_local_login_token("a;org=rival", at(0)),
        "name_invalid",
    );
}

#[test]
fn who_owns_the_machine_is_everywhere_and_never_waits_for_tokens() {
    let (store, acme, _) = two();
    let local = |seconds| store.create_local_login_token("ann", at(seconds)).unwrap();
    let theirs = store.create_login_token(acme.id, "bob", at(0)).unwrap();
    let used = local(0);
    let session = store.redeem(used.token.reveal(), at(0)).unwrap();
    assert_eq!(session.orgs, ["acme", "rival"]);
    assert_eq!(used.expires, at(600));

    let made: Vec<_> = (1..=150).map(|second| local(second).token).collect();
    let (dropped, kept) = made.split_at(130);
    for token in dropped {
        refused(store.redeem(token.reveal(), at(151)), "token_unknown");
    }
    for token in kept {
        store.redeem(token.reveal(), at(151)).unwrap();
    }
    refused(store.redeem(used.token.reveal(), at(151)), "token_used");
    store.redeem(theirs.token.reveal(), at(151)).unwrap();

    // A hundred that a server made for the same user are in nobody's way.
    for _ in 0..100 {
        store.create_login_token(acme.id, "ann", at(200)).unwrap();
    }
    let token = local(200).token;
    store.redeem(token.reveal(), at(200)).unwrap();

    store.create_org("third", at(200)).unwrap();
    let session = store.redeem(local(201).token.reveal(), at(201)).unwrap();
    assert_eq!(session.orgs, ["acme", "rival", "third"]);
}

#[test]
fn a_local_token_that_is_refused_leaves_nobody_a_member() {
    let (store, _, _) = two();
    store
        .writer()
        .execute_batch(
            "CREATE TRIGGER full BEFORE INSERT ON login_tokens
             BEGIN SELECT raise(ABORT, 'full'); END",
        )
        .unwrap();
    refused(store.create_local_login_token("ann", at(0)), "internal");
    let sql = "SELECT (SELECT count(*) FROM users) + (SELECT count(*) FROM members)";
    let left: u32 = store.writer().query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[test]
fn no_secret_is_in_the_file_and_none_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.db");
    let store = Store::open(&path).unwrap();
    let acme = store.create_org("acme", at(0)).unwrap();
    let token = store.create_login_token(acme.id, "ann", at(0)).unwrap();
    let session = store.redeem(token.token.reveal(), at(0)).unwrap();
    let shown = format!(
        "{token:?} {session:?} {store:?} {:?}",
        store.token_signer().unwrap()
    );
    for secret in [token.token.reveal(), session.bearer.reveal()] {
        assert!(!shown.contains(secret));
        for entry in fs::read_dir(dir.path()).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "a secret is in the file");
        }
    }
    let seeds: Vec<[u8; 32]> = {
        let connection = store.writer();
        let mut statement = connection.prepare("SELECT seed FROM authorities").unwrap();
        statement
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect()
    };
    assert_eq!(seeds.len(), 2);
    for seed in seeds {
        let authority = crate::certificate::Authority::from_seed(&seed, "x").unwrap();
        let shown = format!("{authority:?}");
        let as_list = format!("{seed:?}");
        assert!(!shown.contains(as_list.trim_matches(['[', ']'])), "{shown}");
    }
}

#[test]
fn sessions_of_one_user_are_bounded_and_the_oldest_goes() {
    let (store, acme, _) = two();
    let first = store.redeem(token(&store, &acme).reveal(), at(0)).unwrap();
    let count = || -> u32 {
        let sql = "SELECT count(*) FROM sessions";
        store.writer().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    store
        .writer()
        .execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)
             INSERT INTO sessions SELECT randomblob(32), 1, ?1 FROM n",
            [unix(at(12 * 3600 + 1))],
        )
        .unwrap();
    assert_eq!(count(), 10_000);
    store.session(first.bearer.reveal(), at(1)).unwrap();
    let last = store
        .create_login_token(acme.id, "ann", at(2))
        .unwrap()
        .token;
    let last = store.redeem(last.reveal(), at(2)).unwrap();
    assert_eq!(count(), 10_000);
    refused(
        store.session(first.bearer.reveal(), at(2)),
        "session_unknown",
    );
    store.session(last.bearer.reveal(), at(2)).unwrap();
}
