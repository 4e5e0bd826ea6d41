//! Licences of every kind, read back, mailed, and changed in every way one character can be.

use jiff::Timestamp;
use proptest::prelude::*;
use signed::{License, PRODUCT, SecretKey};
use uuid::Uuid;

/// Any Unicode that can stand in a line: quotes, emoji, both writing directions, combining marks.
fn holder() -> impl Strategy<Value = String> {
    let known = prop_oneof![
        Just("O'Brien \"&\" Söhne <x@y>".to_owned()),
        Just("👩‍👩‍👧‍👦 GmbH 🦀".to_owned()),
        Just("شركة النسخ الاحتياطي".to_owned()),
        Just("חברת גיבוי (ישראל)".to_owned()),
        Just("e\u{301}\u{200f}\u{200d}x".to_owned()),
        Just("-----END BACKHAUL LICENSE-----".to_owned()),
        Just("Signature: AAAA Signer: B".to_owned()),
        Just(": ".to_owned()),
    ];
    let any = "[^\\p{Cc}\\p{Zl}\\p{Zp}]{1,80}".prop_filter("not empty", |text| !text.trim().is_empty());
    prop_oneof![known, any].prop_map(|text| text.trim().to_owned())
}

prop_compose! {
    fn license()(
        holder in holder(), id in any::<u128>(), proxy in proptest::option::of(any::<u128>()), count in 1u32..,
        issued in 0i64..4_000_000_000, wait in 0i64..10_000_000, term in proptest::option::of(1i64..1_000_000_000),
    ) -> License {
        let at = |second| Timestamp::from_second(second).unwrap();
        License {
            id: Uuid::from_u128(id).to_string(),
            product: PRODUCT.into(),
            holder,
            proxies: if proxy.is_some() { 1 } else { count },
            issued_at: at(issued),
            not_before: at(issued + wait),
            expires_at: term.map(|term| at(issued + wait + term)),
            bound_to: proxy.map(|id| Uuid::from_u128(id).to_string()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_licence_reads_back_also_out_of_a_mail(license in license(), before in "(?s).{0,80}", after in "(?s).{0,80}") {
        let key = SecretKey::generate().unwrap();
        let text = license.issue(&key).unwrap();
        let mailed = format!("{before}\r\n{}{after}", text.replace('\n', "\r\n"));
        for text in [text, mailed] {
            prop_assert_eq!(&License::read(&text, &[key.public()]).unwrap(), &license);
        }
    }

    #[test]
    fn no_changed_character_is_accepted(
        license in license(), at in any::<prop::sample::Index>(), by in any::<char>(), windows in any::<bool>(),
    ) {
        let key = SecretKey::generate().unwrap();
        let text = license.issue(&key).unwrap();
        let text = if windows { text.replace('\n', "\r\n") } else { text };
        // The end of the last line is outside.
        let mut characters: Vec<char> = text.trim_end().chars().collect();
        let at = at.index(characters.len());
        prop_assume!(characters[at] != by);
        characters[at] = by;
        let changed: String = characters.into_iter().collect();
        prop_assert!(License::read(&changed, &[key.public()]).is_err(), "{}", changed);
    }

    #[test]
    fn no_two_characters_changing_places_are_accepted(license in license(), at in any::<prop::sample::Index>()) {
        let key = SecretKey::generate().unwrap();
        let text = license.issue(&key).unwrap();
        let mut characters: Vec<char> = text.trim_end().chars().collect();
        let at = at.index(characters.len() - 1);
        prop_assume!(characters[at] != characters[at + 1]);
        characters.swap(at, at + 1);
        let changed: String = characters.into_iter().collect();
        prop_assert!(License::read(&changed, &[key.public()]).is_err(), "{}", changed);
    }

    #[test]
    fn no_missing_or_added_character_is_accepted(license in license(), at in any::<prop::sample::Index>(), more in proptest::option::of(any::<char>())) {
        let key = SecretKey::generate().unwrap();
        let text = license.issue(&key).unwrap();
        let mut characters: Vec<char> = text.trim_end().chars().collect();
        // From behind the first character to before the last: outside of them is the surrounding text.
        let at = 1 + at.index(characters.len() - 1);
        match more {
            // A carriage return before a line's end is the one thing forgiven.
            Some('\r') if characters.get(at) == Some(&'\n') => return Ok(()),
            Some(more) => characters.insert(at, more),
            None => drop(characters.remove(at)),
        }
        let changed: String = characters.into_iter().collect();
        prop_assert!(License::read(&changed, &[key.public()]).is_err(), "{}", changed);
    }

    #[test]
    fn nothing_read_is_a_crash(text in "(?s).{0,300}") {
        let key = SecretKey::generate().unwrap();
        prop_assert!(License::read(&text, &[key.public()]).is_err());
        let armoured = format!("-----BEGIN BACKHAUL LICENSE-----\n{text}\n-----END BACKHAUL LICENSE-----\n");
        prop_assert!(License::read(&armoured, &[key.public()]).is_err());
    }
}

/// Not at random: each character of one licence, turned into its neighbours and into what ends lines and fields.
#[test]
fn every_character_counts() {
    let key = SecretKey::generate().unwrap();
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let license = License {
        id: Uuid::from_u128(7).to_string(),
        product: PRODUCT.into(),
        holder: "Né \"quoted\" 🦀".into(),
        proxies: 1,
        issued_at: at("2026-01-01T00:00:00Z"),
        not_before: at("2026-01-01T00:00:00Z"),
        expires_at: Some(at("2027-01-01T00:00:00Z")),
        bound_to: Some(Uuid::from_u128(8).to_string()),
    };
    let text = license.issue(&key).unwrap();
    let characters: Vec<char> = text.trim_end().chars().collect();
    for (index, character) in characters.iter().enumerate() {
        let neighbours = [1u32, 0x20, 0x40].map(|bit| char::from_u32(*character as u32 ^ bit));
        for other in neighbours.into_iter().flatten().chain([' ', '\n', '\r', ':', '=', '\u{feff}', '\u{2028}']) {
            if other == *character {
                continue;
            }
            let mut changed = characters.clone();
            changed[index] = other;
            let changed: String = changed.into_iter().collect();
            assert!(License::read(&changed, &[key.public()]).is_err(), "character {index} became {other:?}:\n{changed}");
        }
    }
    License::read(&text, &[key.public()]).unwrap();
}
