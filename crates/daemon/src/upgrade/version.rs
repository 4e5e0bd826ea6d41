//! Which of two versions is the later one, as semver.org has it (section 11).

use std::cmp::Ordering;

/// Compares two versions. What is no number counts as later than any, as in a pre-release.
pub fn compare(one: &str, other: &str) -> Ordering {
    let (one, other) = (split(one), split(other));
    identifiers(one.0, other.0).then_with(|| match (one.1, other.1) {
        (None, None) => Ordering::Equal,
        // A pre-release comes before what it is the pre-release of.
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(one), Some(other)) => identifiers(one, other),
    })
}

/// Core and pre-release; what stands behind a plus does not count.
fn split(version: &str) -> (&str, Option<&str>) {
    let version = version.split('+').next().unwrap_or_default();
    match version.split_once('-') {
        Some((core, pre)) => (core, Some(pre)),
        None => (version, None),
    }
}

fn identifiers(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        let order = match (one.next(), other.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(one), Some(other)) => match (one.parse::<u64>(), other.parse::<u64>()) {
                (Ok(one), Ok(other)) => one.cmp(&other),
                (Ok(_), Err(_)) => Ordering::Less,
                (Err(_), Ok(_)) => Ordering::Greater,
                (Err(_), Err(_)) => one.cmp(other),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_stand_in_the_order_of_the_standard() {
        let ordered = [
            "0.9.9",
            "0.10.0",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
            "1.0.1",
            "2.0.0",
        ];
        for (index, one) in ordered.iter().enumerate() {
            for (other_index, other) in ordered.iter().enumerate() {
                assert_eq!(compare(one, other), index.cmp(&other_index), "{one} {other}");
            }
        }
        assert_eq!(compare("1.0.0+a", "1.0.0+b"), Ordering::Equal);
    }
}
