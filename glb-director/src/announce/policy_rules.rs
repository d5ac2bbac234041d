//! Policy rules (`ip rule`) that keep this machine's kernel from answering for VIPs.
//!
//! A VIP packet that the program passes to the kernel, or that arrives while nothing is attached, has a
//! destination that this machine does not own. A forwarding kernel may answer it with "unreachable".
//! With IPv6, a kernel without a route does so even if it does not forward. Either answer would end a
//! live connection, so a rule drops the packet silently. Routing daemons do not learn rules. The rules
//! match the director's interfaces, so the machine itself still reaches the VIPs.

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

/// The rules' priority: after the rule for local addresses (0), before the one for main (32766).
const PRIORITY: u32 = 1_000;

/// The protocol number of a director's rules (`ip rule` shows `proto 103`).
const PROTOCOL: u8 = 103;

/// Why the rules cannot be listed or changed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyRuleError {
    /// The netlink socket cannot be opened.
    #[error("cannot open a netlink route socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel rejected a request.
    #[error(
        "cannot {what} the policy rules that keep this kernel from answering for VIPs: {source}"
    )]
    Refused {
        /// The operation.
        what: &'static str,
        /// The kernel's error.
        source: rtnetlink::Error,
    },
}

/// A rule: the input interface and the destination prefix.
pub type Rule = (String, IpNet);

/// Installs one rule for each interface and prefix, and removes a director's other rules for them.
///
/// # Errors
/// When the kernel rejects a change; some rules may then be missing.
pub async fn install(interfaces: &[String], prefixes: &[IpNet]) -> Result<(), PolicyRuleError> {
    with_netlink(async |handle| synchronize(handle, interfaces, prefixes).await).await
}

/// Returns the installed rules that drop packets by interface and destination.
///
/// # Errors
/// When the kernel does not list its rules.
pub async fn list_installed() -> Result<BTreeSet<Rule>, PolicyRuleError> {
    let all = with_netlink(list).await?;
    Ok(all.into_iter().map(|(rule, _)| rule).collect())
}

async fn with_netlink<T>(
    work: impl AsyncFnOnce(&Handle) -> Result<T, PolicyRuleError>,
) -> Result<T, PolicyRuleError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(PolicyRuleError::Open)?;
    let task = tokio::spawn(connection);
    let result = work(&handle).await;
    task.abort();
    result
}

async fn list(handle: &Handle) -> Result<Vec<(Rule, RuleMessage)>, PolicyRuleError> {
    let mut all = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        let failed = |source| PolicyRuleError::Refused { what: "list", source };
        let rules: Vec<RuleMessage> =
            handle.rule().get(version).execute().try_collect().await.map_err(failed)?;
        all.extend(rules.into_iter().filter_map(|message| Some((read(&message)?, message))));
    }
    Ok(all)
}

async fn synchronize(
    handle: &Handle,
    interfaces: &[String],
    prefixes: &[IpNet],
) -> Result<(), PolicyRuleError> {
    let pairs = interfaces.iter().flat_map(|name| prefixes.iter().map(move |p| (name.clone(), *p)));
    let wanted: BTreeSet<Rule> = pairs.collect();
    let mut there = BTreeSet::new();
    for (rule, message) in list(handle).await? {
        if wanted.contains(&rule) {
            there.insert(rule);
        } else if is_ours(&message) && interfaces.contains(&rule.0) {
            let failed = |source| PolicyRuleError::Refused { what: "remove", source };
            handle.rule().del(message).execute().await.map_err(failed)?;
        }
    }
    for (interface, prefix) in wanted.difference(&there) {
        let failed = |source| PolicyRuleError::Refused { what: "add", source };
        add(handle, interface, *prefix).await.map_err(failed)?;
    }
    Ok(())
}

/// Returns the rule if it silently drops packets by interface and destination, whoever installed it.
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

/// Whether a director installed the rule.
fn is_ours(message: &RuleMessage) -> bool {
    let mut all = message.attributes.iter();
    all.any(|found| matches!(found, RuleAttribute::Protocol(by) if u8::from(*by) == PROTOCOL))
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
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::from(PROTOCOL)));
    request.execute().await
}
