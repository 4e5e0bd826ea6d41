//! How long operations say where they stand.

/// What an operation is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Work {
    /// Merging a chain.
    Merge,
    /// Reading back.
    Verify,
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    /// What it is doing.
    pub work: Work,
    /// The disk or file.
    pub object: &'a str,
    /// Blocks (or, of an XVA, bytes) dealt with.
    pub done: u64,
    /// Blocks (bytes) in all.
    pub total: u64,
    /// Bytes of disk content dealt with.
    pub bytes: u64,
}

/// Who wants to know. Called between blocks, so it must return at once.
pub trait Progress: Send + Sync {
    /// A block more is done.
    fn step(&self, step: Step<'_>);
}

impl Progress for () {
    fn step(&self, _: Step<'_>) {}
}

impl<F: Fn(Step<'_>) + Send + Sync> Progress for F {
    fn step(&self, step: Step<'_>) {
        self(step);
    }
}
