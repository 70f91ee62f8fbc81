//! Times as the vendors write them: always UTC, fractions cut off; and as they are read.

use jiff::civil::DateTime;
use jiff::tz::Offset;

use crate::clock::Timestamp;

/// `2014-06-01T23:00:10Z`.
#[must_use]
pub fn iso(time: Timestamp) -> String {
    write(time, ["-", "-", "T", ":", ":"])
}

/// `20140601T230010Z`.
#[must_use]
pub fn compact(time: Timestamp) -> String {
    write(time, ["", "", "T", "", ""])
}

fn write(time: Timestamp, separators: [&str; 5]) -> String {
    let at = civil(time);
    let mut text = String::with_capacity(20);
    digits(&mut text, i32::from(at.year()), 4);
    let numbers = [at.month(), at.day(), at.hour(), at.minute(), at.second()];
    for (separator, number) in separators.into_iter().zip(numbers) {
        text.push_str(separator);
        digits(&mut text, i32::from(number), 2);
    }
    text.push('Z');
    text
}

/// `Sun, 01 Jun 2014 23:00:10 GMT` (RFC 9110 section 5.6.7, RFC 1123 section 5.2.14).
#[must_use]
pub fn http(time: Timestamp) -> String {
    let at = civil(time);
    let name = |names: &'static str, index: i8| {
        usize::try_from(index).ok().and_then(|index| names.get(3 * index..3 * index + 3)).unwrap_or_default()
    };
    let mut text = String::with_capacity(29);
    text.push_str(name("MonTueWedThuFriSatSun", at.weekday().to_monday_zero_offset()));
    text.push_str(", ");
    digits(&mut text, i32::from(at.day()), 2);
    text.push(' ');
    text.push_str(name("JanFebMarAprMayJunJulAugSepOctNovDec", at.month() - 1));
    text.push(' ');
    digits(&mut text, i32::from(at.year()), 4);
    for (sign, number) in [(' ', at.hour()), (':', at.minute()), (':', at.second())] {
        text.push(sign);
        digits(&mut text, i32::from(number), 2);
    }
    text.push_str(" GMT");
    text
}

/// The moment of an HTTP date in the form that servers must send (IMF-fixdate, RFC 9110 section 5.6.7).
#[must_use]
pub fn parse_http(text: &str) -> Option<Timestamp> {
    let at = DateTime::strptime("%a, %d %b %Y %H:%M:%S GMT", text).ok()?;
    let time = Timestamp(Offset::UTC.to_timestamp(at).ok()?.as_millisecond());
    (http(time) == text).then_some(time)
}

/// The moment of a date and a time of RFC 3339, with or without a fraction.
#[must_use]
pub fn parse_iso(text: &str) -> Option<Timestamp> {
    text.parse().ok().map(|time: jiff::Timestamp| Timestamp(time.as_millisecond()))
}

fn civil(time: Timestamp) -> DateTime {
    let timestamp = jiff::Timestamp::from_second(time.seconds()).unwrap_or(jiff::Timestamp::MAX);
    Offset::UTC.to_datetime(timestamp)
}

fn digits(text: &mut String, number: i32, width: u32) {
    for place in (0..width).rev() {
        let digit = number / 10_i32.pow(place) % 10;
        text.push(char::from_digit(digit.unsigned_abs(), 10).unwrap_or('0'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_pads_and_cuts_fractions_off() {
        assert_eq!(iso(Timestamp(1_401_663_610_999)), "2014-06-01T23:00:10Z");
        assert_eq!(iso(Timestamp(0)), "1970-01-01T00:00:00Z");
        assert_eq!(iso(Timestamp(1_709_164_805_000)), "2024-02-29T00:00:05Z");
    }

    #[test]
    fn http_dates_have_names_and_two_digits() {
        assert_eq!(http(Timestamp(1_401_663_610_999)), "Sun, 01 Jun 2014 23:00:10 GMT");
        assert_eq!(http(Timestamp(0)), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http(Timestamp(1_709_164_805_000)), "Thu, 29 Feb 2024 00:00:05 GMT");
        assert_eq!(http(Timestamp(1_293_839_999_000)), "Fri, 31 Dec 2010 23:59:59 GMT");
    }

    #[test]
    fn compact_is_the_same_without_punctuation() {
        assert_eq!(compact(Timestamp(1_401_663_610_999)), "20140601T230010Z");
        assert_eq!(compact(Timestamp(1_709_164_805_000)), "20240229T000005Z");
    }

    #[test]
    fn what_was_written_is_read_again() {
        for time in [0, 1_401_663_610_000, 1_709_164_805_000, -1000] {
            assert_eq!(parse_http(&http(Timestamp(time))), Some(Timestamp(time)));
            assert_eq!(parse_iso(&iso(Timestamp(time))), Some(Timestamp(time)));
        }
        assert_eq!(parse_iso("2014-06-01T23:00:10.678000Z"), Some(Timestamp(1_401_663_610_678)));
        assert_eq!(parse_iso("2014-06-02T07:00:10+08:00"), Some(Timestamp(1_401_663_610_000)));
    }

    #[test]
    fn no_other_form_is_a_time() {
        for text in [
            "",
            "Mon, 01 Jun 2014 23:00:10 GMT",
            "Sun, 1 Jun 2014 23:00:10 GMT",
            "Sun, 01 Jun 2014 23:00:10 UTC",
            "Sun Jun  1 23:00:10 2014",
            "Sun, 31 Jun 2014 23:00:10 GMT",
            "sun, 01 jun 2014 23:00:10 GMT",
        ] {
            assert_eq!(parse_http(text), None, "{text}");
        }
        for text in ["", "2014-06-01T23:00:10", "2014-06-31T23:00:10Z", "1401663610", "2014-06-01"] {
            assert_eq!(parse_iso(text), None, "{text}");
        }
    }
}
