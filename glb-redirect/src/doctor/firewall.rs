//! Connection tracking: a packet that comes by second chance belongs to a connection that this
//! machine's tracking may not have seen open.

use std::process::Command;

use super::{Finding, host::net_setting};

/// Tools that print the rules, if they are installed.
const RULES: [&[&str]; 3] = [&["nft", "list", "ruleset"], &["iptables-save"], &["ip6tables-save"]];

pub(super) fn conntrack() -> Vec<Finding> {
    const CHECK: &str = "conntrack";
    let mut findings = Vec::new();
    if net_setting("netfilter/nf_conntrack_tcp_loose") == Some(0) {
        findings.push(Finding::problem(
            CHECK,
            "connection tracking does not pick up connections that it did not see open: after a \
             restart of the firewall their packets are invalid",
            "sysctl -w net.netfilter.nf_conntrack_tcp_loose=1",
        ));
    }
    for command in RULES {
        let [program, arguments @ ..] = command else { continue };
        // Not installed, not permitted: nothing is known.
        let Ok(output) = Command::new(program).args(arguments).output() else { continue };
        let rules = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some(rule) = rules.lines().find(|rule| drops_invalid(rule)) {
            findings.push(Finding::problem(
                CHECK,
                format!(
                    "{program} has a rule that drops what connection tracking did not see open, \
                     replies that leave directly included: {}",
                    rule.trim()
                ),
                "Accept the VIPs' packets before that rule, or exempt them from tracking: \
                 nft add rule ip raw prerouting ip daddr VIP notrack",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no rule drops what it did not see open"));
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
    fn rules_that_drop() {
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
