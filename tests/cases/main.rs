//! End-to-end tests, one file per promise. Each has a lab of its own.

mod lab;
mod services;
