//! What can go wrong while the daemon runs.

use std::path::Path;

use countersign::clock::Timestamp;
use countersign::credential::AccessKey;
use serde_json::json;

use crate::cloud::{Fault, TokenRefusal};
use crate::routes::secret;
use crate::scene::Scene;

/// What goes wrong, and how. Each is followed by a request through every route.
pub(crate) type Trouble = (&'static str, fn(&Scene, &Path));

pub(crate) const TROUBLES: [Trouble; 20] = [
    ("nothing", |_, _| {}),
    ("throttled", |scene, _| scene.everywhere(&Fault::throttle(429, 3))),
    ("broken", |scene, _| scene.everywhere(&Fault::status(500))),
    ("redirected", |scene, _| scene.everywhere(&Fault::redirect("http://bce.localhost/elsewhere"))),
    ("not permitted", |scene, _| {
        scene.everywhere(&Fault::json(403, &json!({ "code": "AccessDenied", "message": "no", "requestId": "1-2" })));
    }),
    ("cut", |scene, _| scene.everywhere(&Fault::Cut)),
    ("unreachable", |scene, _| scene.each(|site| site.behave(|manner| manner.is_down = true))),
    ("clocks far off", |scene, _| scene.each(|site| site.shift(2 * 86_400))),
    ("clocks off", |scene, _| scene.each(|site| site.shift(2_000))),
    ("clocks right again", |_, _| {}),
    ("tokens undecipherable", |scene, _| scene.cloud.service.play.refuse_with(TokenRefusal::Undecipherable)),
    ("tokens unknown", |scene, _| {
        scene.cloud.service.play.refuse_with(TokenRefusal::Keystone);
        scene.cloud.iam.play.tokens.revoke_all();
    }),
    ("an unusable file", |_, folder| {
        std::fs::write(folder.join("rotated"), format!("{}\n\u{1}", secret("Broken"))).unwrap();
    }),
    ("a missing file", |_, folder| std::fs::remove_file(folder.join("rotated")).unwrap()),
    ("keys revoked", |scene, _| {
        for key in ["AKlasting", "AKtemporary"] {
            scene.cloud.revoke(key);
        }
        scene.given().iter().for_each(|key| scene.cloud.revoke(&key.access_key));
    }),
    ("keys revoked that nobody replaces", |scene, _| {
        scene.givers().into_iter().for_each(|giver| giver.fail("/", usize::MAX, Fault::status(500)));
        scene.given().iter().for_each(|key| scene.cloud.revoke(&key.access_key));
    }),
    ("keys expired", |scene, _| {
        for site in [&scene.cloud.baidu.play.keys, &scene.cloud.acm.play.keys, &scene.cloud.gateway.play.keys] {
            site.remove("AKtemporary");
            site.add(Scene::temporary(), Some(Timestamp(1)));
        }
    }),
    ("a key locked", |scene, _| {
        let body = json!({ "error_code": "APIGW.0301", "error_msg": "AK access failed to reach the limit,forbidden." });
        scene.cloud.gateway.fail("/", 1, Fault::json(401, &body));
    }),
    ("keys changed", |scene, _| scene.change_keys()),
    ("keys changed, and replies packed", |scene, _| {
        scene.change_keys();
        scene.each(|site| site.behave(|manner| (manner.gzip, manner.chunked) = (true, true)));
    }),
];

impl Scene {
    /// Other secrets belong to the keys now.
    pub(crate) fn change_keys(&self) {
        for key in [Self::lasting(), Self::temporary()] {
            self.cloud.revoke(&key.access_key);
            self.cloud.add(&AccessKey { secret_key: "another".into(), ..key });
        }
    }
}
