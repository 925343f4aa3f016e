//! Suggestions for a misspelt word: "did you mean".

/// The candidate nearest to `word`, if it is near enough to be what was meant. The distance counts
/// insertions, deletions, substitutions and swaps of neighbouring letters, without regard to case; at most a
/// third of the longer word's letters may differ, or one in a short word, but never all of them.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let (distance, candidate, length) = candidates
        .into_iter()
        .map(|c| {
            let lower = c.to_lowercase();
            (strsim::osa_distance(&word, &lower), c, lower.chars().count())
        })
        .min_by_key(|&(distance, ..)| distance)?;
    let longest = word.chars().count().max(length);
    (distance <= (longest / 3).max(1) && distance < longest).then_some(candidate)
}

/// The end of an error about `word`, which is not among `known`: the nearest of them, or all of them.
pub fn suggest(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("expected one of: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_has_a_suggestion_and_an_unrelated_one_none() {
        let keys = ["learning_rate", "latent", "batch", "steps"];
        assert_eq!(nearest("lerning_rate", keys), Some("learning_rate"));
        assert_eq!(nearest("Bacth", keys), Some("batch"));
        assert_eq!(nearest("step", keys), Some("steps"));
        assert_eq!(nearest("optimiser", keys), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest("", keys), None);
        assert_eq!(nearest("a", []), None);
    }
}
