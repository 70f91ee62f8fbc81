//! The embedded verifying upstream, for `countersign demo` and for tests: it judges requests with code of its own, so that
//! what it finds good was not merely signed and verified with the same mistake.

pub mod acts;
pub mod certificates;
mod der;
pub mod service;
pub mod upstream;
pub mod verify;

use std::io;
use std::net::SocketAddr;

use http::{HeaderName, Method};
use secrecy::SecretString;

use crate::clock::Clock;
use crate::credential::AccessKey;
use certificates::{Authority, Identity};
use service::{Certificates, Service};
use upstream::{Site, Transport, Upstream};
use verify::{Acm, AcsRoa, Bce, ClientCertificate, FixedHeader, Scheme, SdkHmac, Tem, TemAlgorithm};

/// Everything that a demonstration needs: an upstream of several sites, and the credentials that it accepts, made on the spot.
pub struct Stage {
    /// The certificate service, plain HTTP, bce-auth-v1 with [`access_key`](Self::access_key).
    pub certificates: SocketAddr,
    /// An echo, TLS, `X-Auth-Token` with [`token`](Self::token).
    pub echo: SocketAddr,
    /// A cluster's application API, TLS, wants a certificate like [`client`](Self::client).
    pub cluster: SocketAddr,
    /// A configuration server, plain HTTP, ACM's signature with the access key.
    pub configurations: SocketAddr,
    /// A management platform, plain HTTP, TEM's L3.SHA256 with the access key.
    pub platform: SocketAddr,
    /// Server migration, TLS, SDK-HMAC-SHA256 with the access key.
    pub migration: SocketAddr,
    /// A cluster's management API, TLS, ROA signature with the access key.
    pub management: SocketAddr,
    /// Issued the servers' certificates, for `localhost` and `127.0.0.1`, and the client's.
    pub authority: Authority,
    /// A client's identity.
    pub client: Identity,
    /// An access key.
    pub access_key: AccessKey,
    /// A token.
    pub token: SecretString,
    /// The server itself.
    pub upstream: Upstream,
}

impl Stage {
    /// Starts the upstream; must be called within a runtime.
    ///
    /// # Errors
    /// No port is free, or there is no randomness.
    pub async fn start(clock: Clock) -> io::Result<Self> {
        let authority = Authority::new("countersign demo CA").map_err(io::Error::other)?;
        let client = authority.client(CLIENT).map_err(io::Error::other)?;
        let server = || authority.server(&["localhost", "127.0.0.1"]).map_err(io::Error::other);
        let access_key = AccessKey {
            access_key: hex::encode(random::<16>()?),
            secret_key: hex::encode(random::<16>()?).into(),
            security_token: None,
        };
        let token = SecretString::from(hex::encode(random::<32>()?));
        let mut upstream = Upstream::new(clock);
        let certificates = upstream
            .listen(Site {
                name: "certificates",
                transport: Transport::Plain,
                scheme: Box::new(Bce { keys: vec![access_key.clone()].into() }),
                service: Service::Certificates(Certificates::default()),
            })
            .await?;
        let echo = upstream
            .listen(Site {
                name: "echo",
                transport: Transport::Tls(server()?),
                scheme: Box::new(FixedHeader { name: HeaderName::from_static("x-auth-token"), value: token.clone() }),
                service: Service::Echo,
            })
            .await?;
        let cluster = upstream
            .listen(Site {
                name: "cluster",
                transport: Transport::MutualTls { identity: server()?, clients: authority.certificate() },
                scheme: Box::new(ClientCertificate),
                service: Service::Projects,
            })
            .await?;
        let keys = || vec![access_key.clone()];
        let tem = Tem {
            keys: keys(),
            algorithm: TemAlgorithm::Sha256,
            params_methods: vec![Method::POST, Method::PUT, Method::PATCH],
            has_query: true,
        };
        let mut echoing = async |name, transport, scheme: Box<dyn Scheme>| {
            upstream.listen(Site { name, transport, scheme, service: Service::Echo }).await
        };
        let acm = Acm { keys: keys().into(), charset: encoding_rs::GBK };
        let configurations = echoing("configurations", Transport::Plain, Box::new(acm)).await?;
        let platform = echoing("platform", Transport::Plain, Box::new(tem)).await?;
        let hmac = SdkHmac { keys: keys().into(), derived: None };
        let migration = echoing("migration", Transport::Tls(server()?), Box::new(hmac)).await?;
        let roa = AcsRoa::new(keys());
        let management = echoing("management", Transport::Tls(server()?), Box::new(roa)).await?;
        Ok(Self {
            certificates,
            echo,
            cluster,
            configurations,
            platform,
            migration,
            management,
            authority,
            client,
            access_key,
            token,
            upstream,
        })
    }
}

/// Octets that nobody can guess.
fn random<const LENGTH: usize>() -> io::Result<[u8; LENGTH]> {
    let mut octets = [0; LENGTH];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut octets).map_err(|_| io::Error::other("the system has no randomness"))?;
    Ok(octets)
}

/// The common name of [`Stage::client`].
const CLIENT: &str = "countersign demo client";
