//! Tables for a README.

use super::{circumstances, number};
use crate::results::{Figure, Results};

/// The command, the circumstances, a table of the figures, and one of the daemons' processor time.
pub(crate) fn tables(results: &Results) -> String {
    let base = &results.systems[results.base];
    let figures: Vec<_> = results.figures.iter().filter(|figure| !figure.is_empty()).collect();
    let values = rows(results, &figures, |figure, at| {
        let cell = &figure.cells[at];
        if cell.error.is_some() {
            return Some("failed".into());
        }
        let median = number(cell.values.median()?);
        let spread = format!("({} to {})", number(cell.values.least()), number(cell.values.most()));
        let ratio = figure.ratios(at, results.base).median().filter(|_| at != results.base);
        let ratio = ratio.map_or(String::new(), |ratio| format!(" **{}**", number(ratio)));
        Some(format!("{median} {spread}{ratio}"))
    });
    let costs = rows(results, &figures, |figure, at| figure.cells[at].cpu.median().map(number));
    let mut text = format!(
        "`{}`\n\n{}. In brackets the smallest and the largest; **bold** the ratio to {}, the median of those of the \
         repetitions.\n\n{}",
        results.command,
        circumstances(results),
        escaped(base),
        table(results, "", Unit::Value, &values),
    );
    if !costs.is_empty() {
        let table = table(results, "the daemon's processor time", Unit::Cost, &costs);
        text.push_str(&format!("\n{table}"));
    }
    text
}

/// Which unit stands beside a figure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Value,
    Cost,
}

type Row<'r> = (&'r Figure, Vec<Option<String>>);

/// The figures of which there is something to tell.
fn rows<'r>(
    results: &Results,
    figures: &[&'r Figure],
    cell: impl Fn(&Figure, usize) -> Option<String>,
) -> Vec<Row<'r>> {
    let row =
        |&figure: &&'r Figure| (figure, (0..results.systems.len()).map(|at| cell(figure, at)).collect());
    let is_told = |row: &Row<'_>| row.1.iter().any(Option::is_some);
    figures.iter().map(row).filter(is_told).collect()
}

/// A table without the systems that have nothing in any row.
fn table(results: &Results, title: &str, unit: Unit, rows: &[Row<'_>]) -> String {
    let is_there = |&at: &usize| rows.iter().any(|(_, cells)| cells[at].is_some());
    let there: Vec<usize> = (0..results.systems.len()).filter(is_there).collect();
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let head = there.iter().map(|&at| escaped(&results.systems[at]));
    let mut text = line(std::iter::once(title.to_owned()).chain(head).collect());
    text.push_str(&format!("|{}\n", "---|".repeat(there.len() + 1)));
    for (figure, cells) in rows {
        let name = match unit {
            Unit::Value => format!("{}, {}", figure.name, figure.unit.name()),
            Unit::Cost => format!("{}, {}", figure.name, figure.unit.cpu_name()),
        };
        let cells = there.iter().map(|&at| cells[at].clone().unwrap_or_default());
        text.push_str(&line(std::iter::once(name).chain(cells).collect()));
    }
    text
}

/// A label as text of a table.
fn escaped(label: &str) -> String {
    label.replace('|', "\\|").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::tables;
    use crate::results::tests::example;

    #[test]
    fn the_tables_say_what_was_run_and_what_came_of_it() {
        let text = tables(&example());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "`cargo bench --bench field -- native 'peer:<a>=x {mnt}'`");
        assert!(lines[2].starts_with("2026-11-23"));
        assert_eq!(lines[4], "|  | native | splicefs-passthrough | &lt;a> |");
        assert_eq!(lines[5], "|---|---|---|---|");
        assert_eq!(
            lines[6],
            "| read 1 MiB, cold, MB/s | 1000 (1000 to 2000) | 500 (400 to 1000) **0.500** | failed |"
        );
        // Only one of them has a daemon that was measured.
        assert_eq!(lines[8], "| the daemon's processor time | splicefs-passthrough |");
        assert_eq!(lines[10], "| read 1 MiB, cold, ms a GB | 110 |");
        assert_eq!(lines.len(), 11);
    }
}
