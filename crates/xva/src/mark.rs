//! Marks the VM of an archive on its way to a pool: further members of its `other_config`, in `ova.xml`.
//!
//! A pool takes `other_config` over when it makes the VM, before the first byte of a disk: a VM marked like this is
//! never on a pool without its mark, so whoever died while uploading it can be cleaned up after.

use bytes::{Bytes, BytesMut};

use crate::MAX_OVA_XML;
use crate::tar::{self, Header, RECORD};

/// Bytes of an archive that [`first_entry`] needs.
pub const RECORD_SIZE: usize = RECORD;

/// An archive whose VM cannot be marked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// It does not begin like an uncompressed XVA.
    #[error("it does not begin with the ova.xml of an uncompressed XVA: {0}")]
    NotAnXva(String),
    /// The key to put the mark beside is not there.
    #[error("its VM has no {0} in other_config")]
    Unknown(String),
}

/// How many bytes the first entry of an archive takes, from its first [`RECORD_SIZE`] bytes.
///
/// # Errors
/// [`MarkError::NotAnXva`], also for one that is compressed.
pub fn first_entry(record: &[u8; RECORD]) -> Result<usize, MarkError> {
    let header = Header::parse(record).map_err(|reason| MarkError::NotAnXva(reason.into()))?;
    if header.name != "ova.xml" {
        return Err(MarkError::NotAnXva(format!("it begins with {:?}", header.name)));
    }
    if header.size > MAX_OVA_XML {
        return Err(MarkError::NotAnXva(format!("its ova.xml has {} bytes", header.size)));
    }
    Ok(RECORD + header.size as usize + tar::padding(header.size))
}

/// The first entry of an archive with further members beside the one called `beside`: `other_config` is told by one of its
/// keys, which every archive of that kind has. It must not have members of these names yet.
///
/// # Errors
/// [`MarkError`] when the entry is no `ova.xml`, or has no such key.
pub fn mark(entry: &[u8], beside: &str, members: &[(&str, &str)]) -> Result<Bytes, MarkError> {
    let not_an_xva = |reason: &str| MarkError::NotAnXva(reason.to_owned());
    let record: &[u8; RECORD] = entry.first_chunk().ok_or_else(|| not_an_xva("it is cut"))?;
    let header = Header::parse(record).map_err(not_an_xva)?;
    let xml = entry.get(RECORD..RECORD + header.size as usize).ok_or_else(|| not_an_xva("it is cut"))?;
    let xml = std::str::from_utf8(xml).map_err(|_| not_an_xva("ova.xml is not UTF-8"))?;
    let name = xml.find(&format!("<name>{beside}</name>")).ok_or_else(|| MarkError::Unknown(beside.to_owned()))?;
    let place = xml[..name].rfind("<member>").ok_or_else(|| MarkError::Unknown(beside.to_owned()))?;
    let mut added = String::new();
    for (name, value) in members {
        added.push_str(&format!("<member><name>{}</name><value>{}</value></member>", escape(name), escape(value)));
    }
    let xml = format!("{}{added}{}", &xml[..place], &xml[place..]);
    let size = xml.len() as u64;
    let header = Header { name: "ova.xml".into(), size }.to_record().ok_or_else(|| not_an_xva("ova.xml is too long"))?;
    let mut marked = BytesMut::with_capacity(RECORD * 2 + xml.len());
    marked.extend_from_slice(&header);
    marked.extend_from_slice(xml.as_bytes());
    marked.resize(marked.len() + tar::padding(size), 0);
    Ok(marked.freeze())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Writer;

    const XML: &str = "<value><struct><member><name>other_config</name><value><struct>\
                       <member><name>appliance</name><value>1</value></member></struct></value></member></struct></value>";

    fn entry(xml: &'static str) -> Vec<u8> {
        Writer::new().ova_xml(Bytes::from_static(xml.as_bytes())).unwrap().concat()
    }

    #[test]
    fn the_members_stand_beside_the_known_one_and_the_entry_is_whole() {
        let old = entry(XML);
        assert_eq!(first_entry(old.first_chunk().unwrap()).unwrap(), old.len());
        let new = mark(&old, "appliance", &[("run", "a<b&c"), ("proxy", "p")]).unwrap();
        assert_eq!(first_entry(new.first_chunk().unwrap()).unwrap(), new.len());
        let text = String::from_utf8(new[RECORD..].to_vec()).unwrap();
        let expected = XML.replace(
            "<member><name>appliance",
            "<member><name>run</name><value>a&lt;b&amp;c</value></member><member><name>proxy</name><value>p</value></member>\
             <member><name>appliance",
        );
        assert_eq!(text.trim_end_matches('\0'), expected);
    }

    #[test]
    fn what_is_no_archive_or_another_one_is_refused() {
        assert_eq!(mark(&entry(XML), "other", &[]), Err(MarkError::Unknown("other".into())));
        assert!(matches!(mark(b"short", "appliance", &[]), Err(MarkError::NotAnXva(_))));
        let mut gzip = [0; RECORD];
        gzip[..2].copy_from_slice(&[0x1F, 0x8B]);
        assert!(matches!(first_entry(&gzip), Err(MarkError::NotAnXva(_))));
        let other = Header { name: "Ref:1/00000000".into(), size: 0 }.to_record().unwrap();
        assert!(matches!(first_entry(&other), Err(MarkError::NotAnXva(_))));
    }
}
