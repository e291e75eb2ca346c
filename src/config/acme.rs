//! The flags about certificates that an authority signs by itself (ACME).

use std::path::PathBuf;

use super::tokens::host_of_login;

/// What is to be signed, by whom, and where it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeRules {
    /// Names of the certificate, at least one, in lower case.
    pub domains: Vec<String>,
    /// Where the authority tells its addresses.
    pub directory: String,
    /// Whom the authority may write to, as URLs.
    pub contacts: Vec<String>,
    /// Who signs the certificate of the authority's own server, if nobody who is known does.
    pub ca: Option<PathBuf>,
    /// The directory for account, certificate and key.
    pub state: PathBuf,
}

/// What flags about ACME say that they may not. Names the flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcmeError {
    /// Nowhere to answer the authority.
    #[error("--acme needs --listen-tls: there the authority looks, at port 443 of the name")]
    NoAddress,
    /// Nowhere to keep what was signed.
    #[error("--acme needs --acme-dir DIR, where account, certificate and key are kept")]
    NoState,
    /// A flag that means nothing without a name.
    #[error("--{0} is given without --acme; name a domain")]
    NoDomain(&'static str),
    /// No name that can be proved so.
    #[error("--acme `{0}`: write a host name such as events.example.com; no address and no wildcard")]
    Domain(String),
    /// More names than a certificate has.
    #[error("--acme names {0} domains; a certificate has at most 100")]
    TooMany(usize),
    /// No address of an authority.
    #[error("--acme-directory `{0}`: write an address such as https://ca.example/directory")]
    Directory(String),
    /// The address of an authority holds a name or a password, at this host.
    #[error("--acme-directory: the address at {0} holds a user or a password; an account is made there")]
    DirectoryLogin(String),
}

/// The flags of [`AcmeRules`].
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct AcmeFlags {
    /// Have a certificate for this name signed by Let's Encrypt, or by --acme-directory, and renewed;
    /// its terms of service are agreed to. Repeat it for several names; --listen-tls must be
    /// reached at their port 443
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',')]
    acme: Vec<String>,
    /// Directory for the account's key, the certificate and its key
    #[arg(long, value_name = "DIR")]
    acme_dir: Option<PathBuf>,
    /// The authority
    #[arg(long, value_name = "URL", default_value = "https://acme-v02.api.letsencrypt.org/directory")]
    acme_directory: String,
    /// Whom the authority may write to, as an address of mail; repeats
    #[arg(long, value_name = "MAIL", value_delimiter = ',')]
    acme_contact: Vec<String>,
    /// Who has signed the certificate of the authority's own server, in PEM
    #[arg(long, value_name = "FILE")]
    acme_ca: Option<PathBuf>,
}

impl AcmeFlags {
    /// Checked; `has_address` tells whether the data plane has TLS.
    pub(super) fn rules(self, has_address: bool) -> Result<Option<AcmeRules>, AcmeError> {
        if self.acme.is_empty() {
            let given = [
                ("acme-dir", self.acme_dir.is_some()),
                ("acme-contact", !self.acme_contact.is_empty()),
                ("acme-ca", self.acme_ca.is_some()),
            ];
            let alone = given.into_iter().find(|(_, is_given)| *is_given);
            return alone.map_or(Ok(None), |(flag, _)| Err(AcmeError::NoDomain(flag)));
        }
        if !has_address {
            return Err(AcmeError::NoAddress);
        }
        if self.acme.len() > 100 {
            return Err(AcmeError::TooMany(self.acme.len()));
        }
        let mut domains: Vec<String> = Vec::new();
        for domain in self.acme {
            let lower = domain.trim().to_ascii_lowercase();
            if !is_name(&lower) {
                return Err(AcmeError::Domain(domain));
            }
            if !domains.contains(&lower) {
                domains.push(lower);
            }
        }
        // The log names it.
        if let Some(host) = host_of_login(&self.acme_directory) {
            return Err(AcmeError::DirectoryLogin(host.to_string()));
        }
        let uri = self.acme_directory.parse::<http::Uri>().ok();
        if !uri.is_some_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some()) {
            return Err(AcmeError::Directory(self.acme_directory));
        }
        let contact = |text: String| if text.contains(':') { text } else { format!("mailto:{text}") };
        Ok(Some(AcmeRules {
            domains,
            directory: self.acme_directory,
            contacts: self.acme_contact.into_iter().map(contact).collect(),
            ca: self.acme_ca,
            state: self.acme_dir.ok_or(AcmeError::NoState)?,
        }))
    }
}

/// True for a name of a host with at least two parts, the last of which is no number.
fn is_name(text: &str) -> bool {
    let is_part = |part: &str| {
        let plain = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        plain && (1..=63).contains(&part.len()) && !part.starts_with('-') && !part.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= 253 && text.contains('.') && text.split('.').all(is_part) && !is_number
}

#[cfg(test)]
mod tests {
    use super::super::flags::tests::config;

    #[test]
    fn names_are_taken_as_hosts_have_them() {
        let args = ["--listen-tls=[::]:443", "--acme=Events.Example.COM,b.example", "--acme=b.example"];
        let more = ["--acme-dir=/var/lib/fanwave", "--acme-contact=ops@example.com"];
        let rules = config(&[&args[..], &more].concat(), &[]).expect("valid").acme.expect("a name");
        assert_eq!(rules.domains, ["events.example.com", "b.example"]);
        assert_eq!(rules.directory, "https://acme-v02.api.letsencrypt.org/directory");
        assert_eq!(rules.contacts, ["mailto:ops@example.com"]);
        assert!(config(&[], &[]).expect("valid").acme.is_none());
    }

    #[test]
    fn what_no_authority_can_sign_is_refused_by_flag() {
        let all =
            ["--listen-tls=[::]:443", "--acme=a.example", "--acme-dir=/d", "--acme-directory=https://a/"];
        assert!(config(&all, &[]).is_ok());
        for (args, part) in [
            (&["--acme=a.example", "--acme-dir=/d"][..], "needs --listen-tls"),
            (&["--acme=a.example", "--listen-tls=[::]:443"], "needs --acme-dir"),
            (&["--acme-dir=/d"], "--acme-dir is given without --acme"),
            (&["--acme=*.example", "--listen-tls=[::]:443", "--acme-dir=/d"], "`*.example`"),
            (&["--acme=192.0.2.1", "--listen-tls=[::]:443", "--acme-dir=/d"], "`192.0.2.1`"),
            (&["--acme=localhost", "--listen-tls=[::]:443", "--acme-dir=/d"], "`localhost`"),
            (&[&all[..3], &["--acme-directory=http://a/"]].concat(), "--acme-directory `http://a/`"),
            (&[&all[..3], &["--acme-directory=https://u:hush@a/"]].concat(), "at a holds a user"),
        ] {
            let error = config(args, &[]).expect_err("it cannot be signed");
            assert!(error.contains(part) && !error.contains("hush"), "no {part:?} in {error:?}");
        }
    }
}
