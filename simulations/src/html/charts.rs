//! Charts as SVG: lines over time, and bars.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 220.0;
/// Room for numbers at the left and below.
const LEFT: f64 = 70.0;
const BELOW: f64 = 24.0;
/// Room for the title.
const ABOVE: f64 = 36.0;

/// Colours that are told apart by whoever sees few of them, too.
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

/// A line of a chart.
pub(super) struct Line {
    /// What it is.
    pub(super) name: &'static str,
    /// From left to right.
    pub(super) points: Vec<(f64, f64)>,
}

/// A bar of a chart.
pub(super) struct Bar {
    /// What it is.
    pub(super) label: String,
    /// How long; below nothing it points the other way.
    pub(super) value: f64,
}

/// Returns text that is nothing but text on a page.
pub(super) fn text(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Returns lines over one axis, from nothing to the highest point.
pub(super) fn lines(title: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let right = points().map(|(x, _)| *x).fold(1.0, f64::max);
    let top = points().map(|(_, y)| *y).fold(1.0, f64::max);
    let at = |(x, y): &(f64, f64)| {
        let x = LEFT + x / right * (WIDTH - LEFT - 10.0);
        (x, HEIGHT - BELOW - y / top * (HEIGHT - BELOW - ABOVE))
    };
    let mut svg = open(title, HEIGHT);
    for part in [0.0, 0.5, 1.0] {
        let ((x, y), (end, _)) = (at(&(0.0, top * part)), at(&(right, 0.0)));
        let _ = write!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{end:.1}\" y2=\"{y:.1}\" stroke=\"#888\" stroke-width=\".5\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            x - 6.0,
            y + 4.0,
            number(top * part)
        );
        let (x, _) = at(&(right * part, 0.0));
        let _ = write!(
            svg,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 6.0,
            number(right * part)
        );
    }
    for (place, (line, colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let points = line.points.iter().map(|point| {
            let (x, y) = at(point);
            format!("{x:.1},{y:.1}")
        });
        let points = points.collect::<Vec<_>>().join(" ");
        let x = LEFT + place as f64 * 160.0;
        let _ = write!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
             <rect x=\"{x:.1}\" y=\"22\" width=\"10\" height=\"3\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"27\">{}</text>",
            x + 14.0,
            text(line.name)
        );
    }
    svg + "</svg>"
}

/// Returns one bar below the other, with its value.
pub(super) fn bars(title: &str, bars: &[Bar]) -> String {
    let longest = bars.iter().map(|bar| bar.value.abs()).fold(f64::MIN_POSITIVE, f64::max);
    let height = ABOVE + 22.0 * bars.len() as f64;
    let mut svg = open(title, height);
    for (place, bar) in bars.iter().enumerate() {
        let y = ABOVE - 8.0 + 22.0 * place as f64;
        let colour = if bar.value < 0.0 { COLOURS[1] } else { COLOURS[0] };
        let _ = write!(
            svg,
            "<text x=\"170\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"178\" y=\"{y:.1}\" width=\"{:.1}\" height=\"14\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            y + 11.0,
            text(&bar.label),
            bar.value.abs() / longest * 430.0,
            184.0 + bar.value.abs() / longest * 430.0,
            y + 11.0,
            number(bar.value)
        );
    }
    svg + "</svg>"
}

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\"><text x=\"4\" y=\"13\">{0}</text>",
        text(title)
    )
}

/// Returns a number with as many places as matter.
fn number(value: f64) -> String {
    if value.abs() >= 100.0 || value.fract().abs() < 1e-9 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}
