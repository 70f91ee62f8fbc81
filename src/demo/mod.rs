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

use http::Method;
use secrecy::SecretString;

use crate::clock::Clock;
use crate::credential::AccessKey;
use certificates::{Authority, Identity};
use service::{Addresses, Certificates, Clusters, Iam, Service};
use upstream::{Site, Transport, Upstream};
use verify::{
    Acm, AcsRoa, AuthToken, Bce, ClientCertificate, Open, Password, Scheme, SdkHmac, Tem, TemAlgorithm, Tokens,
};

/// Everything that a demonstration needs: an upstream of several sites, and the credentials that it accepts, made on the spot.
pub struct Stage {
    /// The certificate service, plain HTTP, bce-auth-v1 with [`access_key`](Self::access_key).
    pub certificates: SocketAddr,
    /// An echo, TLS, `X-Auth-Token` with [`token`](Self::token) or one of [`iam`](Self::iam).
    pub echo: SocketAddr,
    /// A cluster's application API, TLS, wants a certificate like [`client`](Self::client).
    pub cluster: SocketAddr,
    /// A configuration server, plain HTTP, ACM's signature with the access key.
    pub configurations: SocketAddr,
    /// A management platform, plain HTTP, TEM's L3.SHA256 with the access key.
    pub platform: SocketAddr,
    /// Server migration, TLS, SDK-HMAC-SHA256 with the access key.
    pub migration: SocketAddr,
    /// The cluster-management API, TLS, ROA signature with the access key: tells where [`cluster`](Self::cluster) is, and hands
    /// out what [`client`](Self::client) has.
    pub management: SocketAddr,
    /// IAM, TLS: tokens for [`password`](Self::password).
    pub iam: SocketAddr,
    /// The address server, plain HTTP, open to everybody: tells where [`configurations`](Self::configurations) is.
    pub addresses: SocketAddr,
    /// Issued the servers' certificates, for `localhost` and `127.0.0.1`, and the client's.
    pub authority: Authority,
    /// A client's identity.
    pub client: Identity,
    /// An access key.
    pub access_key: AccessKey,
    /// A token.
    pub token: SecretString,
    /// The password of [`USER`] in [`ACCOUNT`].
    pub password: SecretString,
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
        let access_key =
            AccessKey { access_key: "demo-access-key".to_owned(), secret_key: secret::<16>()?, security_token: None };
        let (token, password, tokens) = (secret::<32>()?, secret::<16>()?, Tokens::default());
        tokens.add(token.clone(), "a test", None);
        let keys = || vec![access_key.clone()];
        let tem = Tem {
            keys: keys(),
            algorithm: TemAlgorithm::Sha256,
            params_methods: vec![Method::POST, Method::PUT, Method::PATCH],
            has_query: true,
        };
        let passwords = Password { account: ACCOUNT, user: USER, password: password.clone() };

        let mut upstream = Upstream::new(clock);
        let mut open = async |name, transport, scheme: Box<dyn Scheme>, service| {
            upstream.listen(Site { name, transport, scheme, service }).await
        };
        let identity = || authority.server(&["localhost", "127.0.0.1"]).map_err(io::Error::other);
        let tls = || identity().map(Transport::Tls);
        let mutual = Transport::MutualTls { identity: identity()?, clients: authority.certificate() };
        let plain = || Transport::Plain;

        let kept = Service::Certificates(Certificates::default());
        let certificates = open("certificates", plain(), Box::new(Bce { keys: keys().into() }), kept).await?;
        let echo = open("echo", tls()?, Box::new(AuthToken(tokens.clone())), Service::Echo).await?;
        let iam = Service::Iam(Iam { tokens, project: PROJECT });
        let iam = open("iam", tls()?, Box::new(passwords), iam).await?;
        let hmac = SdkHmac { keys: keys().into(), derived: None };
        let migration = open("migration", tls()?, Box::new(hmac), Service::Echo).await?;
        let platform = open("platform", plain(), Box::new(tem), Service::Echo).await?;
        let acm = Acm { keys: keys().into(), charset: encoding_rs::GBK };
        let configurations = open("configurations", plain(), Box::new(acm), Service::Echo).await?;
        let list = Service::Addresses(Addresses(vec![configurations]));
        let addresses = open("addresses", plain(), Box::new(Open), list).await?;
        let cluster = open("cluster", mutual, Box::new(ClientCertificate), Service::Projects).await?;
        let clusters = Service::Clusters(Clusters::new(CLUSTER, cluster, &authority, &client));
        let management = open("management", tls()?, Box::new(AcsRoa::new(keys())), clusters).await?;
        Ok(Self {
            certificates,
            echo,
            cluster,
            configurations,
            platform,
            migration,
            management,
            iam,
            addresses,
            authority,
            client,
            access_key,
            token,
            password,
            upstream,
        })
    }
}

/// A secret of this many octets that nobody can guess.
fn secret<const LENGTH: usize>() -> io::Result<SecretString> {
    Ok(hex::encode(random::<LENGTH>()?).into())
}

/// Octets that nobody can guess.
fn random<const LENGTH: usize>() -> io::Result<[u8; LENGTH]> {
    let mut octets = [0; LENGTH];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut octets).map_err(|_| io::Error::other("the system has no randomness"))?;
    Ok(octets)
}

/// The account of IAM.
pub const ACCOUNT: &str = "demo-account";
/// Its user.
pub const USER: &str = "demo-user";
/// Its project.
pub const PROJECT: &str = "cn-north-4";
/// The id of the cluster.
pub const CLUSTER: &str = "c0dec0dec0dec0dec0dec0dec0dec0de0";
/// The common name of [`Stage::client`].
const CLIENT: &str = "countersign demo client";
