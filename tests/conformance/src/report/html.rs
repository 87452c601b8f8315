//! For the people to whom the report is handed over: one file, no script, nothing loaded from elsewhere.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::case::Outcome;
use crate::report::head;
use crate::report::terminal::{self, COLUMNS, verdict};
use crate::run::{CaseResult, Profile, RunReport, Sample};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1100px;padding:2rem;color:#1c2430;background:#fff}\
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid #d5dbe3;padding-bottom:.3rem}\
table{border-collapse:collapse;width:100%}td,th{padding:.35rem .6rem;text-align:left;vertical-align:top;border-bottom:1px solid #edf0f4}\
th{font-weight:600;color:#55606e;font-size:.85rem}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
code{font:13px ui-monospace,monospace;overflow-wrap:anywhere}pre{font:12px/1.45 ui-monospace,monospace;background:#f5f7fa;padding:.7rem;overflow:auto;white-space:pre-wrap;overflow-wrap:anywhere;border-radius:4px}\
.b{display:inline-block;min-width:3.6rem;text-align:center;border-radius:3px;padding:0 .4rem;font-size:.8rem;font-weight:600}\
.pass{background:#dff3e4;color:#145c2b}.fail{background:#fbdedd;color:#8c1613}.na{background:#e8ebef;color:#4b5563}.skip{background:#fdeecb;color:#7a5200}\
.verdict{font-size:1.05rem;padding:.8rem 1rem;border-radius:6px;margin:1rem 0}dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.2rem 1rem;margin:.8rem 0}dt{color:#55606e}dd{margin:0;overflow-wrap:anywhere}\
.muted{color:#55606e;font-size:.85rem}td.z{color:#8a94a1}td.f{color:#8c1613;font-weight:600}.w{display:inline-block;overflow-wrap:anywhere}a .b{text-decoration:underline}svg{max-width:100%;height:auto}\
.plot{overflow-x:auto}\
@media screen and (max-width:700px){body{padding:.8rem;font-size:14px}td,th{padding:.3rem .2rem}th.n{font-size:.75rem}.plot svg{max-width:none;width:760px}\
tr.head{display:none}tr.case,tr.case td{display:block;overflow-wrap:anywhere}tr.case{padding:.5rem 0;border-bottom:1px solid #d5dbe3}tr.case td{border:0;padding:.1rem .2rem}tr.case td.s{display:inline-block}}@media print{body{max-width:none;padding:0}tr,h3{break-inside:avoid}}";

/// The report.
#[must_use]
pub fn report(report: &RunReport) -> String {
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>XKS conformance: {target}</title><style>{STYLE}</style></head><body>\n<h1>XKS proxy conformance</h1>\n",
        target = escaped(&report.target)
    );
    let class = if report.exit_code() == 0 { "pass" } else { "fail" };
    let _ = write!(html, "<p class=\"verdict {class}\">{}</p><dl>", escaped(&verdict(report)));
    for (name, value) in head::rows(report) {
        let _ = write!(html, "<dt>{name}</dt><dd>{}</dd>", with_whole_flags(&value));
    }
    html.push_str("</dl>\n");
    html.push_str(&sections(report));
    html.push_str(&failures(report));
    if !report.samples.is_empty() {
        let dots = if report.profile == Profile::Load {
            "From the instant at which a request was due to the last byte, as seen from where the suite ran. Each dot is a quantile and stands for a thousandth of the answers"
        } else {
            "From the start, connecting included, to the last byte, as seen from where the suite ran. Each dot is an answer"
        };
        let _ = write!(
            html,
            "<h2>Latency of successful answers</h2><p class=\"muted\">{dots}; the two bars of a row are its median and its 99th percentile. KMS gives up after 250 ms.</p>"
        );
        let _ = write!(html, "<div class=\"plot\">{}</div>", plot(&report.samples));
    }
    html.push_str(&all_cases(report));
    html + "</body></html>\n"
}

/// The badge of a case; that of one that failed leads to what is told of it.
fn badge(case: &CaseResult) -> String {
    let badge = badge_of(&case.outcome);
    if matches!(case.outcome, Outcome::Failed { .. }) {
        return format!("<a href=\"#failure-{}\">{badge}</a>", escaped(&case.id));
    }
    badge.to_owned()
}

const fn badge_of(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Passed { .. } => "<span class=\"b pass\">pass</span>",
        Outcome::Noted { .. } => "<span class=\"b na\">note</span>",
        Outcome::Failed { .. } => "<span class=\"b fail\">FAIL</span>",
        Outcome::NotApplicable { .. } => "<span class=\"b na\">n/a</span>",
        Outcome::Skipped { .. } => "<span class=\"b skip\">SKIP</span>",
    }
}

fn sections(report: &RunReport) -> String {
    let mut html = "<h2>Sections</h2><table><tr><th>Section</th>".to_owned();
    for name in COLUMNS {
        let _ = write!(html, "<th class=\"n\">{name}</th>");
    }
    html.push_str("</tr>");
    for (section, numbers) in terminal::sections(report) {
        let _ = write!(html, "<tr><td><a href=\"#{}\">{}</a></td>", section.name(), section.title());
        for (name, number) in COLUMNS.into_iter().zip(numbers) {
            let class = match number {
                0 => "n z",
                _ if name == "failed" => "n f",
                _ => "n",
            };
            let _ = write!(html, "<td class=\"{class}\">{number}</td>");
        }
        html.push_str("</tr>");
    }
    html + "</table>\n"
}

fn failures(report: &RunReport) -> String {
    let mut failed: Vec<_> =
        report.cases.iter().filter(|case| matches!(case.outcome, Outcome::Failed { .. })).collect();
    if failed.is_empty() {
        return String::new();
    }
    failed.sort_by_key(|case| std::cmp::Reverse(case.level));
    let mut html = "<h2>Failures</h2>".to_owned();
    for case in failed {
        let Outcome::Failed { request, answer, expected, seen } = &case.outcome else { continue };
        let _ = write!(
            html,
            "<h3 id=\"failure-{id}\"><span class=\"b fail\">{}</span> <code>{id}</code></h3><p>{}</p><dl><dt>Expected</dt><dd>{}</dd><dt>Seen</dt><dd>{}</dd><dt>Requirements</dt><dd>{}</dd></dl>",
            case.level.name(),
            escaped(&case.does),
            escaped(expected),
            escaped(seen),
            basis(case),
            id = escaped(&case.id)
        );
        // A case that looks at the description of the target, or counts, has none.
        if !request.is_empty() {
            let _ = write!(
                html,
                "<p class=\"muted\">Request</p><pre>{}</pre><p class=\"muted\">Answer</p><pre>{}</pre>",
                escaped(request),
                escaped(answer)
            );
        }
    }
    html
}

fn basis(case: &CaseResult) -> String {
    let requirements = case.requirements.join(", ");
    match (requirements.is_empty(), case.source.is_empty()) {
        (false, false) => format!("{requirements}; {}", escaped(case.source)),
        (false, true) => requirements,
        _ => escaped(case.source),
    }
}

fn all_cases(report: &RunReport) -> String {
    let mut html = String::new();
    let mut section = None;
    for case in &report.cases {
        if section != Some(case.section) {
            let end = if section.is_some() { "</table>" } else { "" };
            let _ = write!(
                html,
                "{end}<h2 id=\"{}\">{}</h2><table><tr class=\"head\"><th>Result</th><th>Level</th><th>Case</th><th>Seen</th></tr>",
                case.section.name(),
                case.section.title()
            );
            section = Some(case.section);
        }
        let seen = match &case.outcome {
            Outcome::Passed { seen } | Outcome::Noted { seen } | Outcome::Failed { seen, .. } => seen,
            Outcome::NotApplicable { declared: why } | Outcome::Skipped { missing: why } => why,
        };
        let _ = writeln!(
            html,
            "<tr class=\"case\"><td class=\"s\">{}</td><td class=\"s\">{}</td><td><code>{}</code><br>{}<br><span class=\"muted\">expects {} ({})</span></td><td>{}</td></tr>",
            badge(case),
            case.level.name(),
            escaped(&case.id),
            escaped(&case.does),
            escaped(&case.expects),
            basis(case),
            escaped(seen)
        );
    }
    html + if section.is_some() { "</table>" } else { "" }
}

const WIDTH: f64 = 900.0;
const LEFT: f64 = 90.0;
/// The axis is logarithmic from 0.1 ms to 10 s.
const DECADES: f64 = 5.0;

fn x_of(ms: f64) -> f64 {
    LEFT + (ms.clamp(0.1, 10_000.0).log10() + 1.0) / DECADES * (WIDTH - LEFT - 20.0)
}

/// A strip of dots for each operation, first requests on a connection apart; with the median and the 99th percentile.
fn plot(samples: &[Sample]) -> String {
    let mut rows: BTreeMap<(String, bool), Vec<f64>> = BTreeMap::new();
    for sample in samples {
        let known = ["metadata", "encrypt", "decrypt", "health"].contains(&sample.operation.as_str());
        let operation = if known { sample.operation.clone() } else { "other".to_owned() };
        rows.entry((operation, sample.is_first)).or_default().push(sample.total_ms);
    }
    let height = 46 * rows.len() + 76;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"Latency by operation\" font-family=\"system-ui,sans-serif\" font-size=\"11\">"
    );
    let bottom = height - 56;
    for (ms, label) in [
        (0.1, "0.1 ms"),
        (1.0, "1 ms"),
        (10.0, "10 ms"),
        (100.0, "100 ms"),
        (1000.0, "1 s"),
        (10_000.0, "10 s"),
    ] {
        let x = x_of(ms);
        let _ = write!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"10\" y2=\"{bottom}\" stroke=\"#e3e7ec\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#55606e\">{label}</text>",
            bottom + 16
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#1c2430\">time from the start to the last byte, logarithmic scale</text>",
        (LEFT + WIDTH) / 2.0,
        bottom + 50
    );
    let limit = x_of(250.0);
    let _ = write!(
        svg,
        "<line x1=\"{limit:.1}\" x2=\"{limit:.1}\" y1=\"10\" y2=\"{bottom}\" stroke=\"#b3261e\" stroke-dasharray=\"4 3\"/><text x=\"{limit:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#b3261e\">250 ms</text>",
        bottom + 32
    );
    for (row, ((operation, is_first), mut values)) in rows.into_iter().enumerate() {
        values.sort_by(f64::total_cmp);
        let y = row * 46 + 30;
        let kind = if is_first { "new connection" } else { "kept connection" };
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"{}\" fill=\"#1c2430\">{operation}</text><text x=\"0\" y=\"{}\" fill=\"#55606e\">{kind}</text>",
            y - 2,
            y + 11
        );
        // At most 400 dots a row: evenly over the sorted values, so that the ends stay.
        let step = values.len().div_ceil(400).max(1);
        for (index, ms) in values.iter().enumerate() {
            if index % step == 0 || index + 1 == values.len() {
                let jitter = (index * 7 % 13) as f64 - 6.0;
                let _ = write!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"1.8\" fill=\"#2f6fb5\" fill-opacity=\".35\"/>",
                    x_of(*ms),
                    y as f64 + jitter
                );
            }
        }
        for (share, name) in [(50, "median"), (99, "p99")] {
            let ms = percentile(&values, share);
            let x = x_of(ms);
            let _ = write!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"#1c2430\" stroke-width=\"1.5\"><title>{name} {ms:.1} ms of {}</title></line>",
                y - 12,
                y + 12,
                values.len()
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#1c2430\" stroke=\"#fff\" stroke-width=\"4\" paint-order=\"stroke\">n={} median {:.1} ms, p99 {:.1} ms</text>",
            WIDTH - 2.0,
            y + 4,
            values.len(),
            percentile(&values, 50),
            percentile(&values, 99)
        );
    }
    svg + "</svg>"
}

/// The percentile of sorted values, by nearest rank; 0 for none.
#[must_use]
pub fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0.0)
}

/// Flags do not break where a line ends: a hyphen at its end is taken for one.
fn with_whole_flags(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let text = escaped(word);
        if word.starts_with("--") { format!("<span class=\"w\">{text}</span>") } else { text }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            '\'' => "&#39;".to_owned(),
            c if c.is_control() && !matches!(c, '\n' | '\t') => '\u{fffd}'.to_string(),
            c => c.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            (percentile(&values, 50), percentile(&values, 99), percentile(&values[..1], 99)),
            (50.0, 99.0, 1.0)
        );
        assert!(percentile(&[], 50).abs() < f64::EPSILON);
    }

    #[test]
    fn what_comes_from_outside_is_text() {
        assert_eq!(escaped("<script>'\"&"), "&lt;script&gt;&#39;&quot;&amp;");
    }
}
