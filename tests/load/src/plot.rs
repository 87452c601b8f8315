//! An SVG of latency by percentile and throughput over time, made by hand: no dependency draws two panels better.

use std::fmt::Write;

use crate::engine::Outcome;
use crate::measure::{Durations, MeasureError, Second};

/// One target's curves.
#[derive(Debug)]
pub struct Series {
    /// Its name in the legend: short, or empty where there is but one.
    pub name: &'static str,
    /// Latency from the scheduled instant.
    pub latency: Durations,
    /// Service time.
    pub service: Durations,
    /// The timeline.
    pub seconds: Vec<Second>,
}

impl Series {
    /// Curves of no run yet.
    ///
    /// # Errors
    /// Never with the bounds in use.
    pub fn new(name: &'static str) -> Result<Self, MeasureError> {
        Ok(Self { name, latency: Durations::new()?, service: Durations::new()?, seconds: Vec::new() })
    }

    /// Adds a run; its timeline follows those before it.
    ///
    /// # Errors
    /// Never with the bounds in use.
    pub fn add(&mut self, run: &Outcome) -> Result<(), MeasureError> {
        self.latency.add(&run.recorder.latency)?;
        self.service.add(&run.recorder.service)?;
        let seconds = &run.recorder.seconds;
        // The last answers come moments after the phase; that sliver of a second is no drop of the throughput.
        let whole = seconds.split_last().filter(|(last, _)| last.scheduled == 0);
        self.seconds.extend_from_slice(whole.map_or(seconds, |(_, before)| before));
        Ok(())
    }
}

const WIDTH: f64 = 900.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 870.0;
const COLOURS: [&str; 2] = ["#1f5fa8", "#c2571a"];
const FAILED_COLOUR: &str = "#b3261e";

/// The plotting area of a panel; the y axis grows upwards.
struct Panel {
    top: f64,
    bottom: f64,
    x_max: f64,
    y_min: f64,
    y_max: f64,
}

impl Panel {
    fn x(&self, value: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * value / self.x_max
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value.clamp(self.y_min, self.y_max) - self.y_min) / (self.y_max - self.y_min);
        self.bottom - (self.bottom - self.top) * share
    }

    fn frame(&self, out: &mut String, title: &str, x_label: &str) -> std::fmt::Result {
        let (top, bottom, middle) = (self.top, self.bottom, f64::midpoint(LEFT, RIGHT));
        writeln!(
            out,
            r##"<rect x="{LEFT}" y="{top}" width="{}" height="{}" fill="none" stroke="#888"/>"##,
            RIGHT - LEFT,
            bottom - top
        )?;
        writeln!(
            out,
            r#"<text x="{LEFT}" y="{}" font-size="15" font-weight="bold">{title}</text>"#,
            top - 12.0
        )?;
        writeln!(out, r#"<text x="{middle}" y="{}" text-anchor="middle">{x_label}</text>"#, bottom + 38.0)
    }

    fn x_tick(&self, out: &mut String, value: f64, label: &str) -> std::fmt::Result {
        let (x, top, bottom) = (self.x(value), self.top, self.bottom);
        writeln!(out, r##"<line x1="{x:.1}" y1="{top}" x2="{x:.1}" y2="{bottom}" stroke="#e4e4e4"/>"##)?;
        writeln!(out, r#"<text x="{x:.1}" y="{}" text-anchor="middle">{label}</text>"#, bottom + 18.0)
    }

    fn y_tick(&self, out: &mut String, value: f64, label: &str) -> std::fmt::Result {
        let y = self.y(value);
        writeln!(out, r##"<line x1="{LEFT}" y1="{y:.1}" x2="{RIGHT}" y2="{y:.1}" stroke="#e4e4e4"/>"##)?;
        writeln!(out, r#"<text x="{}" y="{:.1}" text-anchor="end">{label}</text>"#, LEFT - 8.0, y + 4.0)
    }

    fn line(&self, out: &mut String, points: &[(f64, f64)], colour: &str, dashes: &str) -> std::fmt::Result {
        let path: Vec<String> =
            points.iter().map(|(x, y)| format!("{:.1},{:.1}", self.x(*x), self.y(*y))).collect();
        writeln!(
            out,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>"#,
            path.join(" ")
        )
    }
}

/// Draws the series into one SVG document under `title`.
pub fn svg(title: &str, series: &[Series]) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_svg(&mut out, title, series);
    out
}

fn write_svg(out: &mut String, title: &str, series: &[Series]) -> std::fmt::Result {
    writeln!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 780" font-family="sans-serif" font-size="12" fill="#222">
<rect width="{WIDTH}" height="780" fill="#fff"/>"##
    )?;
    let title: String = title.chars().filter(|c| !matches!(c, '<' | '>' | '&')).collect();
    writeln!(out, r#"<text x="{LEFT}" y="24" font-size="15">{title}</text>"#)?;
    write_latency(out, series)?;
    write_throughput(out, series)?;
    writeln!(out, "</svg>")
}

/// Latency by percentile: x in nines (90 %, 99 %, …), y logarithmic.
fn write_latency(out: &mut String, series: &[Series]) -> std::fmt::Result {
    let count = series.iter().map(|series| series.latency.count()).max().unwrap_or_default();
    let extreme = |pick: fn(f64, f64) -> f64, quantile: f64, start: f64| {
        let values = series.iter().flat_map(|series| [&series.latency, &series.service]);
        values.map(|durations| durations.quantile_ms(quantile)).fold(start, pick).max(1e-3).log10()
    };
    let panel = Panel {
        top: 70.0,
        bottom: 390.0,
        x_max: (count.max(1) as f64).log10().clamp(2.0, 6.0),
        y_min: extreme(f64::min, 0.0, f64::INFINITY).floor(),
        y_max: extreme(f64::max, 1.0, 0.0).ceil(),
    };
    for (nines, label) in [
        (0.0, "0 %"),
        (0.301, "50 %"),
        (1.0, "90 %"),
        (2.0, "99 %"),
        (3.0, "99.9 %"),
        (4.0, "99.99 %"),
        (5.0, "99.999 %"),
        (6.0, "99.9999 %"),
    ] {
        if nines <= panel.x_max {
            panel.x_tick(out, nines, label)?;
        }
    }
    for (power, label) in
        (-3..=6).zip(["0.001", "0.01", "0.1", "1", "10", "100", "1,000", "10,000", "100,000", "1,000,000"])
    {
        let power = f64::from(power);
        if (panel.y_min..=panel.y_max).contains(&power) {
            panel.y_tick(out, power, label)?;
        }
    }
    panel.frame(out, "Latency by percentile (ms, logarithmic)", "share of requests at or below")?;
    for (series, colour) in series.iter().zip(COLOURS) {
        for (durations, dashes) in [(&series.latency, "none"), (&series.service, "5 4")] {
            let points: Vec<(f64, f64)> = (0..=300)
                .map(|step| {
                    let nines = panel.x_max * f64::from(step) / 300.0;
                    let value_ms = durations.quantile_ms(1.0 - 10_f64.powf(-nines));
                    (nines, value_ms.max(1e-3).log10())
                })
                .collect();
            panel.line(out, &points, colour, dashes)?;
        }
    }
    let entries = series.iter().zip(COLOURS).flat_map(|(series, colour)| {
        [
            (colour, "none", format!("{} latency", series.name)),
            (colour, "5 4", format!("{} service time", series.name)),
        ]
    });
    write_legend(out, 44.0, entries)
}

/// Throughput: right answers a second, beside what was scheduled and what failed.
fn write_throughput(out: &mut String, series: &[Series]) -> std::fmt::Result {
    let seconds = series.iter().map(|series| series.seconds.len()).max().unwrap_or_default();
    let highest =
        series.iter().flat_map(|series| &series.seconds).map(|second| second.scheduled.max(second.ok)).max();
    let panel = Panel {
        top: 500.0,
        bottom: 710.0,
        x_max: seconds.max(2) as f64 - 1.0,
        y_min: 0.0,
        y_max: highest.unwrap_or_default().max(1) as f64 * 1.1,
    };
    let x_step = nice_step(panel.x_max, 10.0);
    let y_step = nice_step(panel.y_max, 5.0);
    for tick in 0..=20 {
        let (x, y) = (f64::from(tick) * x_step, f64::from(tick) * y_step);
        if x <= panel.x_max {
            panel.x_tick(out, x, &format!("{x:.0}"))?;
        }
        if y <= panel.y_max {
            panel.y_tick(out, y, &format!("{y:.0}"))?;
        }
    }
    panel.frame(out, "Throughput (requests/s)", "second of the measured phase")?;
    let curve = |seconds: &[Second], value: fn(&Second) -> u64| -> Vec<(f64, f64)> {
        seconds.iter().enumerate().map(|(index, second)| (index as f64, value(second) as f64)).collect()
    };
    let mut entries = Vec::new();
    for (series, colour) in series.iter().zip(COLOURS) {
        panel.line(out, &curve(&series.seconds, |second| second.scheduled), colour, "2 4")?;
        panel.line(out, &curve(&series.seconds, |second| second.ok), colour, "none")?;
        entries.push((colour, "none", format!("{} ok", series.name)));
        entries.push((colour, "2 4", format!("{} scheduled", series.name)));
        if series.seconds.iter().any(|second| second.failed > 0) {
            panel.line(out, &curve(&series.seconds, |second| second.failed), FAILED_COLOUR, "none")?;
            entries.push((FAILED_COLOUR, "none", format!("{} failed", series.name)));
        }
    }
    write_legend(out, 468.0, entries.into_iter())
}

fn write_legend(
    out: &mut String,
    y: f64,
    entries: impl Iterator<Item = (&'static str, &'static str, String)>,
) -> std::fmt::Result {
    for (index, (colour, dashes, label)) in (0_u32..).zip(entries) {
        let (x, y) = (LEFT + 390.0 + 130.0 * f64::from(index % 3), y + 16.0 * f64::from(index / 3));
        writeln!(
            out,
            r#"<line x1="{x}" y1="{y}" x2="{}" y2="{y}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>"#,
            x + 24.0
        )?;
        writeln!(out, r#"<text x="{}" y="{}">{label}</text>"#, x + 30.0, y + 4.0)?;
    }
    Ok(())
}

/// The step of 1, 2 or 5 times a power of ten that cuts `range` into at most `parts` parts.
fn nice_step(range: f64, parts: f64) -> f64 {
    let rough = (range / parts).max(1.0);
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(rough)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Recorder;
    use std::time::Duration;

    #[test]
    fn steps_are_round_numbers() {
        for (range, parts, step) in
            [(9.0, 10.0, 1.0), (60.0, 10.0, 10.0), (1700.0, 5.0, 500.0), (31.0, 10.0, 5.0)]
        {
            assert!((nice_step(range, parts) - step).abs() < 1e-9, "{range}");
        }
    }

    #[test]
    fn every_point_lies_inside_the_picture_even_without_data() {
        let mut recorder = Recorder::new(0).unwrap();
        for micros in 1..=5_000 {
            recorder.latency.record(Duration::from_micros(micros * 37));
            recorder.service.record(Duration::from_micros(micros));
        }
        let full = Series {
            name: "A",
            latency: recorder.latency,
            service: recorder.service,
            seconds: vec![Second { scheduled: 100, ok: 90, failed: 10 }; 7],
        };
        let bare = Recorder::new(0).unwrap();
        let empty = Series { name: "B", latency: bare.latency, service: bare.service, seconds: vec![] };
        let text = svg("x <&> y", &[full, empty]);
        assert!(text.contains("A latency") && text.contains("x  y"));
        let points = text.split("points=\"").skip(1).filter_map(|rest| rest.split('"').next());
        let mut drawn = 0;
        for point in points.flat_map(str::split_whitespace) {
            let (x, y) = point.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((LEFT..=RIGHT).contains(&x) && (70.0..=710.0).contains(&y), "{point}");
            drawn += 1;
        }
        assert_eq!(drawn, 4 * 301 + 3 * 7);
    }
}
