//! The service manager: what it is told of the daemon (`sd_notify(3)`). Where there is none, nobody is told.

use std::env;
use std::fmt::Write as _;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;
use tracing::warn;

/// The service manager that started this process, if one did that wants to be told.
#[derive(Debug, Default)]
pub struct Service {
    socket: Option<UnixDatagram>,
    /// How long it may go without a sign of life.
    watchdog: Option<Duration>,
    /// What it shows of the daemon.
    status: String,
    next: Option<Instant>,
}

impl Service {
    /// The one that the environment names.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn find() -> io::Result<Self> {
        let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(Self::default()) };
        let socket = UnixDatagram::unbound()?;
        match path.as_bytes().strip_prefix(b"@") {
            Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
            None => socket.connect(&path)?,
        }
        // One that does not listen is not waited for.
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket: Some(socket), watchdog: sd_notify::watchdog_enabled(), ..Self::default() })
    }

    /// The daemon listens.
    pub fn ready(&mut self, status: &str) {
        self.tell_with(&[NotifyState::Ready], status);
    }

    /// The daemon looks at its configuration again; [`reloaded`](Self::reloaded) has to follow.
    pub fn reloading(&self) {
        // While it runs the programs that print secrets it gives no sign of life.
        let watchdog = watchdog_usec(self.watchdog.map(|watchdog| watchdog.max(RELOAD)));
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now, NotifyState::Custom(&watchdog)]),
            Err(error) => warn!(%error, "the service manager is not told of the reload"),
        }
    }

    /// The daemon goes on, with what it has found or as before.
    pub fn reloaded(&mut self, status: &str) {
        let watchdog = watchdog_usec(self.watchdog);
        self.tell_with(&[NotifyState::Ready, NotifyState::Custom(&watchdog)], status);
    }

    /// The daemon is on its way to the end, which may take as long as `patience`.
    pub fn stopping(&mut self, patience: Duration, status: &str) {
        let patience = format!("EXTEND_TIMEOUT_USEC={}", (patience + MARGIN).as_micros());
        self.tell_with(&[NotifyState::Stopping, NotifyState::Custom(&patience)], status);
    }

    /// Shows what there is to say of the daemon.
    pub fn status(&mut self, status: &str) {
        if line(status) != self.status {
            self.tell_with(&[], status);
        }
    }

    /// The daemon is alive.
    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// Ready when it is time for a sign of life and for news; never, if nobody wants them.
    pub async fn due(&mut self) {
        if self.socket.is_none() {
            return std::future::pending().await;
        }
        // Kept, since others are waited for at the same time and again and again.
        let interval = self.interval();
        let next = *self.next.get_or_insert_with(|| Instant::now() + interval);
        tokio::time::sleep_until(next).await;
        self.next = None;
    }

    /// How much time there is between two signs of life.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.watchdog.map_or(INTERVAL, |watchdog| INTERVAL.min(watchdog / 2))
    }

    /// Gives signs of life for as long as it is awaited.
    pub async fn keep_alive(&mut self) {
        loop {
            self.due().await;
            self.alive();
        }
    }

    fn tell_with(&mut self, news: &[NotifyState<'_>], status: &str) {
        self.status = line(status);
        let all: Vec<_> = news.iter().cloned().chain([NotifyState::Status(&self.status)]).collect();
        self.tell(&all);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let mut message = String::new();
        for state in states.iter().map(ToString::to_string).filter(|state| !state.is_empty()) {
            let _ = writeln!(message, "{state}");
        }
        if let Err(error) = socket.send(message.as_bytes()) {
            warn!(%error, "the service manager cannot be told how it goes");
        }
    }
}

/// How long it may go from now on without a sign of life; nothing, if it is all the same.
fn watchdog_usec(watchdog: Option<Duration>) -> String {
    watchdog.map(|watchdog| format!("WATCHDOG_USEC={}", watchdog.as_micros())).unwrap_or_default()
}

/// A line of bounded length: a second one would be a message of its own.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LINE).collect()
}

/// What a service manager puts into the environment for the process that it starts, and for no program of ours.
pub const VARIABLES: [&str; 7] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"];

/// How long it may take to take a message.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often to look for news, at least.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long a reload may take.
const RELOAD: Duration = Duration::from_secs(600);

/// How much longer than a drain the end may take.
const MARGIN: Duration = Duration::from_secs(10);

/// How long a line may be.
const LINE: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    fn service(watchdog: Option<Duration>) -> (Service, impl Fn() -> String) {
        let (ours, manager) = UnixDatagram::pair().unwrap();
        manager.set_nonblocking(true).unwrap();
        let told = move || {
            let mut message = [0; 4096];
            manager
                .recv(&mut message)
                .map_or_else(|_| String::new(), |length| String::from_utf8(message[..length].to_vec()).unwrap())
        };
        (Service { socket: Some(ours), watchdog, ..Service::default() }, told)
    }

    #[test]
    fn states_come_with_what_goes_with_them_in_one_message() {
        let (mut service, told) = service(None);
        service.ready("serving");
        assert_eq!(told(), "READY=1\nSTATUS=serving\n");
        service.reloading();
        let reloading = told();
        let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end();
        assert!(usec.parse::<u64>().unwrap() > 0);
        service.stopping(Duration::from_secs(5000), "draining");
        assert_eq!(told(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=5010000000\nSTATUS=draining\n");
    }

    #[test]
    fn a_reload_has_time_even_if_nothing_else_has() {
        let (mut service, told) = service(Some(Duration::from_secs(3)));
        service.reloading();
        assert!(told().ends_with("\nWATCHDOG_USEC=600000000\n"));
        service.reloaded("serving");
        assert_eq!(told(), "READY=1\nWATCHDOG_USEC=3000000\nSTATUS=serving\n");
    }

    #[test]
    fn a_status_is_one_line_and_told_once() {
        let (mut service, told) = service(None);
        service.status("a\nREADY=1\u{1b}");
        service.status("a\nREADY=1\u{1b}");
        assert_eq!((told().as_str(), told().as_str()), ("STATUS=a READY=1 \n", ""));
        service.status(&"é".repeat(1000));
        assert_eq!(told().chars().count(), LINE + "STATUS=\n".len());
    }

    #[test]
    fn signs_of_life_come_twice_as_often_as_they_must_if_they_are_wanted() {
        let (unwatched, told) = service(None);
        unwatched.alive();
        assert_eq!((told().as_str(), unwatched.interval()), ("", INTERVAL));
        let (watched, told) = service(Some(Duration::from_secs(3)));
        watched.alive();
        assert_eq!((told().as_str(), watched.interval()), ("WATCHDOG=1\n", Duration::from_millis(1500)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_interrupts_the_wait_does_not_put_it_off() {
        let (mut service, told) = service(Some(Duration::from_secs(4)));
        let began = Instant::now();
        for _ in 0..3 {
            let interrupted = tokio::time::timeout(Duration::from_millis(600), service.due()).await;
            assert!(interrupted.is_err());
        }
        service.due().await;
        assert_eq!(began.elapsed(), Duration::from_secs(2));
        let _ = tokio::time::timeout(Duration::from_secs(5), service.keep_alive()).await;
        assert_eq!([told(), told(), told()], ["WATCHDOG=1\n", "WATCHDOG=1\n", ""]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_service_manager_nothing_is_due() {
        let mut service = Service::default();
        service.ready("serving");
        assert!(tokio::time::timeout(Duration::from_secs(1000), service.due()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_listen_is_not_waited_for() {
        let (mut service, told) = service(None);
        service.socket.as_ref().unwrap().set_write_timeout(Some(Duration::from_millis(1))).unwrap();
        // More than its queue has room for.
        for number in 0..600 {
            service.status(&number.to_string());
        }
        assert_eq!(told(), "STATUS=0\n");
    }
}
