//! Whether two sides are the same: after a step, and as whole trees.

use super::known::Explained;
use super::op::Step;
use super::run::{Answer, Side, View};
use super::watch::{changes, look, now, same_numbers};

pub(crate) fn same_answers(
    step: &Step,
    [native, mounted]: &[Answer; 2],
    explained: Explained,
) -> Result<(), String> {
    if native == mounted || explained.answers(step, native, mounted) {
        return Ok(());
    }
    Err(format!("answers\n  native:  {native:?}\n  mounted: {mounted:?}"))
}

/// Performs a step on both sides and compares all that it answered and did to what it names.
pub(crate) fn watched(sides: &mut [Side; 2], step: &Step, explained: Explained) -> Result<(), String> {
    let results = sides.each_mut().map(|side| {
        let before = look(side, step);
        let start = now();
        let answer = side.perform(step);
        let after = look(side, step);
        let changes = changes(&before, &after, start, step, side.view);
        let numbers = if side.view == View::Merged { same_numbers(&before, &after, step) } else { Ok(()) };
        (answer, after, changes, numbers)
    });
    let [
        (native, native_after, native_changes, native_numbers),
        (mounted, mounted_after, mounted_changes, numbers),
    ] = results;
    let answers = [native, mounted];
    same_answers(step, &answers, explained)?;
    native_numbers.map_err(|e| format!("native: {e}"))?;
    numbers.map_err(|e| format!("mounted: {e}"))?;
    for (index, (native, mounted)) in native_after.iter().zip(&mounted_after).enumerate() {
        let label = &native.label;
        let [native_text, mounted_text] = [native.text(sides[0].view), mounted.text(sides[1].view)];
        if native_text != mounted_text {
            let (native, mounted) = (native_text, mounted_text);
            return Err(format!("attributes of {label}\n  native:  {native}\n  mounted: {mounted}"));
        }
        let Ok(node) = &native.node else { continue };
        let (native, mounted) = (&native_changes[index], &mounted_changes[index]);
        if !native.agree(mounted) && !explained.times((step, &answers[0]), node, native, mounted) {
            return Err(format!("times of {label}\n  native:  {native:?}\n  mounted: {mounted:?}"));
        }
    }
    Ok(())
}

/// Whether two trees, as [`super::tree::snapshot`] tells them, are the same.
pub(crate) fn same_trees(names: [&str; 2], [left, right]: [&[String]; 2]) -> Result<(), String> {
    if left == right {
        return Ok(());
    }
    let mut text = "the trees differ".to_owned();
    for (name, lines, others) in [(names[0], left, right), (names[1], right, left)] {
        for line in lines.iter().filter(|line| !others.contains(line)) {
            text += &format!("\n  {name}: {line}");
        }
    }
    Err(text)
}
