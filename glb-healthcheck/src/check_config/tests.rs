use glb_table::{Format, parse_bytes};

use super::*;

const TABLE: &str = r#"{"tables": [{"name": "t", "hash_key": "00000000000000000000000000000000",
    "seed": "11111111111111111111111111111111",
    "binds": [{"ip": "1.1.1.1", "proto": "tcp", "port": 80}],
    "backends": [{"ip": "10.0.0.1", "state": "active" BACKEND}] TABLE}] FILE}"#;

fn read_all(file: &str, table: &str, backend: &str) -> Result<Vec<Target>, CheckConfigError> {
    let given = |text: &str| (!text.is_empty()).then(|| format!(", \"healthchecks\": {text}"));
    let text = TABLE
        .replace(" BACKEND", &given(backend).unwrap_or_default())
        .replace(" TABLE", &given(table).unwrap_or_default())
        .replace(" FILE", &given(file).unwrap_or_default());
    let path = Path::new("t.json");
    let set = parse_bytes(path, Format::Json, text.as_bytes()).unwrap();
    Ok(read_targets(path, &set, &Settings::default())?.remove(0).remove(0))
}

fn shown(targets: &[Target]) -> Vec<String> {
    targets.iter().map(ToString::to_string).collect()
}

#[test]
fn glbs_keys_have_glbs_meaning() {
    let file = r#"{"timeout_ms": 300, "interval_ms": 700, "trigger": 4}"#;
    let targets = read_all(file, "", r#"{"http": 8080, "http_uri": "/ok", "tcp": 22}"#).unwrap();
    assert_eq!(shown(&targets), ["10.0.0.1 http 8080 GET /ok", "10.0.0.1 tcp 22"]);
    for target in &targets {
        let settings = &target.check.settings;
        assert_eq!((settings.rise, settings.fall), (4, 4));
        assert_eq!(settings.timeout, Duration::from_millis(300));
        assert_eq!(settings.interval, Duration::from_millis(700));
    }
    // A backend without checks has no targets.
    assert_eq!(read_all(file, "", "").unwrap(), []);
}

#[test]
fn durations_have_units() {
    let targets = read_all(r#"{"interval": "700ms", "timeout": "300ms"}"#, "", r#"{"tcp": 22}"#);
    let settings = &targets.unwrap()[0].check.settings;
    assert_eq!(settings.interval, Duration::from_millis(700));
    assert_eq!(settings.timeout, Duration::from_millis(300));
}

#[test]
fn inner_levels_override_outer_ones() {
    let table = r#"{"rise": 2, "http": 80, "tcp": [22, {"port": 23, "fall": 7}]}"#;
    let targets = read_all("", table, "").unwrap();
    assert_eq!(shown(&targets), ["10.0.0.1 http 80 GET /", "10.0.0.1 tcp 22", "10.0.0.1 tcp 23"]);
    assert_eq!(targets[2].check.settings.fall, 7);
    assert_eq!(targets[1].check.settings.fall, 3);
    assert_eq!(targets[1].check.settings.rise, 2);
    let backend = r#"{"http": {"port": 81, "path": "/x"}, "tcp": false, "fall": 1}"#;
    let targets = read_all("", table, backend).unwrap();
    assert_eq!(shown(&targets), ["10.0.0.1 http 81 GET /x"]);
    assert_eq!((targets[0].check.settings.rise, targets[0].check.settings.fall), (2, 1));
}

#[test]
fn check_names_show_the_parameters() {
    let vip = r#"{"address": "1.1.1.1", "port": 80, "path": "/"}"#;
    let table = format!(
        r#"{{"http": [{{"port": 80, "host": "a"}}, {{"port": 80, "host": "b"}}, 80], "vip": {vip},
            "exec": {{"command": ["/bin/sh", "-c", "true\n\ttrue"]}}}}"#
    );
    assert_eq!(
        shown(&read_all("", &table, "").unwrap()),
        [
            "10.0.0.1 exec /bin/sh -c true\\n\\ttrue",
            "10.0.0.1 http 80 GET /",
            "10.0.0.1 http 80 GET a/",
            "10.0.0.1 http 80 GET b/",
            "10.0.0.1 vip 1.1.1.1:80 GET /",
        ]
    );
}

#[test]
fn every_key_of_an_https_check_is_read() {
    let backend = r#"{"https": {"port": 8443, "path": "/a?b", "host": "www.example:8443",
        "method": "POST", "status": "200-399", "body": "fine", "tls_name": "example.com",
        "verify": false, "source": "10.0.0.9"}}"#;
    let targets = read_all("", "", backend).unwrap();
    let CheckKind::Http(http) = &targets[0].check.kind else { panic!("{targets:?}") };
    assert_eq!(http.status, (200, 399));
    assert_eq!(http.body.as_deref(), Some("fine"));
    let tls = http.tls.as_ref().unwrap();
    assert_eq!((tls.name.as_deref(), tls.verify), (Some("example.com"), false));
    assert_eq!(targets[0].check.settings.source, "10.0.0.9".parse().ok());
    let one = read_all("", "", r#"{"http": {"port": 80, "status": 204}}"#).unwrap();
    let CheckKind::Http(http) = &one[0].check.kind else { panic!("{one:?}") };
    assert_eq!(http.status, (204, 204));
}

#[test]
fn errors_name_the_place_and_the_fix() {
    for (backend, words) in [
        (r#"{"htp": 80}"#, ["healthchecks.htp", "known keys"]),
        (r#"{"http": "80"}"#, ["healthchecks.http", "must be a port"]),
        (r#"{"http": 0}"#, ["healthchecks.http.port", "0 is not a port"]),
        (r#"{"http": 70000}"#, ["healthchecks.http", "70000"]),
        (r#"{"http": {"port": 80, "pth": "/"}}"#, ["healthchecks.http", "pth"]),
        (r#"{"http": {"port": 80, "path": "x"}}"#, ["http.path", "start with /"]),
        (r#"{"http": {"port": 80, "path": "/a b"}}"#, ["http.path", "no spaces"]),
        (r#"{"http": {"port": 80, "host": "a\r\nb"}}"#, ["http.host", "not a host name"]),
        (r#"{"http": {"port": 80, "status": "600"}}"#, ["http.status", "600"]),
        (r#"{"http": {"port": 80, "status": "300-200"}}"#, ["http.status", "300-200"]),
        (r#"{"http": {"port": 80, "method": "HEAD", "body": "x"}}"#, ["http.body", "use GET"]),
        (r#"{"http_uri": "/"}"#, ["healthchecks.http_uri", "needs `http = PORT`"]),
        (r#"{"tcp": [22, 22]}"#, ["healthchecks.tcp[1]", "duplicate"]),
        (r#"{"tcp": {"port": 22, "timeout_ms": 2000}}"#, ["tcp.timeout", "the interval, 2s"]),
        (r#"{"tcp": {"port": 22, "timeout": "2s"}}"#, ["tcp.timeout", "the interval, 2s"]),
        (r#"{"tcp": 22, "interval": 2}"#, ["healthchecks.interval", "\"2s\""]),
        (r#"{"tcp": 22, "interval": "1s", "interval_ms": 1}"#, ["interval_ms", "remove one"]),
        (r#"{"tcp": 22, "interval_ms": 5}"#, ["healthchecks.interval_ms", "5 is not"]),
        (r#"{"tcp": 22, "source": "::1"}"#, ["tcp.source", "address families"]),
        (r#"{"fou": 1}"#, ["healthchecks.fou", "`gue`"]),
        (r#"{"https": {"port": 1, "verify": false, "ca": "/x"}}"#, ["https.ca", "remove `ca`"]),
        (r#"{"https": {"port": 1, "tls_name": "a b"}}"#, ["https.tls_name", "not a host name"]),
        (r#""x""#, ["`healthchecks`", "table of keys"]),
    ] {
        let error = read_all("", "", backend).unwrap_err().to_string();
        for word in words.into_iter().chain(["t.json", "10.0.0.1"]) {
            assert!(error.contains(word), "{backend}: {word:?} is missing in: {error}");
        }
    }
}
