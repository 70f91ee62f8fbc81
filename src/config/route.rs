//! `[routes.NAME]`.

use std::sync::Arc;
use std::time::Duration;

use crate::provider::{self, Patience, Provider, Registration};
use crate::proxy::{RouteSettings, guard};
use crate::settings::{Table, Value, nearest};
use crate::upstream::outbound::Outbound;
use crate::upstream::{Endpoint, Host, Timeouts, tls as upstream_tls};

use super::claims::{Claims, Owner};
use super::{address, callers, headers, tls};

/// Reads a route; `None` if something was wrong, which is then noted. `outbound` is what `[server]` says about proxies.
pub(super) fn read<'a>(
    name: &'a str,
    value: &Value<'a>,
    outbound: &Outbound,
    claims: &mut Claims<'a>,
) -> Option<RouteSettings> {
    let is_named = is_name(name);
    if !is_named {
        value.error_at_key("the name of a route is 1 to 63 of a-z, 0-9 and, inside, \"-\": it is part of a host name");
    }
    // A key that is no name may be anything, and is not shown to others either.
    let shown = if is_named { name } else { "…" };
    let table = value.table()?;
    let registration = registration(&table);
    let provider = registration.as_ref().and_then(provider);
    let finds_upstream = registration.as_ref().is_some_and(|(registration, _)| registration.finds_upstream);
    let known = provider.as_deref();
    let taken = known.map(Provider::sets).unwrap_or_default();

    let directory = known.and_then(|provider| provider.directory(table.get("tls").is_some()));
    let upstream = upstream(&table, finds_upstream || directory.is_some());
    let connect = table.get("connect").and_then(|value| {
        if upstream.len() > 1 {
            value.error("goes with one upstream: with several, each is dialled at its own address");
        }
        address::host_and_port(&value)
    });
    let tls = if finds_upstream {
        tls::read_beside_fetched(table.get("tls").and_then(|tls| tls.table()))
    } else {
        tls(&table, &upstream, registration.as_ref().map(|(_, at)| at).zip(known))
    };
    let proxy = table.read("proxy", outbound.clone(), address::outbound_proxy);
    let plaintext = table.read("plaintext", false, Value::boolean);
    if let (Some(provider), Some(value)) = (known, table.get("upstream")) {
        // It is what is dialled that decides whether anything crosses a network.
        let is_near = |endpoint: &Endpoint| match &connect {
            Some((host, port)) => Endpoint { host: host.clone(), port: *port, ..*endpoint }.is_loopback(),
            None => endpoint.is_loopback(),
        };
        let is_near = |endpoint: &Endpoint| is_near(endpoint) && !proxy.leads_away();
        if upstream.iter().any(|endpoint| !endpoint.secure && !is_near(endpoint)) {
            in_the_clear(&value, provider, plaintext);
        }
    }

    let mut seen = Vec::new();
    let mut set = |key| table.get(key).map(|value| headers::read(&value, &taken, &mut seen)).unwrap_or_default();
    let (headers, default_headers) = (set("headers"), set("default_headers"));
    let callers = table.get("callers");
    let asks_callers = callers.is_some();
    let (callers, gid) = callers.and_then(|value| value.table()).map(callers::read).unzip();
    if is_named {
        claims.route(name, value, asks_callers, gid.flatten());
    }
    let hosts = table.read("hosts", Vec::new(), |v| v.list_of(|v| claims.host(shown, v)));
    let listen = table.read("listen", Vec::new(), |v| Some(claims.listeners(Owner::Route(shown), v)));
    let allow = table.get("allow").and_then(|v| {
        let rules = v.list_of(|v| v.parse(guard::Rule::parse))?;
        if v.list().is_some_and(|list| list.is_empty()) {
            v.warning("an empty list lets no request pass");
        }
        Some(rules)
    });
    let mints = |endpoint: &Endpoint| known.is_some_and(|provider| mints(provider, endpoint));
    if let (None, Some(value), true) = (&allow, table.get("upstream"), upstream.iter().any(mints)) {
        value.warning(
            "whoever reaches this route can have credentials or private keys handed out there: \
             name in `allow` what may pass",
        );
    }
    let keep = table.read("keep", Vec::new(), |v| headers::keep(v, &taken));
    let expose = table.read("expose", Vec::new(), |v| headers::expose(v, known.map(Provider::conceals)));
    let follows_clock = table.read("clock", true, |value| value.choice(&[("auto", true), ("local", false)]));
    let timeouts = timeouts(table.section("timeouts"), known.map(Provider::patience));
    if !provider::ALL.iter().any(|registration| table.get(registration.name).is_some()) {
        no_provider(&table);
    }
    table.finish();
    let (registration, _) = registration?;
    let provider = provider?;
    Some(RouteSettings {
        name: name.to_owned(),
        place: value.key_place(),
        upstream,
        directory,
        connect,
        proxy,
        hosts,
        listen,
        allow,
        callers,
        headers,
        default_headers,
        keep,
        expose,
        follows_clock,
        timeouts,
        tls,
        registration,
        provider: Arc::from(provider),
    })
}

/// The route's one provider, and its table.
type Chosen<'a> = (&'static Registration, Value<'a>);

fn registration<'a>(table: &Table<'a>) -> Option<Chosen<'a>> {
    let given = provider::ALL.iter().filter_map(|registration| Some((*registration, table.get(registration.name)?)));
    let mut given: Vec<_> = given.collect();
    given.sort_by_key(|(_, value)| value.key_place());
    let mut given = given.into_iter();
    let chosen = given.next()?;
    for (_, other) in given {
        other.error_at_key(format!("a route has one provider, and this one has `{}` already", chosen.0.name));
    }
    Some(chosen)
}

fn provider((registration, value): &Chosen<'_>) -> Option<Box<dyn Provider>> {
    let own = value.table()?;
    let provider = (registration.read)(&own);
    if provider.is_none() && !own.reader().has_errors() {
        own.error("this provider cannot be used like this");
    }
    own.finish();
    provider
}

/// Reports that the provider is missing, unless one of the unknown keys is a provider misspelt.
fn no_provider(table: &Table<'_>) {
    let names = || provider::ALL.iter().map(|registration| registration.name);
    if table.rest().iter().all(|(key, _)| nearest(key, names()).is_none()) {
        let known: Vec<_> = names().map(|name| format!("`{name}`")).collect();
        let (name, known) = (table.name(), known.join(", "));
        table.error(format!("the provider is missing: a table such as [{name}.PROVIDER], one of {known}"));
    }
}

fn upstream(table: &Table<'_>, is_found: bool) -> Vec<Endpoint> {
    if is_found {
        if let Some(value) = table.get("upstream") {
            value.error_at_key("the provider finds out where the servers are: leave this out, or its own key");
        }
        return Vec::new();
    }
    let Some(value) = table.require("upstream", "the server that the route leads to, as \"https://HOST\"") else {
        return Vec::new();
    };
    let read = |value: &Value<'_>| value.parse(Endpoint::parse);
    let endpoints = if value.is_list() { value.some_of(read) } else { read(&value).map(|endpoint| vec![endpoint]) };
    let endpoints = endpoints.unwrap_or_default();
    if endpoints.iter().any(|endpoint| endpoint.secure) && endpoints.iter().any(|endpoint| !endpoint.secure) {
        value.error("expected https:// for all servers, or http:// for all");
    }
    endpoints
}

fn tls(
    table: &Table<'_>,
    upstream: &[Endpoint],
    provider: Option<(&Value<'_>, &dyn Provider)>,
) -> upstream_tls::Settings {
    let given = table.get("tls");
    let own = given.as_ref().and_then(Value::table);
    let names_certificate = own.as_ref().is_some_and(tls::names_certificate);
    let settings = own.map(tls::read).unwrap_or_default();
    let is_plain = upstream.iter().any(|endpoint| !endpoint.secure);
    if let (Some(given), true) = (given, is_plain) {
        given.error_at_key("the upstream is http://, which knows no TLS: make it https://, or leave this out");
    }
    if let Some((at, provider)) = provider
        && provider.needs_client_certificate()
    {
        if is_plain && let Some(value) = table.get("upstream") {
            value.error("expected https://: the client certificate is shown in the TLS handshake");
        }
        if !names_certificate {
            at.error_at_key(format!(
                "the client certificate is missing: give `cert` and `key`, or `bundle`, in [{}.tls]",
                table.name()
            ));
        }
    }
    settings
}

/// True for a server that hands out credentials.
fn mints(provider: &dyn Provider, endpoint: &Endpoint) -> bool {
    let Host::Name(name) = &endpoint.host else { return false };
    let first = name.split(['.', '-']).next().unwrap_or_default();
    provider.mints_at().contains(&first)
}

fn in_the_clear(value: &Value<'_>, provider: &dyn Provider, plaintext: bool) {
    if !provider.is_replayable() {
        value.warning(
            "http:// signs, but does not encrypt: anyone on the way can read requests and replies, \
             and send a request again for as long as its signature is valid",
        );
    } else if plaintext {
        value.warning("http:// sends the credential in the clear: anyone on the way can read it and use it");
    } else {
        value.error(
            "http:// would send the credential in the clear: use https://, \
             or set `plaintext = true` if nobody on the way can listen",
        );
    }
}

fn timeouts(table: Table<'_>, patience: Option<Patience>) -> Timeouts {
    let minute = Some(Duration::from_secs(60));
    let patience = patience.unwrap_or(Patience { response: minute, body: minute });
    let timeouts = Timeouts {
        connect: table.read("connect", Some(Duration::from_secs(5)), Value::timeout),
        response: table.read("response", patience.response, Value::timeout),
        body: table.read("body", patience.body, Value::timeout),
        pool_idle: table.read("pool_idle", minute, Value::duration_or_off),
    };
    table.finish();
    timeouts
}

fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
