//! Connection tracking (conntrack). Packets that reach this host by second chance belong to connections
//! whose handshake its connection tracking may not have seen.

use std::process::Command;

use super::{Finding, host::net_setting};

/// Commands that print the firewall's rules.
const RULES: [&[&str]; 3] = [&["nft", "list", "ruleset"], &["iptables-save"], &["ip6tables-save"]];

pub(super) fn conntrack() -> Vec<Finding> {
    const CHECK: &str = "conntrack";
    let mut findings = Vec::new();
    if net_setting("netfilter/nf_conntrack_tcp_loose") == Some(0) {
        findings.push(Finding::problem(
            CHECK,
            "nf_conntrack_tcp_loose is 0: connection tracking calls packets of a connection invalid if \
             it has not seen the handshake",
            "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1",
        ));
    }
    for command in RULES {
        let [program, arguments @ ..] = command else { continue };
        // Without the tool or the permission, the rules are unknown.
        let Ok(output) = Command::new(program).args(arguments).output() else { continue };
        let rules = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some(rule) = rules.lines().find(|rule| drops_invalid(rule)) {
            findings.push(Finding::problem(
                CHECK,
                format!(
                    "{program} has a rule that drops packets of connections whose handshake connection \
                     tracking has not seen, replies to clients included: {}",
                    rule.trim()
                ),
                "Accept the VIPs' packets before that rule, or exempt them from tracking: \
                 nft add rule ip raw prerouting ip daddr VIP notrack",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no rule drops connections without a tracked handshake"));
    }
    findings
}

fn drops_invalid(rule: &str) -> bool {
    let lower = rule.to_lowercase();
    let invalid = lower.contains("ct state invalid")
        || lower.contains("ctstate invalid")
        || (lower.contains("ct state") && lower.contains("invalid"));
    invalid && (lower.contains("drop") || lower.contains("reject"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_drop_invalid_packets_are_recognised() {
        for (rule, drops) in [
            ("\t\tct state invalid counter packets 0 bytes 0 drop", true),
            ("ct state { invalid, untracked } reject with tcp reset", true),
            ("-A INPUT -m conntrack --ctstate INVALID -j DROP", true),
            ("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", false),
            ("ct state established,related accept", false),
            ("ct state invalid counter", false),
        ] {
            assert_eq!(drops_invalid(rule), drops, "{rule}");
        }
    }
}
