//! One file per command.

pub(crate) mod bench;
pub(crate) mod build;
pub(crate) mod demo;
pub(crate) mod lab;
pub(crate) mod package;
pub(crate) mod setup;
pub(crate) mod survive;
pub(crate) mod test;
