//! Keys as JSON (RFC 7517, RFC 7518 §6, RFC 8037 §2).
//!
//! A set may hold keys that are for something else. Those are skipped, with the reason.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::keys::{Algorithm, Key, KeyError, KeySet};
use super::quoted;
use crate::config::limits::{JWKS_BYTES_MAX, KEYS_MAX};

/// Bytes of an RSA modulus that are possible: 2,048 to 8,192 bits.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1_024;
/// Bytes of a coordinate of P-256, and of a public key of Ed25519.
const POINT_BYTES: usize = 32;

#[derive(Deserialize)]
struct SetJson<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct KeyJson {
    kty: String,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

impl KeySet {
    /// Reads a set of keys, or one key, from JSON. `takes_secrets`: it is nobody else's to read, so
    /// it may hold secrets.
    pub fn read(json: &[u8], takes_secrets: bool) -> Result<KeySet, KeyError> {
        if json.len() > JWKS_BYTES_MAX {
            return Err(KeyError(format!("it has more than {JWKS_BYTES_MAX} bytes")));
        }
        let text = std::str::from_utf8(json).map_err(|_| KeyError("it is not UTF-8".to_string()))?;
        let set = match serde_json::from_str::<SetJson<'_>>(text) {
            Ok(set) => set,
            // One key alone has a kty.
            Err(error) => match serde_json::from_str::<KeyJson>(text) {
                Ok(_) => {
                    SetJson { keys: vec![serde_json::from_str(text).expect("it was read as JSON just now")] }
                }
                Err(_) => return Err(KeyError(format!("it is no JWK set: {error}"))),
            },
        };
        if set.keys.len() > KEYS_MAX {
            return Err(KeyError(format!("it has {} keys, at most {KEYS_MAX} are possible", set.keys.len())));
        }
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        for (index, json) in set.keys.iter().enumerate() {
            match key(json.get(), takes_secrets) {
                Ok(key) => keys.push(Arc::new(key)),
                Err(cause) => skipped.push(format!("key {}: {cause}", index + 1)),
            }
        }
        if keys.is_empty() {
            let cause = skipped.first().map_or("its list of keys is empty", String::as_str);
            return Err(KeyError(format!("it has no key for tokens: {cause}")));
        }
        Ok(KeySet { keys, skipped })
    }
}

fn key(json: &str, takes_secrets: bool) -> Result<Key, String> {
    let json: KeyJson = serde_json::from_str(json).map_err(|error| error.to_string())?;
    if json.usage.as_ref().is_some_and(|usage| usage != "sig") {
        return Err(format!("its use is {}, not sig", quoted(json.usage.as_deref().unwrap_or_default())));
    }
    if json.key_ops.as_ref().is_some_and(|all| !all.iter().any(|one| one == "verify" || one == "sign")) {
        return Err("its key_ops name neither verify nor sign".to_string());
    }
    let algorithm = algorithm(&json)?;
    if let Some(named) = &json.alg
        && Algorithm::named(named) != Some(algorithm)
    {
        return Err(format!(
            "its alg is {}; a key of this kind is taken for {}",
            quoted(named),
            algorithm.name()
        ));
    }
    let kid = json.kid.as_deref();
    let part = |name: &str, text: &Option<String>| {
        let text = text.as_deref().ok_or_else(|| format!("it lacks {name}"))?;
        URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("its {name} is not base64url"))
    };
    match algorithm {
        Algorithm::Hs256 => {
            if !takes_secrets {
                return Err("it is a secret, which is not taken from where others can read it".to_string());
            }
            Key::secret(kid, &part("k", &json.k)?).map_err(|error| error.to_string())
        }
        Algorithm::Rs256 => {
            let (n, e) = (part("n", &json.n)?, part("e", &json.e)?);
            let significant = n.len() - n.iter().take_while(|byte| **byte == 0).count();
            if !MODULUS_BYTES.contains(&significant) {
                return Err(format!("its modulus has {} bits, 2048 to 8192 are possible", 8 * significant));
            }
            if e.is_empty() {
                return Err("its e is empty".to_string());
            }
            Ok(Key::new(algorithm, kid, DecodingKey::from_rsa_raw_components(&n, &e), &[&n, &e]))
        }
        Algorithm::Es256 => {
            let (x, y) = (part("x", &json.x)?, part("y", &json.y)?);
            if (x.len(), y.len()) != (POINT_BYTES, POINT_BYTES) {
                return Err(format!("its x and y have not {POINT_BYTES} bytes each"));
            }
            // A point in its long form (SEC 1 §2.3.3).
            let point = [&[4][..], &x, &y].concat();
            Ok(Key::new(algorithm, kid, DecodingKey::from_ec_der(&point), &[&x, &y]))
        }
        Algorithm::EdDsa => {
            let x = part("x", &json.x)?;
            if x.len() != POINT_BYTES {
                return Err(format!("its x has not {POINT_BYTES} bytes"));
            }
            Ok(Key::new(algorithm, kid, DecodingKey::from_ed_der(&x), &[&x]))
        }
    }
}

/// The algorithm that a kind of key is for.
fn algorithm(json: &KeyJson) -> Result<Algorithm, String> {
    match (json.kty.as_str(), json.crv.as_deref()) {
        ("oct", _) => Ok(Algorithm::Hs256),
        ("RSA", _) => Ok(Algorithm::Rs256),
        ("EC", Some("P-256")) => Ok(Algorithm::Es256),
        ("OKP", Some("Ed25519")) => Ok(Algorithm::EdDsa),
        (kty, None) => Err(format!("its kty {} is not taken", quoted(kty))),
        (kty, Some(crv)) => Err(format!("its kty {} with crv {} is not taken", quoted(kty), quoted(crv))),
    }
}
