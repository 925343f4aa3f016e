//! `metrics.jsonl`: one [`Record`] per line, written during the run and read for the curves.

use std::collections::BTreeMap;

/// One logged step.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Record {
    pub stage: String,
    /// Counted from 0.
    pub step: usize,
    /// Seconds since the stage began or was resumed.
    pub seconds: f64,
    /// Whether it is the first step after the stage was resumed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumed: bool,
    /// Values by name; `None` (`null`) if not finite, which JSON cannot express.
    pub metrics: BTreeMap<String, Option<f32>>,
}

/// The curves of one stage, in the order of the run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stage {
    pub name: String,
    /// Steps done.
    pub steps: usize,
    /// Time of these steps, summed over all calls of the program.
    pub seconds: f64,
    /// (step, value) points by metric; NaN if the value was not finite.
    pub curves: BTreeMap<String, Vec<(f64, f64)>>,
}

/// Parses the text of `metrics.jsonl`. Lines that are not records are skipped: a killed run may leave half a
/// line. If a step occurs twice (a resumed run repeats the steps after its checkpoint), the later one counts.
pub fn parse(text: &str) -> Vec<Stage> {
    let mut order: Vec<String> = Vec::new();
    let mut by_stage: BTreeMap<String, BTreeMap<usize, Record>> = BTreeMap::new();
    for record in text.lines().filter_map(|line| serde_json::from_str::<Record>(line).ok()) {
        if !by_stage.contains_key(&record.stage) {
            order.push(record.stage.clone());
        }
        by_stage.entry(record.stage.clone()).or_default().insert(record.step, record);
    }
    order
        .into_iter()
        .map(|name| {
            let mut curves: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
            let (mut steps, mut earlier, mut clock) = (0, 0.0, 0.0);
            for (step, record) in by_stage.remove(&name).unwrap_or_default() {
                // The clock starts again at 0 when a run is resumed. Earlier versions did not mark the step.
                earlier += if record.resumed || record.seconds < clock { clock } else { 0.0 };
                (steps, clock) = (step.saturating_add(1), record.seconds);
                for (metric, value) in record.metrics {
                    let value = value.map_or(f64::NAN, f64::from);
                    curves.entry(metric).or_default().push((step as f64, value));
                }
            }
            Stage { name, steps, seconds: earlier + clock, curves }
        })
        .collect()
}

/// Mean of a metric over the last tenth of its steps, as the run itself computes it; `None` without steps.
pub fn converged(points: &[(f64, f64)]) -> Option<f64> {
    let tail = &points[points.len() - points.len().div_ceil(10)..];
    (!tail.is_empty()).then(|| tail.iter().map(|p| p.1).sum::<f64>() / tail.len() as f64)
}

/// Reduces a curve to about `most` points that look the same when drawn: the smallest and largest of each
/// stretch, so that every spike stays, and one gap per stretch that had any.
pub fn thin(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let most = most.max(3);
    if points.len() <= most {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(most / 3);
    let mut kept = Vec::new();
    for part in points.chunks(stretch) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let finite = || part.iter().filter(|p| p.1.is_finite());
        let mut picked: Vec<(f64, f64)> = Vec::new();
        picked.extend(finite().min_by(by_value));
        picked.extend(finite().max_by(by_value));
        picked.extend(part.iter().find(|p| !p.1.is_finite()));
        picked.sort_by(|a, b| a.0.total_cmp(&b.0));
        picked.dedup_by(|a, b| a.0 == b.0);
        kept.extend(picked);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_keep_their_order_and_a_repeated_step_its_last_value() {
        let text = "{\"stage\":\"z\",\"step\":0,\"seconds\":0.5,\"metrics\":{\"a\":1,\"b\":null}}\n\
                    {\"stage\":\"z\",\"step\":2,\"seconds\":0.5,\"metrics\":{\"a\":3}}\n\
                    {\"stage\":\"a\",\"step\":0,\"seconds\":0.5,\"metrics\":{\"a\":9}}\n\
                    {\"stage\":\"z\",\"step\":2,\"seconds\":0.5,\"metrics\":{\"a\":4}}\n\
                    {\"stage\":\"z\",\"st";
        let stages = parse(text);
        assert_eq!(stages.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["z", "a"]);
        assert_eq!(stages[0].curves["a"], [(0.0, 1.0), (2.0, 4.0)]);
        assert!(stages[0].curves["b"][0].1.is_nan());
        assert_eq!((stages[0].steps, stages[0].seconds), (3, 0.5));
    }

    #[test]
    fn seconds_are_summed_over_calls() {
        let line = |step, seconds, resumed| {
            let metrics = BTreeMap::new();
            serde_json::to_string(&Record { stage: "z".into(), step, seconds, resumed, metrics }).unwrap()
        };
        let old = [(0, 1.0), (1, 2.0), (2, 0.5), (3, 1.5), (4, 0.25)].map(|(i, s)| line(i, s, false));
        assert_eq!(parse(&old.join("\n"))[0].seconds, 3.75);
        // The first step after the second call took longer than the first call.
        let marked = [line(0, 0.25, false), line(1, 0.5, true), line(2, 1.0, false), line(3, 4.0, true)];
        assert_eq!(parse(&marked.join("\n"))[0].seconds, 5.25);
        assert!(!old[0].contains("resumed") && marked[1].contains("\"resumed\":true"));
    }

    #[test]
    fn the_converged_value_is_the_mean_of_the_last_tenth() {
        let points: Vec<_> = (0..21).map(|i| (i as f64, i as f64)).collect();
        assert_eq!(
            (converged(&points), converged(&points[..1]), converged(&[])),
            (Some(19.0), Some(0.0), None)
        );
    }

    #[test]
    fn thinning_keeps_spikes_and_gaps() {
        let mut points: Vec<_> = (0..10_000).map(|i| (i as f64, (i as f64 / 500.0).sin())).collect();
        points[5432].1 = 50.0;
        points[7654].1 = f64::NAN;
        let thinned = thin(&points, 300);
        assert!(thinned.len() <= 300, "{}", thinned.len());
        assert!(thinned.contains(&(5432.0, 50.0)));
        assert!(thinned.iter().any(|p| p.1.is_nan()));
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(thin(&points[..10], 300), points[..10]);
    }
}
