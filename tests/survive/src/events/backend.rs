//! Events that hit backends.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use glb_lab::{Node, interrupt};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Allowed, Event, any_backend, event};
use crate::{
    random::Random,
    services::{self, Service},
    world::{Mode, World},
};

/// A backend's health check fails and recovers. The backend itself works.
pub(super) fn health(world: &World, random: &mut Random) -> Vec<Event> {
    let node = any_backend(world, random);
    vec![
        event(world, "health check fails", node.to_string(), Allowed::Nothing, move |world| {
            judge(world, node, false)
        }),
        event(world, "health check passes", node.to_string(), Allowed::Nothing, move |world| {
            judge(world, node, true)
        }),
    ]
}

/// A backend's health check fails and recovers three times.
pub(super) fn flapping(world: &World, random: &mut Random) -> Vec<Event> {
    let node = any_backend(world, random);
    vec![event(world, "flapping", node.to_string(), Allowed::Nothing, move |world| {
        for _ in 0..3 {
            judge(world, node, false)?;
            judge(world, node, true)?;
        }
        Ok(())
    })]
}

fn judge(world: &mut World, node: Node, healthy: bool) -> Result<()> {
    services::set_healthy(&world.lab, node, healthy)?;
    if healthy {
        world.ill.remove(&node);
    } else {
        world.ill.insert(node);
    }
    world.settle()
}

/// nginx reloads its configuration. Connections continue with the old workers.
pub(super) fn web_reload(world: &World, random: &mut Random) -> Vec<Event> {
    let node = any_backend(world, random);
    vec![event(world, "nginx reloaded", node.to_string(), Allowed::Nothing, move |world| {
        let file = world.lab.folder(node)?.join("nginx.pid");
        let pid = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        kill(Pid::from_raw(pid.trim().parse()?), Signal::SIGHUP)?;
        interrupt::sleep(Duration::from_millis(500))
    })]
}

/// A service is killed and restarted. Only its own connections may break.
pub(super) fn restart(world: &World, random: &mut Random, service: Service) -> Vec<Event> {
    let node = any_backend(world, random);
    let name = match service {
        Service::Web => "nginx restarted",
        Service::Git => "git daemon restarted",
        Service::Glance => "Glance restarted",
        Service::Talk => "suite's server restarted",
    };
    if service == Service::Glance && !world.with_glance {
        return Vec::new();
    }
    let allowed = Allowed::Process(node, service);
    vec![event(world, name, node.to_string(), allowed, move |world| {
        let services = world.services.get_mut(&node).context("a backend without services")?;
        services.end_one(service);
        services.start_one(&world.lab, service)?;
        services.wait(&world.lab)?;
        // The health checker can have noticed it.
        world.settle()
    })]
}

/// The backend's daemon is killed and restarted. Its XDP program continues.
pub(super) fn daemon_killed(world: &World, random: &mut Random) -> Vec<Event> {
    if world.mode == Mode::Ecmp {
        return Vec::new();
    }
    let node = any_backend(world, random);
    let name = "glb-redirect killed and started";
    vec![event(world, name, node.to_string(), Allowed::Nothing, move |world| {
        let redirect = world.redirects.get_mut(&node).context("a backend without its daemon")?;
        redirect.end(Signal::SIGKILL)?;
        interrupt::sleep(Duration::from_secs(1))?;
        redirect.start(&world.lab)
    })]
}

/// A machine goes down without notice and comes back empty.
pub(super) fn down(world: &World, random: &mut Random) -> Vec<Event> {
    let node = any_backend(world, random);
    vec![
        event(world, "backend down", node.to_string(), Allowed::Machine(node), move |world| {
            world.lab.unplug(node)?;
            world.ill.insert(node);
            // The machine is isolated, so the sockets that it holds now are final.
            world.monitor.find_holders()?;
            world.monitor.ignore(Some(node));
            if let Some(services) = world.services.get_mut(&node) {
                services.forget();
            }
            if let Some(redirect) = world.redirects.get_mut(&node) {
                redirect.end(Signal::SIGKILL)?;
            }
            world.forget_sockets(node)?;
            world.settle()
        }),
        event(world, "backend back", node.to_string(), Allowed::Machine(node), move |world| {
            world.forget_sockets(node)?;
            if let Some(redirect) = world.redirects.get_mut(&node) {
                // A rebooted machine has no pins.
                redirect.detach(&world.lab)?;
            }
            world.lab.plug_in(node)?;
            if let Some(services) = world.services.get_mut(&node) {
                services.reboot(&world.lab)?;
            }
            if let Some(redirect) = world.redirects.get_mut(&node) {
                redirect.start(&world.lab)?;
            }
            world.monitor.ignore(None);
            world.ill.remove(&node);
            world.settle()
        }),
    ]
}
