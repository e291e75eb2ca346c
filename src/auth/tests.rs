//! Promise: a token grants what its claims say, if one of our keys has signed it with its one
//! algorithm, in its time, and nothing else does.
//!
//! Set-up: keys of each kind, made here; tokens signed with them, and then spoilt in every way.

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RsaKeyPair};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::signer::ED25519_BEGIN;
use super::*;
use crate::config::limits::{CLAIM_PATTERNS_MAX, KEYS_MAX};
use crate::event::Topic;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOW_MS: u64 = 1_800_000_000_000;

/// A private key of this kind in PEM, as openssl writes it.
fn pem(algorithm: Algorithm) -> String {
    let der = match algorithm {
        Algorithm::Hs256 => unreachable!("a secret has no PEM"),
        Algorithm::Rs256 => {
            let pair = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
            let der: Pkcs8V1Der<'_> = pair.as_der().expect("PKCS #8");
            der.as_ref().to_vec()
        }
        Algorithm::Es256 => {
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .expect("a key")
                .as_ref()
                .to_vec()
        }
        // As RFC 8410 §10.3 has it, without the public half.
        Algorithm::EdDsa => {
            let mut seed = [0; 32];
            aws_lc_rs::rand::fill(&mut seed).expect("random bytes");
            [&ED25519_BEGIN[..], &seed].concat()
        }
    };
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
}

fn signer(algorithm: Algorithm) -> Signer {
    match algorithm {
        Algorithm::Hs256 => Signer::from_secret(SECRET).expect("a secret"),
        other => Signer::read(pem(other).as_bytes()).expect("a private key"),
    }
}

/// The keys with which the tokens of a signer are checked.
fn set_of(signer: &Signer) -> KeySet {
    match signer.public_set() {
        None => KeySet::of(Key::from_secret(SECRET).expect("a secret")),
        Some(set) => {
            let json = set.expect("a public half").to_string();
            KeySet::read(json.as_bytes(), false).expect("a set")
        }
    }
}

fn keys_of(signer: &Signer) -> Keys {
    Keys::new([Some(&set_of(signer))])
}

fn claims() -> Value {
    json!({
        "sub": "u1", "exp": 1_800_000_060, "nbf": 1_799_999_999.5,
        "fanwave": { "subscribe": ["news/**", "chat/*"], "publish": ["chat/*"] }
    })
}

/// The parts of a token whose header and claims are these, signed by nobody.
fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    format!("{}.{}", part(header), part(claims))
}

fn refused(token: &str, keys: &Keys) -> Refused {
    verify(token, keys, NOW_MS).expect_err("no such token is taken")
}

#[test]
fn each_algorithm_is_taken_with_its_key_and_no_other_one() {
    let signers = Algorithm::ALL.map(signer);
    for (at, one) in signers.iter().enumerate() {
        let token = one.sign(&claims()).expect("a token");
        let granted = verify(&token, &keys_of(one), NOW_MS).expect("its own key");
        assert_eq!(granted.subject.as_deref(), Some("u1"));
        assert_eq!(granted.expires_ms, Some(1_800_000_060_000));
        assert_eq!(granted.key, set_of(one).iter().next().expect("a key").number());
        for (other, signer) in signers.iter().enumerate().filter(|(other, _)| *other != at) {
            let error = refused(&token, &keys_of(signer));
            assert_eq!(error, Refused::Algorithm(one.algorithm().name().into()), "{at} {other}");
        }
        if one.algorithm() != Algorithm::Hs256 {
            assert_eq!(refused(&token, &keys_of(&signer(one.algorithm()))), Refused::Signature);
        }
        // One bit of each part.
        for place in [2, token.find('.').expect("a dot") + 2, token.len() - 4] {
            let mut spoilt = token.clone().into_bytes();
            spoilt[place] ^= 1;
            let spoilt = String::from_utf8(spoilt).expect("ASCII");
            assert!(verify(&spoilt, &keys_of(one), NOW_MS).is_err(), "{spoilt}");
        }
    }
}

#[test]
fn the_header_does_not_choose_the_algorithm() {
    // The public key of RS256 as a secret of HS256: the classic confusion.
    let signer = signer(Algorithm::Rs256);
    let public = signer.public_set().expect("public").expect("a set").to_string();
    let forged =
        Signer::from_secret(public.as_bytes()).expect("long enough").sign(&claims()).expect("a token");
    assert_eq!(refused(&forged, &keys_of(&signer)), Refused::Algorithm("HS256".into()));
    for none in ["none", "None", "NONE", "", "HS512", "RS384", "PS256", "ES384", "hs256"] {
        let message = unsigned(&json!({ "alg": none }), &claims());
        for signature in ["", "AAAA"] {
            let error = refused(&format!("{message}.{signature}"), &keys_of(&signer));
            assert_eq!(error, Refused::Algorithm(format!("{none:?}")));
        }
    }
}

#[test]
fn a_token_is_valid_from_its_begin_to_its_end_without_leeway() {
    let signer = signer(Algorithm::Hs256);
    let keys = keys_of(&signer);
    let token = signer.sign(&claims()).expect("a token");
    for (now_ms, told) in [
        (1_799_999_999_499, Some(Refused::NotYet)),
        (1_799_999_999_500, None),
        (1_800_000_059_999, None),
        (1_800_000_060_000, Some(Refused::Expired)),
        (u64::MAX, Some(Refused::Expired)),
    ] {
        assert_eq!(verify(&token, &keys, now_ms).err(), told, "{now_ms}");
    }
    let endless = signer.sign(&json!({})).expect("a token");
    let nothing = verify(&endless, &keys, NOW_MS).expect("valid");
    assert_eq!((nothing.expires_ms, nothing.subscribe.len(), nothing.publish.len()), (None, 0, 0));
    assert!(!nothing.lets_subscribe(&Topic::new("news").expect("legal")) && !nothing.lets_publish("news"));
}

#[test]
fn what_is_no_token_is_refused_with_its_reason() {
    let signer = signer(Algorithm::Hs256);
    let keys = keys_of(&signer);
    let long = "a".repeat(TOKEN_BYTES_MAX + 1);
    assert_eq!(refused(&long, &keys), Refused::TooLong);
    let good = signer.sign(&claims()).expect("a token");
    for text in ["", ".", "..", "a.b", "a.b.c", &format!("{good}.x"), &format!(" {good}"), "ä.b.c"] {
        assert!(matches!(refused(text, &keys), Refused::Malformed(_)), "{text}");
    }
    for extra in [
        json!({ "alg": "HS256", "crit": ["exp"] }),
        json!({ "alg": "HS256", "typ": "secevent+jwt" }),
        json!({ "alg": 1 }),
        json!({}),
        json!([]),
    ] {
        let token = format!("{}.AAAA", unsigned(&extra, &claims()));
        assert!(matches!(refused(&token, &keys), Refused::Malformed(_)), "{extra}");
    }
    let foreign = format!("{}.AAAA", unsigned(&json!({ "alg": "HS256", "typ": "jwt" }), &claims()));
    assert_eq!(refused(&foreign, &keys), Refused::Signature);
    // A padded part is not base64url.
    let padded = good.replacen('.', "=.", 1);
    assert!(matches!(refused(&padded, &keys), Refused::Malformed(_)));
}

#[test]
fn claims_of_the_wrong_shape_make_the_token_invalid() {
    let signer = signer(Algorithm::Hs256);
    let keys = keys_of(&signer);
    let many: Vec<String> = (0..=CLAIM_PATTERNS_MAX).map(|n| n.to_string()).collect();
    for wrong in [
        json!([]),
        json!("x"),
        json!({ "exp": "1800000060" }),
        json!({ "exp": null }),
        json!({ "exp": -1 }),
        json!({ "exp": 1e300 }),
        json!({ "nbf": [] }),
        json!({ "sub": 7 }),
        json!({ "iss": {} }),
        json!({ "aud": 7 }),
        json!({ "fanwave": null }),
        json!({ "fanwave": [] }),
        json!({ "fanwave": { "subscribe": "news" } }),
        json!({ "fanwave": { "subscribe": ["a*"] } }),
        json!({ "fanwave": { "subscribe": ["**/a"] } }),
        json!({ "fanwave": { "publish": [""] } }),
        json!({ "fanwave": { "publish": [7] } }),
        json!({ "fanwave": { "subscribes": ["news"] } }),
        json!({ "fanwave": { "publish": ["a".repeat(256)] } }),
        json!({ "fanwave": { "publish": many } }),
    ] {
        let token = signer.sign(&wrong).expect("a token");
        let error = refused(&token, &keys);
        assert!(matches!(error, Refused::Claims(_)), "{wrong}: {error}");
        assert!(error.to_string().len() < 400 && !error.to_string().contains('\n'), "{error}");
    }
    // A member that stands twice could be read in two ways.
    let twice = r#"{"exp":1800000060,"exp":9000000000}"#;
    let token = signer.sign_payload(twice.as_bytes()).expect("a token");
    assert!(matches!(refused(&token, &keys), Refused::Claims(_)));
}

#[test]
fn issuer_and_audience_are_those_of_the_server() {
    let signer = signer(Algorithm::Hs256);
    let keys = || keys_of(&signer);
    let token = |claims: Value| signer.sign(&claims).expect("a token");
    let ours = keys().naming(Some("us"), Some("edge"));
    for (claims, told) in [
        (json!({ "iss": "us", "aud": "edge" }), None),
        (json!({ "iss": "us", "aud": ["x", "edge"] }), None),
        (json!({ "iss": "them", "aud": "edge" }), Some(Refused::Issuer)),
        (json!({ "aud": "edge" }), Some(Refused::Issuer)),
        (json!({ "iss": "us" }), Some(Refused::Audience)),
        (json!({ "iss": "us", "aud": [] }), Some(Refused::Audience)),
        (json!({ "iss": "us", "aud": "edge2" }), Some(Refused::Audience)),
    ] {
        assert_eq!(verify(&token(claims.clone()), &ours, NOW_MS).err(), told, "{claims}");
    }
    // RFC 7519 §4.1.3: a server without an audience of its own takes no token that has one.
    assert_eq!(refused(&token(json!({ "aud": "edge" })), &keys()), Refused::Audience);
    assert!(verify(&token(json!({ "iss": "them" })), &keys(), NOW_MS).is_ok());
}

#[test]
fn a_key_is_found_by_its_name_and_a_nameless_one_by_its_algorithm() {
    let named = signer(Algorithm::Es256).named(Some("k1".into()));
    let other = signer(Algorithm::Es256).named(Some("k2".into()));
    let secret = signer(Algorithm::Hs256);
    let sets = [set_of(&named), set_of(&other), set_of(&secret)];
    let keys = Keys::new(sets.iter().map(Some));
    let token = |signer: &Signer, kid: Option<&str>| {
        signer.clone().named(kid.map(String::from)).sign(&claims()).expect("a token")
    };
    assert!(verify(&token(&named, None), &keys, NOW_MS).is_ok());
    assert!(verify(&token(&other, None), &keys, NOW_MS).is_ok());
    assert_eq!(refused(&token(&other, Some("k1")), &keys), Refused::Signature);
    // The secret has no name, so it is tried whatever name the token gives it.
    assert!(verify(&token(&secret, Some("any")), &keys, NOW_MS).is_ok());
    let only = Keys::new([Some(&set_of(&named))]);
    let told = refused(&token(&other, Some("k\n9")), &only);
    assert_eq!(told, Refused::UnknownKey("\"k\\n9\"".into()));
    let awaited = Keys::new([Some(&set_of(&named)), None]);
    assert_eq!(refused(&token(&other, Some("k2")), &awaited), Refused::NoKeys);
    assert!(verify(&token(&named, None), &awaited, NOW_MS).is_ok());
    let nameless: Vec<KeySet> = (0..=KEYS_TRIED_MAX).map(|_| set_of(&signer(Algorithm::EdDsa))).collect();
    let last = signer(Algorithm::EdDsa).sign(&claims()).expect("a token");
    assert_eq!(refused(&last, &Keys::new(nameless.iter().map(Some))), Refused::Ambiguous);
    let few = Keys::new(nameless[1..].iter().map(Some));
    assert_eq!(refused(&last, &few), Refused::Signature);
    assert!(few.has(nameless[1].iter().next().expect("a key").number()));
    assert!(!few.has(nameless[0].iter().next().expect("a key").number()));
    assert_eq!(refused(&last, &Keys::default()), Refused::UnknownKey("\"\"".into()));
}

#[test]
fn a_set_keeps_the_keys_that_it_can_use() {
    let set = json!({ "keys": [
        { "kty": "RSA", "n": "AQAB", "e": "AQAB" },
        { "kty": "EC", "crv": "P-384", "x": "", "y": "" },
        { "kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ" },
        { "kty": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET), "kid": "secret" },
        { "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode([7; 32]), "kid": "ed", "use": "sig" },
        { "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode([8; 32]), "use": "enc" },
        { "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode([9; 32]), "alg": "ES256" },
        { "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode([9; 32]), "key_ops": ["encrypt"] },
        { "kty": "new" },
        7,
    ]});
    let read = |secrets| KeySet::read(set.to_string().as_bytes(), secrets).expect("some keys");
    let names = |set: &KeySet| set.iter().map(|key| key.kid().map(String::from)).collect::<Vec<_>>();
    assert_eq!(names(&read(true)), [Some("secret".into()), Some("ed".into())]);
    assert_eq!(names(&read(false)), [Some("ed".into())], "a secret is not fetched");
    assert_eq!(read(true).skipped.len(), 8);
    assert!(read(true).skipped[0].starts_with("key 1: its modulus has"), "{:?}", read(true).skipped);
    for (json, part) in [
        ("", "no JWK set"),
        ("{}", "no JWK set"),
        (r#"{"keys":{}}"#, "no JWK set"),
        (r#"{"keys":[]}"#, "list of keys is empty"),
        (r#"{"keys":[{"kty":"new"}]}"#, "its kty \"new\" is not taken"),
    ] {
        let error = KeySet::read(json.as_bytes(), true).expect_err("no keys").to_string();
        assert!(error.contains(part), "{json}: {error}");
    }
    let many = json!({ "keys": vec![json!({ "kty": "new" }); KEYS_MAX + 1] });
    assert!(KeySet::read(many.to_string().as_bytes(), true).is_err());
    let large = format!("{{\"keys\":[]{}}}", " ".repeat(10 << 20));
    assert!(KeySet::read(large.as_bytes(), true).expect_err("10 MB").to_string().contains("1048576"));
    let alone = json!({ "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode([7; 32]) });
    assert_eq!(KeySet::read(alone.to_string().as_bytes(), false).expect("one key").len(), 1);
}

#[test]
fn a_private_key_is_read_as_jwk_too() {
    // RFC 8037 appendix A.1, RFC 7515 appendix A.3.1.
    for (jwk, algorithm) in [
        (
            json!({ "kty": "OKP", "crv": "Ed25519", "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
                    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }),
            Algorithm::EdDsa,
        ),
        (
            json!({ "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
                    "d": "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI" }),
            Algorithm::Es256,
        ),
        (json!({ "kty": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET) }), Algorithm::Hs256),
        (rsa_jwk(), Algorithm::Rs256),
    ] {
        let signer = Signer::read(jwk.to_string().as_bytes()).expect("a private key");
        assert_eq!(signer.algorithm(), algorithm);
        let token = signer.sign(&claims()).expect("a token");
        let set = KeySet::read(jwk.to_string().as_bytes(), true).expect("its public half");
        assert!(verify(&token, &Keys::new([Some(&set)]), NOW_MS).is_ok(), "{algorithm:?}");
    }
    for wrong in ["{}", "-----BEGIN NOTHING-----", "", r#"{"kty":"OKP","crv":"Ed25519","x":"AQ"}"#] {
        assert!(Signer::read(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

/// A key of openssl, made for this test alone.
fn rsa_jwk() -> Value {
    json!({
        "kty": "RSA",
        "n": "3j099xLmLFYHk9VSBZFd9NEIsZ-6PT5S64CUPU8ab60JosjAn-XlvxCAAA8rm96_0uCdK_oZ4nsmvr-U9rX7dBeGX5wNvSWSVj7kmmi2R6OPaOkhaUSgAZDA5EN-na_FTbvTOpfYRf-TY1VoHHHd2dxX9MGebgw5porXlIEK_nJitbMcTEcMF4QNH0jYiE7rWMx6S_W2ytjTCIY2iUChVNmiJ589LQroBoJzS8cd-WkEKCC6yhj95LowDTaDLrZJNNxWu9RlpBEfuH6BlaokEJJmMyoKbkMNiAwycRJxJdTno6nW6xUbROueOyoUvgOyvMfyWlVgf5N6BId95gWT7w",
        "e": "AQAB",
        "d": "aWrlbMCjPB6mw4IpwQheaBWLqS3aGtjoXluEdbyDDrwm2PefH3nezA3Yma6YgfxcQ3xWMZkWFC9UhqC72XcjSsMp80pD3hfnXU_CAlhvNnYoPZxwQ83QlE2EogI-GjBZR_EzVhTW-wUrda_6jZuZn5D8i9YX_51-7zfm4MOBYoYfKl96MY2k8NU5oy7EZ_qsmbQXTzcG4LcdIWxKKwabsEAXlsK8Xg8FjP4F19K1TmSu5JbGcZXEr1y3j4kbPiyn6n47ZdhVM7Zm5dbQBy8jgrAG8eTuHA11us88basodvPSNexGOxi8vN67QdQC915c_B56-ZT9wklaoezjDfsqeQ",
        "p": "-pudm1ek09d7LAn1tAd1rI7NDP4T78Hdib5I94C2zbUWjk-SbOEvppIfEfSn24NqlDn_2gPq0CLZbdCncPNVVzzu9kUId-DMKZz-qyj8fwxfhc5rJ49nlF_dSEutMxZw5QpW7k_2VWChIcnvgUmGLVr9a0AllNJFOg3ulaK5gaM",
        "q": "4wVeJ_O0Vz4ZHVwb7jyv7xim__uSINTFpSNkOcKojboZZcqKxCbFccswKQGbFmlLsfjnCRKypNu_tmaeFdpfLIanfNdP_gjf3THX2pdoeTdTPBUIRq2mFn3kl5ugy-gCPlInRTR2qoFrEh2_tlGWfqZq2nCDlV17u2-UuV2sAUU",
        "dp": "Ll1uGlhrwVnDixFIqQccSVGeNEIptBj9AMf4vfnNWF-hjbDBGW3MIBg2sV6_U4iLxmK4qEBDSEC6U2vgHrCWYG6Ak4WQHIW1oBlQsKADnwnN_naDMq2Ab14RFZgSsjn7pxRzouGeZItdJGA09ImCzo9gBWC300HX1vbO5lZV1ds",
        "dq": "Gjj6gT7jK9ieagfDqicUY1fDonnajTRGiCaoYwubEJPYbyuQD8wyrkw8CeCHm3UaKzqG5UNloylG4bjEtd19dNUw73inYr5_rTsepb8rcCT11lDPnepc7ugnyWNOlX79E1nF83Z15ogAaB1LkbGm4oYyfXzVliEwM5xV33t0bMk",
        "qi": "EYceDQB5Yk_lN1WnovHTKpSXPcrOYt078dHViwSF_DCy1vdinHRrSw1tReRv-wrvR_hYjnQwkwgOS0VBT7ZLAcaAuhE5csCy7CgKP79QDPAGlNpjRbKM038KIIoAg5gZisN_i9LrOPpCUM2fap4Hcwmnn9DMQg_HSs9Z5lHTp4Q",
    })
}

#[test]
fn a_token_that_was_checked_before_is_known_but_not_its_time() {
    let signer = signer(Algorithm::Hs256);
    let keys = keys_of(&signer);
    let token = signer.sign(&claims()).expect("a token");
    let mut known: KnownTokens = KnownTokens::default();
    let unknown = known.find(&token, NOW_MS).expect_err("new");
    assert!(known.check(unknown, &token, &keys, NOW_MS).is_ok());
    assert!(known.find(&token, NOW_MS).expect("known").is_ok());
    assert_eq!(known.find(&token, 1_800_000_060_000).expect("known"), Err(Refused::Expired));
    let bad = format!("{token}A");
    let unknown = known.find(&bad, NOW_MS).expect_err("new");
    assert!(known.check(unknown, &bad, &keys, NOW_MS).is_err());
    assert!(known.find(&bad, NOW_MS).expect("known").is_err());
    known.forget();
    assert!(known.find(&token, NOW_MS).is_err() && known.find(&bad, NOW_MS).is_err());
    // Bad ones make room for bad ones alone.
    let unknown = known.find(&token, NOW_MS).expect_err("new");
    assert!(known.check(unknown, &token, &keys, NOW_MS).is_ok());
    for n in 0..=2 * crate::config::limits::TOKENS_KNOWN_MAX {
        let bad = format!("bad{n}");
        let unknown = known.find(&bad, NOW_MS).expect_err("new");
        assert!(known.check(unknown, &bad, &keys, NOW_MS).is_err());
    }
    assert!(known.find("bad0", NOW_MS).is_err(), "the oldest has made room");
    assert!(known.find(&token, NOW_MS).is_ok());
    assert_eq!(known.find(&"a".repeat(TOKEN_BYTES_MAX + 1), NOW_MS).expect("no need"), Err(Refused::TooLong));
}

#[test]
fn nothing_shows_a_key() {
    let signer = Signer::from_secret(SECRET).expect("a secret");
    let shown = format!("{signer:?} {:?} {:?}", keys_of(&signer), Key::from_secret(SECRET));
    assert!(!shown.contains("0123") && !shown.contains("[48, 49"), "{shown}");
}

proptest! {
    /// A subscription is granted if one claim stands for all of its topics, and then for each of
    /// them.
    #[test]
    fn what_is_granted_lies_within_the_claims(
        claims in prop::collection::vec("([ab*]/){0,3}([ab*]|\\*\\*)", 0..4),
        wanted in "([ab*]/){0,3}([ab*]|\\*\\*)",
    ) {
        let patterns = |texts: &[String]| texts.iter().map(|text| text.parse().expect("a pattern")).collect();
        let granted = Claims {
            subject: None, issuer: None, audience: Box::default(), expires_ms: None, begins_ms: None, key: 1,
            subscribe: patterns(&claims), publish: patterns(&claims),
        };
        let mut names = vec![String::new()];
        let mut topics = Vec::new();
        for _ in 0..5 {
            names = names.iter().flat_map(|begin| ["a", "b", "c"].map(|name| {
                if begin.is_empty() { name.to_string() } else { format!("{begin}/{name}") }
            })).collect();
            topics.extend(names.iter().cloned());
        }
        let wanted: crate::topic_pattern::Pattern = wanted.parse().expect("a pattern");
        let heard: Vec<&String> = topics.iter().filter(|topic| wanted.matches(topic)).collect();
        let by_one = granted.subscribe.iter().any(|claim| heard.iter().all(|topic| claim.matches(topic)));
        prop_assert_eq!(granted.lets_subscribe(wanted.name()), by_one);
        for topic in topics.iter().take(60) {
            let naive = granted.subscribe.iter().any(|claim| claim.matches(topic));
            prop_assert_eq!(granted.lets_subscribe(&Topic::new(topic).expect("legal")), naive);
            prop_assert_eq!(granted.lets_publish(topic), naive);
        }
    }

    /// No bytes make the reader panic, or are taken.
    #[test]
    fn rubbish_is_refused(text in "[A-Za-z0-9_=.-]{0,80}") {
        let keys = keys_of(&Signer::from_secret(SECRET).expect("a secret"));
        prop_assert!(verify(&text, &keys, NOW_MS).is_err());
    }
}
