//! A report as one page with charts that needs nothing else: no script, no other file.

mod charts;

use std::fmt::Write as _;

use crate::report::Report;
use crate::samples::Sample;
use crate::scenario::Scenario;

use charts::{Bar, Line, bars, lines, text};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;\
color:#222;background:#fff}table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:left;\
border-bottom:1px solid #ccc}td.n{text-align:right;font-variant-numeric:tabular-nums}.broken{color:#b00;font-weight:600}\
svg{width:100%;height:auto;margin:.5em 0 1.5em}svg text{font:11px system-ui,sans-serif;fill:#444}h2{margin-top:2em}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}svg text{fill:#bbb}td,th{border-color:#444}}";

/// Returns the page of a run.
#[must_use]
pub fn page(name: &str, scenario: &Scenario, report: &Report, samples: &[Sample]) -> String {
    let mut page = String::new();
    let title = format!("{} with seed {}", text(name), report.seed);
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1><p>{}</p>",
        text(&scenario.about)
    );
    summary(&mut page, report);
    over_time(&mut page, samples);
    by_machine(&mut page, report);
    rules(&mut page, report);
    page.push_str("</html>\n");
    page
}

fn summary(page: &mut String, report: &Report) {
    let (jobs, figures) = (report.jobs, &report.figures);
    let verdict = if report.passed() { "Every rule held." } else { "Some rule was broken." };
    let _ = write!(
        page,
        "<p>{verdict} {} machines, {} virtual seconds; {} jobs wanted, {} done, {} not. First token after {} ms \
         for half of those done and {} ms for 99 of 100. Inequality of earnings (Gini) {}. Trace {}.</p>",
        figures.nodes,
        figures.virtual_s,
        jobs.placed,
        jobs.completed,
        jobs.failed,
        figures.first_token_ms.p50,
        figures.first_token_ms.p99,
        figures.earnings_gini,
        report.trace_hash
    );
}

fn over_time(page: &mut String, samples: &[Sample]) {
    let series = |name, value: &dyn Fn(&Sample) -> f64| {
        let points = samples.iter().map(|sample| (sample.second as f64, value(sample)));
        Line { name, points: points.collect() }
    };
    page.push_str("<h2>Jobs</h2>");
    page.push_str(&lines(
        "jobs so far, by virtual second",
        &[
            series("wanted", &|sample| sample.placed as f64),
            series("done", &|sample| sample.done as f64),
            series("failed", &|sample| sample.failed as f64),
        ],
    ));
    page.push_str("<h2>Utilisation</h2>");
    page.push_str(&lines(
        "percent of the slots at work, by virtual second",
        &[series("slots at work", &|sample| sample.running as f64 * 100.0 / sample.slots.max(1) as f64)],
    ));
    page.push_str("<h2>Convergence</h2>");
    page.push_str(&lines(
        "channels of which payer and payee hold different newest receipts, by virtual second",
        &[series("differing channels", &|sample| sample.differing as f64)],
    ));
    page.push_str("<h2>Traffic</h2>");
    let rates = samples.windows(2).filter(|pair| pair[1].second > pair[0].second).map(|pair| {
        let bytes = pair[1].sent_bytes.saturating_sub(pair[0].sent_bytes) as f64;
        (pair[1].second as f64, bytes / (pair[1].second - pair[0].second) as f64)
    });
    let line = Line { name: "all nodes", points: rates.collect() };
    page.push_str(&lines("bytes of messages and adverts a second, by virtual second", &[line]));
}

fn by_machine(page: &mut String, report: &Report) {
    let bar = |(label, value): (&str, u64)| Bar { label: label.to_owned(), value: value as f64 };
    let control = &report.control_bytes_per_node_s;
    let sent = [("half sent at most", control.p50), ("99 of 100 sent at most", control.p99)];
    page.push_str(&bars("bytes sent a second by each node", &sent.map(bar)));
    let _ = write!(page, "<p>Without {}.</p>", text(control.without));
    let figures = &report.figures;
    page.push_str("<h2>Latency</h2>");
    let latencies = [
        ("first token, half", figures.first_token_ms.p50),
        ("first token, 99 of 100", figures.first_token_ms.p99),
        ("done, half", figures.done_ms.p50),
        ("done, 99 of 100", figures.done_ms.p99),
    ];
    page.push_str(&bars("milliseconds, of jobs that were done", &latencies.map(bar)));
    page.push_str("<h2>Credits by group</h2>");
    let gained = figures
        .groups
        .iter()
        .map(|group| Bar { label: group.name.clone(), value: group.gained as f64 / 1e9 });
    page.push_str(&bars("credits gained or spent, all machines of a group", &gained.collect::<Vec<_>>()));
    page.push_str("<table><tr><th>group<th>nodes<th>wanted<th>done<th>tokens served<th>slots used");
    for group in &figures.groups {
        let used = group.utilisation.map(|used| format!("{:.1} %", used * 100.0)).unwrap_or_default();
        let _ = write!(
            page,
            "<tr><td>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{used}",
            text(&group.name),
            group.nodes,
            group.placed,
            group.completed,
            group.served_tokens
        );
    }
    page.push_str("</table>");
}

fn rules(page: &mut String, report: &Report) {
    page.push_str("<h2>Rules</h2><table><tr><th>rule<th>checks<th>held<th>what it says");
    for rule in &report.invariants {
        let held = if rule.held { "<td>yes" } else { "<td class=broken>no" };
        let _ = write!(
            page,
            "<tr><td>{}<td class=n>{}{held}<td>{}",
            text(rule.name),
            rule.checks,
            text(rule.sentence)
        );
    }
    page.push_str("</table>");
    for finding in &report.findings {
        let _ = write!(page, "<p class=broken>{}</p>", text(finding));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::play::{Watch, play};
    use crate::scenario::read;

    #[test]
    fn a_page_has_every_chart_and_nothing_that_a_name_could_slip_in() {
        let mut scenario = read("home").expect("it comes with the program");
        "<script>alert(1)</script>".clone_into(&mut scenario.about);
        let mut samples = Vec::new();
        let watch = Watch { host: None, samples: Some(&mut samples) };
        let report = play(&scenario, 1, watch, &mut |_| {});

        let page = page("home", &scenario, &report, &samples);

        assert!(samples.len() > 100, "{} samples", samples.len());
        assert_eq!(samples.last().map(|sample| sample.differing), Some(0));
        assert_eq!(page.matches("<svg").count(), 7);
        assert!(!page.contains("<script") && !page.contains("http"), "it needs something else");
        assert!(!page.contains("NaN") && !page.contains("inf"), "a number is none");
    }
}
