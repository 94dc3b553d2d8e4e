//! Every complaint, word for word, and what is only worth a warning.
//!
//! `errors.txt` holds the cases; this file runs them and adds what does not fit its form.

use std::io;

use rdb_server::config::{Cli, Config, Loaded, Origin, load};

use super::{config, errors, try_load, warnings};

/// One case of `errors.txt`.
#[derive(Default)]
struct Case<'a> {
    env: Vec<(&'a str, &'a str)>,
    flags: Vec<&'a str>,
    file: String,
    expected: Vec<&'a str>,
}

impl<'a> Case<'a> {
    fn parse(text: &'a str) -> Self {
        let mut case = Self::default();
        for line in text.lines().filter(|line| !line.starts_with("##")) {
            if let Some(expected) = line.strip_prefix("=> ") {
                case.expected.push(expected);
            } else if let Some(flags) = line.strip_prefix("$ ").filter(|rest| rest.starts_with('-'))
            {
                case.flags.extend(flags.split_whitespace());
            } else if let Some(variable) = line.strip_prefix("$ ") {
                case.env.push(variable.split_once('=').expect("NAME=value"));
            } else {
                case.file.push_str(line);
                case.file.push('\n');
            }
        }
        case
    }
}

#[test]
fn every_error_reads_as_it_is_written_down() {
    let mut wrong = Vec::new();
    let text = include_str!("errors.txt");
    // The head of the file ends with the first empty line.
    let (_, cases) = text.split_once("\n\n").expect("a head");
    let cases: Vec<Case<'_>> = cases.split("\n---\n").map(Case::parse).collect();
    for case in &cases {
        assert!(
            !case.expected.is_empty(),
            "a case expects nothing:\n{}",
            case.file
        );
        // A case without a file has no lines that an error could name.
        let got = errors(&case.file, &case.env, &case.flags);
        if got != case.expected {
            let (file, flags, expected) = (&case.file, &case.flags, case.expected.join("\n=> "));
            wrong.push(format!(
                "{file}{:?} {flags:?}\nexpected\n=> {expected}\ngot\n=> {}",
                case.env,
                got.join("\n=> ")
            ));
        }
    }
    assert!(cases.len() > 100, "{} cases were found", cases.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n---\n"));
}

#[test]
fn a_file_that_cannot_be_read_is_one_error() {
    let cli = Cli {
        config: Some("/nowhere/flaredb.toml".into()),
        ..Cli::default()
    };
    let refused = load(&cli, std::iter::empty(), |_| {
        Err::<String, _>(io::Error::new(io::ErrorKind::NotFound, "no such file"))
    });
    let errors = refused.expect_err("a file that is not there");
    assert_eq!(
        errors.to_string(),
        "/nowhere/flaredb.toml: cannot read the configuration file: no such file"
    );
}

#[test]
fn errors_can_be_taken_apart() {
    let errors = try_load("[store]\nid = 0\n", &[], &["--engine", "x"]).expect_err("two errors");
    let [file, flag] = errors.as_slice() else {
        panic!("{errors}")
    };
    assert!(matches!(&file.origin, Origin::File { line: Some(2), .. }));
    assert_eq!(file.key, "store.id");
    assert_eq!(
        (&flag.origin, flag.key.as_str()),
        (&Origin::Flag("--engine".to_owned()), "store.engine")
    );
}

#[test]
fn an_unknown_variable_is_a_warning() {
    let env = [
        ("FLAREDB_SERVICE_HOST", "10.0.0.1"),
        ("FLAREDB_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
        ("FLAREDB_CONSISTENCY_QUORUM_TIMEOUT", "9s"),
        ("FLAREDB_CONSISTENCY__QUORUM_TIMOUT", "9s"),
        ("FLAREDB_NAMESPACES__LOGS__MOD", "strong"),
        ("FLAREDB_", ""),
        ("FLAREDB", "not ours"),
    ];
    let Loaded {
        config, warnings, ..
    } = try_load("", &env, &[]).expect("warnings only");
    assert_eq!(config, Config::default());
    assert_eq!(
        warnings,
        [
            "FLAREDB_: unknown variable, ignored",
            "FLAREDB_CONSISTENCY_QUORUM_TIMEOUT: unknown variable, ignored (did you mean FLAREDB_CONSISTENCY__QUORUM_TIMEOUT?)",
            "FLAREDB_CONSISTENCY__QUORUM_TIMOUT: unknown variable, ignored (did you mean FLAREDB_CONSISTENCY__QUORUM_TIMEOUT?)",
            "FLAREDB_NAMESPACES__LOGS__MOD: unknown variable, ignored (did you mean FLAREDB_NAMESPACES__LOGS__MODE?)",
            "FLAREDB_PORT_50051_TCP: unknown variable, ignored",
            "FLAREDB_SERVICE_HOST: unknown variable, ignored",
        ]
    );
}

#[test]
fn the_split_flag_may_be_given_again() {
    let config = config(
        "",
        &[],
        &["--bootstrap-split", "2/m,n", "--bootstrap-split", "3/x"],
    );
    let keys: Vec<&[u8]> = config
        .cluster
        .bootstrap_split
        .iter()
        .map(|split| split.key.as_slice())
        .collect();
    assert_eq!(keys, [b"m,n".as_slice(), b"x"]);
}

#[test]
fn what_is_legal_but_odd_is_a_warning() {
    for (file, expected) in [
        (
            "[consistency]\nquorum_timeout = \"10s\"",
            "consistency.quorum_timeout (10s) is not less than consistency.request_timeout (10s): calls run into their deadline before NO_QUORUM can be said",
        ),
        (
            "[consistency]\nquorum_timeout = \"200ms\"",
            "raft.election_max (300ms) is not less than consistency.quorum_timeout (200ms): an ordinary election will be answered with NO_QUORUM",
        ),
        (
            "[consistency]\nseal_timeout = \"15s\"",
            "consistency.seal_timeout (15s) is not less than consistency.switch_timeout (10s): writes may be refused for longer than a switch may wait",
        ),
        (
            "[limits]\nmax_request = \"1MiB\"",
            "limits.max_request (1MiB) is less than max_key and max_value together (1028KiB): the largest record cannot be written",
        ),
    ] {
        assert_eq!(warnings(file, &[], &[]), [expected], "\n{file}");
    }
    let eventual =
        "[consistency]\ndefault_mode = \"eventual\"\n[namespaces.logs]\nmode = \"eventual\"";
    assert!(
        warnings(eventual, &[], &[]).is_empty(),
        "nothing is odd about that"
    );
}

#[test]
fn a_file_that_is_no_text_is_refused_by_line_and_byte() {
    let cli = Cli {
        config: Some("flaredb.toml".into()),
        ..Cli::default()
    };
    let refused = |bytes: &'static [u8]| {
        load(&cli, std::iter::empty(), |_| Ok(bytes))
            .expect_err("no text")
            .to_string()
    };
    let error = refused(b"[store]\nid = 1\naddr = \"\xff\"\n");
    assert!(error.contains("flaredb.toml:3"), "{error}");
    assert!(error.contains("byte 9 of this line is 0xff"), "{error}");
    let error = refused(b"\xfe");
    assert!(error.contains("flaredb.toml:1"), "{error}");
    assert!(error.contains("byte 1 of this line is 0xfe"), "{error}");
}
