//! End-to-end tests, one file per promise. Each has a lab of its own.

mod director;
mod drain;
mod lab;
mod refusals;
mod services;
mod support;
