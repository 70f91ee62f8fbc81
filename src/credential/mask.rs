//! Texts that people may see: every secret of a credential written as asterisks.

use std::cmp::Reverse;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Credential, ExposeSecret};

impl Credential {
    /// Writes every secret as asterisks, percent-encoded ones too.
    #[must_use]
    pub fn mask(&self, text: &str) -> String {
        let mut secrets: Vec<&str> = match self {
            Self::Nothing => Vec::new(),
            Self::Certificate(certificate) => vec![certificate.reply.expose_secret()],
            Self::Secrets(secrets) => secrets.iter().map(ExposeSecret::expose_secret).collect(),
            Self::AccessKey(key) | Self::Identified(key, _) => {
                let token = key.security_token.as_ref().map(ExposeSecret::expose_secret);
                std::iter::once(key.secret_key.expose_secret()).chain(token).collect()
            }
        };
        // One may begin with another, and signers may trim what they are given.
        secrets.sort_by_key(|secret| Reverse(secret.len()));
        let mut masked = text.to_owned();
        // What is longer than the text is not in it, and its percent-encoding is longer still.
        let may_show = |secret: &&str| !secret.is_empty() && secret.len() <= text.len();
        for secret in secrets.into_iter().map(str::trim).filter(may_show) {
            let encoded = utf8_percent_encode(secret, UNRESERVED).to_string();
            masked = masked.replace(secret, MASK).replace(&encoded, MASK);
        }
        masked
    }
}

/// What stands for a secret.
pub const MASK: &str = "********";

/// What percent-encoding leaves alone in all schemes that have secrets in their canonical requests.
static UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_secret_is_left_unmasked() {
        let secrets = Credential::Secrets(["abc", "abcdef", " d/e\t"].map(Into::into).to_vec());
        assert_eq!(secrets.mask("abcdef; abc; d/e; d%2Fe"), "********; ********; ********; ********");
    }
}
