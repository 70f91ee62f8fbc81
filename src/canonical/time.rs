//! Times as the vendors write them: always UTC, fractions cut off.

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
}
