//! End-to-end tests, one file per promise. Each has a lab of its own.

mod backend;
mod backend_follows;
mod backend_table;
mod backend_vips;
mod bad_days;
mod config;
mod control;
mod director;
mod director_doctor;
mod drain;
mod fleet;
mod health;
mod health_daemon;
mod lab;
mod mtu;
mod privileges;
mod refusals;
mod seen;
mod service;
mod services;
mod simulate;
mod support;
mod trace;
mod trace_director;
mod tunnel;
mod watcher;
