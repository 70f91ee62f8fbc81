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
//! own; after a reload it gives them another state. What outlives a state is in [`proxy::lasting`]. From then on
//! [`proxy::serve`] walks each request through these steps:
//!
//! 1. **listen** ([`proxy::listen`], [`proxy::caller`]): a connection is accepted; its first octets say which HTTP it speaks,
//!    and its stream keeps the time that callers may take over heads and pauses. What it and the requests on it must know
//!    of each other is in [`proxy::activity`]. Over HTTP/2 each request is a task of its own ([`proxy::streams`]).
//! 2. **route** ([`proxy::route`]): listener, authority and path say which route is meant. What could be meant in two ways
//!    is refused, and so is a foreign name that somebody made resolve to this machine.
//! 3. **guard** ([`proxy::guard`], with the kernel's word on who calls in [`proxy::peer`]): other pages' scripts, requests that
//!    `allow` does not name and strangers to `callers` go no further.
//! 4. **clean** ([`proxy::clean`]): hop-by-hop headers and callers' own credentials are removed, then the route's headers
//!    are set. From here to the signature the request is a [`proxy::head`] and its body.
//! 5. **hold** ([`proxy::hold`]): a body that must be seen whole, or is small enough to be sent again, is held; all else
//!    streams ([`proxy::body`]).
//!    What would pass a limit of the provider's own then waits a little, or is refused ([`proxy::limit`]).
//! 6. **authorize** ([`proxy::authorize`]): for the endpoint that was chosen ([`proxy::servers`], [`proxy::located`]), with
//!    one generation of the credential ([`credential::keeper`]), the provider's signer says which headers to set
//!    ([`proxy::signers`], [`provider`], with the pieces of canonical requests in [`canonical`]).
//! 7. **send** ([`proxy::send`]): over a pooled connection or a fresh one ([`upstream::pool`], [`upstream::open`],
//!    [`upstream::connect`], [`upstream::tls`]), of its own or shared ([`upstream::http2`]), through a proxy if one is set
//!    ([`upstream::outbound`], [`upstream::tunnel`]).
//! 8. **verdict** ([`proxy::verdict`]): the provider says what a refusal means ([`provider::verdict`]); what can be put right
//!    is, and steps 6 to 8 are gone once more ([`proxy::attempts`]). An access key that a provider would lock rests
//!    ([`proxy::lockout`]), and the last refusals are kept for whoever asks ([`proxy::refusals`]).
//! 9. **return** ([`proxy::respond`]): the reply's head is cleaned, the places that it names are put in the caller's terms
//!    ([`proxy::location`], [`proxy::cookie`]), its body streams. Where both sides agreed to speak something else, the two
//!    connections are joined ([`proxy::upgrade`]). Every trouble on the way becomes one of the answers of
//!    [`proxy::error`].
//!
//! From its head to the end of its reply a request is followed by its [`proxy::access`] account, which is then a line in the
//! log, unless that [repeats](proxy::repeats) what was said, and counts in its thread's [`proxy::tally`]; connections to
//! upstreams count in [`upstream::links`]. [`admin::metrics`] adds all of it up when somebody asks.
//!
//! Meanwhile another thread runs the errands ([`proxy::errands`]): it fetches credentials before they end
//! ([`credential`] has a file for each place they come from) and lists of servers ([`upstream::directory`]), over connections
//! of its own ([`upstream::ask`]).
//!
//! # Invariants
//!
//! - **Signing is last.** It comes after cleaning, holding and the choice of the endpoint, and is done anew for every
//!   attempt. What `Connection` names is gone by then, so that no caller can take away what is injected.
//! - **What is signed is what is sent.** Framing and `Host` are settled before signing, `allow` decides on the same octets,
//!   and nothing is changed afterwards. The one rewriting of a target
//!   ([`rewrite_query`](provider::Provider::rewrite_query)) comes before it.
//! - **Never unsigned.** A request without a usable credential, or that its scheme cannot sign, is refused, not forwarded.
//! - **One generation at a time.** Never a new access key with an old secret, never a credential that is known to have ended;
//!   a new one serves everybody only once a reply has shown that it is good.
//! - **A wrong secret is not multiplied.** A signature that did not match is never sent again by itself; what is fetched is
//!   asked for once at a time, and seldom where it was refused.
//! - **No octet of a request chooses where we connect.** That is [`proxy::servers::Endpoint`], made from the configuration,
//!   or what it names as the place to ask, and one of our own listeners is never dialled.
//! - **No reply leads to another route.** A `Location` for another door of ours, as whichever reader takes it, goes no
//!   further, nor does a cookie that would reach the other routes.
//! - **Nothing is held that can stream**, and what is held is counted: `limits.held_bodies` bounds the sum. What a slow
//!   reader has not read is left with the sender, but for some pieces ([`upstream::flow`]).
//! - **A reply that broke off is never passed off as whole.** What came before the break reaches the caller, then its
//!   connection is cut.
//! - **Never a POST twice.** Only what was provably not written, not looked at, or refused for its authentication goes again;
//!   GET, HEAD and OPTIONS also where a pooled connection died before any octet of a reply, or another server may do better.
//! - **No lock on the way.** What threads share is immutable or an atomic; the rest is a thread's own. The one mutex guards
//!   the wakers of replies that wait for a flush, and belongs to its connection alone, as does the one in the library of HTTP/2.
//!   Where a provider's limits are kept to, their buckets are behind another, for as long as one is looked up; what was
//!   refused and why, and how often the log has said so, behind two more.
//! - **Every wait has an end.** Heads, bodies, connects, handshakes, replies and the drain have timeouts; connections,
//!   streams, heads and held bodies have bounds. A tunnel alone may be silent for as long as its two sides like.
//! - **Secrets are shown to nobody.** [`credential::SecretString`] masks itself; a rejected value of the configuration is
//!   never repeated, since it may be a secret under a misspelt key ([`settings`]); libraries are not heard below `warn`
//!   ([`telemetry`]). The daemon's memory is closed to other processes of its user, and it reaches no files but those that it needs
//!   ([`confine`]).
//!
//! # Where things are known
//!
//! - A vendor is known to its provider's file, and to the file of what it hands credentials out by, which the rest finds through the table [`provider::ALL`]. A signer is a
//!   pure function, without network, clock or state, so that vectors and fuzzers reach it directly.
//! - The time is known to [`clock`] alone, so that tests can set it.
//! - That a file has changed is known to [`watch`]; what the change means, to whoever reads the file.
//! - That systemd may have started it is known to [`service`], which tells it how the daemon is, and to [`proxy::handed`],
//!   which takes the sockets that it holds.
//! - Places in the configuration file are known to [`settings`]; [`config`] turns text into types that cannot hold nonsense,
//!   and reports all that is wrong at once.
//! - [`cli`] is what a person types, [`admin`] what a supervisor asks: [`admin::status`] has the facts, [`admin::words`] says
//!   them to people, in a terminal and on [`admin::page`]. [`demo`] is an upstream that verifies with code of its
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
pub mod confine;
pub mod credential;
pub mod demo;
pub mod provider;
pub mod proxy;
pub mod service;
pub mod settings;
pub mod telemetry;
pub mod upstream;
pub mod watch;
