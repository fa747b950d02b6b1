//! A plot: for each figure, how each system compares to the base, on a logarithmic scale.
//!
//! Bars start at the line of equality: to the right is faster, to the left slower. Colours are those of Okabe and Ito, which
//! people with any colour vision tell apart; text and lines follow the reader's light or dark scheme.

use super::{circumstances, number};
use crate::results::{Figure, Results};

const WIDTH: f64 = 900.0;
/// Room for the names of the figures.
const LEFT: f64 = 270.0;
const RIGHT: f64 = 60.0;
const BAR: f64 = 11.0;
/// Room between two figures.
const GAP: f64 = 10.0;
const LINE: f64 = 18.0;
const COLOURS: [&str; 7] = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c8c00"];

const STYLE: &str = "\
text { font: 12px sans-serif; fill: #24292f }
.small { font-size: 10px }
.title { font-size: 15px; font-weight: bold }
.grid { stroke: #d0d7de; stroke-width: 1 }
.base { stroke: #24292f; stroke-width: 1.5 }
.span { stroke: #24292f; stroke-width: 1; opacity: .6 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.grid { stroke: #30363d }
.base, .span { stroke: #e6edf3 }
}";

/// One bar: a system, and the median, smallest and largest ratio.
struct Bar {
    system: usize,
    middle: f64,
    least: f64,
    most: f64,
}

/// The bars of a figure; those of memory are left out, for there less is better.
fn bars(results: &Results, figure: &Figure) -> Vec<Bar> {
    let systems = (0..results.systems.len()).filter(|&at| at != results.base && figure.unit.is_rate());
    let bar = |system| {
        let ratios = figure.ratios(system, results.base);
        // A logarithm wants more than nothing.
        let middle = ratios.median().filter(|_| ratios.least() > 0.0)?;
        Some(Bar { system, middle, least: ratios.least(), most: ratios.most() })
    };
    systems.filter_map(bar).collect()
}

/// The horizontal axis, in powers of ten of the ratio.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// One that holds every ratio, and some room on both sides of equality.
    fn over<'b>(bars: impl Iterator<Item = &'b Bar>) -> Self {
        let (low, high) =
            bars.fold((0.5_f64, 2.0_f64), |(low, high), bar| (low.min(bar.least), high.max(bar.most)));
        Self { low: low.log10() - 0.05, high: high.log10() + 0.05 }
    }

    fn at(&self, ratio: f64) -> f64 {
        LEFT + (ratio.log10() - self.low) / (self.high - self.low) * (WIDTH - LEFT - RIGHT)
    }

    /// Ratios at which there is a line: 1, 2 and 5 of each power of ten, as long as they are not too many.
    fn ticks(&self) -> Vec<f64> {
        let steps: &[f64] = if self.high - self.low > 2.2 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let ticks = (-6..6).flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)));
        ticks.filter(|tick| (self.low..self.high).contains(&tick.log10())).collect()
    }
}

/// The plot as a file.
pub(crate) fn svg(results: &Results) -> String {
    let groups: Vec<_> = results.figures.iter().map(|figure| (figure, bars(results, figure))).collect();
    let groups: Vec<_> = groups.into_iter().filter(|(_, bars)| !bars.is_empty()).collect();
    let axis = Axis::over(groups.iter().flat_map(|(_, bars)| bars));
    let mut shown: Vec<usize> =
        groups.iter().flat_map(|(_, bars)| bars.iter().map(|bar| bar.system)).collect();
    shown.sort_unstable();
    shown.dedup();
    let top = LINE * (shown.len() as f64 + 4.4);
    let heights = groups.iter().map(|(_, bars)| BAR * bars.len() as f64 + GAP);
    let bottom = top + heights.sum::<f64>();
    let mut body = head(results, &shown);
    grid(&mut body, &axis, &results.systems[results.base], top, bottom);
    let mut y = top;
    for (figure, bars) in &groups {
        group(&mut body, &axis, figure, bars, y);
        y += BAR * bars.len() as f64 + GAP;
    }
    let height = bottom + 2.0 * LINE;
    let foot = text(8.0, height - 8.0, "small", "start", &circumstances(results));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
         height=\"{height:.0}\" role=\"img\">\n<style>\n{STYLE}\n</style>\n{body}{foot}</svg>\n"
    )
}

/// The title and the legend.
fn head(results: &Results, shown: &[usize]) -> String {
    let base = &results.systems[results.base];
    let mut body = text(8.0, LINE + 2.0, "title", "start", &format!("How fast, beside {base}"));
    let note = "logarithmic; right of the line is faster, left of it slower; thin: smallest to largest";
    body += &text(8.0, 2.0 * LINE, "small", "start", note);
    for (row, &system) in shown.iter().enumerate() {
        let y = LINE * (row as f64 + 3.2);
        body += &rect(8.0, y - 10.0, 14.0, BAR, system);
        body += &text(28.0, y, "", "start", &results.systems[system]);
    }
    body
}

fn grid(body: &mut String, axis: &Axis, base: &str, top: f64, bottom: f64) {
    for tick in axis.ticks() {
        let (x, is_base) = (axis.at(tick), (tick - 1.0).abs() < 1e-9);
        body.push_str(&line("grid", (x, top - GAP), (x, bottom)));
        let label = if is_base { base.to_owned() } else { format!("{} x", trimmed(tick)) };
        body.push_str(&text(x, top - GAP - 4.0, "small", "middle", &label));
    }
    let x = axis.at(1.0);
    body.push_str(&line("base", (x, top - GAP), (x, bottom)));
}

/// The name of a figure and its bars.
fn group(body: &mut String, axis: &Axis, figure: &Figure, bars: &[Bar], top: f64) {
    let middle = top + BAR * bars.len() as f64 / 2.0 + 4.0;
    body.push_str(&text(LEFT - 10.0, middle, "", "end", &figure.name));
    for (row, bar) in bars.iter().enumerate() {
        let y = top + BAR * row as f64;
        let (start, end) = (axis.at(1.0), axis.at(bar.middle));
        body.push_str(&rect(start.min(end), y + 1.0, (end - start).abs().max(1.0), BAR - 2.0, bar.system));
        let center = y + BAR / 2.0;
        body.push_str(&line("span", (axis.at(bar.least), center), (axis.at(bar.most), center)));
        // Beside the bar, where neither it nor its span is.
        let x = axis.at(bar.most).max(start) + 4.0;
        body.push_str(&text(x, y + BAR - 2.0, "small", "start", &number(bar.middle)));
    }
}

fn trimmed(tick: f64) -> String {
    let text = format!("{tick:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn rect(x: f64, y: f64, width: f64, height: f64, system: usize) -> String {
    let colour = COLOURS[system % COLOURS.len()];
    format!(
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>\n"
    )
}

fn line(class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> String {
    format!("<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>\n")
}

fn text(x: f64, y: f64, class: &str, anchor: &str, content: &str) -> String {
    let mut safe = String::new();
    for c in content.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            c => safe.push(c),
        }
    }
    format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{safe}</text>\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::example;
    use crate::results::{Sample, Unit};

    /// The numbers in attributes called `name` of lines that contain `element`.
    fn attributes(svg: &str, element: &str, name: &str) -> Vec<f64> {
        let value = |line: &str| {
            let (_, rest) = line.split_once(&format!(" {name}=\""))?;
            rest.split_once('"')?.0.parse().ok()
        };
        svg.lines().filter(|line| line.contains(element)).filter_map(value).collect()
    }

    #[test]
    fn a_bar_ends_at_its_ratio_and_begins_at_equality() {
        let svg = svg(&example());
        let base = attributes(&svg, "\"base\"", "x1")[0];
        // The legend's and the figure's.
        let (starts, widths) = (attributes(&svg, "<rect", "x"), attributes(&svg, "<rect", "width"));
        assert_eq!(starts.len(), 2);
        assert!((starts[1] + widths[1] - base).abs() < 0.2, "a slower system's bar ends at the line");
        let axis = Axis { low: 0.2_f64.log10() - 0.05, high: 2_f64.log10() + 0.05 };
        assert!((starts[1] - axis.at(0.5)).abs() < 0.1);
        assert!((attributes(&svg, "\"span\"", "x1")[0] - axis.at(0.2)).abs() < 0.1);
        assert!((attributes(&svg, "\"span\"", "x2")[0] - base).abs() < 0.1);
    }

    #[test]
    fn labels_are_text_and_tags_are_closed() {
        let mut results = example();
        results.systems[1] = "<b> & co".into();
        let svg = svg(&results);
        assert!(svg.contains("&lt;b&gt; &amp; co") && !svg.contains("<b>"));
        for tag in ["svg", "style", "text"] {
            assert_eq!(
                svg.matches(&format!("<{tag}")).count(),
                svg.matches(&format!("</{tag}>")).count(),
                "{tag}"
            );
        }
        assert!(
            svg.lines()
                .filter(|l| l.starts_with("<rect") || l.starts_with("<line"))
                .all(|l| l.ends_with("/>"))
        );
    }

    #[test]
    fn what_has_no_ratio_has_no_bar() {
        let mut results = example();
        let mut memory = results.figures[0].clone();
        memory.unit = Unit::Kibibytes;
        results.figures.push(memory);
        let mut stopped = results.figures[0].clone();
        stopped.cells[1].values = Sample(vec![0.0, 1.0, 1.0]);
        results.figures.push(stopped);
        assert_eq!(attributes(&svg(&results), "<rect", "x").len(), 2);
        results.figures.clear();
        assert!(svg(&results).ends_with("</svg>\n"), "nothing at all is a plot too");
    }

    #[test]
    fn ticks_lie_within_the_axis_and_stay_apart() {
        let wide = Axis { low: -3.0, high: 1.0 };
        assert_eq!(wide.ticks(), [0.001, 0.01, 0.1, 1.0]);
        let narrow = Axis { low: -0.4, high: 0.4 };
        assert_eq!(narrow.ticks(), [0.5, 1.0, 2.0]);
        assert!((wide.at(10.0) - (WIDTH - RIGHT)).abs() < 1e-9);
        assert_eq!((trimmed(0.001), trimmed(20.0)), ("0.001".into(), "20".into()));
    }
}
