//! What a run costs on several ranks with a card each: arithmetic and memory from the plans of a rank's share, exchanges from
//! data sheets. A model: no run on several cards has been measured.

use super::forecast::{every_stage, on_card};
use super::spec::{ImageSource, RunSpec, Split, StudentInit};
use super::student_network::student_network;
use super::teachers::OpenedTeacher;
use crate::autograd::{Engine, Phase, Plan};
use crate::device::gpu::card::Card;
use crate::device::gpu::room::{Held, Room};
use crate::device::gpu::target::Target;
use crate::error::{Error, Result};
use crate::models::generator::levels;
use crate::models::resnet::ResNetSpec;

/// Number of cards in a machine. Their own links connect these; the network connects cards of different machines.
pub const CARDS_OF_A_MACHINE: usize = 8;
/// Bytes a second that a card sends to another machine: 90 % of a 400 Gbit/s port for each card.
pub const NETWORK_BYTES_PER_SECOND: f64 = 45e9;
/// Share of the links' bandwidth that exchanges are assumed to reach.
pub const LINK_SHARE: f64 = 0.8;
/// Seconds that an exchange takes beside its bytes, within a machine and between machines.
pub const EXCHANGE_SECONDS: [f64; 2] = [15e-6, 40e-6];

/// A stage on several ranks. Times are in milliseconds.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RankStage {
    /// The stage's name.
    pub name: String,
    /// Its number of steps.
    pub steps: usize,
    /// A step on one card.
    pub alone_ms: f64,
    /// A step on the ranks, exchanges included.
    pub step_ms: f64,
    /// What its exchanges take.
    pub exchange_ms: f64,
    /// Exchanges of a step.
    pub exchanges: usize,
    /// Bytes that a rank sends in a step.
    pub sent_bytes: u64,
}

/// A run on several ranks.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RanksForecast {
    /// How many there are.
    pub ranks: usize,
    /// What they divide.
    pub split: Split,
    /// In the order of the run.
    pub stages: Vec<RankStage>,
    /// Memory of each card at its peak.
    pub gpu_peak_bytes: usize,
    /// Of one card that does everything.
    pub alone_peak_bytes: usize,
    /// Time of all stages.
    pub seconds: f64,
    /// Of one card that does everything.
    pub alone_seconds: f64,
    /// The time of one card, over the ranks' time and their number.
    pub efficiency: f64,
}

/// A stage of one process, as the model needs it.
struct Part {
    name: String,
    steps: usize,
    ms: f64,
    held: Held,
    trained: usize,
    statistics: usize,
    norms: usize,
}

/// Forecasts the student's training on so many ranks with a card each.
///
/// Errors: more ranks than teachers, or a batch that the ranks cannot divide equally; those of the plans.
pub fn of_ranks(
    spec: &RunSpec,
    opened: &[OpenedTeacher],
    ranks: usize,
    card: &'static Card,
) -> Result<RanksForecast> {
    let (share, teachers) = share_of(spec, opened, ranks)?;
    let network = student_network(&spec.student, opened).map_err(|m| m.without_line())?;
    let (alone, own) = (parts(spec, opened, card)?, parts(&share, teachers, card)?);
    let stage = |(alone, own): (&Part, &Part)| {
        let (exchanges, sent) = match spec.split {
            Split::Teachers => of_teachers(spec, &network, teachers.len(), &alone.name),
            Split::Batch => of_batch(own),
        };
        // Of what a rank has, it keeps the part that is its own.
        let sent = sent * (ranks - 1) as f64 / ranks as f64;
        let exchange_ms = 1e3 * exchange_seconds(card, ranks, exchanges, sent);
        RankStage {
            name: alone.name.clone(),
            steps: alone.steps,
            alone_ms: alone.ms,
            step_ms: own.ms + exchange_ms,
            exchange_ms,
            exchanges,
            sent_bytes: sent as u64,
        }
    };
    let stages: Vec<RankStage> = alone.iter().zip(&own).map(stage).collect();
    let peak = |parts: &[Part]| parts.iter().map(|p| p.held).fold(Held::default(), Held::larger).total();
    let sum = |of: fn(&RankStage) -> f64| stages.iter().map(|s| of(s) * s.steps as f64 / 1e3).sum::<f64>();
    let (seconds, alone_seconds) = (sum(|s| s.step_ms), sum(|s| s.alone_ms));
    Ok(RanksForecast {
        ranks,
        split: spec.split,
        gpu_peak_bytes: peak(&own),
        alone_peak_bytes: peak(&alone),
        seconds,
        alone_seconds,
        efficiency: alone_seconds / seconds / ranks as f64,
        stages,
    })
}

/// The share of the first rank, as a run of one process: its teachers, of which no rank has more, or its part of the batch.
/// Where teachers differ, another rank may have more to do.
fn share_of<'t>(
    spec: &RunSpec,
    opened: &'t [OpenedTeacher],
    ranks: usize,
) -> Result<(RunSpec, &'t [OpenedTeacher])> {
    let mut share = spec.clone();
    if spec.split == Split::Batch {
        for (key, batch) in
            [("generator.batch", &mut share.generator.batch), ("dual.batch", &mut share.dual.batch)]
        {
            if !batch.is_multiple_of(ranks) {
                return Err(Error::Usage(format!(
                    "--ranks {ranks}: {key} is {batch}, which {ranks} ranks cannot divide equally"
                )));
            }
            *batch /= ranks;
        }
        return Ok((share, opened));
    }
    if ranks > opened.len() {
        return Err(Error::Usage(format!(
            "--ranks {ranks}: {} teachers are divided among the ranks; give at most as many, or divide the batch: --set \
             parallel.split=batch",
            opened.len()
        )));
    }
    let own = &opened[..opened.len().div_ceil(ranks)];
    share.teachers.truncate(own.len());
    let has = |label: &String| own.iter().any(|t| t.known.labels.contains(label));
    let has_name = |name: &String| own.iter().any(|t| t.name == *name);
    share.student.teachers_of.retain(|label, name| has(label) && has_name(name));
    if !share.student.labels.is_empty() {
        share.student.labels.retain(has);
        if share.student.labels.is_empty() {
            share.student.labels.extend(own[0].known.labels.first().cloned());
        }
    }
    // What the blocks start from costs nothing in a step.
    share.student.init = StudentInit::Scratch;
    Ok((share, own))
}

/// The stages of the student, planned for the card.
fn parts(spec: &RunSpec, opened: &[OpenedTeacher], card: &Card) -> Result<Vec<Part>> {
    let mut engine = Engine::planning(Target::of_card(card, spec.precision));
    let (mut found, mut room) = (Vec::new(), Room::default());
    let fits = |engine: &mut Engine<f32>, plan: &Plan<f32>| {
        Ok(plan.held(&engine.store, &mut Room::default()).total() as f64 <= card.memory_bytes)
    };
    every_stage(spec, opened, "", &mut engine, fits, |engine, stage, _| {
        let gpu = on_card(engine, &stage, card, &mut room);
        let count = |op: &str, phase: Phase| {
            stage.plan.listing().filter(|(p, name, _)| *p == phase && *name == op).count()
        };
        found.push(Part {
            name: stage.name.clone(),
            steps: stage.steps,
            ms: gpu.modelled_ms[0],
            held: gpu.memory,
            trained: gpu.cost.trained_elements,
            statistics: count("statistics_loss", Phase::Forward),
            norms: count("batch_norm", Phase::Backward),
        });
        Ok(())
    })?;
    Ok(found)
}

/// Exchanges and bytes of a step in which the ranks divide the teachers: for every value that all teachers read, the
/// gradients of the rank's own teachers and the sum (`spread`), and some gathers of predictions and losses, whose bytes do
/// not count.
fn of_teachers(spec: &RunSpec, network: &ResNetSpec, own: usize, stage: &str) -> (usize, f64) {
    let bytes = |level: usize, batch: usize| {
        (size_of::<f32>() * network.feature(level, batch).elems() * (own + 1)) as f64
    };
    let all = levels(network.blocks(), spec.generator.groups);
    match stage.strip_prefix("block").and_then(|b| b.parse::<usize>().ok()) {
        None => {
            let gathers = 4 + all.len();
            (2 * all.len() + gathers, all.iter().map(|l| bytes(*l, spec.generator.batch)).sum())
        }
        Some(b) => {
            let has_second = b > 1
                && spec.dual.lambda_in[1] > 0.0
                && spec.dual.images == ImageSource::Generator
                && all.contains(&(b - 1));
            let inputs = 1 + usize::from(has_second);
            (3 * inputs, inputs as f64 * bytes(b, spec.dual.batch))
        }
    }
}

/// Exchanges and bytes of a step in which the ranks divide the batch: the gradients and their sums; of each batch norm two
/// sums forward and one backward, of each statistics loss two; and some gathers, whose bytes do not count.
fn of_batch(own: &Part) -> (usize, f64) {
    let gathers = 6;
    let exchanges = 2 + 3 * own.norms + 2 * own.statistics + gathers;
    (exchanges, (2 * size_of::<f32>() * own.trained) as f64)
}

/// Ranks of one machine use the card's links, and send the rest through the network.
fn exchange_seconds(card: &Card, ranks: usize, exchanges: usize, sent: f64) -> f64 {
    let near = ranks.min(CARDS_OF_A_MACHINE);
    let far = sent * (ranks - near) as f64 / (ranks - 1) as f64;
    let link = LINK_SHARE * card.link_bytes_per_second();
    let each = EXCHANGE_SECONDS[usize::from(ranks > near)];
    ((sent - far) / link).max(far / NETWORK_BYTES_PER_SECOND) + each * exchanges as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_takes_its_start_and_the_slower_of_two_ways() {
        let card: &Card = Default::default();
        // 36 GB to seven neighbours by NVLink at 360 GB/s.
        assert!((exchange_seconds(card, 8, 2, 36e9) - 0.1 - 30e-6).abs() < 1e-9);
        // Of 63 parts, 56 go through the network.
        let far = 63e9 * 56.0 / 63.0 / 45e9;
        assert!((exchange_seconds(card, 64, 1, 63e9) - far - 40e-6).abs() < 1e-9);
    }
}
