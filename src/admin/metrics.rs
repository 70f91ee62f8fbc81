//! What a monitoring system reads, in the text format of `OpenMetrics`
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>). Labels come from the configuration alone.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::clock::Timestamp;
use crate::proxy::state::State;

use super::status::Life;

/// Everything at this moment.
#[must_use]
pub fn render(state: &State, life: &Life) -> String {
    let mut registry = Registry::with_prefix("countersign");
    of_reloads(&mut registry, life);
    of_routes(&mut registry, state);
    let mut text = String::new();
    // Writing into a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

fn of_reloads(registry: &mut Registry, life: &Life) {
    let reloads = life.reloads();
    let successful: Gauge = Gauge::default();
    successful.set(i64::from(reloads.is_last_successful));
    let help = "Whether the configuration that is there is in effect";
    registry.register("config_last_reload_successful", help, successful);
    let at = Gauge::<f64, AtomicU64>::default();
    at.set(seconds(reloads.last));
    let help = "When a configuration was taken over last";
    registry.register_with_unit("config_last_reload_success_timestamp", help, Unit::Seconds, at);
}

fn of_routes(registry: &mut Registry, state: &State) {
    let [ready, expiry, ahead, certificate] = [(); 4].map(|()| Floats::default());
    for route in &state.routes {
        let status = route.keeper.status();
        let label = || vec![("route", route.name.clone())];
        ready.get_or_create(&label()).set(f64::from(u8::from(status.is_usable)));
        if let Some(end) = status.expiry {
            expiry.get_or_create(&label()).set(seconds(end));
        }
        for servers in route.servers() {
            for endpoint in servers.all() {
                let upstream = ("upstream", endpoint.target.endpoint.to_string());
                let skew = seconds(Timestamp(endpoint.skew.millis()));
                ahead.get_or_create(&label().into_iter().chain([upstream]).collect()).set(skew);
            }
            if let Some(end) = servers.validities.iter().map(|validity| validity.until).min() {
                certificate.get_or_create(&label()).set(seconds(end));
            }
        }
    }
    let help = "Whether a request could be sent now";
    registry.register("route_ready", help, ready);
    let help = "When the credential in use ends";
    registry.register_with_unit("credential_expiry_timestamp", help, Unit::Seconds, expiry);
    let help = "When the first of the route's own certificates ends";
    registry.register_with_unit("certificate_expiry_timestamp", help, Unit::Seconds, certificate);
    let help = "How far the upstream's clock is ahead, as its replies have taught";
    registry.register_with_unit("clock_ahead", help, Unit::Seconds, ahead);
}

type Floats = Family<Vec<(&'static str, String)>, Gauge<f64, AtomicU64>>;

#[expect(clippy::cast_precision_loss, reason = "milliseconds of our time have room in 53 bits")]
fn seconds(time: Timestamp) -> f64 {
    time.0 as f64 / 1000.0
}
