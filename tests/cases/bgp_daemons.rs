//! Directors that announce without BIRD's control socket: through a TUN interface whose routes BIRD
//! or FRR learns from the kernel, and through the example command for ExaBGP.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use glb_lab::{AnnounceMethod, Fleet, Node, Plan, Routing, bird, interrupt};

use crate::support::{build, everybody_answers};

const FIRST: Node = Node::Director(1);
const SECOND: Node = Node::Director(2);

/// Directors leave and return while clients get answers all the time.
fn directors_leave_and_return(method: AnnounceMethod, name: &str) -> Result<()> {
    build()?;
    let plan = Plan { directors: 2, routing: Routing::Bgp, method, ..Plan::new(name) };
    let mut fleet = Fleet::up(plan, 1, true)?;
    everybody_answers(&fleet.lab)?;

    // The director first lowers its preference: the router keeps the route but does not use it.
    fleet.drain_director(FIRST)?;
    fleet.wait_for_routes(&[SECOND])?;
    everybody_answers(&fleet.lab)?;
    let log = fleet.director_on(FIRST)?.process()?.log()?;
    ensure!(log.contains("low_preference"), "{log}");
    fleet.undrain_director(FIRST)?;
    fleet.wait_for_routes(&[FIRST, SECOND])?;

    // The daemon dies and the program continues.
    fleet.kill("director1/glb-director".parse()?)?;
    if matches!(method, AnnounceMethod::Tun | AnnounceMethod::Frr) {
        // The kernel withdraws the route.
        fleet.wait_for_routes(&[SECOND])?;
    } else {
        thread::sleep(Duration::from_secs(1));
        fleet.wait_for_routes(&[FIRST, SECOND])?;
    }
    everybody_answers(&fleet.lab)?;
    fleet.start("director1/glb-director".parse()?)?;
    fleet.wait_for_routes(&[FIRST, SECOND])?;

    // The routing daemon dies and restarts. It must announce again.
    let speaker = match method {
        AnnounceMethod::Bird | AnnounceMethod::Tun => "director1/bird",
        AnnounceMethod::Frr => "director1/bgpd",
        AnnounceMethod::Exabgp => "director1/exabgp",
    };
    fleet.kill(speaker.parse()?)?;
    if method == AnnounceMethod::Frr {
        // FRR offers graceful restart, and the router was seen to keep a dead bgpd's routes for
        // longer than this test waits. The director's program forwards meanwhile.
        everybody_answers(&fleet.lab)?;
    } else {
        fleet.wait_for_routes(&[SECOND])?;
    }
    fleet.start(speaker.parse()?)?;
    fleet.wait_for_routes(&[FIRST, SECOND])?;

    // The table of one director loses the VIPs. This director withdraws, and the others do not.
    fleet.serve_vips(FIRST, false)?;
    fleet.wait_for_routes(&[SECOND])?;
    everybody_answers(&fleet.lab)?;
    fleet.serve_vips(FIRST, true)?;
    fleet.wait_for_routes(&[FIRST, SECOND])?;
    everybody_answers(&fleet.lab)
}

/// Returns the MED of the director's path to the IPv4 VIP, as the router sees it.
fn med(fleet: &Fleet, wanted: Option<&str>) -> Result<()> {
    let wanted = wanted.map(|med| format!("BGP.med: {med}"));
    interrupt::wait(&format!("{wanted:?}"), Duration::from_secs(20), || {
        let text =
            bird::ask(&fleet.lab, Node::Router, &["show", "route", "all", "203.0.113.10/32"])?;
        Ok(match &wanted {
            Some(wanted) => text.contains(wanted.as_str()),
            None => !text.contains("BGP.med"),
        }
        .then_some(()))
    })
}

#[test]
fn bird_learns_routes_into_a_tun_interface() -> Result<()> {
    directors_leave_and_return(AnnounceMethod::Tun, "glb-t-tun")
}

#[test]
fn frr_learns_routes_into_a_tun_interface() -> Result<()> {
    directors_leave_and_return(AnnounceMethod::Frr, "glb-t-frr")
}

#[test]
fn exabgp_announces_through_the_example_command() -> Result<()> {
    directors_leave_and_return(AnnounceMethod::Exabgp, "glb-t-exabgp")
}

/// Low preference reaches the router as a larger MED, with every method.
#[test]
fn low_preference_reaches_the_router_as_med() -> Result<()> {
    build()?;
    for (method, usual, less) in [
        (AnnounceMethod::Bird, None, "100"),
        (AnnounceMethod::Tun, Some("100"), "500"),
        (AnnounceMethod::Frr, Some("100"), "500"),
        (AnnounceMethod::Exabgp, None, "100"),
    ] {
        let plan = Plan { routing: Routing::Bgp, method, ..Plan::new("glb-t-med") };
        let mut fleet = Fleet::up(plan, 1, true)?;
        med(&fleet, usual)?;
        // A single director is still used at low preference, so traffic does not stop and the drain
        // waits.
        fleet.director()?.reconfigure("quiet = \"300ms\"", "quiet = \"60s\"")?;
        fleet.kill("director1/glb-director".parse()?)?;
        fleet.start("director1/glb-director".parse()?)?;
        fleet.wait_for_routes(&[FIRST])?;
        let mut drain = fleet.directors[0].command(&fleet.lab, "drain")?.spawn()?;
        med(&fleet, Some(less))?;
        everybody_answers(&fleet.lab)?;
        fleet.undrain_director(FIRST)?;
        med(&fleet, usual)?;
        drain.wait()?;
    }
    Ok(())
}
