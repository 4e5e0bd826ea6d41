//! The parts a screen is drawn from. They read the core's state and write cells; they decide nothing.

pub mod chooser;
pub mod confirm;
pub mod form;
pub mod table;
pub mod text;
