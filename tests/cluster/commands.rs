//! What the commands say of such a route.

use std::fs;

use countersign::clock::Clock;

use crate::Stage;
use crate::daemon::{run, write_configuration};

#[test]
fn check_and_sign_know_where_the_cluster_is() {
    let (stage, issued) = Stage::start(&Clock::system());
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ca.pem"), stage.cloud.authority.pem()).unwrap();
    write_configuration(folder.path(), &format!("[server]\n{}", stage.route()));
    let command = |arguments: &[&str]| {
        let ended = run(folder.path(), arguments, |_| {});
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        assert!(issued.key.lines().skip(1).take(2).all(|line| !ended.out.contains(line) && !ended.err.contains(line)));
        ended.out
    };
    let checked = command(&["check", "-c", "countersign.toml"]);
    assert_eq!(checked, "up  swarm -> whatever is found out: ok\n");
    assert_eq!(stage.cloud.cluster.arrived(), 0);
    let tried = command(&["check", "--live", "-c", "countersign.toml"]);
    for found in ["good  credential: fetched (aliyun-cluster), good until ", "https://127.0.0.1:", ": answers after "] {
        assert!(tried.contains(found), "{tried}");
    }
    let connections = stage.master.upstream.connections();

    let (url, address) = ("http://up.localhost:8080/projects/", stage.master.upstream.address);
    assert_eq!(command(&["sign", "-c", "countersign.toml", url]), format!("Host: {address}\n"));
    let explained = command(&["sign", "-c", "countersign.toml", "--explain", url]);
    for line in [
        "provider: swarm\n",
        &format!("upstream: https://{address}\n"),
        "credential: a client certificate, fetched just now (aliyun-cluster), good until ",
        &format!("headers:\n  Host: {address}\n"),
    ] {
        assert!(explained.contains(line), "{line:?} in {explained}");
    }
    assert_eq!(stage.master.upstream.connections(), connections);
    let listed = command(&["providers"]);
    assert!(listed.contains("swarm") && listed.contains("cluster_id"), "{listed}");
}
