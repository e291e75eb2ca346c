//! Makes tokens, for trying: an issuer has its own program for that.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, crypto};
use serde::Deserialize;
use serde_json::Value;

use super::keys::{Algorithm, Key, KeyError};

/// The begin of a private key of P-256 in PKCS #8, up to its 32 bytes (RFC 5208, RFC 5915).
const P256_BEGIN: [u8; 36] = [
    0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
    0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01,
    0x04, 0x20,
];
/// What stands between it and its public point of 64 bytes.
const P256_MIDDLE: [u8; 6] = [0xa1, 0x44, 0x03, 0x42, 0x00, 0x04];
/// The begin of a private key of Ed25519 in PKCS #8, up to its 32 bytes (RFC 8410 §7).
pub(super) const ED25519_BEGIN: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A key that signs.
#[derive(Clone)]
pub struct Signer {
    algorithm: Algorithm,
    kid: Option<String>,
    key: EncodingKey,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer {} {:?}", self.algorithm.name(), self.kid)
    }
}

#[derive(Deserialize)]
struct PrivateJson {
    kty: String,
    crv: Option<String>,
    kid: Option<String>,
    k: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<String>,
    n: Option<String>,
    e: Option<String>,
    p: Option<String>,
    q: Option<String>,
    dp: Option<String>,
    dq: Option<String>,
    qi: Option<String>,
}

impl Signer {
    /// A secret for HS256, as [`Key::from_secret`] reads it.
    pub fn from_secret(bytes: &[u8]) -> Result<Signer, KeyError> {
        Key::from_secret(bytes)?;
        let secret = bytes.strip_suffix(b"\n").map_or(bytes, |line| line.strip_suffix(b"\r").unwrap_or(line));
        Signer::new(Algorithm::Hs256, None, EncodingKey::from_secret(secret))
    }

    /// A private key in a file: PEM, or a JWK.
    pub fn read(bytes: &[u8]) -> Result<Signer, KeyError> {
        match bytes.trim_ascii_start().first() {
            Some(b'{') => Signer::from_jwk(bytes),
            _ => Signer::from_pem(bytes),
        }
    }

    /// The same under a name, which its tokens carry.
    pub fn named(self, kid: Option<String>) -> Signer {
        Signer { kid: kid.or(self.kid), ..self }
    }

    fn new<E: std::fmt::Display>(
        algorithm: Algorithm,
        kid: Option<String>,
        key: Result<EncodingKey, E>,
    ) -> Result<Signer, KeyError> {
        let key =
            key.map_err(|error| KeyError(format!("it is no private key for {}: {error}", algorithm.name())))?;
        Ok(Signer { algorithm, kid, key })
    }

    fn from_pem(pem: &[u8]) -> Result<Signer, KeyError> {
        type Reader = fn(&[u8]) -> jsonwebtoken::errors::Result<EncodingKey>;
        let readers: [(Algorithm, Reader); 3] = [
            (Algorithm::Rs256, EncodingKey::from_rsa_pem),
            (Algorithm::Es256, EncodingKey::from_ec_pem),
            (Algorithm::EdDsa, EncodingKey::from_ed_pem),
        ];
        let found = readers.into_iter().find_map(|(algorithm, read)| Some((algorithm, read(pem).ok()?)));
        let (algorithm, key) = found.ok_or_else(|| {
            let cause = "it is no private key for RS256, ES256 or EdDSA: write it as PKCS #8 in PEM \
                         (openssl pkcs8 -topk8 -nocrypt), or as a JWK";
            KeyError(cause.to_string())
        })?;
        Ok(Signer { algorithm, kid: None, key })
    }

    fn from_jwk(json: &[u8]) -> Result<Signer, KeyError> {
        let json: PrivateJson =
            serde_json::from_slice(json).map_err(|error| KeyError(format!("it is no JWK: {error}")))?;
        let part = |name: &str, text: &Option<String>| {
            let text = text.as_deref().ok_or_else(|| KeyError(format!("the private key lacks {name}")))?;
            URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyError(format!("its {name} is not base64url")))
        };
        let ok = Ok::<EncodingKey, jsonwebtoken::errors::Error>;
        let (algorithm, key) = match (json.kty.as_str(), json.crv.as_deref()) {
            ("oct", _) => {
                let secret = part("k", &json.k)?;
                Key::secret(None, &secret)?;
                (Algorithm::Hs256, EncodingKey::from_secret(&secret))
            }
            ("EC", Some("P-256")) => {
                let (d, x, y) = (part("d", &json.d)?, part("x", &json.x)?, part("y", &json.y)?);
                let der = [&P256_BEGIN[..], &d, &P256_MIDDLE, &x, &y].concat();
                (Algorithm::Es256, ok(EncodingKey::from_ec_der(&der)))
            }
            ("OKP", Some("Ed25519")) => {
                let der = [&ED25519_BEGIN[..], &part("d", &json.d)?].concat();
                (Algorithm::EdDsa, ok(EncodingKey::from_ed_der(&der)))
            }
            ("RSA", _) => {
                let parts = [
                    ("n", &json.n),
                    ("e", &json.e),
                    ("d", &json.d),
                    ("p", &json.p),
                    ("q", &json.q),
                    ("dp", &json.dp),
                    ("dq", &json.dq),
                    ("qi", &json.qi),
                ];
                let mut integers = integer(&[0]);
                for (name, text) in parts {
                    integers.extend(integer(&part(name, text)?));
                }
                (Algorithm::Rs256, ok(EncodingKey::from_rsa_der(&tagged(0x30, &integers))))
            }
            _ => return Err(KeyError("it is no key for HS256, RS256, ES256 or EdDSA".to_string())),
        };
        Signer::new(algorithm, json.kid, key)
    }

    /// The algorithm of its tokens.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The token that says this.
    pub fn sign(&self, claims: &Value) -> Result<String, KeyError> {
        self.sign_payload(claims.to_string().as_bytes())
    }

    /// The token whose claims are these bytes, whatever they are.
    pub fn sign_payload(&self, payload: &[u8]) -> Result<String, KeyError> {
        let mut header = serde_json::json!({ "alg": self.algorithm.name(), "typ": "JWT" });
        if let Some(kid) = &self.kid {
            header["kid"] = Value::String(kid.clone());
        }
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let message = format!("{}.{}", part(header.to_string().as_bytes()), part(payload));
        let signed = crypto::sign(message.as_bytes(), &self.key, self.algorithm.of_crate());
        let signature = signed.map_err(|error| KeyError(format!("it does not sign: {error}")))?;
        Ok(format!("{message}.{signature}"))
    }

    /// The public half as a set of keys, as `--auth-jwks` takes it; `None` of a secret.
    pub fn public_set(&self) -> Option<Result<Value, KeyError>> {
        if self.algorithm == Algorithm::Hs256 {
            return None;
        }
        let jwk = Jwk::from_encoding_key(&self.key, self.algorithm.of_crate());
        Some(jwk.map_err(|error| KeyError(format!("it has no public half: {error}"))).map(|mut jwk| {
            jwk.common.key_id = self.kid.clone();
            serde_json::json!({ "keys": [jwk] })
        }))
    }
}

/// A number that is not negative in DER (X.690 §8.3).
fn integer(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count().min(bytes.len().saturating_sub(1));
    let digits = &bytes[zeros..];
    let sign = if digits.first().is_some_and(|byte| byte & 0x80 != 0) { &[0][..] } else { &[] };
    tagged(0x02, &[sign, digits].concat())
}

/// Content with its tag and length in DER (X.690 §8.1).
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut der = vec![tag];
    match length {
        0..0x80 => der.push(length as u8),
        _ => {
            let bytes = (length as u32).to_be_bytes();
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            der.push(0x80 | (bytes.len() - zeros) as u8);
            der.extend(&bytes[zeros..]);
        }
    }
    der.extend(content);
    der
}
