//! One interface over where repositories are kept; local directories first.
