//! The daemon as its users start it: the binary, a configuration file, real sockets.

#![allow(dead_code, unreachable_pub, reason = "every test crate that includes this uses its own part of it")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long anything may take that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    folder: tempfile::TempDir,
}

impl Daemon {
    /// Starts the daemon with a configuration, in which `DIR` stands for a folder of its own, and waits until it listens.
    /// Give `127.0.0.1:0` where it is to listen: `port` tells what the kernel chose.
    pub fn start(configuration: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), configuration, |_| {})
    }

    /// The same with a folder that is there already, and a say in the command.
    pub fn start_in(folder: tempfile::TempDir, configuration: &str, adjust: impl FnOnce(&mut Command)) -> Self {
        let file = write_configuration(folder.path(), configuration);
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
        command.arg("run").arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.env_remove("JOURNAL_STREAM").env("NO_COLOR", "1");
        adjust(&mut command);
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let reader = std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in stderr.lines().map_while(Result::ok) {
                    let mut log = log.lock().unwrap();
                    log.push_str(&line);
                    log.push('\n');
                }
            }
        });
        let daemon = Self { child, log, reader: Some(reader), folder };
        daemon.await_log("serving");
        daemon
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a text in the log.
    pub fn await_log(&self, text: &str) {
        let began = Instant::now();
        while !self.log().contains(text) {
            assert!(began.elapsed() < PATIENCE, "no {text:?} in the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The nth shared TCP address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.find_address(|line| line.contains("listening") && !line.contains("admin") && !line.contains("route"))
    }

    /// The TCP address of a route's own listener.
    pub fn own_address(&self, route: &str) -> SocketAddr {
        self.find_address(|line| line.contains("listening") && line.contains(&format!("\"{route}\"")))
    }

    /// The address of the admin listener.
    pub fn admin_address(&self) -> SocketAddr {
        self.find_address(|line| line.contains("admin listening"))
    }

    fn find_address(&self, is_it: impl Fn(&str) -> bool) -> SocketAddr {
        let log = self.log();
        let found = log.lines().filter(|line| is_it(line)).find_map(|line| {
            // In text, or in JSON.
            let (_, rest) = line.split_once("address=").or_else(|| line.split_once("\"address\":\""))?;
            rest.split([' ', '"']).next()?.parse().ok()
        });
        found.unwrap_or_else(|| panic!("no such address in the log:\n{log}"))
    }

    /// The folder that `DIR` stands for.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process id.
    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.reader.take().map(JoinHandle::join);
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "the daemon does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Opens a connection to the shared listener.
    pub fn connect(&self) -> TcpStream {
        connect(self.address())
    }

    /// Sends octets over a connection of their own, says that no more will follow only by `Connection: close` in them, and
    /// returns everything that came back until the daemon closed.
    pub fn exchange(&self, octets: impl AsRef<[u8]>) -> String {
        exchange(self.connect(), octets)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens a connection with timeouts.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends octets and reads to the end.
pub fn exchange(mut stream: impl Read + Write, octets: impl AsRef<[u8]>) -> String {
    stream.write_all(octets.as_ref()).unwrap();
    let mut reply = Vec::new();
    // A reset after the reply is an end as good as any: the daemon may close on what it refuses to read.
    let _ = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

/// Writes the configuration file, closed to others so that it may hold bare secrets.
pub fn write_configuration(folder: &Path, configuration: &str) -> PathBuf {
    let path = folder.join("countersign.toml");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
    file.write_all(configuration.replace("DIR", folder.to_str().unwrap()).as_bytes()).unwrap();
    path
}

/// How a command ended, and what it printed.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs the binary to its end, in a folder of its own and without a configuration anywhere.
pub fn run(folder: &Path, arguments: &[&str], adjust: impl FnOnce(&mut Command)) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    command.args(arguments).current_dir(folder).env_clear().env("PATH", env!("PATH")).env("HOME", folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    adjust(&mut command);
    let mut child = command.spawn().unwrap();
    let read = |mut stream: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
    };
    let (out, err) = (read(Box::new(child.stdout.take().unwrap())), read(Box::new(child.stderr.take().unwrap())));
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ended { code: status.code(), out: out.join().unwrap(), err: err.join().unwrap() }
}
