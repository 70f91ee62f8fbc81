//! What is played before the upstream: a request through each provider, and the same with a wrong secret.

use std::fmt::Write;

use crate::credential::ExposeSecret;

use super::{ACCOUNT, CLUSTER, PROJECT, Stage, USER};

/// One request, and how its route is configured.
#[derive(Debug)]
pub struct Act {
    /// The system that it is for.
    pub system: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// Its route; `ROUTE-wrong` is the same with a wrong secret.
    pub route: &'static str,
    /// The method.
    pub method: &'static str,
    /// The target.
    pub target: &'static str,
    /// The body: JSON, if there is one.
    pub body: Option<&'static str>,
    /// The header that holds the signature or token, and what divides its value into parts: the long ones are not to be shown.
    pub proof: Option<(&'static str, &'static [char])>,
    /// The site that receives the request.
    pub site: &'static str,
    /// The site that is asked beforehand, and what that is, if there is one.
    pub source: Option<(&'static str, &'static str)>,
    /// Front doors of the right route's alone, as keys of its table.
    doors: &'static str,
    /// The rest of the route's table, and its provider's. What begins with `$` is filled in.
    settings: &'static str,
}

/// Every act, in the order in which they are played.
pub const ACTS: &[Act] = &[
    Act {
        system: "Swarm cluster",
        shows: "address and client certificate are fetched, in memory",
        route: "cluster",
        method: "GET",
        target: "/projects/",
        body: None,
        proof: None,
        site: "cluster",
        source: Some(("management", "the cluster-management API")),
        doors: r#"listen = ["unix:cluster.sock"]"#,
        settings: r#"
            [routes.$route.swarm]
            cluster_id = "$cluster"
            credentials = { access_key = "$access_key", secret_key = "$secret_key" }
            endpoint = "https://$management"
        "#,
    },
    Act {
        system: "Swarm management",
        shows: "signed in the ROA style, a new nonce every time",
        route: "management",
        method: "GET",
        target: "/clusters/c0dec0dec0dec0dec0dec0dec0dec0de0",
        body: None,
        proof: Some(("authorization", &[':'])),
        site: "management",
        source: None,
        doors: "",
        settings: r#"
            upstream = "https://$management"
            tls.ca = "ca.pem"
            [routes.$route.acs-roa]
            credentials = { access_key = "$access_key", secret_key = "$secret_key" }
        "#,
    },
    Act {
        system: "Alibaba ACM",
        shows: "the server is found; its namespace and group are signed",
        route: "acm",
        method: "GET",
        target: "/diamond-server/config.co?dataId=db&group=shop&tenant=dev",
        body: None,
        proof: Some(("spas-signature", &[])),
        site: "configurations",
        source: Some(("addresses", "the address server")),
        doors: "",
        settings: r#"
            [routes.$route.acm]
            credentials = { access_key = "$access_key", secret_key = "$secret_key" }
            address_server = "$addresses"
        "#,
    },
    Act {
        system: "PingCAP TEM",
        shows: "the body is signed as well",
        route: "tem",
        method: "POST",
        target: "/api/v1/cluster/tidbs",
        body: Some(r#"{"name":"demo"}"#),
        proof: Some(("authorization", &[':'])),
        site: "platform",
        source: None,
        doors: r#"listen = ["127.0.0.1:0"]"#,
        settings: r#"
            upstream = "http://$platform"
            [routes.$route.tem]
            credentials = { access_key = "$access_key", secret_key = "$secret_key" }
        "#,
    },
    Act {
        system: "Huawei, by token",
        shows: "a password brings a token, for as long as it lives",
        route: "token",
        method: "GET",
        target: "/v3/anything",
        body: None,
        proof: Some(("x-auth-token", &[])),
        site: "echo",
        source: Some(("iam", "IAM")),
        doors: "",
        settings: r#"
            upstream = "https://$echo"
            tls.ca = "ca.pem"
            [routes.$route.huawei-token]
            iam = "https://$iam"
            iam_ca = "ca.pem"
            account = "$account"
            user = "$user"
            password = "$password"
            scope = { project = "$project" }
        "#,
    },
    Act {
        system: "Huawei, by AK/SK",
        shows: "SDK-HMAC-SHA256",
        route: "migration",
        method: "GET",
        target: "/v3/tasks/7a9941f6/certkey?enable_ca_cert=true",
        body: None,
        proof: Some(("authorization", &[' ', '='])),
        site: "migration",
        source: None,
        doors: "",
        settings: r#"
            upstream = "https://$migration"
            tls.ca = "ca.pem"
            [routes.$route.huawei-aksk]
            credentials = { access_key = "$access_key", secret_key = "$secret_key" }
        "#,
    },
    Act {
        system: "Baidu certificates",
        shows: "bce-auth-v1",
        route: "cert",
        method: "GET",
        target: "/v1/certificate?certName=demo",
        body: None,
        proof: Some(("authorization", &['/'])),
        site: "certificates",
        source: None,
        doors: r#"hosts = ["certificate.baidubce.com"]"#,
        settings: r#"
            upstream = "http://$certificates"
            [routes.$route.bce]
            credentials = { access_key = "$access_key", secret_key = "$secret_key" }
        "#,
    },
];

/// The routes of all of them, which listen on a port of 127.0.0.1. It refers to `ca.pem` beside it, and to no other file.
#[must_use]
pub fn configuration(stage: &Stage, port: u16) -> String {
    let mut text = format!("[server]\nlisten = [\"127.0.0.1:{port}\"]\nextra_ca = [\"ca.pem\"]\n");
    for act in ACTS {
        for is_right in [true, false] {
            act.configure(stage, is_right, &mut text);
        }
    }
    text
}

impl Act {
    /// Its route with a wrong secret.
    #[must_use]
    pub fn wrong_route(&self) -> String {
        format!("{}-wrong", self.route)
    }

    fn configure(&self, stage: &Stage, is_right: bool, text: &mut String) {
        let (route, doors) = if is_right { (self.route.to_owned(), self.doors) } else { (self.wrong_route(), "") };
        let secret = |right: &str| if is_right { right.to_owned() } else { "wrong".to_owned() };
        let mut settings = self.settings.to_owned();
        for (name, value) in [
            ("$route", route.clone()),
            ("$account", ACCOUNT.to_owned()),
            ("$user", USER.to_owned()),
            ("$project", PROJECT.to_owned()),
            ("$cluster", CLUSTER.to_owned()),
            ("$access_key", stage.access_key.access_key.clone()),
            ("$secret_key", secret(stage.access_key.secret_key.expose_secret())),
            ("$password", secret(stage.password.expose_secret())),
            ("$addresses", stage.addresses.to_string()),
            ("$certificates", stage.certificates.to_string()),
            ("$echo", stage.echo.to_string()),
            ("$iam", stage.iam.to_string()),
            ("$management", stage.management.to_string()),
            ("$migration", stage.migration.to_string()),
            ("$platform", stage.platform.to_string()),
        ] {
            settings = settings.replace(name, &value);
        }
        let _ = writeln!(text, "[routes.{route}]\n{doors}\n{settings}");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::Clock;
    use crate::config;
    use crate::settings::BareSecrets;

    #[tokio::test]
    async fn every_act_has_two_routes_and_nothing_is_left_to_fill_in() {
        let stage = Stage::start(Clock::system()).await.unwrap();
        let text = configuration(&stage, 0);
        assert!(!text.contains('$'), "{text}");
        assert_eq!(text.matches(stage.access_key.secret_key.expose_secret()).count(), ACTS.len() - 1);
        assert_eq!(text.matches("\"wrong\"").count(), ACTS.len());
        let config = config::parse(&text, Path::new("demo.toml"), BareSecrets::Accept);
        let config = config.unwrap_or_else(|invalid| panic!("{invalid}\n{text}"));
        assert_eq!(config.routes.len(), 2 * ACTS.len());
    }
}
