//! What a certificate says of itself: whose it is, and from when until when it counts.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

use crate::CertificateError;

/// What stands in a certificate. Nothing of it is checked by whoever pins the certificate; others do check it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// First second it counts, since the Unix epoch.
    pub not_before: i64,
    /// Last second it counts, since the Unix epoch.
    pub not_after: i64,
    /// Names and addresses it is for.
    pub names: Vec<String>,
    /// Whether its holder issued it too.
    pub self_signed: bool,
}

impl Facts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// [`CertificateError::Unreadable`] for what is none.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let unreadable = |reason: String| CertificateError::Unreadable { reason };
        let (_, read) = x509_parser::parse_x509_certificate(certificate).map_err(|error| unreadable(error.to_string()))?;
        let validity = read.validity();
        let alternatives = read.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
        let mut names: Vec<String> =
            alternatives.map(|names| names.value.general_names.iter().filter_map(name).collect()).unwrap_or_default();
        if names.is_empty() {
            // Old certificates have their only name there.
            names.extend(read.subject().iter_common_name().filter_map(|name| Some(name.as_str().ok()?.to_owned())));
        }
        Ok(Self {
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            names,
            self_signed: read.subject() == read.issuer(),
        })
    }

    /// Whether it is for a host name or an address. `*.example.org` covers one label.
    pub fn covers(&self, host: &str) -> bool {
        let address = host.parse::<IpAddr>().ok();
        self.names.iter().any(|name| match (address, name.parse::<IpAddr>().ok()) {
            (Some(wanted), Some(found)) => wanted == found,
            (None, None) => match (name.strip_prefix("*."), host.split_once('.')) {
                (Some(domain), Some((_, of))) => domain.eq_ignore_ascii_case(of),
                _ => name.eq_ignore_ascii_case(host),
            },
            _ => false,
        })
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            16 => Some(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SelfSigned;

    fn facts(names: &[&str]) -> Facts {
        Facts::of(&SelfSigned::generate(names).unwrap().certificates().unwrap()[0]).unwrap()
    }

    #[test]
    fn names_and_addresses_are_those_it_was_made_for() {
        let facts = facts(&["nas.example", "10.0.0.7", "fd00::7"]);
        assert_eq!(facts.names, ["nas.example", "10.0.0.7", "fd00::7"]);
        assert!(facts.self_signed && facts.not_before < facts.not_after);
        assert!(facts.covers("NAS.example") && facts.covers("10.0.0.7") && facts.covers("fd00:0::7"));
        assert!(!facts.covers("nas2.example") && !facts.covers("10.0.0.8") && !facts.covers(""));
    }

    #[test]
    fn a_star_covers_one_label() {
        let facts = facts(&["*.example.org"]);
        assert!(facts.covers("a.example.org"));
        assert!(!facts.covers("example.org") && !facts.covers("a.b.example.org") && !facts.covers("10.0.0.1"));
    }

    #[test]
    fn the_dates_are_those_it_was_made_with() {
        let mut wanted = rcgen::CertificateParams::new(["old".to_owned()]).unwrap();
        (wanted.not_before, wanted.not_after) = (rcgen::date_time_ymd(2001, 9, 9), rcgen::date_time_ymd(2020, 1, 1));
        let made = wanted.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let facts = Facts::of(made.der()).unwrap();
        assert_eq!((facts.not_before, facts.not_after), (999_993_600, 1_577_836_800));
    }

    #[test]
    fn what_is_no_certificate_is_told() {
        let error = Facts::of(&CertificateDer::from(vec![48, 3, 1, 2, 3])).unwrap_err();
        assert!(matches!(error, CertificateError::Unreadable { .. }));
    }
}
