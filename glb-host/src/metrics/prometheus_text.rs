//! Conversion of OpenMetrics to the older Prometheus text format, for clients that do not ask for
//! OpenMetrics.

/// Converts OpenMetrics to the text format, version 0.0.4.
///
/// OpenMetrics names a counter in its HELP and TYPE lines without `_total`, knows the types `info`
/// and `unknown`, has UNIT lines and ends with `# EOF`.
pub(super) fn from_open_metrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // HELP comes before TYPE, which decides the name.
    let mut help = None;
    for line in text.lines() {
        let comment = |kind| line.strip_prefix("# ").and_then(|l| l.strip_prefix(kind));
        if let Some(rest) = comment("HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = comment("TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else { continue };
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((of, words)) = help.take()
                && of == name
            {
                out.push_str(&format!("# HELP {name}{suffix} {words}\n"));
            }
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_infos_get_their_suffixes() {
        let open = "# HELP a_build Which.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
                    # HELP a_bytes Bytes sent.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n\
                    a_bytes_total{x=\"# HELP\"} 5\n\
                    # HELP a_now Now.\n# TYPE a_now gauge\na_now 1\n# EOF\n";
        let text = "# HELP a_build_info Which.\n# TYPE a_build_info gauge\n\
                    a_build_info{version=\"1\"} 1\n\
                    # HELP a_bytes_total Bytes sent.\n# TYPE a_bytes_total counter\n\
                    a_bytes_total{x=\"# HELP\"} 5\n\
                    # HELP a_now Now.\n# TYPE a_now gauge\na_now 1\n";
        assert_eq!(from_open_metrics(open), text);
    }
}
