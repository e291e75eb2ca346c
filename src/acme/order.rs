//! One order: an account, proofs that the names are ours, a key, a certificate (RFC 8555 §7.4).

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::Request;
use http_body_util::{BodyExt, Collected};
use instant_acme::{
    Account, AccountBuilder, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, Error,
    HttpClient, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};

use super::state::State;
use crate::config::AcmeRules;
use crate::config::limits::{ACME_ANSWER_BYTES_MAX, ACME_ANSWER_MS_MAX, ACME_ORDER_MS_MAX};
use crate::tls::Automatic;

/// What an authority says that does not know our account (RFC 8555 §6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Orders a certificate. Gives it with its chain, and its key before them, in PEM. The error is
/// one line.
pub(super) async fn order(rules: &AcmeRules, state: &State, automatic: &Automatic) -> Result<String, String> {
    let identifiers: Vec<_> = rules.domains.iter().cloned().map(Identifier::Dns).collect();
    let wanted = NewOrder::new(&identifiers);
    let ordered = match account(rules, state).await?.new_order(&wanted).await {
        // The authority has forgotten it, as those do that are for trying.
        Err(Error::Api(problem)) if problem.r#type.as_deref() == Some(NO_ACCOUNT) => {
            state.forget_account()?;
            account(rules, state).await?.new_order(&wanted).await
        }
        ordered => ordered,
    };
    let mut order = ordered.map_err(|error| told(&error))?;
    prove(&mut order, automatic).await?;
    // The whole order has a limit of its own.
    let patience = RetryPolicy::new().timeout(Duration::from_millis(ACME_ORDER_MS_MAX));
    match order.poll_ready(&patience).await.map_err(|error| told(&error))? {
        OrderStatus::Ready => {}
        _ => return Err(why_invalid(&mut order).await),
    }
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let mut wanted = CertificateParams::new(rules.domains.clone()).map_err(|error| error.to_string())?;
    wanted.distinguished_name = DistinguishedName::new();
    let request = wanted.serialize_request(&key).map_err(|error| error.to_string())?;
    order.finalize_csr(request.der()).await.map_err(|error| told(&error))?;
    let chain = order.poll_certificate(&patience).await.map_err(|error| told(&error))?;
    Ok(key.serialize_pem() + &chain)
}

/// The account that was made before, or a new one.
async fn account(rules: &AcmeRules, state: &State) -> Result<Account, String> {
    let builder = builder(rules)?;
    if let Some(credentials) = state.account()? {
        return builder.from_credentials(credentials).await.map_err(|error| told(&error));
    }
    let contacts: Vec<&str> = rules.contacts.iter().map(String::as_str).collect();
    let wanted =
        NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
    let made = builder.create(&wanted, rules.directory.clone(), None).await;
    let (account, credentials) = made.map_err(|error| told(&error))?;
    state.keep_account(&credentials)?;
    tracing::info!(directory = rules.directory, "a new account (--acme)");
    Ok(account)
}

/// Has the proof ready for each name that the authority wants to see, and lets it look.
async fn prove(order: &mut Order, automatic: &Automatic) -> Result<(), String> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(|error| told(&error))?;
        match authorization.status {
            AuthorizationStatus::Pending => {}
            AuthorizationStatus::Valid => continue,
            status => return Err(format!("an authorization is {status:?}")),
        }
        let Some(mut challenge) = authorization.challenge(ChallengeType::TlsAlpn01) else {
            return Err("the authority does not look by tls-alpn-01".to_string());
        };
        let Identifier::Dns(name) = challenge.identifier().identifier.clone() else {
            return Err("the authority asks for something that is no name".to_string());
        };
        let digest = challenge.key_authorization().digest();
        let proof = proof(&name, digest.as_ref()).map_err(|error| error.to_string())?;
        automatic.set_challenge(name, &proof).map_err(|error| error.to_string())?;
        challenge.set_ready().await.map_err(|error| told(&error))?;
    }
    Ok(())
}

/// A certificate that shows what only the owner of the account knows (RFC 8737 §3).
fn proof(name: &str, digest: &[u8]) -> Result<String, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut shown = CertificateParams::new([name.to_string()])?;
    shown.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = shown.self_signed(&key)?;
    Ok(key.serialize_pem() + &certificate.pem())
}

/// What the authority has found wrong.
async fn why_invalid(order: &mut Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { continue };
        let Ok(state) = authorization.refresh().await else { continue };
        let problem = state.challenges.iter().find_map(|challenge| challenge.error.as_ref());
        if let Some(problem) = problem {
            return format!(
                "the authority does not find that a name is ours: {}",
                one_line(&problem.to_string())
            );
        }
    }
    "the authority has ended the order without a reason".to_string()
}

fn builder(rules: &AcmeRules) -> Result<AccountBuilder, String> {
    let mut client = reqwest::Client::builder()
        .user_agent(concat!("fanwave/", env!("CARGO_PKG_VERSION")))
        .https_only(true)
        .timeout(Duration::from_millis(ACME_ANSWER_MS_MAX))
        .redirect(reqwest::redirect::Policy::none());
    if let Some(file) = &rules.ca {
        let pem = std::fs::read(file).map_err(|error| format!("--acme-ca {}: {error}", file.display()))?;
        let read = reqwest::Certificate::from_pem_bundle(&pem);
        client = client.tls_certs_only(
            read.map_err(|error| format!("--acme-ca {}: {}", file.display(), causes(&error)))?,
        );
    }
    let client = client.build().map_err(|error| causes(&error))?;
    Ok(Account::builder_with_http(Box::new(Client(client))))
}

/// The client of HTTP that all of this program has.
struct Client(reqwest::Client);

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body =
                body.collect().await.map(Collected::to_bytes).map_err(|error| Error::Other(error.into()))?;
            let asked = client.request(head.method, head.uri.to_string()).headers(head.headers).body(body);
            let response = asked.send().await.map_err(|error| Error::Other(error.into()))?;
            let (mut answer, ()) = http::Response::new(()).into_parts();
            answer.status = response.status();
            answer.headers = response.headers().clone();
            let mut bytes = Vec::new();
            let mut chunks = response.bytes_stream();
            while let Some(chunk) = chunks.next().await {
                bytes.extend_from_slice(&chunk.map_err(|error| Error::Other(error.into()))?);
                if bytes.len() > ACME_ANSWER_BYTES_MAX {
                    return Err(Error::Str("an answer of the authority is too large"));
                }
            }
            Ok(BytesResponse { parts: answer, body: Box::new(Bytes::from(bytes)) })
        })
    }
}

fn told(error: &Error) -> String {
    causes(error)
}

/// An error with its causes, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        // Some repeat what is behind them.
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = inner.source();
    }
    one_line(&line)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
