//! The plot page: one file, with the bars drawn as SVG in it. Nothing is loaded from elsewhere.

use std::fmt::Write;

use crate::engine::Kind;
use crate::report::{Report, number, title, versus};

/// Where the bars begin, how long the longest is, and how high a row is.
const LEFT: f64 = 110.0;
const LONGEST: f64 = 420.0;
const ROW: f64 = 22.0;

const STYLE: &str = "
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
  color: #222; background: #fff }
h2 { font-size: 1rem; margin: 2rem 0 .3rem }
svg { width: 100%; height: auto } text { font-size: 12px; fill: currentColor }
rect { fill: #9aa5b1 } rect.own { fill: #d9480f } rect.bound { fill: #dfe3e8 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1d20 }
  rect.bound { fill: #444a52 } }";

/// The whole page.
pub(crate) fn page(report: &Report) -> Result<String, std::fmt::Error> {
    let mut page = String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">");
    write!(page, "<title>Stores side by side</title><style>{STYLE}</style>")?;
    let [before, after] = &report.load;
    write!(
        page,
        "<h1>Stores side by side</h1><p>{} CPUs, kernel {}, load {before} before and {after} after; \
         values of {} B; medians of {} rounds, each with every engine. Behind a bar: the figure, its \
         ratio to ringlog's, and the p99 latency.</p>",
        report.cpus,
        escaped(&report.kernel),
        report.value_bytes,
        report.rounds,
    )?;
    for (workload, callers, cells) in report.groups() {
        let figure = |cell: &&crate::report::Cell| cell.median().map_or(0.0, |m| m.figure);
        let most = cells.iter().map(figure).fold(f64::MIN_POSITIVE, f64::max);
        let height = ROW * f64::from(u32::try_from(cells.len()).unwrap_or(u32::MAX));
        write!(page, "<h2>{} ({})</h2>", title(workload, callers), workload.unit())?;
        write!(page, "<svg viewBox=\"0 0 760 {height}\" role=\"img\">")?;
        let mut y = 0.0;
        for cell in &cells {
            let class = match cell.engine {
                Kind::Ringlog => "own",
                Kind::Raw => "bound",
                _ => "peer",
            };
            let length = figure(cell) / most * LONGEST;
            write!(page, "<text x=\"0\" y=\"{}\">{}</text>", y + 15.0, cell.engine)?;
            write!(
                page,
                "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\"/>",
                y + 3.0,
                ROW - 6.0,
            )?;
            let median = cell.median();
            let mut label = number(median.map(|median| median.figure));
            if let Some(ratio) = versus(cell, &cells, Kind::Ringlog) {
                write!(label, " · {ratio:.2}x")?;
            }
            if let Some(p99) = median.and_then(|median| median.p99) {
                write!(label, " · p99 {} us", number(Some(p99)))?;
            }
            let x = LEFT + length + 6.0;
            write!(page, "<text x=\"{x:.1}\" y=\"{}\">{label}</text>", y + 15.0)?;
            y += ROW;
        }
        page.push_str("</svg>");
    }
    for (workload, engine, why) in report.missing() {
        write!(page, "<p>{workload}, {engine}: unavailable: {}</p>", escaped(why))?;
    }
    page.push_str("</html>\n");
    Ok(page)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
