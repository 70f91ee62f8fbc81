//! A day in a moment: how often everybody is asked.

use std::time::Duration;

use countersign::clock::{Clock, Timestamp};

use crate::cloud::{Cloud, Control, Mode};
use crate::scene::{Proxy, acm, gateway, now};
use crate::script::await_that;
use crate::token::{TOKEN, get};

const HOUR: u64 = 3600;

/// Somebody who is asked, and when that is due.
struct Asked<'a> {
    route: &'static str,
    path: &'static str,
    control: &'a Control,
    /// What is counted.
    what: &'static str,
    life: Duration,
    /// How long before the end it is due.
    margin: Duration,
    /// When it was last given.
    last: Timestamp,
    count: usize,
}

impl Asked<'_> {
    /// When the next one is asked for, up to a minute later by chance.
    fn due(&self) -> Timestamp {
        self.last.after(self.life).before(self.margin)
    }

    fn look(&mut self, now: Timestamp) {
        if self.due().after(MINUTE) <= now {
            await_that(self.what, || self.control.accepted(self.what) > self.count);
        }
        let count = self.control.accepted(self.what);
        assert!(count == self.count || count == self.count + 1 && self.due() <= now, "{} at {now:?}", self.what);
        if count > self.count {
            (self.last, self.count) = (now, count);
        }
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn in_a_day_everybody_is_asked_as_often_as_the_margins_say() {
    let start = now();
    let clock = Clock::fixed(start);
    let cloud = Cloud::start(&clock);
    cloud.ecs.play.set(|settings| (settings.mode, settings.life) = (Mode::Hardened, Duration::from_secs(6 * HOUR)));
    cloud.huawei.play.set(|settings| settings.mode = Mode::Hardened);
    let ecs = format!("{{ source = \"ecs-ram-role\", endpoint = \"{}\" }}", cloud.ecs.http());
    let huawei = format!("{{ source = \"huawei-metadata\", endpoint = \"{}\" }}", cloud.huawei.http());
    let (acm, gateway) = (acm(&cloud), gateway(&cloud));
    let tables = [
        TOKEN.route(&cloud),
        acm.route_with("ecs", &acm.http, "", &ecs),
        gateway.route_with("huawei", &gateway.http, "", &huawei),
    ];
    let proxy = Proxy::start(&cloud, &clock, &tables.concat());
    let asked = |route, path, control, what, hours, minutes: u64| Asked {
        route,
        path,
        control,
        what,
        life: Duration::from_secs(hours * HOUR),
        margin: MINUTE * u32::try_from(minutes).unwrap(),
        last: start,
        count: 1,
    };
    let mut all = [
        asked("up", "/v1/vpcs", &*cloud.iam.control, "token of project", 24, 144),
        asked("ecs", acm.path, &*cloud.ecs.control, "credentials", 6, 15),
        asked("huawei", gateway.path, &*cloud.huawei.control, "securitykey", 24, 40),
    ];
    for asked in &all {
        assert_eq!(proxy.ask(asked.route, "GET", asked.path, "").status, 200, "{}", asked.what);
    }
    for minute in (5..=24 * 60).step_by(5) {
        let now = start.after(MINUTE * minute);
        clock.set(now);
        for asked in &mut all {
            asked.look(now);
            let reply = proxy.ask(asked.route, "GET", asked.path, "");
            assert_eq!((reply.status, reply.header("x-countersign-retry")), (200, None), "{} {minute}", asked.what);
        }
    }
    assert_eq!(all.map(|asked| asked.count), [2, 5, 2]);
    // A token of their own is good for two questions: it lives for six hours but for the last five minutes.
    assert_eq!((cloud.ecs.accepted("role"), cloud.ecs.arrived()), (5, 13));
    assert_eq!(cloud.huawei.arrived(), 4);
    let generations =
        |what: &str, control: &Control| (1..=9).filter(|n| control.accepted(&format!("{what}{n}")) > 0).count();
    assert_eq!(generations("STS.ecs-000", &cloud.acm), 5);
    assert_eq!(generations("HST.huawei-000", &cloud.gateway), 2);
    assert_eq!(generations("token ", &cloud.service), 2);
    let most = [&*cloud.iam.control, &*cloud.ecs.control, &*cloud.huawei.control].map(Control::most_at_once);
    assert_eq!(most, [1; 3]);
    assert_eq!(get(proxy.address, "up").status, 200);
}

#[test]
fn a_machine_that_slept_past_the_end_asks_before_it_sends() {
    let start = now();
    let clock = Clock::fixed(start);
    let cloud = Cloud::start(&clock);
    let proxy = Proxy::start(&cloud, &clock, &TOKEN.route(&cloud));
    assert_eq!(get(proxy.address, "up").status, 200);
    for day in 1..=10 {
        clock.set(start.after(MINUTE * 60 * 48 * day));
        let reply = get(proxy.address, "up");
        assert_eq!((reply.status, reply.header("x-countersign-retry")), (200, None), "{}", reply.text());
    }
    assert_eq!((cloud.iam.play.tokens.count(), cloud.service.refused("")), (11, 0));
}
