//! The commands, one file each. Each has its `Arguments` and a function `run`.

pub(crate) mod bench;
pub(crate) mod build;
pub(crate) mod demo;
pub(crate) mod kernels;
pub(crate) mod lab;
pub(crate) mod package;
pub(crate) mod setup;
pub(crate) mod survive;
pub(crate) mod test;
