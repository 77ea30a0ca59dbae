use super::*;

const SMALL: &str = r#"
about = "Two."
minutes = 1

[[hosts]]
name = "servers"
count = 2
serves = { decode = [40, 60] }

[[hosts]]
name = "clients"
count = 6
asks = { jobs_per_hour = 60 }

[[faults]]
kind = "crash"
hosts = "clients"
count = 10
for_s = [1, 5]
"#;

#[track_caller]
fn refused(old: &str, new: &str, says: &[&str]) {
    assert!(SMALL.contains(old), "{old}");
    let error = Scenario::parse(&SMALL.replacen(old, new, 1)).expect_err("it is wrong");
    let error = format!("{error:#}");
    for part in says {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

#[test]
fn every_scenario_of_the_program_reads() {
    for (name, text) in SHIPPED {
        let scenario = Scenario::parse(text).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert!(scenario.about.ends_with('.'), "{name} says what it is about in a sentence");
    }
}

#[test]
fn a_wrong_key_or_number_is_refused_with_its_line() {
    refused("minutes = 1", "minuets = 1", &["line 3", "minuets"]);
    refused("minutes = 1", "minutes = 0", &["line 3", "0 is not between 1 and 20160"]);
    refused("count = 2", "count = -2", &["line 7", "-2"]);
    refused("count = 2", "count = 2\nspeed = 3", &["line 8", "speed"]);
    refused("[40, 60]", "[0, 60]", &["line 8", "0 is not between 1 and 10000"]);
    refused("kind = \"crash\"", "kind = \"melt\"", &["melt", "lose-disk"]);
}

#[test]
fn what_no_single_key_shows_is_refused_too() {
    refused("[40, 60]", "[60, 40]", &["servers", "[least, most]"]);
    refused("name = \"clients\"", "name = \"servers\"", &["two groups", "servers"]);
    refused("hosts = \"clients\"", "hosts = \"nobody\"", &["nobody"]);
    refused("minutes = 1", "minutes = 1\nnetwork.issuers = 3", &["network.issuers"]);
    refused("minutes = 1", "minutes = 1\nnetwork.lying_issuer = true", &["network.issuers"]);
    refused("kind = \"crash\"", "kind = \"partition\"", &["happens once"]);
    refused("count = 10", "at_s = 61", &["at_s"]);
}

#[test]
fn with_more_nodes_everything_grows_in_proportion_and_the_sum_is_right() {
    let scenario = Scenario::parse(SMALL).expect("it is right");
    let counts = |nodes: usize| {
        let scaled = scenario.clone().with_nodes(nodes).expect("enough for all groups");
        assert_eq!(scaled.nodes(), nodes);
        (scaled.hosts[0].count, scaled.hosts[1].count, scaled.faults[0].count)
    };

    assert_eq!(counts(8), (2, 6, 10));
    assert_eq!(counts(80), (20, 60, 100));
    assert_eq!(counts(10), (3, 7, 13));
    assert_eq!(counts(2), (1, 1, 3));
    assert!(scenario.clone().with_nodes(1).is_err());
}
