//! How things are shown: aligned tables of at most 100 columns, or JSON.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use dunlin_control_api::{dataplane::Problem, v1::Plan};
use serde::Serialize;

/// The widest line of a table.
const WIDTH: usize = 100;

/// Prints a value as JSON.
pub fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints rows under a header; columns from `numbers` on are aligned to the right. Where a row
/// would be too wide, the widest column but the first is shortened: names stay whole, so that they
/// can be copied and searched.
pub fn table(header: &[&str], numbers: usize, rows: impl IntoIterator<Item = Vec<String>>) {
    let mut rows: Vec<Vec<String>> = rows.into_iter().collect();
    let width = |rows: &[Vec<String>], i: usize| {
        let cells = rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
        cells.chain([header[i].chars().count()]).max().unwrap_or(0)
    };
    loop {
        let widths: Vec<usize> = (0..header.len()).map(|i| width(&rows, i)).collect();
        let over = (widths.iter().map(|w| w + 2).sum::<usize>()).saturating_sub(WIDTH + 2);
        let Some((i, widest)) = widths.iter().enumerate().skip(1).max_by_key(|(_, w)| **w) else { break };
        let most = widest.saturating_sub(over).max(header[i].len()).max(8);
        if over == 0 || most >= *widest {
            break;
        }
        for cell in rows.iter_mut().filter_map(|r| r.get_mut(i)).filter(|c| c.chars().count() > most) {
            *cell = cell.chars().take(most - 1).chain(['…']).collect();
        }
    }
    let mut t = Table::new();
    t.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    t.set_header(header);
    for row in rows {
        t.add_row(row);
    }
    for (i, column) in t.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if i >= numbers {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in t.lines() {
        println!("{}", line.trim_end());
    }
}

/// Prints "name  value" lines.
pub fn facts(rows: &[(&str, String)]) {
    let width = rows.iter().map(|(k, _)| k.len()).max().unwrap_or(0);
    for (k, v) in rows.iter().filter(|(_, v)| !v.is_empty()) {
        println!("{k:width$}  {v}");
    }
}

/// Prints what a change changes.
pub fn plan(plan: &Plan, as_json: bool, dry_run: bool) -> anyhow::Result<()> {
    if as_json {
        return json(plan);
    }
    for item in &plan.items {
        let sign = match item.action.as_str() {
            "add" => '+',
            "remove" => '-',
            _ => '~',
        };
        let fields = if item.fields.is_empty() { String::new() } else { format!("  ({})", item.fields.join(", ")) };
        println!("{sign} {} {}{fields}", item.object, item.name);
    }
    let count = |action| plan.items.iter().filter(|i| i.action == action).count();
    let (added, changed, removed) = (count("add"), count("change"), count("remove"));
    if plan.items.is_empty() {
        println!("nothing to change (revision {})", plan.revision);
    } else if dry_run {
        println!("{added} to add, {changed} to change, {removed} to remove; nothing was changed");
    } else {
        println!("{added} added, {changed} changed, {removed} removed (revision {})", plan.revision);
        if !plan.in_force {
            println!("stored, and not in force yet: {}", plan.pending);
        }
    }
    plan.problems.iter().for_each(|p| println!("not in force: {}", problem(p)));
    plan.warnings.iter().for_each(|w| println!("note: {w}"));
    Ok(())
}

/// An object that is not in force, in a sentence.
pub fn problem(p: &Problem) -> String {
    let field = if p.field.is_empty() { String::new() } else { format!("{}: ", p.field) };
    format!("{} '{}': {field}{}", p.kind, p.name, p.reason)
}

/// A moment as people write it, in UTC.
pub fn time(unix_ms: u64) -> String {
    let (days, s) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    // Days since 1970 to a date: Howard Hinnant's civil_from_days, for years from 1970 on.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

/// A ratio as percent.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Seconds as people say them.
pub fn duration(s: u64) -> String {
    match (s / 86_400, s / 3_600 % 24, s / 60 % 60, s % 60) {
        (0, 0, 0, s) => format!("{s} s"),
        (0, 0, m, s) => format!("{m} min {s} s"),
        (0, h, m, _) => format!("{h} h {m} min"),
        (d, h, _, _) => format!("{d} d {h} h"),
    }
}
