//! Services that tell a machine about itself: no password is needed, but a token that shows who asks to be on the machine.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};

use crate::clock::Timestamp;
use crate::settings::Table;
use crate::upstream::Endpoint;
use crate::upstream::ask::{Answer, Asker, Question};

/// How one vendor's service hands out its tokens.
#[derive(Debug)]
pub(super) struct Form {
    /// Where the service is by default.
    pub(super) endpoint: &'static str,
    /// The path that tokens come from.
    pub(super) token_path: &'static str,
    /// The header that says how long a token is to live.
    pub(super) life_header: HeaderName,
    /// The header that a token is shown in.
    pub(super) token_header: HeaderName,
}

/// Such a service, and its token.
#[derive(Debug)]
pub(super) struct Metadata {
    form: &'static Form,
    /// Where it is.
    pub(super) endpoint: Endpoint,
    known: Mutex<Known>,
}

/// What is known of the service's tokens.
#[derive(Debug)]
enum Known {
    Nothing,
    Token(SecretString, Timestamp),
    /// It has no such step, as of this time.
    NoSuchStep(Timestamp),
}

impl Metadata {
    /// Reads where it is, if that is said.
    pub(super) fn read(table: &Table<'_>, form: &'static Form) -> Option<Self> {
        let endpoint = match table.get("endpoint") {
            Some(value) => value.parse(Endpoint::parse)?,
            None => Endpoint::parse(form.endpoint).ok()?,
        };
        Some(Self { form, endpoint, known: Mutex::new(Known::Nothing) })
    }

    /// A token that is good for a while yet; none where the service has no such step.
    pub(super) async fn token(&self, asker: &Asker) -> Result<Option<SecretString>, String> {
        let now = asker.clock.now();
        match &*self.known() {
            Known::Token(token, until) if now < *until => return Ok(Some(token.clone())),
            Known::NoSuchStep(since) if *since <= now && now.since(*since) < MEMORY => return Ok(None),
            _ => {}
        }
        let life = Some((self.form.life_header.clone(), HeaderValue::from(LIFE.as_secs())));
        let Answer { status, body, .. } = self.ask(asker, Method::PUT, self.form.token_path, life).await?;
        let (known, token) = match status {
            StatusCode::OK => {
                let token = std::str::from_utf8(&body).map(str::trim).unwrap_or_default();
                if token.is_empty() {
                    return Err(format!("{} hands out a token of metadata that is no text", self.endpoint));
                }
                let token = SecretString::from(token);
                // The service's own clock does not matter: it was told how long.
                (Known::Token(token.clone(), now.after(LIFE.saturating_sub(MARGIN))), Some(token))
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::SERVICE_UNAVAILABLE => {
                (Known::NoSuchStep(now), None)
            }
            status => return Err(format!("{} refuses a token of metadata: it answered {status}", self.endpoint)),
        };
        *self.known() = known;
        Ok(token)
    }

    /// Makes the next token a new one.
    pub(super) fn forget(&self) {
        *self.known() = Known::Nothing;
    }

    /// What the service says of a path.
    pub(super) async fn get(&self, asker: &Asker, path: &str, token: Option<&SecretString>) -> Result<Answer, String> {
        let header = token.map(|token| {
            let mut value = HeaderValue::from_str(token.expose_secret()).ok()?;
            value.set_sensitive(true);
            Some((self.form.token_header.clone(), value))
        });
        let header = match header {
            Some(None) => return Err(format!("{} hands out a token that no header can hold", self.endpoint)),
            header => header.flatten(),
        };
        self.ask(asker, Method::GET, path, header).await
    }

    async fn ask(
        &self,
        asker: &Asker,
        method: Method,
        path: &str,
        header: Option<(HeaderName, HeaderValue)>,
    ) -> Result<Answer, String> {
        let question = Question {
            endpoint: &self.endpoint,
            key: "credentials.endpoint",
            ca: None,
            ca_key: "server.extra_ca",
            method,
            target: path,
            headers: header.into_iter().collect::<HeaderMap>(),
            body: Zeroizing::default(),
            connect: CONNECT,
            answer: ANSWER,
        };
        asker.straight().ask(question).await
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long connecting may take: elsewhere than on an instance nobody answers.
const CONNECT: Duration = Duration::from_secs(3);

/// How long the answer may take, on an instance that is busy.
const ANSWER: Duration = Duration::from_secs(10);

/// How long tokens are to live: the longest that both vendors grant.
const LIFE: Duration = Duration::from_secs(21_600);

/// How long before its end a token is not shown any more.
const MARGIN: Duration = Duration::from_secs(300);

/// How long a machine that has no tokens is not now for one.
const MEMORY: Duration = Duration::from_secs(86_400);
