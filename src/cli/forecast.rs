//! The text of a forecast.

use super::output::lines;
use crate::device::gpu::card::Card;
use crate::device::gpu::launch::L2_BYTES;
use crate::report;
use serde_json::Value;

/// Rows of a step's table with less than this share of its time are summed in one row.
const LEAST_SHARE: f64 = 0.01;

/// A table of the stages, then time, memory and parameters, then the cost of each stage's step on the card.
/// JSON without stages is printed as plain lines.
pub fn text(forecast: &Value) -> String {
    let Some(stages) = forecast["stages"].as_array() else { return lines(forecast) };
    let mut text = format!(
        "\n{:<16} {:>7} {:>9} {:>9} {:>10} {:>9} {:>9} {:>9}\n",
        "stage", "steps", "GFLOP", "MB moved", "ms a step", "seconds", "launches", "MB on GPU"
    );
    for s in stages {
        text += &format!(
            "{:<16} {:>7} {:>9.2} {:>9.0} {:>10.1} {:>9.0} {:>9} {:>9.0}\n",
            word(&s["name"]),
            s["steps"],
            2e-9 * number(&s["macs"]),
            megabytes(&s["bytes_moved"]),
            number(&s["step_ms"]),
            number(&s["seconds"]),
            s["gpu"]["launches"],
            megabytes(&s["gpu"]["bytes_moved"]),
        );
    }
    text += "(per step; the last two columns are kernel launches and bytes moved on a GPU)\n";
    let (p, card) = (&forecast["parameters"], word(&forecast["card"]["name"]).to_uppercase());
    let source = if forecast["is_measured"] == true {
        "from a few steps of each stage, timed on this machine".into()
    } else {
        format!("the least that an {card} needs for these launches; nothing was timed")
    };
    let held = |part: &str| number(&forecast["gpu_peak"][part]) / 1e9;
    let [peak, store, arena] =
        ["peak_bytes", "store_bytes", "arena_bytes"].map(|part| number(&forecast[part]));
    let (gpu, whole) = (number(&forecast["gpu_peak_bytes"]), number(&forecast["card"]["memory_bytes"]));
    text += &format!(
        "\ntime       {} ({source})\n\
         memory     {:.0} MB at the peak ({:.0} MB of tensors, {:.0} MB for the largest step, {:.0} MB for the rest)\n\
         GPU memory {:.2} GB at the peak ({:.2} GB of tensors, {:.2} GB of bf16 copies, {:.2} GB for the largest step): \
         {:.1} % of an {card}\n\
         parameters {:.2} M in the teachers, {:.2} M in the student\n",
        report::duration(number(&forecast["seconds"])),
        peak / 1e6,
        store / 1e6,
        arena / 1e6,
        (peak - store - arena) / 1e6,
        gpu / 1e9,
        held("store_bytes"),
        held("copies_bytes"),
        held("arena_bytes"),
        100.0 * gpu / whole,
        megabytes(&p["teachers"]),
        megabytes(&p["student"]),
    );
    text += &by_turns(forecast);
    text += &format!(
        "\none step on an {card}: bytes that its launches move, and bytes that a schedule fused layer by layer must move,\n\
         each with the least ms that the card's data sheet allows; and the ms that the launches are forecast to take, with {} \
         and\nwith {} bytes a cycle from the L2 to each multiprocessor (no card has confirmed the model)\n\
         {:<40} {:>8} {:>9} {:>9} {:>9} {:>6} {:>9} {:>9} {:>9} {:>9} {:>11}\n",
        L2_BYTES[0],
        L2_BYTES[1],
        "",
        "launches",
        "GFLOP",
        "MB moved",
        "MB least",
        "ratio",
        "ms moved",
        "ms least",
        "ms model",
        "slower L2",
        "% of least"
    );
    stages.iter().for_each(|s| text += &step(s));
    text
}

/// The training on several ranks: a line with its figures, and a row for each stage.
pub fn of_ranks(forecast: &Value, card: &Card) -> String {
    let of = |key: &str| number(&forecast[key]);
    let (ranks, name) = (of("ranks"), card.name.to_uppercase());
    let mut text = format!(
        "\non {ranks} ranks with an {name} each, which divide the {}, the training takes {} and {:.1} GB of each card's memory\n\
         on one {name} it takes {} and {:.1} GB, so the ranks reach {:.0} % of {ranks} times its speed\n\
         (both by a model of the cards: no run on several cards has been measured; all times above are of one process)\n\
         {:<16} {:>9} {:>11} {:>11} {:>10} {:>9}\n",
        word(&forecast["split"]),
        report::duration(of("seconds")),
        of("gpu_peak_bytes") / 1e9,
        report::duration(of("alone_seconds")),
        of("alone_peak_bytes") / 1e9,
        100.0 * of("efficiency"),
        "stage",
        "ms alone",
        "ms on ranks",
        "ms moving",
        "exchanges",
        "MB sent"
    );
    for s in forecast["stages"].as_array().into_iter().flatten() {
        text += &format!(
            "{:<16} {:>9.1} {:>11.1} {:>11.2} {:>10} {:>9.1}\n",
            word(&s["name"]),
            number(&s["alone_ms"]),
            number(&s["step_ms"]),
            number(&s["exchange_ms"]),
            number(&s["exchanges"]),
            megabytes(&s["sent_bytes"]),
        );
    }
    if forecast["split"] == "batch" {
        text += "a batch is divided on the CPU only so far\n";
    }
    text
}

/// What the generator's step would cost with one teacher at a time, beside what it costs.
fn by_turns(forecast: &Value) -> String {
    let (turns, now) = (&forecast["one_teacher_at_a_time"], &forecast["stages"][0]);
    if turns.is_null() || number(&turns["macs"]) <= number(&now["macs"]) {
        return String::new();
    }
    let memory = &now["gpu"]["memory"];
    let held: f64 = memory.as_object().into_iter().flat_map(|m| m.values()).map(number).sum();
    format!(
        "teachers   {} at a time here, {} on the GPU; one at a time (generator.teachers_at_once = 1) the generator's step\n           \
         would need {:.0} MB instead of {:.0}, {:.2} GB on the GPU instead of {:.2}, and {:.2} times the arithmetic\n",
        now["teachers_at_once"],
        now["gpu"]["teachers_at_once"],
        megabytes(&turns["arena_bytes"]),
        megabytes(&now["arena_bytes"]),
        number(&turns["gpu_bytes"]) / 1e9,
        held / 1e9,
        number(&turns["macs"]) / number(&now["macs"]),
    )
}

/// Rows of one stage: its total, its parts, and their ops, slowest first.
fn step(stage: &Value) -> String {
    let gpu = &stage["gpu"];
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let parts = list(&gpu["parts"]);
    let mut whole = gpu.clone();
    whole["flops"] = (2.0 * number(&gpu["macs"])).into();
    let mut text = row(word(&stage["name"]), &whole);
    for p in &parts {
        text += &row(&format!("  {}", word(&p["part"])), p);
    }
    let named = |p: &Value, op: &Value| {
        (format!("    {} {}, {}", word(&op["op"]), word(&op["phase"]), word(&p["part"])), op.clone())
    };
    let mut ops: Vec<(String, Value)> =
        parts.iter().flat_map(|p| list(&p["ops"]).into_iter().map(move |op| named(p, &op))).collect();
    ops.sort_by(|a, b| number(&b.1["planned_ms"]).total_cmp(&number(&a.1["planned_ms"])));
    let least = LEAST_SHARE * number(&gpu["planned_ms"]);
    let (shown, rest): (Vec<_>, Vec<_>) =
        ops.into_iter().partition(|(_, op)| number(&op["planned_ms"]) >= least);
    shown.iter().for_each(|(name, op)| text += &row(name, op));
    if !rest.is_empty() {
        let keys = ["launches", "flops", "bytes_moved", "minimal_bytes", "planned_ms", "roofline_ms"];
        let sum = |key: &str| rest.iter().map(|(_, op)| number(&op[key])).sum::<f64>();
        let modelled = [0, 1].map(|i| rest.iter().map(|(_, op)| number(&op["modelled_ms"][i])).sum::<f64>());
        let mut all: serde_json::Map<String, Value> =
            keys.iter().map(|key| (key.to_string(), sum(key).into())).collect();
        all.insert("ratio".into(), (sum("bytes_moved") / sum("minimal_bytes")).into());
        all.insert("modelled_ms".into(), modelled.to_vec().into());
        text += &row(&format!("    {} others", rest.len()), &all.into());
    }
    text
}

fn row(name: &str, v: &Value) -> String {
    let ratio = v["ratio"].as_f64().map_or("-".into(), |r| format!("{r:.2}"));
    let modelled = [0, 1].map(|i| number(&v["modelled_ms"][i]));
    let [fast, slow] = modelled.map(|ms| 100.0 * number(&v["roofline_ms"]) / ms);
    format!(
        "{name:<40} {:>8} {:>9.2} {:>9.1} {:>9.1} {ratio:>6} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {fast:>4.0} to {slow:.0}\n",
        number(&v["launches"]),
        1e-9 * number(&v["flops"]),
        megabytes(&v["bytes_moved"]),
        megabytes(&v["minimal_bytes"]),
        number(&v["planned_ms"]),
        number(&v["roofline_ms"]),
        modelled[0],
        modelled[1],
    )
}

fn word(v: &Value) -> &str {
    v.as_str().unwrap_or("?")
}
pub(super) fn number(v: &Value) -> f64 {
    v.as_f64().unwrap_or(0.0)
}
fn megabytes(v: &Value) -> f64 {
    number(v) / 1e6
}
