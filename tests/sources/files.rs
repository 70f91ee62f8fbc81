//! Files and programs that hand out an access key whole.

use std::fs;

use countersign::clock::Timestamp;

use super::{NOW, asker, key, place, source, trouble};

const KEYS: &str = r#"{"Version":1,"AccessKeyId":"id","SecretAccessKey":"hunter2","SessionToken":"st","Expiration":"2026-01-02T04:04:05Z"}"#;

#[tokio::test]
async fn a_file_is_read_anew_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    fs::write(&path, KEYS).unwrap();
    let place = place(&format!("{{ source = 'file', path = '{}' }}", path.display()));
    assert_eq!(place.files(), std::slice::from_ref(&path));
    assert!(place.check().is_ok());
    let asker = asker();
    assert_eq!(key(place.fetch(&asker).await), ("id hunter2 st".to_owned(), Some(NOW.0 + 3_600_000)));

    fs::write(&path, r#"{"AccessKeyId":"other","AccessKeySecret":"hunter2"}"#).unwrap();
    assert_eq!(key(place.fetch(&asker).await), ("other hunter2 -".to_owned(), None));
    fs::write(&path, "hunter2").unwrap();
    let said = trouble(place.fetch(&asker).await);
    assert_eq!(said, format!("what {} says cannot be used: it is no JSON object", path.display()));
    assert!(!format!("{:?}", place.check().unwrap_err()).contains("hunter2"));
    fs::remove_file(&path).unwrap();
    assert!(trouble(place.fetch(&asker).await).starts_with(&format!("cannot open {}", path.display())));
}

#[tokio::test]
async fn what_can_be_read_but_has_ended_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    fs::write(&path, KEYS).unwrap();
    let asker = asker();
    asker.clock.set(Timestamp(NOW.0 + 3_600_000));
    let command = format!("{{ source = 'command', command = ['cat', '{}'] }}", path.display());
    let file = format!("{{ source = 'file', path = '{}' }}", path.display());
    for (place, name) in [(place(&file), path.to_str().unwrap()), (place(&command), "cat")] {
        let said = trouble(place.fetch(&asker).await);
        let expected = "can be read, but expired on 2026-01-02T04:04:05Z: whoever makes it must renew it";
        assert_eq!(said, format!("what {name} says {expected}"));
    }
}

#[tokio::test]
async fn a_program_prints_the_keys_and_is_told_apart_by_its_arguments() {
    let (one, other) = (
        place(&format!("{{ source = 'command', command = ['echo', '{KEYS}'] }}")),
        place("{ source = 'command', command = ['sh', '-c', 'echo hunter2; exit 3'] }"),
    );
    assert_eq!(key(one.fetch(&asker()).await).0, "id hunter2 st");
    assert_eq!(trouble(other.fetch(&asker()).await), "sh ended with exit status: 3");
    assert_ne!(one.identity(), other.identity());
}

#[test]
fn wrong_tables_are_told_by_their_keys() {
    for (credentials, expected) in [
        ("source = 'hunter2'", "expected \"command\" or \"ecs-ram-role\" or \"file\" or \"huawei-metadata\""),
        ("source = 'file'", "`path` is missing"),
        ("source = 'file', path = ''", "expected the path of a file"),
        ("source = 'command', command = []", "expected a program and its arguments"),
        ("source = 'command', command = 'hunter2'", "expected a list"),
        ("source = 'ecs-ram-role', role = 'hunter2/..'", "expected the name of a RAM role"),
        ("source = 'ecs-ram-role', endpoint = 'hunter2'", "expected http:// or https://"),
        ("source = 'huawei-metadata', role = 'hunter2'", "unknown key `role`"),
        ("source = 'file', path = 'x', access_key = 'hunter2'", "unknown key `access_key`"),
    ] {
        let said = source("bce", &format!("credentials = {{ {credentials} }}")).unwrap_err();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains(expected) && !said[0].contains("hunter2"), "{credentials}: {said:?}");
    }
}
