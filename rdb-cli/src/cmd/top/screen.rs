//! The screen of `flaredb top`, drawn.
//!
//! Owns layout and colours. Knows nothing of where the model came from, nor of keys; what does not fit is cut off at the
//! bottom of its own part, never the verdict.

use super::model::{Model, NamespaceRow, Rates, RegionRow, StoreRow};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table, Wrap};

/// What is drawn beside the model.
#[derive(Clone, Debug, Default)]
pub(super) struct Frills {
    /// Why the model is not of now; empty: it is.
    pub(super) stale: String,
    /// Namespaces scrolled past.
    pub(super) skipped: usize,
    /// No colours.
    pub(super) plain: bool,
}

/// At most so many findings; the rest is a number, and `flaredb status` has them all.
const FINDINGS: usize = 4;

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, frills: &Frills) {
    let paint = Paint(frills.plain);
    let opening = opening(model, frills, paint);
    let width = usize::from(frame.area().width).max(1);
    let lines: usize = opening
        .iter()
        .map(|line| line.width().div_ceil(width).max(1))
        .sum();
    let height = |rows: usize| u16::try_from(rows + 2).unwrap_or(u16::MAX);
    let [top, stores, regions, namespaces, keys] = Layout::vertical([
        Constraint::Length(u16::try_from(lines).unwrap_or(u16::MAX)),
        Constraint::Length(height(model.stores.len())),
        Constraint::Length(height(model.regions.len().min(6))),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let paragraph = Paragraph::new(opening).wrap(Wrap { trim: false });
    frame.render_widget(paragraph, top);
    frame.render_widget(store_table(&model.stores, paint), stores);
    frame.render_widget(region_table(&model.regions, paint), regions);
    // Its head is a line, the title above it another.
    let room = usize::from(namespaces.height.saturating_sub(2));
    let all = model.namespaces.len();
    let skipped = frills.skipped.min(all.saturating_sub(room));
    let shown = &model.namespaces[skipped..(skipped + room).min(all)];
    frame.render_widget(namespace_table(shown, skipped, all, paint), namespaces);
    let keys_line = " q quit   up/down namespaces   all of it: flaredb status";
    frame.render_widget(Paragraph::new(keys_line).style(paint.dim()), keys);
}

#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn of(self, colour: Color) -> Style {
        if self.0 {
            Style::default()
        } else {
            Style::default().fg(colour)
        }
    }

    fn dim(self) -> Style {
        self.of(Color::DarkGray)
    }

    fn bad(self, bad: bool) -> Style {
        if bad {
            self.of(Color::Red).add_modifier(Modifier::BOLD)
        } else {
            Style::default()
        }
    }
}

fn opening<'a>(model: &'a Model, frills: &'a Frills, paint: Paint) -> Vec<Line<'a>> {
    let colour = match model.verdict {
        "healthy" => Color::Green,
        "degraded" => Color::Yellow,
        _ => Color::Red,
    };
    let verdict = Span::styled(model.verdict, paint.of(colour).add_modifier(Modifier::BOLD));
    let cluster = format!(
        "  cluster {}, as store {} sees it",
        model.cluster, model.answered_by
    );
    let mut lines = vec![Line::from(vec![
        verdict,
        Span::styled(cluster, paint.dim()),
    ])];
    if !frills.stale.is_empty() {
        let text = format!("! not of now: {}", frills.stale);
        lines.push(Line::styled(text, paint.bad(true)));
    }
    let shown = model.findings.iter().take(FINDINGS);
    lines.extend(shown.map(|finding| Line::from(format!("- {finding}"))));
    if let further @ 1.. = model.findings.len().saturating_sub(FINDINGS) {
        lines.push(Line::from(format!("and {further} more: flaredb status")));
    }
    lines
}

fn part(title: String, paint: Paint) -> Block<'static> {
    let style = paint.dim();
    Block::new()
        .borders(Borders::TOP)
        .border_style(style)
        .title(title)
}

fn head(names: &[&'static str]) -> Row<'static> {
    Row::new(names.to_vec()).style(Style::default().add_modifier(Modifier::BOLD))
}

/// Some operations a second.
fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate < 10.0 => format!("{rate:.1}"),
        Some(rate) => format!("{rate:.0}"),
    }
}

fn three(rates: Option<Rates>) -> [String; 3] {
    [
        rate(rates.map(|it| it.reads)),
        rate(rates.map(|it| it.writes)),
        rate(rates.map(|it| it.refused)),
    ]
}

fn store_table(stores: &[StoreRow], paint: Paint) -> Table<'static> {
    let rows = stores.iter().map(|store| {
        let [reads, writes, refused] = three(store.rates);
        let state = if store.up { "up" } else { "DOWN" };
        let cells = [
            store.id.to_string(),
            store.address.clone(),
            state.to_owned(),
            store.leads.to_string(),
            reads,
            writes,
            refused,
            store.uptime.clone(),
            store.disk_free.clone(),
            store.memory.clone(),
            store.clock.clone(),
        ];
        Row::new(cells).style(paint.bad(!store.up || store.clock == "OFF"))
    });
    let widths = [
        Constraint::Length(5),
        Constraint::Max(22),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(6),
        Constraint::Length(14),
        Constraint::Length(8),
        Constraint::Min(6),
    ];
    Table::new(rows, widths)
        .header(head(&[
            "STORE",
            "ADDRESS",
            "STATE",
            "LEADS",
            "READS/S",
            "WRITES/S",
            "REFUSED/S",
            "UP",
            "DISK FREE",
            "MEMORY",
            "CLOCK",
        ]))
        .block(part(" stores ".to_owned(), paint))
}

fn region_table(regions: &[RegionRow], paint: Paint) -> Table<'static> {
    let rows = regions.iter().map(|region| {
        let leader = match region.leader {
            0 => "none".to_owned(),
            leader => format!("store {leader}"),
        };
        let cells = [
            region.id.to_string(),
            leader,
            region.term.to_string(),
            if region.quorum { "yes" } else { "NO" }.to_owned(),
            region.lag.to_string(),
            region.waiting.to_string(),
        ];
        Row::new(cells).style(paint.bad(!region.quorum))
    });
    let widths = [8, 10, 8, 7, 9, 15].map(Constraint::Length);
    Table::new(rows, widths)
        .header(head(&[
            "REGION",
            "LEADER",
            "TERM",
            "QUORUM",
            "MOST LAG",
            "WAITING WRITES",
        ]))
        .block(part(" regions ".to_owned(), paint))
}

fn namespace_table(
    shown: &[NamespaceRow],
    skipped: usize,
    all: usize,
    paint: Paint,
) -> Table<'static> {
    let rows = shown.iter().map(|namespace| {
        let [reads, writes, refused] = three(namespace.rates);
        let mode = match namespace.switching.as_str() {
            "" => namespace.mode.clone(),
            to => format!("{} {to}", namespace.mode),
        };
        let cells = [
            namespace.name.clone(),
            mode,
            reads,
            writes,
            refused,
            namespace.keys.to_string(),
            namespace.lag.clone(),
            match namespace.conflicts {
                0 => String::new(),
                conflicts => conflicts.to_string(),
            },
        ];
        let style = if namespace.switching.is_empty() {
            paint.bad(namespace.troubled)
        } else {
            paint.of(Color::Yellow)
        };
        Row::new(cells).style(style)
    });
    let widths = [
        Constraint::Max(24),
        Constraint::Max(30),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(16),
        Constraint::Min(9),
    ];
    let title = match shown.len() {
        0 => format!(" namespaces: {all} "),
        rows => format!(
            " namespaces {} to {} of {all} ",
            skipped + 1,
            skipped + rows
        ),
    };
    Table::new(rows, widths)
        .header(head(&[
            "NAMESPACE",
            "MODE",
            "READS/S",
            "WRITES/S",
            "REFUSED/S",
            "KEYS",
            "LAG",
            "CONFLICTS",
        ]))
        .block(part(title, paint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn drawn(model: &Model, frills: &Frills, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model, frills)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = |y| {
            let cells = (0..width).map(|x| buffer[(x, y)].symbol());
            cells.collect::<String>().trim_end().to_owned()
        };
        (0..height).map(line).collect()
    }

    fn model(namespaces: usize) -> Model {
        let rates = Some(Rates {
            reads: 1234.4,
            writes: 7.25,
            refused: 0.0,
        });
        Model {
            cluster: "c1".into(),
            answered_by: 2,
            verdict: "degraded",
            findings: vec!["store 3 at s3:1 is unreachable (no answer): start it again".into()],
            stores: vec![
                StoreRow {
                    id: 1,
                    address: "s1:1".into(),
                    up: true,
                    leads: 2,
                    uptime: "3h".into(),
                    rates,
                    disk_free: "20 GiB (40%)".into(),
                    memory: "44 MiB".into(),
                    clock: "+2 ms".into(),
                },
                StoreRow {
                    id: 3,
                    address: "s3:1".into(),
                    ..StoreRow::default()
                },
            ],
            regions: vec![RegionRow {
                id: 2,
                leader: 1,
                term: 7,
                quorum: true,
                lag: 3,
                waiting: 5,
            }],
            namespaces: (0..namespaces)
                .map(|number| NamespaceRow {
                    name: format!("n{number}"),
                    mode: "eventual".into(),
                    switching: if number == 0 {
                        "to strong, 4s".into()
                    } else {
                        String::new()
                    },
                    rates,
                    keys: 9,
                    lag: "12 (30s)".into(),
                    troubled: true,
                    conflicts: 4,
                })
                .collect(),
        }
    }

    #[test]
    fn the_verdict_comes_first_and_every_part_is_there() {
        let lines = drawn(&model(2), &Frills::default(), 120, 24);
        assert_eq!(lines[0], "degraded  cluster c1, as store 2 sees it");
        assert!(
            lines[1].starts_with("- store 3 at s3:1 is unreachable"),
            "{lines:#?}"
        );
        let whole = lines.join("\n");
        let squeezed = whole.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "1 s1:1 up 2 1234 7.2 0.0 3h 20 GiB (40%) 44 MiB +2 ms",
            "3 s3:1 DOWN 0 - - -",
            "2 store 1 7 yes 3 5",
            "n0 eventual to strong, 4s 1234 7.2 0.0 9 12 (30s) 4",
            "namespaces 1 to 2 of 2",
            "q quit",
        ] {
            assert!(squeezed.contains(part), "no {part:?} in\n{whole}");
        }
    }

    #[test]
    fn what_does_not_fit_is_scrolled_and_the_verdict_stays() {
        let mut model = model(100);
        model.findings = (0..9).map(|number| format!("finding {number}")).collect();
        let frills = Frills {
            skipped: 50,
            stale: "no store answers".into(),
            ..Frills::default()
        };
        let lines = drawn(&model, &frills, 80, 24);
        let whole = lines.join("\n");
        for part in [
            "degraded",
            "! not of now: no store answers",
            "finding 3",
            "and 5 more: flaredb status",
            "namespaces 51 to 5",
            "of 100",
            "n50",
            "q quit",
        ] {
            assert!(whole.contains(part), "no {part:?} in\n{whole}");
        }
        // Scrolled beyond the end, it shows the end.
        let frills = Frills {
            skipped: 5_000,
            ..Frills::default()
        };
        assert!(drawn(&model, &frills, 80, 24).join("\n").contains("n99"));
        // However small it is.
        for (width, height) in [(1, 1), (10, 3), (300, 2)] {
            drawn(&model, &frills, width, height);
        }
    }
}
