//! `splicefs stats`: asks a mount what it has done, through an extended attribute of its root.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use super::amount::amount;
use super::ask;
use crate::failure::Failure;

/// What to print for the mount on `given`.
pub(super) fn text(given: &Path, json: bool) -> Result<String, Failure> {
    let raw = ask::stats(given).map_err(|error| ask::explain(given, "read the statistics of", &error))?;
    if json {
        return Ok(format!("{}\n", raw.trim_end()));
    }
    let value: Value = serde_json::from_str(&raw).map_err(|error| {
        Failure::new(format!(
            "{} answers, but not as this version of splicefs does: {error}",
            given.display()
        ))
    })?;
    Ok(table(&value))
}

/// The same for a person. What an older or newer daemon does not tell is left out.
fn table(stats: &Value) -> String {
    let mut rows = Rows::default();
    let words = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(backend) = words(&stats["backend"]) {
        let version = words(&stats["version"]).map(|version| format!(" (splicefs {version})"));
        rows.push("backend", backend + &version.unwrap_or_default());
    }
    if let Some(pid) = stats["pid"].as_u64() {
        rows.push("process", pid.to_string());
    }
    push_facility(&mut rows, "splice", &stats["splice"]);
    push_facility(&mut rows, "passthrough", &stats["passthrough"]);
    push_facility(&mut rows, "open", &stats["unopened"]);
    push_facility(&mut rows, "cache", &stats["cache"]);
    push_facility(&mut rows, "writeback", &stats["writeback"]);
    push_reads(&mut rows, &stats["read"]);
    for (name, key) in [("nodes known", "nodes"), ("files open", "files")] {
        if let Some(count) = stats[key].as_u64() {
            rows.push(name, count.to_string());
        }
    }
    push_counts(&mut rows, "files opened", &stats["opens"]);
    push_counts(&mut rows, "writes lost", &stats["lost_writes"]);
    if stats["cache"]["mode"].as_str() == Some("notify") {
        push_counts(&mut rows, "changes by others", &stats["changes"]);
    }
    push_counts(&mut rows, "requests", &stats["requests"]);
    rows.0
}

#[derive(Default)]
struct Rows(String);

impl Rows {
    fn push(&mut self, name: &str, value: impl AsRef<str>) {
        // Writing to a String cannot fail.
        writeln!(self.0, "{name:<24}{}", value.as_ref()).unwrap_or_default();
    }
}

fn push_facility(rows: &mut Rows, name: &str, facility: &Value) {
    let Some(serving) = facility["serving"].as_bool() else { return };
    let mode = facility["mode"].as_str().unwrap_or("auto");
    let why = facility["why"].as_str().filter(|why| !why.is_empty()).map(|why| format!(": {why}"));
    let state = if serving { "serves" } else { "does not serve" };
    rows.push(name, format!("{state} ({name}={mode}){}", why.unwrap_or_default()));
}

fn push_reads(rows: &mut Rows, read: &Value) {
    let kinds = [
        ("read, spliced", "spliced_bytes"),
        ("read, zeros", "zero_bytes"),
        ("read, copied", "copied_bytes"),
        ("given with opens", "prefetched_bytes"),
    ];
    let bytes = kinds.map(|(_, key)| read[key].as_u64().unwrap_or(0));
    let all = bytes.iter().fold(0_u64, |sum, n| sum.saturating_add(*n));
    for ((name, _), bytes) in kinds.into_iter().zip(bytes) {
        rows.push(name, format!("{:>12}  {:>5}", amount(bytes), share(bytes, all)));
    }
    push_counts(rows, "copies, by reason", &read["copies"]);
}

fn push_counts(rows: &mut Rows, title: &str, counts: &Value) {
    let Some(counts) = counts.as_object() else { return };
    let mut counts: Vec<_> = counts.iter().filter_map(|(name, n)| Some((name, n.as_u64()?))).collect();
    counts.retain(|(_, n)| *n > 0);
    counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    if counts.is_empty() {
        rows.push(title, "none");
        return;
    }
    rows.push(&format!("{title}:"), "");
    for (name, count) in counts {
        rows.push(&format!("  {name}"), format!("{count:>12}"));
    }
}

fn share(part: u64, all: u64) -> String {
    if all == 0 { String::new() } else { format!("{}%", u128::from(part) * 100 / u128::from(all)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_the_daemon_tells() {
        let value = serde_json::json!({
            "backend": "passthrough", "version": "0.1.0",
            "splice": {"mode": "auto", "serving": true, "why": "probed"},
            "read": {"spliced_bytes": 3_221_225_472_u64, "zero_bytes": 0, "copied_bytes": 1_073_741_824,
                     "copies": {"small": 5, "splice_off": 0}},
            "passthrough": {"mode": "auto", "serving": false, "why": "no right"},
            "opens": {"cached": 3, "passthrough": 0},
            "requests": {"lookup": 2, "read": 30}, "nodes": 7, "files": 0
        });
        let text = table(&value);
        for line in [
            "backend                 passthrough (splicefs 0.1.0)",
            "splice                  serves (splice=auto): probed",
            "passthrough             does not serve (passthrough=auto): no right",
            "  cached                           3",
            "read, spliced                3.0 GiB    75%",
            "read, copied                 1.0 GiB    25%",
            "  small                            5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} in\n{text}");
        }
        assert!(!text.contains("splice_off"), "what never happened is left out");
        assert!(text.find("  read  ") < text.find("  lookup"), "the most frequent first");
    }

    #[test]
    fn a_value_of_another_version_gives_what_it_can() {
        assert!(table(&serde_json::json!({"requests": {}})).contains("requests                none"));
        assert!(table(&serde_json::json!([])).contains("read, spliced"));
    }

    #[test]
    fn what_is_no_mount_is_told_so() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let line = text(folder.path(), true).expect_err("no mount").to_string();
        assert!(line.contains("not the mount point of a splicefs mount"), "{line}");
        let line = text(&folder.path().join("x"), true).expect_err("nothing").to_string();
        assert!(line.contains("does not exist"), "{line}");
    }
}
