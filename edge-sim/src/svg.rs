//! The diagram of a run: connects a second, bytes a second and unconverged nodes over time.

use crate::report::{Second, Series};

const WIDTH: usize = 900;
const PANEL: usize = 150;
const GAP: usize = 40;
const LEFT: usize = 90;

struct Panel {
    title: &'static str,
    colour: &'static str,
    value: fn(&Second) -> u64,
}

const PANELS: [Panel; 4] = [
    Panel {
        title: "connects / s",
        colour: "#1f6f8b",
        value: |second| u64::from(second.connects),
    },
    Panel {
        title: "refused connects / s",
        colour: "#a33b3b",
        value: |second| u64::from(second.refused),
    },
    Panel {
        title: "bytes / s, both ways",
        colour: "#4a7c36",
        value: |second| second.bytes_up + second.bytes_down,
    },
    Panel {
        title: "unconverged nodes",
        colour: "#7a4b94",
        value: |second| u64::from(second.unconverged),
    },
];

/// Draws `series` as an SVG of its own.
#[must_use]
pub fn draw(title: &str, series: &Series) -> String {
    let seconds = &series.seconds;
    let height = GAP + PANELS.len() * (PANEL + GAP);
    let whole = LEFT + WIDTH + 20;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{whole}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{title}</text>\n"
    );
    for (index, panel) in PANELS.iter().enumerate() {
        let top = GAP + index * (PANEL + GAP);
        svg.push_str(&panel_of(panel, top, seconds));
    }
    svg.push_str("</svg>\n");
    svg
}

/// One panel: the largest value of the seconds that share a pixel.
fn panel_of(panel: &Panel, top: usize, seconds: &[Second]) -> String {
    let max = seconds.iter().map(panel.value).max().unwrap_or(0).max(1);
    let bottom = top + PANEL;
    let columns = seconds.len().clamp(1, WIDTH);
    let mut points = format!("{LEFT},{bottom}");
    for column in 0..columns {
        let from = column * seconds.len() / columns;
        let to = ((column + 1) * seconds.len() / columns).max(from + 1);
        let part = seconds.get(from..to.min(seconds.len())).unwrap_or_default();
        let value = part.iter().map(panel.value).max().unwrap_or(0);
        let x = LEFT + column * WIDTH / columns;
        let y = bottom - usize::try_from(value * PANEL as u64 / max).unwrap_or(PANEL);
        points.extend([" ", &x.to_string(), ",", &y.to_string()]);
    }
    let right = LEFT + WIDTH;
    let end = seconds.len();
    format!(
        "<text x=\"{LEFT}\" y=\"{}\">{}</text>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{max}</text>\n\
         <text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\n\
         <text x=\"{right}\" y=\"{}\" text-anchor=\"end\">{end} s</text>\n\
         <polyline points=\"{points} {right},{bottom}\" fill=\"none\" stroke=\"{}\"/>\n\
         <path d=\"M{LEFT} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"black\"/>\n",
        top - 6,
        panel.title,
        LEFT - 6,
        top + 10,
        LEFT - 6,
        bottom + 14,
        panel.colour,
    )
}
