//! `countersign exec`: what the command finds, when it starts, and how it ends.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use secrecy::ExposeSecret;
use tempfile::TempDir;

use crate::daemon::{Ended, run, write_configuration};
use crate::scene::Scene;

const BINARY: &str = env!("CARGO_BIN_EXE_countersign");

/// Gives traps a chance, for much longer than they need.
const LINGER: &str = "while test ${#waited} -lt 1200; do waited=x$waited; sleep 0.05; done";

/// Runs a script of sh to its end, with a daemon of its own.
fn exec(folder: &Path, configuration: &str, script: &str, adjust: impl FnOnce(&mut Command)) -> Ended {
    exec_with(folder, configuration, &["--", "sh", "-c", script, BINARY], adjust)
}

fn exec_with(folder: &Path, configuration: &str, words: &[&str], adjust: impl FnOnce(&mut Command)) -> Ended {
    let file = write_configuration(folder, configuration);
    run(folder, &[&["exec", "-c", file.to_str().unwrap()], words].concat(), adjust)
}

/// Killed when dropped.
struct Owned(Child);

impl Owned {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The same while a test looks on.
struct Running {
    child: Owned,
    out: BufReader<ChildStdout>,
    err: BufReader<ChildStderr>,
}

impl Running {
    fn start(folder: &Path, configuration: &str, script: &str) -> Self {
        let file = write_configuration(folder, configuration);
        // Whatever the tests were started with: a shell's background jobs ignore SIGINT and SIGQUIT.
        let mut command = Command::new("env");
        command
            .args(["--default-signal", BINARY, "exec", "-c"])
            .arg(&file)
            .args(["--", "sh", "-c", script])
            .current_dir(folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("NO_COLOR", "1");
        // Not in the foreground of whatever terminal the tests run in.
        let mut child = command.process_group(0).spawn().unwrap();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child: Owned(child), out: BufReader::new(out), err: BufReader::new(err) }
    }
}

/// Reads until a line has this in it.
fn await_line(from: &mut impl BufRead, text: &str) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(from.read_line(&mut line).unwrap() > 0, "no {text:?}");
        if line.contains(text) {
            return line;
        }
    }
}

/// A route whose keys are printed once there is a file with them.
fn late(scene: &Scene) -> String {
    format!(
        "[routes.cert]\nupstream = \"http://{}\"\n[routes.cert.bce]\ncredentials = {{ source = \"command\", command = \
         [\"sh\", \"-c\", \"exec 2>/dev/null; while test -d DIR && ! cat DIR/keys.json; do sleep 0.05; done\"] }}\n",
        scene.stage.certificates
    )
}

#[test]
fn every_route_is_reached_at_its_url_whoever_has_the_configured_addresses() {
    let scene = Scene::new();
    let folder = scene.folder();
    let taken = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [shared, own, admin, socket] = taken.each_ref().map(|taken| taken.local_addr().unwrap());
    let configuration = [
        format!("server.listen = [\"{shared}\"]\nadmin.listen = \"{admin}\"\n"),
        scene.bce("cert", &format!("listen = [\"{own}\", \"unix:cert.sock\"]")),
        scene.header("my-echo-2", &format!("listen = [\"{socket}\"]")),
        scene.mtls("cluster", ""),
    ];
    let script = "curl -sSf $COUNTERSIGN_CERT_URL/v1/certificate && curl -sSf \"$COUNTERSIGN_MY_ECHO_2_URL/a?b\" && \
                  curl -sSf $COUNTERSIGN_CLUSTER_URL/projects/ && test ! -e cert.sock && echo $COUNTERSIGN_CERT_URL";
    let ended = exec(folder.path(), &configuration.concat(), script, |_| {});
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    let url = ended.out.lines().last().and_then(|line| line.split_once("http://127.0.0.1:")).unwrap().1;
    assert!(url.strip_suffix("/cert").is_some_and(|port| port.parse::<u16>().is_ok()), "{ended:?}");
    let sites: Vec<_> = scene.stage.upstream.seen().into_iter().map(|seen| (seen.site, seen.verdict.is_ok())).collect();
    assert_eq!(sites, [("certificates", true), ("echo", true), ("cluster", true)]);
}

#[test]
fn any_number_run_beside_each_other() {
    let scene = Scene::new();
    let folder = scene.folder();
    let script = "outer=$COUNTERSIGN_CERT_URL \"$0\" exec -c countersign.toml -- sh -c \
                  'test $outer != $COUNTERSIGN_CERT_URL && curl -sSf $outer/v1/certificate && \
                   curl -sSf $COUNTERSIGN_CERT_URL/v1/certificate'";
    let ended = exec(folder.path(), &scene.bce("cert", ""), script, |_| {});
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(scene.count(), 2);
}

#[test]
fn as_its_proxy_the_daemon_serves_the_hosts_of_routes() {
    let scene = Scene::new();
    let folder = scene.folder();
    let configuration = scene.bce("cert", "hosts = [\"certificate.example.test\"]");
    let script = "curl -sSf http://certificate.example.test/v1/certificate && \
                  curl -sSf $COUNTERSIGN_CERT_URL/v1/certificate && test -z \"$HTTP_PROXY\"";
    let words = ["--http-proxy", "--", "sh", "-c", script];
    let ended = exec_with(folder.path(), &configuration, &words, |command| {
        command.env("HTTP_PROXY", "http://192.0.2.1:1").env("no_proxy", "other.test");
    });
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(scene.count(), 2);
    scene.accepted();
    let ended = exec(folder.path(), &configuration, "echo \"<$http_proxy$no_proxy>\"", |_| {});
    assert_eq!(ended.out, "<>\n", "{ended:?}");
}

#[test]
fn another_proxy_of_the_environment_is_not_asked_for_the_urls() {
    let scene = Scene::new();
    let folder = scene.folder();
    for variable in ["http_proxy", "all_proxy"] {
        let script = "curl -sSf $COUNTERSIGN_CERT_URL/v1/certificate";
        let ended = exec(folder.path(), &scene.bce("cert", ""), script, |command| {
            command.env(variable, "http://127.0.0.1:1");
        });
        assert_eq!(ended.code, Some(0), "{variable}: {ended:?}");
    }
}

#[test]
fn no_variable_that_a_secret_is_read_from_reaches_the_command() {
    let scene = Scene::new();
    let folder = scene.folder();
    let token = scene.stage.token.expose_secret();
    let key = &scene.stage.access_key;
    let configuration = [
        scene.header("echo", "").replace(&format!("\"{token}\""), "{ env = \"PLANTED_TOKEN\" }"),
        scene.bce("cert", "callers = { token = { env = \"PLANTED_CALLERS\" } }").replace(
            &format!("access_key = \"{}\", secret_key = \"{}\"", key.access_key, key.secret_key.expose_secret()),
            "access_key = { env = \"PLANTED_AK\" }, secret_key = { env = \"PLANTED_SK\" }",
        ),
        "[routes.iam]\nupstream = \"http://127.0.0.1:1\"\nplaintext = true\n[routes.iam.basic]\n\
         user = { env = \"PLANTED_USER\" }\npassword = { env = \"PLANTED_PASSWORD\" }\n"
            .to_owned(),
    ];
    let set = [
        ("PLANTED_TOKEN", token),
        ("PLANTED_AK", &key.access_key),
        ("PLANTED_SK", key.secret_key.expose_secret()),
        ("PLANTED_CALLERS", "planted too"),
        ("PLANTED_USER", "planted name"),
        ("PLANTED_PASSWORD", "planted password"),
    ];
    let script = "env && curl -sSf $COUNTERSIGN_ECHO_URL/a";
    let ended = exec(folder.path(), &configuration.concat(), script, |command| {
        command.envs(set).env("HARMLESS", "a\nb=c");
    });
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    scene.accepted();
    for (name, value) in set {
        assert!(!ended.out.contains(name), "{name}: {ended:?}");
        assert!(!ended.out.contains(value) || value == token, "{name}: {ended:?}");
    }
    assert!(ended.out.contains("HARMLESS=a\nb=c\n") && ended.out.contains("\nPATH="), "{ended:?}");
    assert!(ended.out.contains("COUNTERSIGN_CERT_URL=") && ended.out.contains("COUNTERSIGN_IAM_URL="), "{ended:?}");
}

#[test]
fn the_exit_code_is_the_commands() {
    let scene = Scene::new();
    let folder = scene.folder();
    let configuration = scene.bce("cert", "");
    for (script, code) in
        [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
    {
        let ended = exec(folder.path(), &configuration, script, |_| {});
        assert_eq!((ended.code, ended.err.as_str()), (Some(code), ""), "{script}: {ended:?}");
    }
    fs::write(folder.path().join("broken"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(folder.path().join("broken"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for (word, code, said) in [
        ("no-such-command", 127, "no such command"),
        ("./broken", 127, "interpreter"),
        ("./ca.pem", 126, "chmod +x"),
        ("/", 126, "chmod +x"),
    ] {
        let ended = exec_with(folder.path(), &configuration, &["--", word, "argument"], |_| {});
        assert_eq!(ended.code, Some(code), "{word}: {ended:?}");
        assert!(ended.err.starts_with(&format!("countersign: cannot run {word}: ")), "{ended:?}");
        assert!(ended.err.contains(said) && ended.err.lines().count() == 1, "{word}: {ended:?}");
    }
}

#[test]
fn what_cannot_be_served_does_not_begin() {
    let scene = Scene::new();
    let folder = scene.folder();
    let bad = [
        ("[routes.cert]\n".to_owned(), 78),
        (scene.header("echo", "").replace("ca.pem", "no.pem"), 1),
        (
            "[routes.a]\nupstream = \"http://127.0.0.1\"\n[routes.a.bearer]\ntoken = { env = \"NOT_SET\" }\n"
                .to_owned(),
            1,
        ),
    ];
    for (configuration, code) in &bad {
        let ended = exec(folder.path(), configuration, "touch begun", |_| {});
        assert_eq!(ended.code, Some(*code), "{ended:?}");
        assert!(!ended.err.is_empty() && !folder.path().join("begun").exists(), "{ended:?}");
    }
    for words in [&[][..], &["--"], &["touch", "begun"], &["--no-sandbox", "--", "touch", "begun"]] {
        let ended = exec_with(folder.path(), &scene.bce("cert", ""), words, |_| {});
        assert_eq!(ended.code, Some(2), "{words:?}: {ended:?}");
        assert!(ended.err.contains("--help") && !folder.path().join("begun").exists(), "{words:?}: {ended:?}");
    }
}

#[test]
fn the_command_waits_for_credentials_that_come_late() {
    let scene = Scene::new();
    let folder = scene.folder();
    let script = "touch begun; curl -sSf $COUNTERSIGN_CERT_URL/v1/certificate";
    let mut running = Running::start(folder.path(), &late(&scene), script);
    await_line(&mut running.err, "waiting for the credential of cert: ");
    assert!(!folder.path().join("begun").exists());
    let key = &scene.stage.access_key;
    let keys = serde_json::json!({ "AccessKeyId": key.access_key, "SecretAccessKey": key.secret_key.expose_secret() });
    fs::write(folder.path().join("aside"), keys.to_string()).unwrap();
    fs::rename(folder.path().join("aside"), folder.path().join("keys.json")).unwrap();
    assert_eq!(running.child.wait().code(), Some(0));
    scene.accepted();
}

#[test]
fn a_signal_ends_the_wait_for_credentials() {
    let scene = Scene::new();
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let folder: TempDir = scene.folder();
        let mut running = Running::start(folder.path(), &late(&scene), "touch begun");
        await_line(&mut running.err, "waiting for the credential of cert: ");
        running.child.signal(signal);
        assert_eq!(running.child.wait().code(), Some(code));
        assert!(!folder.path().join("begun").exists());
    }
}

#[test]
fn signals_are_handed_on_to_the_command() {
    let scene = Scene::new();
    let folder = scene.folder();
    let configuration = scene.bce("cert", "");
    let handed_on =
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
    for signal in handed_on {
        let name = signal.as_str().trim_start_matches("SIG");
        let script = format!("trap 'echo got; exit 3' {name}; echo begun; {LINGER}");
        let mut running = Running::start(folder.path(), &configuration, &script);
        await_line(&mut running.out, "begun");
        running.child.signal(signal);
        await_line(&mut running.out, "got");
        let status = running.child.wait();
        assert_eq!((status.code(), status.signal()), (Some(3), None), "{signal}");
    }
    // One that does not care goes on, and so does its daemon.
    let script = format!(
        "trap 'curl -sSf $COUNTERSIGN_CERT_URL/v1/certificate; exit 5' USR1; trap : TERM; echo begun; {LINGER}"
    );
    let mut running = Running::start(folder.path(), &configuration, &script);
    await_line(&mut running.out, "begun");
    running.child.signal(Signal::SIGTERM);
    running.child.signal(Signal::SIGUSR1);
    assert_eq!(running.child.wait().code(), Some(5));
    scene.accepted();
}

/// Runs a command in the foreground of a terminal of its own; gives what is shown there, and where to type.
fn in_a_terminal(scene: &Scene, folder: &Path, command: &[&str]) -> (Owned, BufReader<File>, File) {
    let file = write_configuration(folder, &scene.bce("cert", ""));
    let terminal = nix::pty::openpty(None, None).unwrap();
    let mut exec = Command::new("setsid");
    exec.args(["--ctty", "env", "--default-signal", BINARY, "exec", "-c"]).arg(&file).arg("--").args(command);
    exec.stdin(terminal.slave.try_clone().unwrap()).stdout(terminal.slave.try_clone().unwrap());
    let running = Owned(exec.stderr(terminal.slave).spawn().unwrap());
    // The command that is dropped here holds the terminal, whose end would be its last line otherwise.
    let shown = BufReader::new(File::from(terminal.master.try_clone().unwrap()));
    (running, shown, File::from(terminal.master))
}

#[test]
fn what_is_typed_at_the_terminal_reaches_the_command_once() {
    let scene = Scene::new();
    let folder = scene.folder();
    let script =
        format!("n=0; trap 'n=$((n + 1)); echo now $n' INT; trap 'echo had $n; exit 4' USR1; echo begun; {LINGER}");
    let (mut running, mut shown, mut keyboard) = in_a_terminal(&scene, folder.path(), &["sh", "-c", &script]);
    await_line(&mut shown, "begun");
    // Until it goes on, only what the terminal itself sends reaches the command.
    running.signal(Signal::SIGSTOP);
    keyboard.write_all(b"\x03").unwrap();
    await_line(&mut shown, "now 1");
    running.signal(Signal::SIGCONT);
    running.signal(Signal::SIGUSR1);
    let had = await_line(&mut shown, "had ");
    assert_eq!(had.trim_end(), "had 1");
    assert_eq!(running.wait().code(), Some(4));
}

#[test]
fn what_is_typed_reaches_a_command_that_has_left_the_group() {
    let scene = Scene::new();
    let folder = scene.folder();
    let script = format!("trap 'echo got; exit 3' INT; echo begun; {LINGER}");
    let command = ["timeout", "60", "sh", "-c", &script];
    let (mut running, mut shown, mut keyboard) = in_a_terminal(&scene, folder.path(), &command);
    await_line(&mut shown, "begun");
    keyboard.write_all(b"\x03").unwrap();
    await_line(&mut shown, "got");
    assert_eq!(running.wait().code(), Some(3));
}

#[test]
fn limits_and_ignored_signals_are_the_commands_to_inherit() {
    let scene = Scene::new();
    let folder = scene.folder();
    let file = write_configuration(folder.path(), &scene.bce("cert", ""));
    let inner = "ulimit -Sn; ulimit -Hc; ulimit -Sc; kill -HUP $PPID; kill -HUP $$; echo alive";
    let script = |wrapper: &str| format!("trap '' HUP; ulimit -Sn 64; {wrapper} sh -c '{inner}'");
    let run = |script: String| {
        let mut command = Command::new("sh");
        let output = command.args(["-c", &script, BINARY]).arg(&file).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let plain = run(script("env"));
    assert!(plain.0 == Some(0) && plain.1.starts_with("64\n") && plain.1.ends_with("\nalive\n"), "{plain:?}");
    assert_eq!(run(script("\"$0\" exec -c \"$1\" --")), plain);
}

#[test]
fn a_changed_configuration_takes_effect_while_the_command_runs() {
    let scene = Scene::new();
    let folder = scene.folder();
    fs::write(folder.path().join("good"), scene.bce("cert", "")).unwrap();
    let script = "curl -s -o /dev/null -w '%{http_code}\n' $COUNTERSIGN_CERT_URL/v1/certificate; \
                  cat good > countersign.toml; \
                  until curl -sf $COUNTERSIGN_CERT_URL/v1/certificate; do sleep 0.05; done";
    let ended = exec(folder.path(), &scene.bce_to("127.0.0.1:1", "cert", ""), script, |_| {});
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.starts_with("502\n"), "{ended:?}");
    scene.accepted();
}

#[test]
fn what_the_command_leaves_behind_is_not_waited_for() {
    let scene = Scene::new();
    let folder = scene.folder();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = silent.local_addr().unwrap().to_string();
    let marker = folder.path().join("asked");
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = silent.accept().unwrap();
        stream.read_exact(&mut [0; 16]).unwrap();
        File::create(marker).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let script = "curl -s $COUNTERSIGN_CERT_URL/v1/certificate >curl.out 2>&1 & \
                  until test -e asked; do sleep 0.05; done; exit 6";
    let ended = exec(folder.path(), &scene.bce_to(&upstream, "cert", ""), script, |_| {});
    assert_eq!(ended.code, Some(6), "{ended:?}");
    asked.join().unwrap();
}

#[test]
fn little_is_logged_among_the_commands_own_words() {
    let scene = Scene::new();
    let folder = scene.folder();
    let script = "curl -sSf $COUNTERSIGN_CERT_URL/v1/certificate; echo words >&2";
    for (log, is_told) in [("", false), ("log.level = \"debug\"\n", true)] {
        let ended = exec(folder.path(), &format!("{log}{}", scene.bce("cert", "")), script, |_| {});
        assert!(ended.err.contains("words\n"), "{ended:?}");
        assert_eq!(ended.err.contains("/v1/certificate"), is_told, "{ended:?}");
        assert_eq!(ended.err == "words\n", !is_told, "{ended:?}");
    }
}
