//! ACM's address server: where the configuration servers are, in plain text, one a line.

use std::net::SocketAddr;

use http::StatusCode;
use serde_json::Value;

use super::super::verify::{Received, Refusal};
use super::{Reply, is_reading};

/// The list.
pub struct Addresses(pub Vec<SocketAddr>);

impl Addresses {
    /// `GET /diamond-server/diamond`.
    pub(super) fn answer(&self, request: &Received<'_>) -> Result<Reply, Refusal> {
        if request.path != "/diamond-server/diamond" || !is_reading(request.method) {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "NotFound",
                "only GET /diamond-server/diamond is answered",
            ));
        }
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        Ok(Reply::of(Value::String(lines.join("\n"))))
    }
}
