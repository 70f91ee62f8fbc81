//! The keeper of a credential, with sources that say what the test says and a clock that the test sets.

#![allow(clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]

#[path = "support/signing.rs"]
mod signing;

use std::fmt;
use std::fs;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use countersign::clock::{Clock, Timestamp};
use countersign::credential::keeper::{Keeper, Taken};
use countersign::credential::{Credential, ExposeSecret, Failed, Fetch, Fetched, Margins, Source};
use countersign::upstream::ask::Asker;
use countersign::upstream::outbound::Outbound;
use tokio::sync::{Semaphore, watch};
use tokio::task::{LocalSet, spawn_local, yield_now};
use tokio::time::timeout;

/// Without jitter, and a refresh at half of any life of up to two hours, so that tests can reckon.
const PLAIN: Margins =
    Margins { refresh: minutes(60), refresh_percent: 0, jitter: Duration::ZERO, wait: minutes(3), gone: minutes(1) };

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What a source says when it is asked for the first time, the second time and so on.
type Says = dyn Fn(usize, Timestamp) -> Result<Fetched, Failed> + Send + Sync;

struct Fake {
    says: Box<Says>,
    clock: Clock,
    margins: Margins,
    ttl: Option<Duration>,
    asked: AtomicUsize,
    /// Permits to answer.
    gate: Semaphore,
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

impl Fetch for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn identity(&self) -> String {
        "fake".to_owned()
    }

    fn ttl(&self) -> Option<Duration> {
        self.ttl
    }

    fn margins(&self) -> Margins {
        self.margins
    }

    fn fetch<'a>(&'a self, _: &'a Asker) -> Pin<Box<dyn Future<Output = Result<Fetched, Failed>> + 'a>> {
        Box::pin(async {
            let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
            let _permit = self.gate.acquire().await.unwrap();
            (self.says)(asked, self.clock.now())
        })
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is what a source says")]
fn lasting(secret: impl fmt::Display, expiry: Timestamp) -> Result<Fetched, Failed> {
    let credential = Credential::Secrets(vec![secret.to_string().into()]);
    Ok(Fetched { credential, expiry: Some(expiry) })
}

fn secrets(credential: &Credential) -> Vec<&str> {
    match credential {
        Credential::Nothing => Vec::new(),
        Credential::AccessKey(key) | Credential::Identified(key, _) => {
            vec![&key.access_key, key.secret_key.expose_secret()]
        }
        Credential::Certificate(certificate) => vec![certificate.reply.expose_secret()],
        Credential::Secrets(secrets) => secrets.iter().map(ExposeSecret::expose_secret).collect(),
    }
}

fn secret(taken: &Taken) -> String {
    secrets(&taken.generation.credential).join("+")
}

struct Scene {
    clock: Clock,
    fake: Arc<Fake>,
    keeper: Arc<Keeper>,
    files: watch::Sender<u64>,
}

impl Scene {
    /// A keeper that lives, of a source that says this.
    fn fetching(
        margins: Margins,
        says: impl Fn(usize, Timestamp) -> Result<Fetched, Failed> + Send + Sync + 'static,
    ) -> Self {
        Self::fetching_every(None, margins, says)
    }

    /// The same of a source that is to be asked every so often.
    fn fetching_every(
        ttl: Option<Duration>,
        margins: Margins,
        says: impl Fn(usize, Timestamp) -> Result<Fetched, Failed> + Send + Sync + 'static,
    ) -> Self {
        let clock = Clock::fixed(Timestamp(1_000_000_000));
        let (asked, gate) = (AtomicUsize::new(0), Semaphore::new(Semaphore::MAX_PERMITS));
        let fake = Arc::new(Fake { says: Box::new(says), clock: clock.clone(), margins, ttl, asked, gate });
        let source: Arc<dyn Fetch> = Arc::<Fake>::clone(&fake);
        Self::of(Source::Fetched(source), clock, fake)
    }

    /// A keeper that lives, of what a provider's table names.
    fn configured(provider: &str, table: &str) -> Self {
        let scene = Self::fetching(PLAIN, |_, _| Err(Failed::passing("nobody asks")));
        let (provider, _) = signing::configure(provider, table);
        Self::of(provider.source().clone(), scene.clock, scene.fake)
    }

    fn of(source: Source, clock: Clock, fake: Arc<Fake>) -> Self {
        let keeper = Keeper::new(source, clock.clone(), |credential| {
            let is_bad = secrets(credential).contains(&"bad");
            if is_bad { Err("that is no credential".to_owned()) } else { Ok(()) }
        });
        Self { clock, fake, keeper, files: watch::Sender::new(0) }
    }

    fn live(&self) {
        let asker =
            Asker { clock: self.clock.clone(), roots: Arc::default(), proxy: Outbound::Direct, own: Arc::new([]) };
        spawn_local(Arc::clone(&self.keeper).live(asker, self.files.subscribe()));
    }

    fn asked(&self) -> usize {
        self.fake.asked.load(Ordering::Relaxed)
    }

    async fn take(&self) -> Taken {
        self.keeper.take().await.unwrap()
    }

    /// The secret of what is taken outside of any trial.
    async fn serving(&self) -> String {
        let taken = self.take().await;
        assert!(taken.trial.is_none());
        secret(&taken)
    }

    async fn pass(&self, duration: Duration) {
        self.clock.set(self.clock.now().after(duration));
        idle().await;
    }

    fn stir(&self) {
        self.files.send_modify(|count| *count += 1);
    }

    /// Waits for what another thread has a part in.
    async fn until(&self, is_so: impl Fn(&Keeper) -> bool) {
        let waiting = async {
            while !is_so(&self.keeper) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(seconds(60), waiting).await.unwrap();
    }
}

/// Lets every task go on until it waits: all are on this thread, and none waits for anything but the test.
async fn idle() {
    for _ in 0..100 {
        yield_now().await;
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

/// Generation after generation, each an hour long.
fn hourly(asked: usize, now: Timestamp) -> Result<Fetched, Failed> {
    lasting(asked, now.after(minutes(60)))
}

#[test]
fn a_hundred_that_take_at_once_ask_once() {
    run(async {
        let scene = Rc::new(Scene::fetching(PLAIN, hourly));
        let taking = |scene: &Rc<Scene>| {
            let scene = Rc::clone(scene);
            spawn_local(async move { scene.serving().await })
        };
        let permit = scene.fake.gate.acquire().await.unwrap();
        scene.fake.gate.forget_permits(Semaphore::MAX_PERMITS);
        scene.live();
        let takers: Vec<_> = (0..100).map(|_| taking(&scene)).collect();
        idle().await;
        let late: Vec<_> = (0..100).map(|_| taking(&scene)).collect();
        idle().await;
        assert!(takers.iter().chain(&late).all(|taker| !taker.is_finished()));
        drop(permit);
        for taker in takers.into_iter().chain(late) {
            assert_eq!(taker.await.unwrap(), "1");
        }
        assert_eq!(scene.asked(), 1);
    });
}

#[test]
fn the_next_one_is_asked_for_at_the_margin_and_not_before() {
    run(async {
        let scene = Scene::fetching(PLAIN, hourly);
        scene.live();
        assert_eq!(scene.serving().await, "1");
        scene.pass(seconds(30 * 60 - 1)).await;
        assert_eq!(scene.asked(), 1);
        scene.pass(seconds(1)).await;
        assert_eq!(scene.asked(), 2);
        assert!(scene.keeper.status().is_on_trial);
        scene.pass(minutes(29)).await;
        // The first has a minute left, and counts as gone: there is nothing to fall back to.
        assert_eq!(scene.serving().await, "2");
        assert_eq!(scene.keeper.status().generation, Some(2));
    });
}

#[test]
fn what_is_asked_for_every_so_often_is_asked_for_earlier_where_it_ends_earlier() {
    run(async {
        let end = Timestamp(1_000_000_000).after(minutes(1001));
        let scene = Scene::fetching_every(Some(minutes(400)), PLAIN, move |_, _| lasting("same", end));
        scene.live();
        assert_eq!(scene.serving().await, "same");
        // It counts as gone a minute before its end, and what comes is the same every time.
        for (asked, pause) in [24_000, 18_000, 9_000, 4_500].into_iter().enumerate() {
            scene.pass(seconds(pause - 1)).await;
            assert_eq!(scene.asked(), asked + 1, "{pause}");
            scene.pass(seconds(1)).await;
            assert_eq!(scene.asked(), asked + 2, "{pause}");
        }
    });
}

#[test]
fn a_day_takes_as_many_questions_as_the_margins_say() {
    let early = Margins { refresh: minutes(15), refresh_percent: 10, ..PLAIN };
    for (margins, life, expected) in [(PLAIN, 60, 49), (early, 60, 33), (early, 1440, 2), (early, 30, 97)] {
        run(async move {
            let scene = Scene::fetching(margins, move |asked, now| lasting(asked, now.after(minutes(life))));
            scene.live();
            for _ in 0..1440 {
                let taken = scene.take().await;
                assert!(taken.generation.expiry.unwrap() > scene.clock.now().after(minutes(1)));
                if let Some(trial) = taken.trial {
                    trial.passed();
                }
                scene.pass(minutes(1)).await;
            }
            assert_eq!(scene.asked(), expected, "{life} minutes, {margins:?}");
        });
    }
}

#[test]
fn a_life_of_seconds_is_renewed_at_its_half_as_well() {
    run(async {
        let scene = Scene::fetching(PLAIN, |asked, now| lasting(asked, now.after(seconds(10))));
        scene.live();
        assert_eq!(scene.serving().await, "1");
        for asked in 1..=10 {
            scene.pass(seconds(4)).await;
            assert_eq!(scene.asked(), asked);
            scene.pass(seconds(1)).await;
            assert_eq!(scene.asked(), asked + 1);
        }
    });
}

#[test]
fn what_comes_again_and_again_is_not_asked_for_all_the_time() {
    run(async {
        let end = Timestamp(1_000_000_000).after(minutes(60));
        let scene = Scene::fetching(PLAIN, move |_, _| lasting("the same", end));
        scene.live();
        assert_eq!(scene.serving().await, "the same");
        for _ in 0..59 * 60 {
            scene.pass(seconds(1)).await;
        }
        // Twice a minute from half its life on, and a few times more in its last minute.
        assert!((59..70).contains(&scene.asked()), "{}", scene.asked());
    });
}

#[test]
fn a_failure_is_told_at_once_and_asked_about_again_after_a_pause_that_grows() {
    run(async {
        let scene = Scene::fetching(PLAIN, |asked, now| match asked {
            1..=30 => Err(Failed::passing("it is away")),
            _ => hourly(asked, now),
        });
        scene.live();
        idle().await;
        assert_eq!(&*scene.keeper.take().await.unwrap_err().0, "it is away");
        assert!(!scene.keeper.is_usable() && !scene.keeper.has_been_usable());
        for _ in 0..100 {
            assert!(scene.keeper.take().await.is_err());
        }
        assert_eq!(scene.asked(), 1, "who takes does not hasten it");
        scene.pass(seconds(1)).await;
        assert_eq!(scene.asked(), 2);
        for asked in 2..=30 {
            // Each pause is up to twice as long as the one before, and up to a minute.
            scene.pass(seconds((1 << asked.min(6)).min(60))).await;
            assert_eq!(scene.asked(), asked + 1);
        }
        assert_eq!(scene.serving().await, "31");
        let status = scene.keeper.status();
        assert!(status.error.is_none() && status.is_usable && scene.keeper.has_been_usable());
    });
}

#[test]
fn who_refused_is_asked_again_after_minutes() {
    run(async {
        let scene = Scene::fetching(PLAIN, |asked, now| match asked {
            1 => Err(Failed::lasting("the password is wrong")),
            _ => hourly(asked, now),
        });
        scene.live();
        idle().await;
        scene.pass(seconds(5 * 60 - 1)).await;
        assert_eq!(&*scene.keeper.take().await.unwrap_err().0, "the password is wrong");
        assert_eq!(scene.asked(), 1);
        scene.pass(seconds(61)).await;
        assert_eq!(scene.serving().await, "2");
    });
}

#[test]
fn files_that_stir_without_changing_put_nothing_off() {
    run(async {
        let scene = Scene::fetching(PLAIN, |asked, now| match asked {
            1 => Err(Failed::lasting("the password is wrong")),
            _ => hourly(asked, now),
        });
        scene.live();
        idle().await;
        for _ in 0..6 {
            scene.stir();
            scene.pass(minutes(1)).await;
        }
        assert_eq!(scene.asked(), 2);
    });
}

#[test]
fn what_has_ended_is_never_handed_out() {
    run(async {
        let scene = Scene::fetching(PLAIN, |asked, now| match asked {
            1 => hourly(asked, now),
            2 | 3 => lasting("late", now.before(seconds(1))),
            _ => Err(Failed::passing("it is away")),
        });
        scene.live();
        assert_eq!(scene.serving().await, "1");
        for _ in 0..200 {
            scene.pass(seconds(20)).await;
            match scene.keeper.take().await {
                Ok(taken) => assert!(taken.generation.expiry.unwrap() > scene.clock.now().after(minutes(1))),
                Err(_) => assert!(!scene.keeper.is_usable()),
            }
        }
        assert!(scene.asked() > 4 && !scene.keeper.is_usable() && scene.keeper.has_been_usable());
    });
}

/// A keeper whose second generation is on trial.
async fn on_trial(says: impl Fn(usize, Timestamp) -> Result<Fetched, Failed> + Send + Sync + 'static) -> Scene {
    let scene = Scene::fetching(PLAIN, says);
    scene.live();
    assert_eq!(scene.serving().await, "1");
    scene.pass(minutes(30)).await;
    assert!(scene.keeper.status().is_on_trial);
    scene
}

#[test]
fn one_tries_the_new_one_while_the_others_use_the_old_one() {
    run(async {
        let scene = on_trial(hourly).await;
        let first = scene.take().await;
        assert_eq!((secret(&first).as_str(), first.trial.is_some()), ("2", true));
        assert_eq!(scene.serving().await, "1");
        drop(first.trial);
        let second = scene.take().await;
        assert_eq!(scene.serving().await, "1");
        second.trial.unwrap().passed();
        assert_eq!(scene.serving().await, "2");
        assert!(!scene.keeper.status().is_on_trial);
    });
}

#[test]
fn a_refused_one_is_not_tried_again_until_another_comes() {
    run(async {
        let scene = on_trial(|asked, now| match asked {
            1 => hourly(asked, now),
            2..=4 => lasting("refused", now.after(minutes(60))),
            _ => lasting("another", now.after(minutes(60))),
        })
        .await;
        assert!(scene.take().await.trial.unwrap().refused());
        assert_eq!(scene.keeper.status().rotation_refused, Some(scene.clock.now()));
        idle().await;
        assert_eq!(scene.asked(), 2, "there is no hurry");
        while scene.asked() < 5 {
            assert_eq!(scene.serving().await, "1");
            scene.pass(seconds(1)).await;
        }
        let taken = scene.take().await;
        assert_eq!(secret(&taken), "another");
        taken.trial.unwrap().passed();
        assert_eq!(scene.keeper.status().rotation_refused, None);
    });
}

#[test]
fn refusal_after_refusal_does_not_make_it_ask_all_the_time() {
    run(async {
        let scene = on_trial(hourly).await;
        for _ in 0..600 {
            if let Some(trial) = scene.take().await.trial {
                assert!(trial.refused());
            }
            scene.pass(seconds(1)).await;
        }
        assert!(scene.asked() <= 2 + 600 / 30, "{}", scene.asked());
    });
}

#[test]
fn a_refused_one_serves_when_the_old_one_has_ended_and_there_is_no_other() {
    run(async {
        let end = Timestamp(1_000_000_000).after(minutes(600));
        let scene = on_trial(move |asked, now| match asked {
            1 => hourly(asked, now),
            _ => lasting("steady", end),
        })
        .await;
        assert!(scene.take().await.trial.unwrap().refused());
        scene.pass(minutes(29)).await;
        assert_eq!(scene.serving().await, "steady");
    });
}

#[test]
fn a_refused_one_serves_when_the_old_one_is_refused_too() {
    run(async {
        let end = Timestamp(1_000_000_000).after(minutes(600));
        let scene = on_trial(move |asked, now| match asked {
            1 => hourly(asked, now),
            _ => lasting("steady", end),
        })
        .await;
        assert!(scene.take().await.trial.unwrap().refused());
        assert!(scene.keeper.renew(1).await);
        assert_eq!(scene.serving().await, "steady");
    });
}

#[test]
fn a_refused_trial_that_another_generation_overtook_leaves_both_the_old_one_and_the_other() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        fs::write(&file, "one").unwrap();
        let scene = Scene::configured("bearer", &table(&["token"], folder.path()));
        scene.live();
        assert_eq!(scene.serving().await, "one");
        let mut trials = Vec::new();
        for content in ["two", "three"] {
            fs::write(&file, content).unwrap();
            let refreshed = scene.keeper.status().refreshed;
            scene.clock.set(scene.clock.now().after(seconds(1)));
            scene.stir();
            scene.until(|keeper| keeper.status().refreshed != refreshed).await;
            let taken = scene.take().await;
            assert_eq!(secret(&taken), content);
            trials.push(taken.trial.unwrap());
        }
        let (three, two) = (trials.pop().unwrap(), trials.pop().unwrap());
        assert!(two.refused(), "the old one serves");
        assert_eq!(scene.keeper.status().rotation_refused, None);
        assert_eq!(scene.serving().await, "one");
        three.passed();
        assert_eq!(scene.serving().await, "three");
    });
}

#[test]
fn what_is_taken_back_before_its_trial_is_not_tried() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        fs::write(&file, "one").unwrap();
        let scene = Scene::configured("bearer", &table(&["token"], folder.path()));
        scene.live();
        assert_eq!(scene.serving().await, "one");
        fs::write(&file, "two").unwrap();
        scene.stir();
        scene.until(|keeper| keeper.status().is_on_trial).await;
        fs::write(&file, "one").unwrap();
        scene.stir();
        scene.until(|keeper| !keeper.status().is_on_trial).await;
        assert_eq!(scene.serving().await, "one");
    });
}

#[test]
fn what_changed_before_the_files_were_watched_is_noticed_with_the_first_word_of_them() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        fs::write(&file, "one").unwrap();
        let scene = Scene::configured("bearer", &table(&["token"], folder.path()));
        scene.keeper.seed(scene.keeper.source().load().unwrap()).unwrap();
        fs::write(&file, "two").unwrap();
        scene.live();
        assert_eq!(scene.serving().await, "one");
        scene.stir();
        scene.until(|keeper| keeper.status().is_on_trial).await;
        let taken = scene.take().await;
        assert_eq!(secret(&taken), "two");
        taken.trial.unwrap().passed();
        assert_eq!(scene.serving().await, "two");
    });
}

#[test]
fn a_pair_of_files_that_change_one_after_the_other_is_never_mixed_once_the_mixture_was_refused() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| fs::write(folder.path().join(name), content).unwrap();
        write("user", "u1");
        write("password", "p1");
        let scene = Scene::configured("basic", &table(&["user", "password"], folder.path()));
        scene.live();
        assert_eq!(scene.serving().await, "u1+p1");
        write("user", "u2");
        scene.stir();
        scene.until(|keeper| keeper.status().is_on_trial).await;
        let mixed = scene.take().await;
        assert_eq!(secret(&mixed), "u2+p1");
        assert_eq!(scene.serving().await, "u1+p1");
        assert!(mixed.trial.unwrap().refused());
        let refreshed = scene.keeper.status().refreshed;
        scene.pass(minutes(1)).await;
        // The same files once more, with a change that is none.
        write("user", "u2\n");
        scene.stir();
        scene.until(|keeper| keeper.status().refreshed != refreshed).await;
        assert_eq!(scene.serving().await, "u1+p1");
        write("password", "p2");
        scene.stir();
        scene.until(|keeper| keeper.status().is_on_trial).await;
        let whole = scene.take().await;
        assert_eq!(secret(&whole), "u2+p2");
        whole.trial.unwrap().passed();
        assert_eq!(scene.serving().await, "u2+p2");
    });
}

fn table(names: &[&str], folder: &Path) -> String {
    let line = |name: &&str| format!("{name} = {{ file = '{}' }}\n", folder.join(name).display());
    names.iter().map(line).collect()
}

#[test]
fn a_file_that_holds_nothing_usable_leaves_the_old_one() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        fs::write(&file, "one").unwrap();
        let scene = Scene::configured("bearer", &table(&["token"], folder.path()));
        scene.live();
        assert_eq!(scene.serving().await, "one");
        for (content, trouble) in [("", "the secret is empty"), ("bad", "that is no credential")] {
            fs::write(&file, content).unwrap();
            scene.stir();
            let told = |keeper: &Keeper| keeper.status().error.is_some_and(|(_, error)| error.contains(trouble));
            scene.until(told).await;
            assert_eq!(scene.serving().await, "one");
        }
        fs::write(&file, "two").unwrap();
        scene.stir();
        scene.until(|keeper| keeper.status().is_on_trial && keeper.status().error.is_none()).await;
    });
}

#[test]
fn to_renew_asks_only_where_there_is_no_other_generation_yet() {
    run(async {
        let scene = Scene::fetching(PLAIN, hourly);
        scene.live();
        assert_eq!(scene.serving().await, "1");
        let (one, other) = tokio::join!(scene.keeper.renew(1), scene.keeper.renew(1));
        assert!(one && other);
        assert_eq!((scene.serving().await.as_str(), scene.asked()), ("2", 2));
        assert!(scene.keeper.renew(1).await);
        assert_eq!(scene.asked(), 2);
        scene.pass(minutes(30)).await;
        assert!(scene.keeper.status().is_on_trial);
        assert!(scene.keeper.renew(2).await, "what is on trial is another one");
        assert_eq!((scene.serving().await.as_str(), scene.asked()), ("3", 3));
    });
}

#[test]
fn to_renew_does_not_rely_on_what_was_read_before() {
    run(async {
        let end = Timestamp(1_000_000_000).after(minutes(60));
        let scene = Scene::fetching(PLAIN, move |asked, _| lasting(if asked < 3 { "old" } else { "new" }, end));
        scene.live();
        assert_eq!(scene.serving().await, "old");
        let permit = scene.fake.gate.acquire().await.unwrap();
        scene.fake.gate.forget_permits(Semaphore::MAX_PERMITS);
        scene.pass(minutes(30)).await;
        assert_eq!(scene.asked(), 2);
        let keeper = Arc::clone(&scene.keeper);
        let renewing = spawn_local(async move { keeper.renew(1).await });
        idle().await;
        drop(permit);
        assert!(renewing.await.unwrap());
        assert_eq!((scene.asked(), scene.serving().await), (3, "new".to_owned()));
    });
}

#[test]
fn to_renew_finds_nothing_where_the_same_comes_again() {
    run(async {
        let scene = Scene::fetching(PLAIN, |_, now| lasting("same", now.after(minutes(60))));
        scene.live();
        assert_eq!(scene.serving().await, "same");
        assert!(!scene.keeper.renew(1).await);
        assert_eq!(scene.asked(), 2);
    });
}

#[test]
fn the_same_credential_keeps_its_number_and_its_age() {
    run(async {
        let scene = Scene::fetching(PLAIN, |_, now| lasting("same", now.after(minutes(60))));
        scene.live();
        let first = scene.take().await.generation;
        for _ in 0..5 {
            scene.pass(minutes(30)).await;
            let taken = scene.take().await;
            assert!(taken.trial.is_none());
            assert_eq!((taken.generation.number, taken.generation.obtained), (first.number, first.obtained));
            assert_eq!(taken.generation.expiry, Some(scene.clock.now().after(minutes(60))));
        }
        assert_eq!(scene.asked(), 6);
    });
}
