//! The results, for people and for programs.

mod markdown;
mod plot;
pub(crate) mod terminal;

use std::fs;
use std::path::Path;

use crate::Result;
use crate::args::Args;
use crate::results::Results;

/// Writes the files that were asked for.
pub(crate) fn write(args: &Args, results: &Results) -> Result<()> {
    put(args.json.as_deref(), || Ok(serde_json::to_string_pretty(results)?))?;
    put(args.markdown.as_deref(), || Ok(markdown::tables(results)))?;
    put(args.svg.as_deref(), || Ok(plot::svg(results)))
}

fn put(path: Option<&Path>, form: impl FnOnce() -> Result<String>) -> Result<()> {
    path.map_or(Ok(()), |path| {
        fs::write(path, form()?).map_err(|error| format!("{}: {error}", path.display()).into())
    })
}

/// Where, when and how, in a sentence.
fn circumstances(results: &Results) -> String {
    let machine = &results.machine;
    let model = if machine.model.is_empty() { String::new() } else { format!(" ({})", machine.model) };
    let user = results.user.as_ref().map_or(String::new(), |user| format!(", as user {user}"));
    let load = match results.load {
        0 => String::new(),
        count => format!(", beside {count} busy processes"),
    };
    format!(
        "{}, Linux {}, {} processors{model}, {} GiB, data on {}{user}{load}; medians of {} interleaved repetitions",
        machine.date,
        machine.kernel,
        machine.processors,
        machine.memory_mib.div_ceil(1024),
        results.data_on,
        results.reps,
    )
}

/// A number with three digits that mean something, or all those before the point.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_show_what_they_mean() {
        for (value, text) in [
            (12345.6, "12346"),
            (0.0, "0"),
            (12.34, "12.3"),
            (1.234, "1.23"),
            (0.0123, "0.012"),
            (-3.5, "-3.50"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn the_circumstances_tell_what_was_special() {
        let mut results = crate::results::tests::example();
        assert!(
            circumstances(&results)
                .starts_with("2026-11-23, Linux 6.18, 2 processors, 0 GiB, data on ext4; medians of 3")
        );
        (results.user, results.load) = (Some("nobody".into()), 4);
        assert!(circumstances(&results).contains("as user nobody, beside 4 busy processes"));
    }
}
