//! A table for the terminal.

use std::fmt::Write;

use super::{circumstances, number};
use crate::results::{Figure, Results};

/// All figures, one after the other, with a line for each system.
pub(crate) fn table(results: &Results) -> String {
    let mut text = format!("{}\n", circumstances(results));
    let figures = results.figures.iter().filter(|figure| !figure.is_empty());
    figures.for_each(|figure| block(&mut text, results, figure));
    text
}

fn block(text: &mut String, results: &Results, figure: &Figure) {
    let width = results.systems.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let mut line = |line: String| {
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(format!("\n{}, {}", figure.name, figure.unit.name()));
    for (at, (label, cell)) in results.systems.iter().zip(&figure.cells).enumerate() {
        if let Some(error) = &cell.error {
            line(format!("  {label:width$}  failed: {error}"));
        }
        let Some(median) = cell.values.median() else { continue };
        let span = |low: f64, high: f64| format!("({} to {})", number(low), number(high));
        let mut row = format!(
            "  {label:width$}  {:>9}  {:22}",
            number(median),
            span(cell.values.least(), cell.values.most())
        );
        let ratios = figure.ratios(at, results.base);
        let mut put = |part: String| row.write_str(&part).unwrap_or_default();
        match ratios.median().filter(|_| at != results.base) {
            Some(ratio) => put(format!("  x {:6} {:18}", number(ratio), span(ratios.least(), ratios.most()))),
            None => put(" ".repeat(29)),
        }
        if let Some(cpu) = cell.cpu.median() {
            put(format!("  daemon {} {}", number(cpu), figure.unit.cpu_name()));
        }
        if let Some(rss) = cell.rss_kib.median() {
            put(format!(", {} MiB", number(rss / 1024.0)));
        }
        line(row);
    }
}

#[cfg(test)]
mod tests {
    use super::table;
    use crate::results::tests::example;

    #[test]
    fn each_system_has_a_line_with_its_ratio_and_its_cost() {
        let text = table(&example());
        let lines: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(lines[0], "read 1 MiB, cold, MB/s");
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>(),
            ["native", "1000", "(1000", "to", "2000)"]
        );
        let slower =
            "splicefs-passthrough 500 (400 to 1000) x 0.500 (0.200 to 1.00) daemon 110 ms a GB, 4.00 MiB";
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>().join(" "), slower);
        assert_eq!(lines[3].trim(), "<a>                   failed: Input/output error");
        assert_eq!(lines.len(), 4);
    }
}
