//! countersign: a local daemon that holds credentials so that programs need not. A program speaks plain HTTP to it; it
//! signs each request, or adds the token, or presents the client certificate, and forwards the request over TLS.
//!
//! The library is what `main` calls, so that tests, benches and fuzz targets call the same. This page is the map; what
//! users see is in README.md.
//!
//! # The way of a request
//!
//! [`config`] has read the file, [`proxy::state`] has made every route ready: secrets read, TLS configured, headers
//! prepared. [`proxy::daemon`] has bound the listeners and started a thread a core, each with a runtime and a pool of its
//! own. From then on [`proxy::serve`] walks each request through these steps:
//!
//! 1. **listen** ([`proxy::listen`], [`proxy::caller`]): a connection is accepted; its first octets say which HTTP it speaks,
//!    and its stream keeps the time that callers may take over heads and pauses. What it and the requests on it must know
//!    of each other is in [`proxy::activity`]. Over HTTP/2 each request is a task of its own ([`proxy::streams`]).
//! 2. **route** ([`proxy::route`]): listener, authority and path say which route is meant. What could be meant in two ways
//!    is refused, and so is a foreign name that somebody made resolve to this machine.
//! 3. **guard** ([`proxy::guard`]): other pages' scripts, requests that `allow` does not name and strangers to `callers`
//!    go no further.
//! 4. **clean** ([`proxy::clean`]): hop-by-hop headers and callers' own credentials are removed, then the route's headers
//!    are set. From here to the signature the request is a [`proxy::head`] and its body.
//! 5. **hold** ([`proxy::hold`]): a body that must be seen whole, or is small enough to be sent again, is held; all else
//!    streams ([`proxy::body`]).
//! 6. **authorize** ([`proxy::authorize`]): for the endpoint that was chosen, the provider's signer says which headers to
//!    set ([`provider`], with the pieces of canonical requests in [`canonical`]).
//! 7. **send** ([`proxy::send`]): over a pooled connection or a fresh one ([`upstream::pool`], [`upstream::open`],
//!    [`upstream::connect`], [`upstream::tls`]), of its own or shared ([`upstream::http2`]), through a proxy if one is set
//!    ([`upstream::outbound`], [`upstream::tunnel`]).
//! 8. **return** ([`proxy::respond`]): the reply's head is cleaned, the places that it names are put in the caller's terms
//!    ([`proxy::location`], [`proxy::cookie`]), its body streams. Where both sides agreed to speak something else, the two
//!    connections are joined ([`proxy::upgrade`]). Every trouble on the way becomes one of the answers of
//!    [`proxy::error`].
//!
//! # Invariants
//!
//! - **Signing is last.** It comes after cleaning, holding and the choice of the endpoint, and is done anew for every
//!   attempt. What `Connection` names is gone by then, so that no caller can take away what is injected.
//! - **What is signed is what is sent.** Framing and `Host` are settled before signing, `allow` decides on the same octets,
//!   and nothing is changed afterwards. The one rewriting of a target
//!   ([`rewrite_query`](provider::Provider::rewrite_query)) comes before it.
//! - **Never unsigned.** A route without a usable credential does not start; a request that its scheme cannot sign is
//!   refused, not forwarded.
//! - **No octet of a request chooses where we connect.** That is [`proxy::state::Endpoint`], made from the configuration
//!   alone, and one of our own listeners is never dialled.
//! - **No reply leads to another route.** A `Location` for another door of ours, as whichever reader takes it, goes no
//!   further, nor does a cookie that would reach the other routes.
//! - **Nothing is held that can stream**, and what is held is counted: `limits.held_bodies` bounds the sum. What a slow
//!   reader has not read is left with the sender, but for some pieces ([`upstream::flow`]).
//! - **A reply that broke off is never passed off as whole.** What came before the break reaches the caller, then its
//!   connection is cut.
//! - **Never a POST twice.** Only what was provably not written, or not looked at, goes again; GET, HEAD and OPTIONS also
//!   where a pooled connection died before any octet of a reply.
//! - **No lock on the way.** What threads share is immutable or an atomic; the rest is a thread's own. The one mutex guards
//!   the wakers of replies that wait for a flush, and belongs to its connection alone, as does the one in the library of HTTP/2.
//! - **Every wait has an end.** Heads, bodies, connects, handshakes, replies and the drain have timeouts; connections,
//!   streams, heads and held bodies have bounds. A tunnel alone may be silent for as long as its two sides like.
//! - **Secrets are shown to nobody.** [`credential::SecretString`] masks itself; a rejected value of the configuration is
//!   never repeated, since it may be a secret under a misspelt key ([`settings`]); libraries are not heard below `warn`
//!   ([`telemetry`]).
//!
//! # Where things are known
//!
//! - A vendor is known to its provider's file alone, which the rest finds through the table [`provider::ALL`]. A signer is a
//!   pure function, without network, clock or state, so that vectors and fuzzers reach it directly.
//! - The time is known to [`clock`] alone, so that tests can set it.
//! - Places in the configuration file are known to [`settings`]; [`config`] turns text into types that cannot hold nonsense,
//!   and reports all that is wrong at once.
//! - [`cli`] is what a person types, [`admin`] what a supervisor asks. [`demo`] is an upstream that verifies with code of its
//!   own, so that what it finds good was not signed and verified with the same mistake.
//!
//! # What it deliberately does not do
//!
//! It follows no redirect, opens no tunnel for `CONNECT` or `Upgrade: h2c` (what cannot be read cannot be signed), caches nothing, and
//! adds no `Via`, `Forwarded` or `User-Agent`, nor any `Accept` that a scheme does not want. It resolves no dot segments and decodes no path on its way: whoever
//! signs gets the octets that came. It reads no configuration from the working directory. It does not judge what is asked
//! for beyond `allow`.

pub mod admin;
pub mod canonical;
pub mod cli;
pub mod clock;
pub mod config;
pub mod credential;
pub mod demo;
pub mod provider;
pub mod proxy;
pub mod settings;
pub mod telemetry;
pub mod upstream;
