//! Unpacks a reply, and the same octets as a certificate and as a key in one. Nothing may panic, no error may repeat what it is
//! about, and what was found is well-formed, fits, and has neither its leaf nor its CA in the chain.

use countersign::upstream::bundle::{Identity, unpack};

pub(super) fn run(octets: &[u8]) {
    let text = String::from_utf8_lossy(octets);
    let within = serde_json::json!({ "cert": text, "key": text, "ca": text }).to_string();
    for reply in [octets, within.as_bytes()] {
        for (_, identity) in Identity::NAMES {
            match unpack(reply, identity) {
                Ok(bundle) => {
                    let (leaf, above) = bundle.identity.cert.split_first().expect("a chain has its leaf");
                    assert!(above.iter().all(|certificate| certificate != leaf && !bundle.ca.contains(certificate)));
                    let _ = (bundle.ca_pem(), bundle.chain_pem(), bundle.key_pem());
                }
                Err(error) => {
                    let said = text.lines().map(str::trim).filter(|line| line.len() > 40);
                    assert!(error.len() < 300 && said.clone().all(|line| !error.contains(line)), "{error}");
                }
            }
        }
    }
}
