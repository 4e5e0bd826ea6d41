//! The VHD format: footers, headers, block tables, parent links, streams.
