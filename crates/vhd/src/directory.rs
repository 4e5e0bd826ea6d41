//! Names of the objects of a disk in directory form (backup-repository.md §3.6).

/// The dynamic header.
pub const HEADER: &str = "header";
/// The footer.
pub const FOOTER: &str = "footer";
/// The bitmap of present blocks ([`crate::BlockBitmap`]).
pub const BAT: &str = "bat";
/// JSON array naming the compressor of all other objects; not compressed itself. Absent means none.
pub const CHUNK_FILTERS: &str = "chunk-filters.json";
/// Directory of the blocks.
pub const BLOCKS: &str = "blocks";

const PER_DIRECTORY: u32 = 1000;

/// Directory of a block, relative to the disk: `blocks/0` for block 12.
pub fn block_directory(index: u32) -> String {
    format!("{BLOCKS}/{}", index / PER_DIRECTORY)
}

/// Path of a block, relative to the disk: `blocks/0/12` for block 12.
pub fn block_path(index: u32) -> String {
    format!("{BLOCKS}/{}/{}", index / PER_DIRECTORY, index % PER_DIRECTORY)
}

/// Index of the block a path belongs to; `None` for what [`block_path`] cannot have made.
pub fn parse_block_path(path: &str) -> Option<u32> {
    let (directory, name) = path.strip_prefix(BLOCKS)?.strip_prefix('/')?.split_once('/')?;
    let index = directory.parse::<u32>().ok()?.checked_mul(PER_DIRECTORY)?.checked_add(name.parse().ok()?)?;
    (block_path(index) == path).then_some(index)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths() {
        assert_eq!(block_path(12), "blocks/0/12");
        assert_eq!(block_path(1000), "blocks/1/0");
        assert_eq!(block_directory(123_456), "blocks/123");
        for path in ["blocks/0/012", "blocks/+0/1", "blocks/0/1000", "blocks/0", "blocks/0/1/2", "blocks/4294967/296", ""] {
            assert_eq!(parse_block_path(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn reads_back_what_it_writes(index: u32) {
            prop_assert_eq!(parse_block_path(&block_path(index)), Some(index));
        }

        #[test]
        fn no_path_makes_it_panic(path in "(blocks/)?\\PC*") {
            let _ = parse_block_path(&path);
        }
    }
}
