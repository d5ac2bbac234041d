//! This machine's kernel answers for no VIP: neither while it is announced nor when it no longer is,
//! with a program attached or without.
//!
//! What the program leaves to the kernel, and everything once it is detached, is a packet to an
//! address that the machine does not have. A kernel that forwards may answer such a packet with
//! "unreachable", and one with IPv6 that has no route does so even if it does not forward. Either
//! would end a live connection. Policy rules (`ip rule`) drop it silently instead. A rule is not a
//! route: no routing daemon learns it, whatever it redistributes. The rules are for what comes in by
//! the director's interfaces, so the machine itself can still reach the VIPs.

use std::{collections::BTreeSet, io};

use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::{
    Handle, IpVersion,
    packet_route::{
        AddressFamily,
        route::RouteProtocol,
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

/// Before the rules for main (32,766), behind the one for local addresses (0).
const PRIORITY: u32 = 1_000;

/// Marks the rules as a director's (`ip rule` shows `proto 103`).
const MARK: u8 = 103;

/// Why the rules are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Netlink could not be opened.
    #[error("cannot open a netlink route socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel refuses.
    #[error("cannot {what} rules that keep this kernel from answering for VIPs: {source}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
}

/// A rule: for packets that come in by this interface to these addresses.
pub type Rule = (String, IpNet);

/// Sees to it that there are just these rules for these interfaces, and leaves those of others alone.
///
/// # Errors
/// When the kernel says no; some rules may then be missing.
pub async fn guard(interfaces: &[String], prefixes: &[IpNet]) -> Result<(), GuardError> {
    with_netlink(async |handle| bring(handle, interfaces, prefixes).await).await
}

/// The rules of directors that there are.
///
/// # Errors
/// When the kernel does not tell.
pub async fn present() -> Result<BTreeSet<Rule>, GuardError> {
    let all = with_netlink(list).await?;
    Ok(all.into_iter().map(|(rule, _)| rule).collect())
}

async fn with_netlink<T>(
    work: impl AsyncFnOnce(&Handle) -> Result<T, GuardError>,
) -> Result<T, GuardError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(GuardError::Open)?;
    let task = tokio::spawn(connection);
    let result = work(&handle).await;
    task.abort();
    result
}

async fn list(handle: &Handle) -> Result<Vec<(Rule, RuleMessage)>, GuardError> {
    let mut all = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        let failed = |source| GuardError::Refused { what: "list", source };
        let rules: Vec<RuleMessage> =
            handle.rule().get(version).execute().try_collect().await.map_err(failed)?;
        all.extend(rules.into_iter().filter_map(|message| Some((read(&message)?, message))));
    }
    Ok(all)
}

async fn bring(
    handle: &Handle,
    interfaces: &[String],
    prefixes: &[IpNet],
) -> Result<(), GuardError> {
    let pairs = interfaces.iter().flat_map(|name| prefixes.iter().map(move |p| (name.clone(), *p)));
    let wanted: BTreeSet<Rule> = pairs.collect();
    let mut there = BTreeSet::new();
    for (rule, message) in list(handle).await? {
        if wanted.contains(&rule) {
            there.insert(rule);
        } else if is_ours(&message) && interfaces.contains(&rule.0) {
            let failed = |source| GuardError::Refused { what: "remove", source };
            handle.rule().del(message).execute().await.map_err(failed)?;
        }
    }
    for (interface, prefix) in wanted.difference(&there) {
        let failed = |source| GuardError::Refused { what: "add", source };
        add(handle, interface, *prefix).await.map_err(failed)?;
    }
    Ok(())
}

/// The rule, if it drops silently what comes in by an interface to some addresses, as a director's do
/// and an administrator's may.
fn read(message: &RuleMessage) -> Option<Rule> {
    let (mut interface, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Iifname(name) => interface = Some(name.clone()),
            RuleAttribute::Destination(to) => address = Some(*to),
            _ => {}
        }
    }
    let prefix = IpNet::new(address?, message.header.dst_len).ok()?;
    (message.header.action == RuleAction::Blackhole).then_some((interface?, prefix))
}

/// Whether it is one of a director's own.
fn is_ours(message: &RuleMessage) -> bool {
    let mut all = message.attributes.iter();
    all.any(|found| matches!(found, RuleAttribute::Protocol(by) if u8::from(*by) == MARK))
}

async fn add(handle: &Handle, interface: &str, prefix: IpNet) -> Result<(), rtnetlink::Error> {
    let mut request = handle
        .rule()
        .add()
        .action(RuleAction::Blackhole)
        .priority(PRIORITY)
        .input_interface(interface);
    let message = request.message_mut();
    message.header.family =
        if prefix.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.dst_len = prefix.prefix_len();
    message.attributes.push(RuleAttribute::Destination(prefix.addr()));
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(MARK)));
    request.execute().await
}
