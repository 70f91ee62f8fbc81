//! What there is to read: the help, the manual, completions, the version.

use crate::daemon::{Ended, run};

/// Runs a command in an empty folder, and it must succeed.
fn told(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let Ended { code, out, err } = run(folder.path(), arguments, |_| {});
    assert_eq!((code, err.as_str()), (Some(0), ""), "{arguments:?}");
    out
}

/// The commands that the help lists.
fn commands() -> Vec<String> {
    let help = told(&["--help"]);
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let lines = list.lines().take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    let commands: Vec<_> = lines.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect();
    assert!(commands.len() > 10 && commands.contains(&"run".to_owned()), "{help}");
    commands
}

#[test]
fn every_help_ends_with_examples_that_start_the_command() {
    for command in commands() {
        let help = told(&[&command, "--help"]);
        let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{help}"));
        assert!(examples.contains(&format!("countersign {command}")), "{help}");
    }
}

#[test]
fn the_manual_has_a_page_for_every_command_and_one_for_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let written = run(folder.path(), &["man", "--dir", "share/man"], |_| {});
    assert_eq!((written.code, written.err.as_str()), (Some(0), ""), "{written:?}");
    let page = |file: &str| std::fs::read_to_string(folder.path().join("share/man").join(file)).unwrap();

    let main = page("countersign.1");
    assert_eq!(main, told(&["man"]));
    assert!(
        main.starts_with('.')
            && main.contains(".TH countersign 1 \" \" \"countersign ")
            && main.contains(".SH EXAMPLES"),
        "{main}"
    );
    let commands = commands();
    for command in &commands {
        let text = page(&format!("countersign-{command}.1"));
        assert_eq!(text, told(&["man", command]));
        assert!(text.contains(&format!(".TH countersign-{command} 1 ")) && text.contains(".SH OPTIONS"), "{text}");
        assert!(text.contains(".SH EXAMPLES\n.nf\n  countersign "), "{text}");
        assert!(main.contains(&format!("countersign\\-{command}(1)")), "{command}: {main}");
    }

    let configuration = page("countersign.toml.5");
    assert_eq!(configuration, told(&["man", "countersign.toml"]));
    for registration in countersign::provider::ALL {
        assert!(configuration.contains(&format!(".SS {}\n", registration.name)), "{}", registration.name);
    }
    assert!(configuration.contains("\n[routes.cert]\n"), "{configuration}");
    assert_eq!(written.out.lines().count(), commands.len() + 2, "{}", written.out);
}

#[test]
fn a_page_that_is_not_there_ends_with_2_and_the_pages_that_are() {
    let folder = tempfile::tempdir().unwrap();
    let ended = run(folder.path(), &["man", "nonsense"], |_| {});
    assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{ended:?}");
    assert!(ended.err.contains("run, exec, check") && ended.err.contains("countersign.toml"), "{ended:?}");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let ended = run(folder.path(), &["man", "--dir", "file"], |_| {});
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.starts_with("countersign: cannot write into file: "), "{ended:?}");
}

#[test]
fn completions_know_every_command() {
    let commands = commands();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = told(&["completions", shell]);
        assert!(commands.iter().all(|command| script.contains(command.as_str())), "{shell}: {script}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run(folder.path(), &["completions", "nonsense"], |_| {}).code, Some(2));
}

#[test]
fn the_version_is_the_packages() {
    let version = told(&["--version"]);
    assert!(version.starts_with(concat!("countersign ", env!("CARGO_PKG_VERSION"))), "{version}");
}
