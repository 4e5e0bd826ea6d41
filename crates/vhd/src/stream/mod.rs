//! A VHD file as a stream: what `export_raw_vdi` gives and `import_raw_vdi` takes (xapi-streams.md §2.5).

mod reader;
mod writer;

pub use reader::{Part, ReadError, Reader};
pub use writer::{PieceError, Writer};
